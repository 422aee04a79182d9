"""The built-in hooks, one file each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from eventrunner.hook import Hook
from eventrunner.hooks.checkpoint import CheckpointHook
from eventrunner.hooks.early_stopping import EarlyStoppingHook
from eventrunner.hooks.ema import EMAHook
from eventrunner.hooks.empty_cache import EmptyCacheHook
from eventrunner.hooks.invalid_loss import CheckInvalidLossHook
from eventrunner.hooks.iter_timer import IterTimerHook
from eventrunner.hooks.logger import LoggerHook
from eventrunner.hooks.param_scheduler import ParamSchedulerHook
from eventrunner.hooks.profiler import ProfilerHook
from eventrunner.hooks.runtime_info import RuntimeInfoHook
from eventrunner.hooks.sampler_seed import DistSamplerSeedHook
from eventrunner.hooks.sync_buffers import SyncBuffersHook

__all__ = [
    "DEFAULT_HOOKS",
    "CheckInvalidLossHook",
    "CheckpointHook",
    "DistSamplerSeedHook",
    "EMAHook",
    "EarlyStoppingHook",
    "EmptyCacheHook",
    "Hook",
    "IterTimerHook",
    "LoggerHook",
    "ParamSchedulerHook",
    "ProfilerHook",
    "RuntimeInfoHook",
    "SyncBuffersHook",
]

DEFAULT_HOOKS: Mapping[str, Mapping[str, Any]] = {
    "runtime_info": {"type": "RuntimeInfoHook"},
    "timer": {"type": "IterTimerHook"},
    "sampler_seed": {"type": "DistSamplerSeedHook"},
    "logger": {"type": "LoggerHook"},
    "param_scheduler": {"type": "ParamSchedulerHook"},
    "checkpoint": {"type": "CheckpointHook"},
}
"""What every run has unless ``default_hooks`` says otherwise, by the names under which it may."""
