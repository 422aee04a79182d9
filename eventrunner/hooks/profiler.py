"""ProfilerHook: profile the beginning of a training with torch.profiler."""

from __future__ import annotations

import inspect
import os
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import profiler
from torch.autograd.profiler_util import EventList

from eventrunner.checks import check_bools, check_ints, is_int, refusal
from eventrunner.errors import OptionError, did_you_mean, listed
from eventrunner.hook import Hook
from eventrunner.registry import HOOKS

if TYPE_CHECKING:
    from eventrunner.run import Run

__all__ = ["ProfilerHook"]

Report = Callable[[profiler.profile], Any]
PathLike = str | os.PathLike[str]

_DEVICES = ("cpu", "cuda", "xpu", "device")
_SORT_KEYS = (
    "count",
    *(f"{device}_time" for device in _DEVICES),
    *(
        f"{own}{device}_{what}"
        for own in ("", "self_")
        for device in _DEVICES
        for what in ("time_total", "memory_usage")
    ),
)
_TRACE_OPTIONS = {
    "log_trace": tuple(inspect.signature(EventList.table).parameters)[1:],
    "tb_trace": tuple(inspect.signature(profiler.tensorboard_trace_handler).parameters),
}


@HOOKS.register_module()
class ProfilerHook(Hook):
    """Profile the first epochs or iterations of each ``train()`` with ``torch.profiler``, on the first rank.

    Without a *schedule* all events are kept in memory until the end of the profile: an epoch can take gigabytes, so
    rather set ``by_epoch=False`` and few *profile_times*. However the training ends, the profiler is stopped and what
    it has recorded is reported.

    Args:
        by_epoch: The unit of *profile_times*.
        profile_times: How many epochs or iterations are profiled.
        activity_with_cpu: Record operators.
        activity_with_cuda: Record CUDA kernels.
        schedule: The arguments of ``torch.profiler.schedule`` (wait, warmup, active, …), in iterations; each cycle is
            reported by itself.
        on_trace_ready: What is done with a recording. None logs a table at debug level, which is in ``log.txt``.
            ``dict(type="log_trace", sort_by=…, row_limit=…)`` logs one at info level, with the arguments of torch's
            ``table``. ``dict(type="tb_trace", dir_name=…)`` writes a trace for TensorBoard's profile plugin into a
            folder (``tf_tracing_logs`` of the run's folder by default), which needs no package. A function is called
            with the profiler.
        record_shapes: Record the shapes of the inputs.
        profile_memory: Record allocations.
        with_stack: Record where in the source an operator was called.
        with_flops: Estimate the operations of matrix products and convolutions.
        json_trace_path: A file for the trace, for a browser's trace viewer (``.json``, or ``.json.gz``); a relative
            path is in the run's folder. With a *schedule*, it has the last cycle.

    Raises:
        OptionError: a value that can't be, or, when it is registered, more *profile_times* than the training has.
    """

    priority = "VERY_LOW"
    mutates = ()

    def __init__(
        self,
        *,
        by_epoch: bool = True,
        profile_times: int = 1,
        activity_with_cpu: bool = True,
        activity_with_cuda: bool = False,
        schedule: Mapping[str, Any] | None = None,
        on_trace_ready: Report | Mapping[str, Any] | None = None,
        record_shapes: bool = False,
        profile_memory: bool = False,
        with_stack: bool = False,
        with_flops: bool = False,
        json_trace_path: PathLike | None = None,
    ) -> None:
        recorded = {
            "record_shapes": record_shapes,
            "profile_memory": profile_memory,
            "with_stack": with_stack,
            "with_flops": with_flops,
        }
        check_bools("ProfilerHook", by_epoch=by_epoch, **recorded)
        check_ints("ProfilerHook", 1, profile_times=profile_times)
        self.by_epoch, self.profile_times = by_epoch, profile_times
        self.json_trace_path = _checked_path(json_trace_path)
        self.on_trace_ready = _checked_report(on_trace_ready, json_trace_path)
        self._options: dict[str, Any] = {
            "activities": _activities(activity_with_cpu, activity_with_cuda),
            "schedule": _schedule(schedule),
            **recorded,
        }
        self._profiler: profiler.profile | None = None
        self._done = 0
        self._recorded = False

    def check_run(self, runner: Run) -> None:
        """Refuse to profile more than there is; called when the hook is registered."""
        unit, planned = ("epochs", runner.max_epochs) if self.by_epoch else ("iterations", runner.max_iters)
        if planned is not None and self.profile_times > planned:
            raise OptionError(
                f"ProfilerHook(by_epoch={self.by_epoch}, profile_times={self.profile_times}): the training has "
                f"{planned} {unit}."
            )

    def before_train(self, runner: Run) -> None:
        """Begin the profile."""
        if runner.is_main:
            self._done, self._recorded = 0, False
            report = _report(self.on_trace_ready, runner)
            self._profiler = profiler.profile(**self._options, on_trace_ready=lambda p: self._trace(runner, report, p))
            self._profiler.start()

    def after_train_iter(self, runner: Run, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        """Step the profiler: an iteration ends."""
        if self._profiler is None:
            return
        with warnings.catch_warnings():
            # That each cycle is reported by itself is what a schedule is for.
            warnings.filterwarnings("ignore", ".*Profiler clears events at the end of each cycle", UserWarning)
            self._profiler.step()
        self._count(runner, by_epoch=False)

    def after_train_epoch(self, runner: Run) -> None:
        """Count the epoch."""
        self._count(runner, by_epoch=True)

    def after_train(self, runner: Run) -> None:
        """Stop, where the training ended earlier."""
        self._stop(runner)

    def after_run(self, runner: Run) -> None:
        """Stop, where another receiver of ``after_train`` failed."""
        self._stop(runner)

    def _count(self, runner: Run, by_epoch: bool) -> None:
        if self.by_epoch is by_epoch:
            self._done += 1
            if self._done >= self.profile_times:
                self._stop(runner)

    def _stop(self, runner: Run) -> None:
        if self._profiler is None:
            return
        running, self._profiler = self._profiler, None
        running.stop()
        if not self._recorded:
            runner.logger.warning("profile", reason="nothing was recorded: it ended before the schedule became active")

    def _trace(self, runner: Run, report: Report, recorded: profiler.profile) -> None:
        self._recorded = True
        report(recorded)
        if self.json_trace_path is not None:
            path = runner.work_dir / self.json_trace_path
            path.parent.mkdir(parents=True, exist_ok=True)
            recorded.export_chrome_trace(str(path))
            runner.logger.info("profile", path=path)


def _report(on_trace_ready: Report | Mapping[str, Any] | None, runner: Run) -> Report:
    """Return what to do with a recording, bound to the run's log and folder."""
    if callable(on_trace_ready):
        return on_trace_ready
    if on_trace_ready is None:
        table = {"sort_by": "self_cpu_time_total", "row_limit": 20}
        return lambda recorded: runner.logger.debug("profile\n" + recorded.key_averages().table(**table))
    options = {key: value for key, value in on_trace_ready.items() if key != "type"}
    if on_trace_ready["type"] == "log_trace":
        return lambda recorded: runner.logger.info("profile\n" + recorded.key_averages().table(**options))
    options["dir_name"] = str(runner.work_dir / options.get("dir_name", "tf_tracing_logs"))
    handler: Report = profiler.tensorboard_trace_handler(**options)
    return handler


def _activities(cpu: bool, cuda: bool) -> list[profiler.ProfilerActivity]:
    check_bools("ProfilerHook", activity_with_cpu=cpu, activity_with_cuda=cuda)
    if cuda and not torch.cuda.is_available():
        raise OptionError("ProfilerHook(activity_with_cuda=True) needs a CUDA device, and torch finds none.")
    if not cpu and not cuda:
        raise OptionError("ProfilerHook(activity_with_cpu=False): nothing is recorded without activity_with_cuda=True.")
    kinds = profiler.ProfilerActivity
    return [kind for kind, wanted in ((kinds.CPU, cpu), (kinds.CUDA, cuda)) if wanted]


def _schedule(options: Mapping[str, Any] | None) -> Callable[[int], profiler.ProfilerAction] | None:
    if options is None:
        return None
    if not isinstance(options, Mapping):
        raise refusal("ProfilerHook", "schedule", options, "a dict of torch.profiler.schedule's arguments")
    attempt = f"ProfilerHook(schedule={dict(options)})"
    parameters = inspect.signature(profiler.schedule).parameters
    for name, value in options.items():
        if name not in parameters:
            near = did_you_mean(str(name), parameters) or f"; there are {listed(parameters)}."
            raise OptionError(f"{attempt} has no {name!r}{near}")
        if not is_int(value):
            raise OptionError(f"{attempt}: {name!r} must be an int.")
    try:
        return profiler.schedule(**options)
    except (AssertionError, TypeError):
        raise OptionError(f"{attempt} needs wait and warmup of 0 or more and active of 1 or more.") from None


def _checked_report(
    report: Report | Mapping[str, Any] | None, json_trace_path: PathLike | None
) -> Report | Mapping[str, Any] | None:
    if report is None or callable(report):
        return report
    if not isinstance(report, Mapping) or report.get("type") not in _TRACE_OPTIONS:
        raise OptionError(
            f"ProfilerHook(on_trace_ready={report!r}): give a function, or a dict whose type is log_trace or tb_trace."
        )
    report = dict(report)
    kind, allowed = report["type"], _TRACE_OPTIONS[report["type"]]
    for name in report:
        if name != "type" and name not in allowed:
            raise OptionError(f"ProfilerHook: {kind} has no option {name!r}{did_you_mean(str(name), allowed) or '.'}")
    if report.get("sort_by") is not None and report["sort_by"] not in _SORT_KEYS:
        near = did_you_mean(str(report["sort_by"]), _SORT_KEYS) or "."
        raise OptionError(f"ProfilerHook: sort_by={report['sort_by']!r} is none of {listed(_SORT_KEYS)}{near}")
    if kind == "tb_trace" and json_trace_path is not None:
        raise OptionError("ProfilerHook: torch writes a trace once, so give tb_trace or json_trace_path and not both.")
    return report


def _checked_path(path: PathLike | None) -> Path | None:
    if path is None:
        return None
    if not isinstance(path, str | os.PathLike):
        raise refusal("ProfilerHook", "json_trace_path", path, "a path")
    checked = Path(path)
    if not checked.name or (checked.is_absolute() and (checked.is_dir() or not checked.parent.is_dir())):
        raise refusal("ProfilerHook", "json_trace_path", str(path), "a file in a folder that exists")
    return checked
