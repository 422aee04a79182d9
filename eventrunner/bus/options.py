"""Connection options: priority, the filters that say which emissions reach a receiver, and the lane that it runs in.

Filters are data on the connection, not code in the receiver, so that a plan can show them and a resumed run can
restore them. They combine with "and": an emission reaches the receiver when every one of them lets it pass.
"""

from __future__ import annotations

import time
import weakref
from dataclasses import dataclass
from typing import Any

from eventrunner.bus.priority import Priority, get_priority
from eventrunner.bus.scope import SCOPES
from eventrunner.bus.signature import Receiver
from eventrunner.bus.signature import label as label_of
from eventrunner.bus.sites import Unit
from eventrunner.checks import check_bools, check_choices, check_ints, is_int, refusal
from eventrunner.errors import OptionError, did_you_mean, listed
from eventrunner.lanes.lanes import OnFull
from eventrunner.lanes.task import inert_kind
from eventrunner.units import parse_duration

__all__ = ["Filter", "FilterState", "LaneOptions", "Options", "parse_options"]

_LANE_NAMES = ("lane", "barrier", "max_pending", "on_full", "on_error", "retries", "worker")
_OF_RANKS = ("mutates", "ranks", "collective")
_NAMES = ("priority", "every", "start", "once", "when", "label", "offload", *_LANE_NAMES, *_OF_RANKS)
_PARTS = ("model", "optimizer", "average", "gradients")


@dataclass(frozen=True, slots=True)
class LaneOptions:
    """How an offloaded receiver runs; empty names are those that weren't given. A lane checks the rest of them."""

    lane: str = ""
    barrier: str = ""
    max_pending: int = 1000
    on_full: OnFull = "wait"
    on_error: str = "raise"
    retries: int = 0
    worker: str = "thread"


@dataclass(frozen=True, slots=True)
class Options:
    """What a connection was made with.

    ``period`` is ``every="10min"`` in seconds, ``label`` empty if not given. ``offload`` is None where it was left
    open, and ``mutates`` where the receiver may write to anything. ``ranks`` is one of ``SCOPES``; ``collective`` says
    that all ranks call it together.
    """

    priority: int = int(Priority.NORMAL)
    every: int = 1
    period: float = 0.0
    start: int = 0
    once: bool = False
    when: Receiver | None = None
    label: str = ""
    offload: bool | None = None
    lane: LaneOptions = LaneOptions()
    mutates: tuple[str, ...] | None = None
    ranks: str = "all"
    collective: bool = False

    @property
    def may_write(self) -> bool:
        """Whether it may change what a save copies in the background; gradients aren't, they are copied at once."""
        return self.mutates is None or bool(set(self.mutates) - {"gradients"})

    @property
    def filtered(self) -> bool:
        """Whether any filter other than ``when`` is set."""
        return self.every != 1 or self.period > 0 or self.start > 0 or self.once

    def described(self, unit: Unit) -> str:
        """Return the filters in words, for a plan; empty where there are none."""
        words = []
        if self.every != 1:
            words.append(f"every {self.every} {unit}s")
        if self.period:
            words.append(f"every {self.period:g} s")
        if self.start:
            words.append(f"from {unit} {self.start}")
        if self.once:
            words.append("once")
        if self.when is not None:
            words.append(f"when {label_of(self.when)}")
        return ", ".join(words)


def parse_options(
    priority: int | str | Priority = Priority.NORMAL,
    every: int | str | None = None,
    start: int = 0,
    once: bool = False,
    when: Receiver | None = None,
    label: str | None = None,
    offload: bool | None = None,
    mutates: tuple[str, ...] | None = None,
    ranks: str = "all",
    collective: bool = False,
    **others: Any,
) -> Options:
    """Check connection options; *others* are those of :class:`LaneOptions`.

    Raises:
        OptionError: an option that there isn't, or a value that it can't have.
    """
    for name in others:
        if name not in _LANE_NAMES:
            raise OptionError(f"there is no option {name!r}, only {listed(_NAMES)}{did_you_mean(name, _NAMES) or '.'}")
    number = get_priority(priority)
    try:
        period = parse_duration(every) if isinstance(every, str) else 0.0
    except ValueError as error:
        raise OptionError(f"every={error}") from None
    count = 1 if every is None or isinstance(every, str) else every
    if not is_int(count, 1):
        raise refusal("", "every", every, "an int of 1 or more, or a time such as '10min'")
    check_ints("", 0, start=start)
    check_bools("", once=once)
    if when is not None and (not callable(when) or inert_kind(when)):
        raise refusal("", "when", when, "a plain function that returns True where it should run")
    if not isinstance(label, str | None):
        raise refusal("", "label", label, "a str")
    lane, parts = _lane_options(offload, others), _checked_parts(mutates)
    _check_scope(ranks, parts)
    check_bools("", collective=collective)
    if collective:
        _refuse_differing(ranks, offload, when, every if period else None)
    return Options(number, count, period, start, once, when, label or "", offload, lane, parts, ranks, collective)


def _lane_options(offload: bool | None, given: dict[str, Any]) -> LaneOptions:
    if offload is not None:
        check_bools("", offload=offload)
    for name in ("lane", "barrier"):
        if name in given and (not isinstance(given[name], str) or not given[name]):
            raise refusal("", name, given[name], "a str")
    lane = LaneOptions(**given)
    if offload is False and given:
        raise OptionError(f"{next(iter(given))}= is of use to an offloaded receiver only; leave out offload=False.")
    return lane


def _check_scope(ranks: str, mutates: tuple[str, ...] | None) -> None:
    check_choices("", SCOPES, ranks=ranks)
    if ranks != "all" and mutates:
        raise OptionError(
            f"ranks={ranks!r} with mutates={mutates!r}: all ranks have these alike, and would no longer; leave out "
            "ranks=, so that each changes its own."
        )


def _refuse_differing(ranks: str, offload: bool | None, when: Receiver | None, period: int | str | None) -> None:
    """Refuse options by which a collective receiver might run on one rank and not, or elsewhere, on another."""
    differing = {
        f"ranks={ranks!r}": ranks != "all",
        f"offload={offload!r}": bool(offload),
        "when=": when is not None,
        f"every={period!r}": period is not None,
    }
    for option in (option for option, is_given in differing.items() if is_given):
        raise OptionError(
            f"collective=True with {option}: all ranks must call it at the same emissions, inline; leave one out."
        )


def _checked_parts(mutates: object) -> tuple[str, ...] | None:
    if mutates is None:
        return None
    if isinstance(mutates, str) or not isinstance(mutates, tuple | list | set | frozenset):
        raise refusal("", "mutates", mutates, f"a tuple of names out of {listed(_PARTS)}, or () for none")
    for part in mutates:
        if part not in _PARTS:
            near = did_you_mean(str(part), _PARTS) or "."
            raise OptionError(f"mutates={mutates!r}: a receiver may write to {listed(_PARTS)}{near}")
    return tuple(mutates)


@dataclass(slots=True)
class FilterState:
    """What a filter remembers of one sender."""

    last: float
    seen: int = 0
    done: bool = False


class Filter:
    """One connection's ``every``, ``start`` and ``once``, counted for each sender on its own.

    What is counted is the sender's own counter at sites that have a unit (so a resume needs nothing), and the
    emissions seen where it has none and at other sites. A period is measured on the monotonic clock from the
    connection or the last pass on. Senders that can't be referred to weakly share one count.
    """

    __slots__ = ("_began", "_shared", "_states", "options", "unit")

    def __init__(self, options: Options, unit: Unit) -> None:
        self.options, self.unit = options, unit
        self._began = time.monotonic()
        self._states: weakref.WeakKeyDictionary[Any, FilterState] = weakref.WeakKeyDictionary()
        self._shared = FilterState(self._began)

    def of(self, sender: Any) -> FilterState:
        """Return what is remembered of *sender*."""
        try:
            return self._states[sender]
        except KeyError:
            state = self._states[sender] = FilterState(self._began)
            return state
        except TypeError:  # None, a number or a string, or something that can't be hashed
            return self._shared

    def passes(self, sender: Any) -> bool:
        """Count an emission; return whether it may pass: ``start``, ``start + every``, …, from 1, as in MMEngine."""
        state, options = self.of(sender), self.options
        if state.done:
            return False
        state.seen += 1
        current = None if self.unit == "emission" else getattr(sender, self.unit, None)
        ahead = (current + 1 if isinstance(current, int) else state.seen) - options.start
        if ahead < 0 or ahead % options.every:
            return False
        return not options.period or time.monotonic() - state.last >= options.period

    def fired(self, sender: Any) -> None:
        """Take note that the receiver is about to run: every other filter has let the emission pass too."""
        state = self.of(sender)
        state.done = self.options.once
        if self.options.period:
            state.last = time.monotonic()

    def state_dict(self, sender: Any) -> dict[str, Any]:
        """Return the counts, and the seconds since the last pass."""
        state = self.of(sender)
        return {"seen": state.seen, "done": state.done, "elapsed": time.monotonic() - state.last}

    def load_state_dict(self, sender: Any, saved: dict[str, Any]) -> None:
        """Go on where :meth:`state_dict` was taken; one that no longer has ``once`` isn't done."""
        state = self.of(sender)
        state.seen, state.done = saved["seen"], saved["done"] and self.options.once
        state.last = time.monotonic() - saved["elapsed"]
