"""eventrunner: a PyTorch training runner built as an event bus.

The public names are imported when they are first asked for, so that the bus needs no torch.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from eventrunner.version import __version__ as __version__

if TYPE_CHECKING:
    from eventrunner.bus.bus import Bus as Bus
    from eventrunner.bus.bus import Site as Site
    from eventrunner.bus.bus import on as on
    from eventrunner.bus.priority import Priority as Priority
    from eventrunner.checkpoint import load_checkpoint as load_checkpoint
    from eventrunner.checkpoint import verify_checkpoint as verify_checkpoint
    from eventrunner.checkpointer import Checkpointer as Checkpointer
    from eventrunner.hook import Hook as Hook
    from eventrunner.hook import connect_hook as connect_hook
    from eventrunner.hook import options as options
    from eventrunner.hooks import CheckInvalidLossHook as CheckInvalidLossHook
    from eventrunner.hooks import CheckpointHook as CheckpointHook
    from eventrunner.hooks import DistSamplerSeedHook as DistSamplerSeedHook
    from eventrunner.hooks import EarlyStoppingHook as EarlyStoppingHook
    from eventrunner.hooks import EMAHook as EMAHook
    from eventrunner.hooks import EmptyCacheHook as EmptyCacheHook
    from eventrunner.hooks import IterTimerHook as IterTimerHook
    from eventrunner.hooks import LoggerHook as LoggerHook
    from eventrunner.hooks import ParamSchedulerHook as ParamSchedulerHook
    from eventrunner.hooks import ProfilerHook as ProfilerHook
    from eventrunner.hooks import RuntimeInfoHook as RuntimeInfoHook
    from eventrunner.hooks import SyncBuffersHook as SyncBuffersHook
    from eventrunner.ranks.deal import per_rank as per_rank
    from eventrunner.ranks.world import join as join
    from eventrunner.registry import HOOKS as HOOKS
    from eventrunner.report.history import HistoryBuffer as HistoryBuffer
    from eventrunner.report.hub import MessageHub as MessageHub
    from eventrunner.run import Run as Run
    from eventrunner.run import RunView as RunView
    from eventrunner.runner import Runner as Runner
    from eventrunner.session.loops import EpochBasedTrainLoop as EpochBasedTrainLoop
    from eventrunner.session.loops import IterBasedTrainLoop as IterBasedTrainLoop
    from eventrunner.training.modules import watch_modules as watch_modules
    from eventrunner.training.optim import OptimWrapper as OptimWrapper

_HOMES = {
    "Bus": "bus.bus",
    "CheckInvalidLossHook": "hooks",
    "CheckpointHook": "hooks",
    "Checkpointer": "checkpointer",
    "DistSamplerSeedHook": "hooks",
    "EMAHook": "hooks",
    "EarlyStoppingHook": "hooks",
    "EmptyCacheHook": "hooks",
    "EpochBasedTrainLoop": "session.loops",
    "HOOKS": "registry",
    "HistoryBuffer": "report.history",
    "Hook": "hook",
    "IterBasedTrainLoop": "session.loops",
    "IterTimerHook": "hooks",
    "LoggerHook": "hooks",
    "MessageHub": "report.hub",
    "OptimWrapper": "training.optim",
    "ParamSchedulerHook": "hooks",
    "Priority": "bus.priority",
    "ProfilerHook": "hooks",
    "Run": "run",
    "RunView": "run",
    "Runner": "runner",
    "RuntimeInfoHook": "hooks",
    "Site": "bus.bus",
    "SyncBuffersHook": "hooks",
    "connect_hook": "hook",
    "join": "ranks.world",
    "load_checkpoint": "checkpoint",
    "on": "bus.bus",
    "options": "hook",
    "per_rank": "ranks.deal",
    "verify_checkpoint": "checkpoint",
    "watch_modules": "training.modules",
}

__all__ = [*_HOMES, "__version__"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'eventrunner' has no attribute {name!r}")
    with _uncollected():
        value = getattr(importlib.import_module(f"eventrunner.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


@contextlib.contextmanager
def _uncollected() -> Iterator[None]:
    """Don't look for garbage while an import makes what is none: it would be looked at over and over.

    The collector goes on afterwards, unless it was off before.
    """
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
