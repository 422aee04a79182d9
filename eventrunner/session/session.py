"""Session: what a run has between ``train()``, ``val()`` or ``test()`` and its end, in one place.

Whatever wants something of the training thread, from any thread or from a signal's handler, asks by
:meth:`Session.request`: a stop, a save now, a failure, a signal. The loops look once per iteration, at one place.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eventrunner.errors import OptionError

if TYPE_CHECKING:
    from eventrunner.checkpoint.saver import Saver
    from eventrunner.lanes.lanes import Lanes

__all__ = ["Session"]


class Session:
    """The state of the session under way, or of the last one.

    Attributes:
        mode: ``train``, ``val`` or ``test`` while it is under way, else None.
        stop_reason: Why it has ended, or is to end.
        stop_where: Where that was asked for: a line of code, or a signal.
        torn: Whether an exception has ended it amid something, so that its state isn't to be saved.
        log_failure: What a log's file has failed of.
        training_began: Whether ``before_train`` was emitted, and ``after_train`` wasn't yet.
        requested: What was asked for and not done yet, in order.
        closing: What is left when it ends.
        lanes: Where its background work is done, while it is under way.
        last_lanes: The same, when it is over too.
        trace_path: Where its trace goes when it ends.
        rng_before_val: The generators' states before the validation under way.
        number: How many there were before it.
        scalars: The latest row of the log.
        seed: What the generators began with; that of a resumed run.
        saver: What makes the run's saves; it outlasts a session.
        checkpoint_folder: Where they go, if not into the run's folder.
        opened: Whether the run has had one.
        loaded: Whether what is to be resumed or loaded was.
        resuming: Whether the run goes on with a checkpoint.
        pending_rng: The generators' states that it had, until training goes on.
    """

    def __init__(self) -> None:
        self.mode: str | None = None
        self.requested: list[Callable[[], Any]] = []
        self.closing = contextlib.ExitStack()
        self.lanes: Lanes | None = None
        self.last_lanes: Lanes | None = None
        self.trace_path: Path | None = None
        self.number = self.seed = 0
        self.scalars: Mapping[str, float] = {}
        self.saver: Saver | None = None
        self.checkpoint_folder: Path | None = None
        self.opened = self.loaded = self.resuming = False
        self.pending_rng: dict[str, Any] | None = None
        self._begin_afresh()

    def _begin_afresh(self) -> None:
        self.stop_reason = self.stop_where = ""
        self.torn = self.training_began = False
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
        self.number += 1
        self.requested.clear()

    def request(self, action: Callable[[], Any]) -> None:
        """Have *action* called by the training thread at its next tick; any thread or signal handler may ask."""
        self.requested.append(action)

    def tick(self) -> None:
        """Do what was requested, in order."""
        while self.requested:
            self.requested.pop(0)()
