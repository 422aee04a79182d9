"""The hub in which the parts of a run leave values for each other.

The calls are MMEngine's (``mmengine/logging/message_hub.py``). Nothing here is thread-safe: a hub belongs to the thread
that trains.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar

import torch

from eventrunner.errors import OptionError, UnknownScalarError, did_you_mean, listed
from eventrunner.report.history import HistoryBuffer, Scalar, check_entry, kind_of

__all__ = ["MessageHub"]


def _plain_copy(value: object, where: str) -> Any:
    """Copy plain data; tensors in it are detached, not copied.

    Raises:
        OptionError: something in it is neither plain data nor a tensor.
    """
    if isinstance(value, torch.Tensor):
        return value.detach()
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, (list, tuple)):
        items = [_plain_copy(item, f"{where}[{i}]") for i, item in enumerate(value)]
        return items if isinstance(value, list) else tuple(items)
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        return {key: _plain_copy(item, f"{where}[{key!r}]") for key, item in value.items()}
    what = "a dict with keys other than str" if isinstance(value, dict) else kind_of(value)
    allowed = "None, bool, int, float, str, tensors, and lists, tuples and dicts of these"
    raise OptionError(f"info {where} is {what}, which can't be saved with the run: pass resumed=False, or {allowed}.")


def _value_and_count(key: str, value: Scalar | Mapping[str, Any]) -> tuple[Scalar, int]:
    if not isinstance(value, Mapping):
        return value, 1
    if "value" not in value or not set(value) <= {"value", "count"}:
        raise OptionError(f"scalar {key!r} given as a dict holds value and count, not {listed(map(str, value))}.")
    return value["value"], value.get("count", 1)


def _entry(key: str, value: Scalar, count: int) -> tuple[float | torch.Tensor, int]:
    """Check value and count; an error names the key."""
    try:
        return check_entry(value, count)
    except OptionError as error:
        raise OptionError(f"scalar {key!r}: {error}") from None


def _check_key(kind: str, key: object) -> None:
    if not isinstance(key, str):
        raise OptionError(f"the key of {kind} must be a str, not {key!r}.")


@dataclass(frozen=True, slots=True)
class _Provided:
    """Stands in the hub for an info that is asked for when somebody looks."""

    read: Callable[[], Any]


class _Infos(MutableMapping[str, Any]):
    """A hub's infos, and whether each is saved with the run: what is written here is, unless the hub was told no."""

    def __init__(self) -> None:
        self._infos: dict[str, Any] = {}
        self.resumed: dict[str, bool] = {}

    def __getitem__(self, key: str) -> Any:
        info = self._infos[key]
        return info.read() if isinstance(info, _Provided) else info

    def __setitem__(self, key: str, value: Any) -> None:
        _check_key("info", key)
        self._infos[key] = value
        self.resumed.setdefault(key, True)

    def __delitem__(self, key: str) -> None:
        del self._infos[key], self.resumed[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._infos)

    def __len__(self) -> int:
        return len(self._infos)

    def __repr__(self) -> str:
        return repr(dict(self))


class MessageHub:
    """Where the parts of a run leave values for each other: scalars with their history, and info, which is anything.

    A hub belongs to its holder. It is found by its name and as the current one for as long as it is held, and
    the latest of a name is the one that is found. One that :meth:`get_instance` made is held for good.

    Each key is saved with the run or isn't (``resumed``): a scalar as its first update said, an info as its latest.
    """

    _instances: ClassVar[weakref.WeakValueDictionary[str, MessageHub]] = weakref.WeakValueDictionary()
    _held: ClassVar[dict[str, MessageHub]] = {}

    def __init__(self, name: str = "default") -> None:
        if not isinstance(name, str) or not name:
            raise OptionError(f"a message hub's name must be a str that isn't empty, not {name!r}.")
        self._name = name
        self._scalars: dict[str, HistoryBuffer] = {}
        self._scalar_resumed: dict[str, bool] = {}
        self._infos = _Infos()
        self.left_out: dict[str, str] = {}
        """Why :meth:`state_dict` has left an info out, by key."""
        self._held.pop(name, None)
        self._instances.pop(name, None)  # so that the latest is also the last in order
        self._instances[name] = self

    @classmethod
    def get_instance(cls, name: str) -> MessageHub:
        """Return the hub of that name, or a new one, which then stays."""
        if name not in cls._instances:
            made = cls(name)
            cls._held[name] = made
        return cls._instances[name]

    @classmethod
    def get_current_instance(cls) -> MessageHub:
        """Return the latest of the hubs that there are; where there is none, a new ``"default"``, which then stays."""
        for hub in reversed(list(cls._instances.values())):
            return hub
        return cls.get_instance("default")

    @classmethod
    def check_instance_created(cls, name: str) -> bool:
        """Whether there is a hub of that name."""
        return name in cls._instances

    @property
    def name(self) -> str:
        """The name under which the hub is found."""
        return self._name

    @property
    def log_scalars(self) -> Mapping[str, HistoryBuffer]:
        """All histories, in the order in which they began; a live view that can't be written to."""
        return MappingProxyType(self._scalars)

    @property
    def runtime_info(self) -> MutableMapping[str, Any]:
        """All info; a live view that can be written to."""
        return self._infos

    def update_scalar(self, key: str, value: Scalar, count: int = 1, resumed: bool = True) -> None:
        """Append to a history, which begins with its first value; the cost is :meth:`HistoryBuffer.update`'s.

        Raises:
            OptionError: the value isn't one number, or the key has the other ``resumed``.
        """
        if self._scalar_resumed.get(key) != resumed:
            self._check_scalar(key, resumed)
            _entry(key, value, count)
        try:
            self.history(key, resumed).update(value, count)
        except OptionError as error:
            raise OptionError(f"scalar {key!r}: {error}") from None

    def update_scalars(self, log_dict: Mapping[str, Scalar | Mapping[str, Any]], resumed: bool = True) -> None:
        """Append to several histories; a value may be ``dict(value=…, count=…)``.

        Raises:
            OptionError: as :meth:`update_scalar`; then none of them has changed.
        """
        entries = {key: _entry(key, *_value_and_count(key, value)) for key, value in log_dict.items()}
        for key in entries:
            self._check_scalar(key, resumed)
        for key, (checked, count) in entries.items():
            self.update_scalar(key, checked, count, resumed)

    def history(self, key: str, resumed: bool = True) -> HistoryBuffer:
        """Return the history of a scalar, begun where there is none, for who updates it at each iteration.

        It stays the scalar's own, also where a state is loaded that has the scalar.

        Raises:
            OptionError: the key has the other ``resumed``.
        """
        if key not in self._scalars:
            self._check_scalar(key, resumed)
            self._scalars[key], self._scalar_resumed[key] = HistoryBuffer(), resumed
        return self._scalars[key]

    def aggregate(self) -> None:
        """Have each history take in what was appended to it, for a training that nobody else looks at."""
        for history in self._scalars.values():
            history.aggregate()

    def _check_scalar(self, key: object, resumed: bool) -> None:
        _check_key("scalar", key)
        if self._scalar_resumed.get(str(key), resumed) != resumed:
            raise OptionError(f"scalar {key!r} can't be set with resumed={resumed}: this run has set it otherwise.")

    def get_scalar(self, key: str) -> HistoryBuffer:
        """Return the history of a scalar.

        Raises:
            UnknownScalarError: it has none; this is a ``KeyError``.
        """
        if key not in self._scalars:
            near = did_you_mean(str(key), self._scalars) or "."
            raise UnknownScalarError(f"no scalar {key!r} in a hub that has {listed(self._scalars)}{near}")
        return self._scalars[key]

    def update_info(self, key: str, value: Any, resumed: bool = True) -> None:
        """Set an info. The hub keeps the object itself, not a copy.

        Args:
            key: Its name.
            value: Anything. What is saved is None, bool, int, float, str, a tensor, or lists, tuples and dicts (with
                str keys) of these; another is left out of checkpoints, which a run says once.
            resumed: Whether it is saved with the run; the latest update counts.

        Raises:
            OptionError: the key isn't a str.
        """
        self.update_info_dict({key: value}, resumed)

    def update_info_dict(self, info_dict: Mapping[str, Any], resumed: bool = True) -> None:
        """Set several infos.

        Raises:
            OptionError: as :meth:`update_info`; then none of them is set.
        """
        for key in info_dict:
            _check_key("info", key)
        self._infos.update(info_dict)
        self._infos.resumed.update(dict.fromkeys(info_dict, resumed))

    def provide_info(self, key: str, read: Callable[[], Any]) -> None:
        """Have *read* called for an info whenever somebody looks, so that nothing is done while nobody does.

        It isn't saved with the run; :meth:`update_info` takes its place.
        """
        self.update_info(key, _Provided(read), resumed=False)

    def get_info(self, key: str, default: Any = None) -> Any:
        """Return the info itself, not a copy, or *default* where there is none."""
        return self._infos.get(key, default)

    def pop_info(self, key: str, default: Any = None) -> Any:
        """Remove an info and return it, or *default* where there is none; its ``resumed`` is forgotten too."""
        return self._infos.pop(key, default)

    def state_dict(self) -> dict[str, Any]:
        """Return what is saved with the run: the resumed scalars and infos, as plain data; tensors are not copied.

        An info that can't be saved is left out, and :attr:`left_out` says why.
        """
        scalars = {key: self._scalars[key].state_dict() for key, kept in self._scalar_resumed.items() if kept}
        infos = {}
        for key in [key for key, kept in self._infos.resumed.items() if kept]:
            try:
                infos[key] = _plain_copy(self._infos[key], repr(key))
            except OptionError as error:
                self.left_out[key] = str(error)
        return {"log_scalars": scalars, "runtime_info": infos}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what was saved.

        Saved histories take the place of all resumed ones; saved infos are added to those of this run. What isn't
        resumed stays.

        Raises:
            OptionError: this isn't such a state, or it has a scalar that this run has begun with ``resumed=False``; the
                hub is then as it was.
        """
        if set(state) != {"log_scalars", "runtime_info"}:
            raise OptionError(f"a hub's state holds log_scalars, runtime_info, not {listed(map(str, state))}.")
        infos = {key: _plain_copy(info, repr(key)) for key, info in state["runtime_info"].items()}
        scalars = {key: HistoryBuffer() for key in state["log_scalars"]}
        for key, scalar in scalars.items():
            self._check_scalar(key, resumed=True)
            scalar.load_state_dict(state["log_scalars"][key])
        self.update_info_dict({key: info for key, info in infos.items() if self._infos.resumed.get(key, True)})
        for key in scalars.keys() & self._scalars.keys():
            self._scalars[key].load_state_dict(state["log_scalars"][key])  # the object stays: others hold it
            scalars[key] = self._scalars[key]
        self._scalars = {key: self._scalars[key] for key, kept in self._scalar_resumed.items() if not kept} | scalars
        self._scalar_resumed = {key: key in scalars for key in self._scalars}
