"""The history of a scalar.

The calls are MMEngine's (``mmengine/logging/history_buffer.py``). Two things differ: a tensor is read when somebody
looks, not when it is handed over, and a history is bounded in memory and in a checkpoint.
"""

from __future__ import annotations

import itertools
import math
import numbers
from array import array
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, SupportsFloat, TypeAlias, TypeVar

import torch

from eventrunner.errors import OptionError, did_you_mean, listed

__all__ = ["AGGREGATE_EVERY", "HistoryBuffer", "Scalar", "check_entry", "kind_of", "scalar_of"]

Scalar: TypeAlias = SupportsFloat
"""An int or float, a tensor of one element, or what else has one element and ``item()``, such as a NumPy scalar."""

AGGREGATE_EVERY = 1_000
"""So many entries a history leaves pending before it takes them in unasked."""

F = TypeVar("F", bound=Callable[..., Any])

_SAVED = 1_000  # entries of a history in a checkpoint: what a window can reach back to after a resume
_LEAST = 16  # entries that the tensors of a saved history have room for
_ONE = 1
_Entry: TypeAlias = float | tuple[float, int]  # a value and its count, or a value alone where that is 1
_STATE = ("values", "counts", "sum", "count", "max", "min")


def kind_of(value: object) -> str:
    """Return what a value is, for the sentence that refuses it."""
    shape, name = getattr(value, "shape", None), type(value).__name__
    if isinstance(shape, tuple):
        return f"a {name} of shape {tuple(shape)} and dtype {getattr(value, 'dtype', None)}"
    return f"a value of type {name}"


def _not_a_scalar(value: object) -> OptionError:
    return OptionError(f"a scalar must be a number or a tensor of one element, not {kind_of(value)}.")


def _number(value: Any) -> float:
    try:
        plain = value if isinstance(value, (int, float)) else value.item()
        if isinstance(plain, (int, float)) and not isinstance(plain, bool):
            return float(plain)
    except (AttributeError, TypeError, ValueError, OverflowError):
        pass  # it has no item(), or several, or is an int beyond any float
    raise _not_a_scalar(value)


def scalar_of(value: object) -> float | torch.Tensor | None:
    """Return the number as a float, or the tensor itself where reading it would wait for a device; None for no number.

    Raises:
        OptionError: an int beyond any float.
    """
    if isinstance(value, torch.Tensor):
        if value.numel() != 1:
            return None
        if not value.is_cpu:
            return None if value.dtype == torch.bool or value.is_complex() else value
        value = value.item()
    if type(value) is float:
        return value
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        return None
    try:
        return float(value)
    except OverflowError:
        raise _not_a_scalar(value) from None


def _positive(value: int, what: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise OptionError(f"{what} must be an int of at least 1, not {value!r}.")
    return value


def check_entry(value: Scalar, count: int) -> tuple[float | torch.Tensor, int]:
    """Return the number as a float, or where that would wait for a device, a copy of the tensor; and its count.

    Raises:
        OptionError: the value isn't one number (a bool or a string isn't), or the count isn't an int of at least 1.
    """
    count = _positive(count, "count")
    scalar = scalar_of(value) if isinstance(value, torch.Tensor) else _number(value)
    if scalar is None:
        raise _not_a_scalar(value)
    return scalar.detach().clone() if isinstance(scalar, torch.Tensor) else scalar, count


def _pairs(entries: Iterable[_Entry]) -> list[tuple[float, int]]:
    """Return values and counts."""
    return [each if isinstance(each, tuple) else (each, 1) for each in entries]


def _read(pending: list[Any]) -> list[_Entry]:
    """Return what is pending with tensors as floats, for which there is one transfer per device and dtype."""
    groups: dict[tuple[torch.device, torch.dtype], list[int]] = {}
    for i, entry in enumerate(pending):
        if type(entry) is tuple and type(entry[0]) is not float:
            groups.setdefault((entry[0].device, entry[0].dtype), []).append(i)
    for group in groups.values():
        numbers = torch.stack([pending[i][0].reshape(()) for i in group]).tolist()
        for i, number in zip(group, numbers, strict=True):
            pending[i] = float(number), pending[i][1]
    return pending


def _tensor(code: str, dtype: torch.dtype, numbers: list[Any]) -> torch.Tensor:
    """Much faster than ``torch.tensor`` of a list, and a save does it several times."""
    return torch.frombuffer(array(code, numbers), dtype=dtype)


def _saved_entries(values: Any, counts: Any) -> tuple[Any, Any]:
    """Return the entries of a state without what fills its tensors up; the lists of an older one as they are."""
    if isinstance(counts, torch.Tensor):
        held = int((counts != 0).sum())
        counts = counts[:held].tolist()
        values = values[:held].tolist() if isinstance(values, torch.Tensor) else values
    return values, counts


@dataclass(frozen=True, slots=True)
class _Totals:
    """What some entries come to: the weighted sum of their values, the sum of their counts, and the extremes."""

    sum: float = 0.0
    count: int = 0
    max: float = -math.inf
    min: float = math.inf

    def plus(self, entries: Iterable[_Entry]) -> _Totals:
        """Return these and more, added one after another: a sum in another order would be another float."""
        total, number, largest, smallest = self.sum, self.count, self.max, self.min
        for entry in entries:
            value, count = entry if isinstance(entry, tuple) else (entry, 1)
            # A NaN is unequal to itself, and neither greater nor less than anything: once there, it stays.
            if value > largest or value != value:
                largest = value
            if value < smallest or value != value:
                smallest = value
            total += value * count
            number += count
        return _Totals(total, number, largest, smallest)


class HistoryBuffer:
    """The values of one scalar over time, each with a count (how many samples it is the mean of).

    It holds the latest, up to *max_length*, and the totals of all there ever were: what is asked over all updates
    (``window_size=None``) takes O(1) and covers what is no longer held. NaN is kept: the mean, max and min over a NaN
    are NaN.

    An update only appends to a list of what is pending, which the next look, or every 1,000th update, takes in. A
    tensor on a device isn't read by it, so that nobody waits: it is copied where it is, since its owner may write to it
    (an optimizer to a parameter, a CUDA graph to its outputs), and all of these are fetched together.

    Args:
        log_history: Values to begin with.
        count_history: Their counts; as many.
        max_length: How many of the latest entries are held, which is how far back a window can look.

    Raises:
        OptionError: the two histories differ in length, or one has a value that :meth:`update` refuses.
    """

    _statistics: ClassVar[dict[str, Callable[..., Any]]] = {}

    def __init__(
        self, log_history: Iterable[Scalar] = (), count_history: Iterable[int] = (), max_length: int = 10_000
    ) -> None:
        self.max_length = _positive(max_length, "max_length")
        self._entries: deque[_Entry] = deque(maxlen=max_length)
        self._totals = _Totals()
        self._pending: list[Any] = []  # entries, of which a value may be a tensor, if it has its count
        values, counts = list(log_history), list(count_history)
        if len(values) != len(counts):
            raise OptionError(f"a history needs one count for each value, not {len(counts)} for {len(values)}.")
        for value, count in zip(values, counts, strict=True):
            self.update(value, count)

    def update(self, value: Scalar, count: int = 1) -> None:
        """Append a value, which is the mean of *count* samples.

        Raises:
            OptionError: the value isn't one number (a bool or a string isn't), or the count isn't an int of at least 1.
        """
        # Every iteration comes through here several times: what is plainly a float isn't looked at twice.
        if type(value) is float and count is _ONE:
            self._pending.append(value)
        else:
            self._pending.append(check_entry(value, count))
        if len(self._pending) >= AGGREGATE_EVERY:
            self.aggregate()

    @property
    def append(self) -> Callable[[float], None]:
        """Appends a float unchecked, and may be kept; who does so has the hub aggregate now and then."""
        return self._pending.append

    def aggregate(self) -> None:
        """Take in what is pending, as all that look do; if a device fails at being read, it stays pending."""
        if self._pending:
            entries = _read(self._pending.copy())
            self._totals = self._totals.plus(entries)
            self._entries.extend(entries)
            del self._pending[: len(entries)]  # the list stays, as append is its, and so does what came meanwhile

    def _last(self, size: int) -> list[_Entry]:
        """Return so many of the latest entries, oldest first."""
        return list(itertools.islice(reversed(self._entries), size))[::-1]

    def _over(self, what: str, window_size: int | None) -> _Totals:
        """Return the totals of a window, or without one of all there ever were."""
        self.aggregate()
        if not self._entries:
            raise OptionError(f"the {what} of a history without entries was asked for; update() it first.")
        if window_size is None:
            return self._totals
        return _Totals().plus(self._last(_positive(window_size, "window_size")))

    def __len__(self) -> int:
        """Return the number of entries held: at most ``max_length``."""
        return min(self.max_length, len(self._entries) + len(self._pending))

    @property
    def data(self) -> tuple[tuple[float, ...], tuple[int, ...]]:
        """The values that are held and their counts, oldest first."""
        self.aggregate()
        entries = _pairs(self._entries)
        return tuple(value for value, _ in entries), tuple(count for _, count in entries)

    def current(self) -> float:
        """Return the latest value.

        Raises:
            OptionError: there is none; so say all reading methods.
        """
        self._over("current value", None)
        return _pairs(self._last(1))[0][0]

    def mean(self, window_size: int | None = None) -> float:
        """Return the mean of the last *window_size* updates, or of all there ever were, weighted by their counts."""
        totals = self._over("mean", window_size)
        return totals.sum / totals.count

    def max(self, window_size: int | None = None) -> float:
        """Return the largest of the last *window_size* values, or of all there ever were."""
        return self._over("max", window_size).max

    def min(self, window_size: int | None = None) -> float:
        """Return the smallest of the last *window_size* values, or of all there ever were."""
        return self._over("min", window_size).min

    @classmethod
    def register_statistics(cls, fn: F) -> F:
        """Decorate a function of a buffer (and whatever else), so that :meth:`statistics` has it by its name.

        Raises:
            OptionError: another function has that name.
        """
        if fn.__name__ in cls._statistics:
            raise OptionError(f"statistics {fn.__name__!r} can't be registered: the name is taken; choose another.")
        cls._statistics[fn.__name__] = fn
        return fn

    def statistics(self, method_name: str, *args: Any, **kwargs: Any) -> Any:
        """Call a registered function by name: ``mean``, ``max``, ``min``, ``current`` or one of your own."""
        if method_name not in self._statistics:
            near = did_you_mean(method_name, self._statistics) or "."
            raise OptionError(f"no statistics {method_name!r} among {listed(sorted(self._statistics))}{near}")
        return self._statistics[method_name](self, *args, **kwargs)

    def state_dict(self) -> dict[str, Any]:
        """Return the last 1,000 entries, as tensors of float64 and int64, and the totals of all.

        The tensors are filled up with entries of count 0, so that their size, by which a save knows its tensors, seldom
        changes.
        """
        self.aggregate()
        entries = _pairs(self._last(_SAVED))
        entries += [(0.0, 0)] * (max(1 << (len(entries) - 1).bit_length(), _LEAST) - len(entries))
        values = _tensor("d", torch.float64, [value for value, _ in entries])
        counts = _tensor("q", torch.int64, [count for _, count in entries])
        totals = self._totals
        return dict(zip(_STATE, (values, counts, totals.sum, totals.count, totals.max, totals.min), strict=True))

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Become the history that was saved; ``max_length`` stays one's own.

        Windows of up to 1,000, and all that is asked without a window, go on exactly.

        Raises:
            OptionError: this isn't such a state; the history is then as it was.
        """
        if set(state) != set(_STATE):
            raise OptionError(f"a history's state holds {listed(_STATE)}, not {listed(map(str, state))}.")
        loaded = HistoryBuffer(*_saved_entries(state["values"], state["counts"]), self.max_length)
        loaded.aggregate()
        total, count, largest, smallest = (_number(state[name]) for name in _STATE[2:])
        held = loaded._totals.count
        if count < held or bool(count) != bool(held):
            raise OptionError(f"a history's total count of {count:g} doesn't fit its entries' {held}.")
        self._entries, self._totals = loaded._entries, _Totals()
        if count:  # an older state of no entries has other extremes
            self._totals = _Totals(total, int(count), largest, smallest)
        self._pending.clear()


for _builtin in (HistoryBuffer.mean, HistoryBuffer.max, HistoryBuffer.min, HistoryBuffer.current):
    HistoryBuffer.register_statistics(_builtin)
