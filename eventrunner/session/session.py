"""Session: what a run has between ``train()``, ``val()`` or ``test()`` and its end, in one place.

Whatever wants something of the training thread, from any thread or from a signal's handler, asks by
:meth:`Session.request`: a stop, a save now, a failure, a signal. The loops look once per iteration, at one place. What
all ranks must do at the same tick, a stop or what a signal asks for, is then agreed on by ``ranks/agree``.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from eventrunner.bus.signature import short_path
from eventrunner.checkpoint.saver import WRITE_LANE, Saver
from eventrunner.errors import OptionError, listed
from eventrunner.lanes.lanes import Lanes
from eventrunner.ranks.agree import Agreement

__all__ = ["RunFacts", "Session"]

_ENDINGS = ("completed", "exception", "interrupted", "preempted")


@dataclass(frozen=True, slots=True)
class RunFacts:
    """What doesn't change within one ``train()``, ``val()`` or ``test()``."""

    mode: str | None
    max_epochs: int | None
    max_iters: int | None
    rank: int
    world_size: int
    work_dir: Path
    experiment_name: str
    seed: int


class Session:
    """The state of the session under way, or of the last one.

    Attributes:
        mode: ``train``, ``val`` or ``test`` while it is under way, else None.
        stop_reason: Why it has ended, or is to end.
        stop_where: Where that was asked for: a line of code, or a signal.
        stopping: Whether the training ends after the iteration under way.
        torn: Whether an exception has interrupted something, so that its state isn't to be saved.
        log_failure: What a log's file has failed of.
        training_began: Whether ``before_train`` was emitted, and ``after_train`` wasn't yet.
        requested: What was asked for and not done yet, in order.
        later: What of that is to be done at a later tick, which the ranks have agreed on.
        ticks: How often the loops have looked, counted where there are several ranks; the same number on all.
        agreement: What they agree by, while the session is under way.
        closing: What is left when it ends.
        lanes: Where its background work is done, while it is under way.
        last_lanes: The same, when it is over too.
        trace_path: Where its trace goes when it ends.
        rng_before_val: The generators' states before the validation under way.
        facts: What an offloaded receiver sees of it, once one has looked.
        scalars: The latest row of the log.
        seed: What the generators began with; that of a resumed run.
        saver: What makes the run's saves; it outlasts a session.
        checkpoint_folder: Where they go, if not into the run's folder.
        opened: Whether the run has had one.
        loaded: Whether what is to be resumed or loaded was.
        resuming: Whether the run goes on with a checkpoint.
        pending_rng: The generators' states that it had, until training goes on.
        rng_of_ranks: Those of each rank at the save that is being made, where there are several.
    """

    def __init__(self) -> None:
        self.mode: str | None = None
        self.requested: list[Callable[[], Any]] = []
        self.later: list[Callable[[], Any]] = []
        self.agreement: Agreement | None = None
        self.closing = contextlib.ExitStack()
        self.lanes: Lanes | None = None
        self.last_lanes: Lanes | None = None
        self.trace_path: Path | None = None
        self.seed = 0
        self.scalars: Mapping[str, float] = {}
        self.saver: Saver | None = None
        self.checkpoint_folder: Path | None = None
        self.opened = self.loaded = self.resuming = False
        self.pending_rng: dict[str, Any] | None = None
        self.rng_of_ranks: list[dict[str, Any]] | None = None
        self._begin_afresh()

    def _begin_afresh(self) -> None:
        self.stop_reason = self.stop_where = ""
        self.stopping = self.torn = self.training_began = False
        self.ticks = 0
        self.facts: RunFacts | None = None
        self.log_failure: OSError | None = None
        self.rng_before_val: dict[str, Any] | None = None

    def begin(self, mode: str) -> None:
        """Begin another one.

        Raises:
            OptionError: one is under way.
        """
        if self.mode is not None:
            instead = "." if mode == "train" else f"; within it, runner.{mode}_loop.run() evaluates."
            raise OptionError(f"{mode}() was called while {self.mode}() is under way{instead}")
        self._begin_afresh()
        self.mode, self.opened = mode, True
        self.requested.clear()
        self.later.clear()

    def request(self, action: Callable[[], Any]) -> None:
        """Have *action* called by the training thread at its next tick; any thread or signal handler may ask."""
        self.requested.append(action)

    def tick(self) -> None:
        """Do what was requested, in order."""
        while self.requested:
            self.requested.pop(0)()
        if self.later:
            self.requested[:0] = self.later
            self.later.clear()

    def meet(self) -> None:
        """Where all ranks come together, do at once what was requested, and what any rank has asked all for."""
        self.ticks += 1
        self.tick()
        if self.agreement is not None:
            self.agreement.meet()

    def post(self, kind: str, **told: Any) -> bool:
        """Have all ranks do something at one tick; False where there is only one, which does it itself."""
        if self.agreement is None:
            return False
        self.agreement.post(kind, **told)
        return True

    def stop(self, reason: str, caller: FrameType) -> None:
        """Note that the training is to end, why, and which line has asked for it.

        Raises:
            OptionError: the reason is one of those that say how a run ended by itself.
        """
        if reason in _ENDINGS:
            raise OptionError(
                f"stop({reason!r}): {listed(_ENDINGS)} say how a run ended by itself; give a reason of your own."
            )
        self.end_training(reason, f"{caller.f_code.co_name}, {short_path(caller.f_code.co_filename)}:{caller.f_lineno}")

    def end_training(self, reason: str = "", where: str = "") -> None:
        """End the training after the iteration under way; of several ranks, after one that they agree on."""
        if self.agreement is None:
            self.stopped(reason, where)
        else:
            self.request(functools.partial(self.post, "stop", reason=reason, where=where))

    def stopped(self, reason: str, where: str) -> None:
        """Note that the iteration under way is the last, and why."""
        self.stopping = True
        if reason:
            self.stop_reason, self.stop_where = reason, where

    def flush(self, lane: str | None = None, timeout: float | None = None) -> None:
        """Wait until everything in one lane, or in all, is done, and raise what failed; see ``Runner.flush``."""
        lanes, saver = self.lanes, self.saver
        if lanes is None:
            return
        if saver is not None and lane in (None, WRITE_LANE):  # other lanes may wait for a receiver of a commit
            lanes.wait(WRITE_LANE, timeout=timeout, label="flush")
            saver.collect()
        lanes.flush(lane, timeout, label="flush")
        while saver is not None and saver.collect():  # its receivers may have offloaded more
            lanes.flush(lane, timeout, label="flush")
