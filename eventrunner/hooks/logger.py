"""LoggerHook: gather what was measured, and write it to the terminal, to ``log.jsonl`` and to TensorBoard."""

from __future__ import annotations

import functools
import importlib.util
import math
import re
import sys
import time
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eventrunner.checks import check_bools, check_folders, check_ints, check_seconds
from eventrunner.errors import MissingExtraError, RunExistsError
from eventrunner.hook import Hook, options
from eventrunner.lanes.lanes import Task
from eventrunner.registry import HOOKS
from eventrunner.report.account import account_of
from eventrunner.report.log import headed, is_terminal
from eventrunner.report.rows import EventLog, RowLog, ending, sync_rows, write_row
from eventrunner.report.terminal import Bar, conclude, introduce
from eventrunner.session.best import best_name
from eventrunner.session.rundir import absolute
from eventrunner.units import clock, duration, pace, shown, shown_path

if TYPE_CHECKING:
    from eventrunner.run import Run

__all__ = ["LOG_LANE", "LoggerHook"]

LOG_LANE = "log"
"""The lane in which files are written; a save is committed after what was put into it before."""

_SMOOTHED = re.compile(r"loss|time|grad_norm")
_RATE = re.compile(r"[/.]lr(/|$)")
_TIME = re.compile(r"/(data_)?time$")
_APART = re.compile(r"[/.](lr(/|$)|((data_)?time|grad_norm)$)")
_WINDOW = 1_000  # as many values of a history survive a resume
# The columns of a line, from left to right; a key is in the first group that it begins with.
_COLUMNS = ("train/", "val/", "lr", "took", "saved", "eta")


@HOOKS.register_module()
class LoggerHook(Hook):
    """Write one row per interval and per validation, and one lasting terminal line per epoch (or interval).

    Rows go to ``log.jsonl`` in the run's folder: ``step`` (iterations completed: the one clock), ``epoch`` (the number
    of the epoch that produced the row, from 1), then plain floats: the message hub's scalars, those that begin with
    ``val/`` or ``test/`` in the rows of validations and tests, and ``train/…`` and all others in those of intervals.
    The same rows go to receivers of ``on_log``. Losses, times and norms are means over the last *window_size*
    iterations, the rest are current. With several ranks, values of a training are means over them. Only here are
    tensors read, so a quiet iteration waits for no device.

    Rows are written in the background, and are on the disk before a save of the same step is committed. A line is
    written at once, on the training thread; that of a step which is being saved waits for the commit that it tells of.
    In a resumed run, the files are first cut back to where it goes on.

    Args:
        interval: A row each n-th iteration, counted within the epoch.
        ignore_last: Write no row for an epoch's last, incomplete interval, unless the epoch is shorter than one.
        out_dir: Where ``log.jsonl`` and ``tensorboard/`` go instead: into a folder there named like the run's.
        log_metric_by_epoch: Whether an epoch's terminal line is headed by its number, or else by that of its last
            iteration. Rows count iterations in any case.
        window_size: Iterations that a smoothed value is the mean of, at most 1,000.
        tensorboard: Also write event files; needs the extra ``tensorboard``.
        offload: Whether rows are written in the background; False writes them before the training goes on.
        line_every: Seconds after which an epoch under way has a line of its own, headed by its iteration, where stdout
            is no terminal: a cluster's log isn't silent for long. On a terminal there is the bar.

    Raises:
        OptionError: a value that can't be.
        MissingExtraError: ``tensorboard=True`` and the package isn't there.
        RunExistsError: when the run begins, where another one has its log in *out_dir* under the same name.
    """

    priority = "BELOW_NORMAL"
    mutates = ()

    def __init__(
        self,
        interval: int = 10,
        ignore_last: bool = True,
        out_dir: str | Path | None = None,
        log_metric_by_epoch: bool = True,
        window_size: int = 10,
        tensorboard: bool = False,
        offload: bool = True,
        line_every: float = 30.0,
    ) -> None:
        self.interval, self.ignore_last, self.window_size = interval, ignore_last, window_size
        self.out_dir, self.log_metric_by_epoch, self.tensorboard = out_dir, log_metric_by_epoch, tensorboard
        self.offload, self.line_every = offload, line_every
        _check_options(self)
        self.out_dir = absolute(out_dir)
        name = type(self).__name__
        self._writing = Task(write_row, LOG_LANE, name=name, site="on_log")
        self._syncing = Task(sync_rows, LOG_LANE, name=f"{name} sync", site="before_save_checkpoint")
        self._folder, self._introduced = Path(), False
        self._rows: RowLog | None = None
        self._events: EventLog | None = None
        self._bar: Bar | None = None
        self._line: dict[str, Any] = {}  # a line that still gathers: an epoch's, until its validation is done
        self._held: deque[dict[str, Any]] = deque()  # lines that wait for the saves of their steps to be committed
        self._widths: dict[str, int] = {}  # of the columns so far, from left to right
        self._saved: list[tuple[int, str]] = []
        self._failure: BaseException | None = None
        self._last_row = -1
        self._invalid: set[str] = set()
        self._epoch_start = 0
        self._began = self._epoch_began = self._line_at = time.perf_counter()
        self._planned: int | None = None  # iterations, asked for once an epoch, as a loader may reckon its length anew

    def forget_run(self) -> None:
        """Introduce another run, and write its rows, whatever was written of the last."""
        self._introduced, self._last_row, self._invalid = False, -1, set()
        self._line, self._widths = {}, {}
        self._held.clear()

    def before_run(self, runner: Run) -> None:
        """Introduce the run, once, and open the file."""
        self._began, self._failure = time.perf_counter(), None
        self._folder = runner.log_dir if self.out_dir is None else Path(self.out_dir) / runner.work_dir.name
        path = self._folder / "log.jsonl"
        if not self._introduced:
            if self.out_dir is not None and not runner.resume and path.exists():
                raise RunExistsError(
                    f"LoggerHook(out_dir={shown_path(self.out_dir)!r}): {shown_path(path)} is another run's; choose "
                    "another out_dir or work_dir."
                )
            introduce(runner)
            self._introduced = True
        if runner.is_main:
            self._rows = RowLog(path)

    @options(collective=True)
    def before_train(self, runner: Run) -> None:
        """Cut the log back to where the run goes on (to nothing, where it begins afresh), and begin to draw."""
        if self._rows is not None and runner.resume:
            self._cut_back(runner, self._rows)
        self._last_row = runner.ranks.broadcast(self._last_row)  # all write rows at the same steps
        self._epoch_began, self._planned = time.perf_counter(), runner.max_iters
        self._line_at = self._epoch_began
        self._bar = Bar(runner)
        self._bar.start()

    def before_train_epoch(self, runner: Run) -> None:
        """Write the last epoch's line: its validation is done."""
        self._close_line(runner)
        loop = runner.train_loop
        self._epoch_start = runner.iter - loop.position.consumed if loop is not None and loop.by_epoch else 0
        self._epoch_began, self._planned = time.perf_counter(), runner.max_iters

    @options(collective=True)
    def after_train_iter(self, runner: Run, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        """Write a row where one is due."""
        if (batch_idx + 1) % self.interval == 0:
            self._log_interval(runner, runner.iter + 1)

    @options(collective=True)
    def after_train_epoch(self, runner: Run) -> None:
        """Write the row of a last, incomplete interval where it is wanted, and begin the epoch's line."""
        taken = max(runner.iter - self._epoch_start, 1)
        if self._last_row != runner.iter and (not self.ignore_last or taken < self.interval):
            self._log_interval(runner, runner.iter)
        if _by_epoch(runner):
            heading = self._heading(runner, runner.iter)
            self._line = {"event": heading, "step": runner.iter, **_over(runner, taken)}

    def after_val_epoch(self, runner: Run, metrics: dict[str, float] | None = None) -> None:
        """Write the validation's row."""
        self._log_metrics(runner, "val", metrics or {})

    def after_test_epoch(self, runner: Run, metrics: dict[str, float] | None = None) -> None:
        """Write the test's row."""
        self._log_metrics(runner, "test", metrics or {})

    def after_commit_checkpoint(self, runner: Run, path: Path, step: int) -> None:
        """Remember what to show as saved, and write the lines that waited for no more than this."""
        self._saved.append((step, path.name))
        self._write_lines(runner)

    def before_save_checkpoint(self, runner: Run, checkpoint: dict[str, Any]) -> None:
        """Have what was written so far reach the disk before the save is committed: else a resumed run has a gap."""
        self._offload(runner, self._syncing)

    def on_exception(self, runner: Run, exception: BaseException) -> None:
        """Remember what to say at the end."""
        self._failure = exception

    def after_train(self, runner: Run) -> None:
        """Write the last line."""
        self._close_line(runner)

    def after_run(self, runner: Run) -> None:
        """Take the bar away, close the files, and say how it ended."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
        if runner.session.lanes is not None:
            runner.session.lanes.wait(LOG_LANE, label="end")
        for opened in self._files():
            with ending(runner.end_for):
                opened.close()
        self._rows = self._events = None
        self._write_lines(runner, force=True)
        self._saved.clear()
        if runner.mode == "train":
            conclude(runner, time.perf_counter() - self._began, self._failure, account_of(runner))
        self._failure = None  # its traceback has the whole run

    def _cut_back(self, runner: Run, rows: RowLog) -> None:
        loop = runner.train_loop
        kept = rows.cut_back(runner.iter, loop is not None and not loop.validated)
        steps = [row["step"] for row in kept if any(key.startswith("train/") for key in row)]
        self._last_row = max(steps, default=-1)
        if self.tensorboard:
            self._events = EventLog(self._folder / "tensorboard", purge_step=runner.iter)
            for row in kept:  # the purge takes rows of the step itself, too
                if row["step"] == runner.iter:
                    self._events.write(row)

    def _log_interval(self, runner: Run, step: int) -> None:
        scalars = _over_ranks(runner, self._scalars(runner, "train"))
        self._last_row = step
        if self._bar is not None:
            self._bar.loss = scalars.get("train/loss")
        self._write_row(runner, scalars, step)
        self._warn_of_invalid(runner, scalars, step)
        if not _by_epoch(runner) or self._is_silent():
            shown = {key: value for key, value in scalars.items() if key.startswith("train/")}
            self._begin_line(runner, shown, step, _counted("iter", step, self._planned))

    def _is_silent(self) -> bool:
        return time.perf_counter() - self._line_at >= self.line_every and not is_terminal(sys.stdout)

    def _warn_of_invalid(self, runner: Run, scalars: Mapping[str, float], step: int) -> None:
        """Say once of each loss that it is no number, as long as it isn't."""
        invalid = {key for key, value in scalars.items() if "loss" in key and not math.isfinite(value)}
        for key in sorted(invalid - self._invalid):
            reason = f"{key} is {scalars[key]} at step {step}; dict(type='CheckInvalidLossHook') ends such a run"
            runner.logger.warning("loss", reason=reason)
        self._invalid = invalid

    def _scalars(self, runner: Run, mode: str) -> dict[str, float]:
        """Return what the hub has of a mode, as it stands or smoothed."""
        scalars = {}
        for key, buffer in runner.message_hub.log_scalars.items():
            if _mode_of(key) == mode and len(buffer):
                scalars[key] = buffer.mean(self.window_size) if _is_smoothed(key) else buffer.current()
        return scalars

    def _log_metrics(self, runner: Run, mode: str, metrics: dict[str, float]) -> None:
        scalars = {f"{mode}/{name}": value for name, value in metrics.items()}
        others = {key: value for key, value in self._scalars(runner, mode).items() if _TIME.search(key) is None}
        self._write_row(runner, {**others, **scalars}, runner.iter)
        if runner.mode == "train" and self._line:
            self._line.update(scalars)
        elif runner.mode == "train":
            self._begin_line(runner, scalars, runner.iter, self._heading(runner, runner.iter))
        else:
            took = time.perf_counter() - self._began
            line = headed(mode, *(f"{key} {shown(value)}" for key, value in scalars.items()), duration(took))
            runner.logger.info(mode, step=runner.iter, **scalars, took=round(took, 3), line=line)

    def _write_row(self, runner: Run, scalars: dict[str, float], step: int) -> None:
        position = None if runner.train_loop is None else runner.train_loop.position
        row = {"step": step, "epoch": position.passes + bool(position.consumed) if position else 0, **scalars}
        if self.tensorboard and runner.is_main and self._events is None:
            with ending(runner.end_for):  # not before the first row: a run without any leaves no file
                self._events = EventLog(self._folder / "tensorboard")
        self._offload(runner, self._writing, row)
        runner.session.scalars = scalars
        if runner.emitters.on_log:
            runner.emitters.on_log(runner, scalars=scalars, step=step)

    def _files(self) -> list[RowLog | EventLog]:
        return [file for file in (self._rows, self._events) if file is not None]

    def _offload(self, runner: Run, task: Task, *arguments: Any) -> None:
        """Have something done with the files, in the order of the calls."""
        files = self._files()
        if files and runner.session.lanes is not None and self.offload:
            runner.session.lanes.submit(task, (files, runner.end_for, *arguments))
        elif files:
            task.call(files, runner.end_for, *arguments)

    def _begin_line(self, runner: Run, scalars: Mapping[str, float], step: int, heading: str) -> None:
        """Begin a line that is no epoch's, and close it when what is deferred here, the saves, has been asked for."""
        self._close_line(runner)
        self._line = {"event": heading, "step": step, **scalars}
        runner.defer(lambda: runner.defer(lambda: self._close_line(runner), mutates=False), mutates=False)

    def _heading(self, runner: Run, step: int) -> str:
        loop = runner.train_loop
        if loop is not None and loop.by_epoch and self.log_metric_by_epoch:
            return _counted("epoch", runner.progress.epochs_completed, loop.max_epochs)
        return _counted("iter", step, self._planned)

    def _close_line(self, runner: Run) -> None:
        """Let the line that was begun, if there is one, gather no more, and write it once its step is saved."""
        if self._line:
            fields, self._line = self._line, {}
            if _by_epoch(runner):
                fields["took"] = round(time.perf_counter() - self._epoch_began, 3)
            eta = runner.message_hub.get_info("eta")
            if eta is not None and eta >= 1:
                fields["eta"] = round(eta, 1)
            self._held.append(fields)
        self._write_lines(runner)

    def _write_lines(self, runner: Run, force: bool = False) -> None:
        """Write the lines, in order, up to the first that a save under way belongs to."""
        pending = [] if runner.session.saver is None or force else [save.step for save in runner.session.saver.pending]
        first = min(pending, default=math.inf)
        while self._held and first > self._held[0]["step"]:
            self._write_line(runner, self._held.popleft())

    def _write_line(self, runner: Run, fields: dict[str, Any]) -> None:
        self._line_at = time.perf_counter()
        event, saved = fields.pop("event"), self._saves_of(fields) if self._saved else []
        line = self._in_columns(event, _cells(fields, saved), fill=_by_epoch(runner))
        names = {"saved": ",".join(saved)} if saved else {}
        runner.log.write("info", {"event": " ".join(event.split()), **fields, **names, "line": line})

    def _saves_of(self, fields: Mapping[str, Any]) -> list[str]:
        """Take the names of the saves that a line tells of."""
        later = self._held[0]["step"] if self._held else None
        validated = any(key.startswith("val/") for key in fields)
        taken = [
            (step, name)
            for step, name in self._saved  # a best is in the validation's line, where its step has two
            if step <= fields["step"] and (validated or step != later or not name.startswith("best_"))
        ]
        self._saved = [each for each in self._saved if each not in taken]
        return [name for _, name in taken]

    def _in_columns(self, head: str, cells: Mapping[str, str], fill: bool) -> str:
        """Return a line whose cells are as wide as the widest so far; *fill* leaves room for those that it hasn't."""
        if not cells.keys() <= self._widths.keys():
            self._widths = dict.fromkeys(sorted({**self._widths, **cells}, key=_column), 0) | self._widths
        texts = [head]
        for name, width in self._widths.items():
            if name in cells:
                self._widths[name] = width = max(width, len(cells[name]))
            if fill or name in cells:
                texts.append(cells.get(name, "").ljust(width))
        return "   ".join(texts).rstrip()


def _check_options(hook: LoggerHook) -> None:
    check_ints("LoggerHook", 1, interval=hook.interval)
    check_ints("LoggerHook", 1, _WINDOW, window_size=hook.window_size)
    names = ("ignore_last", "log_metric_by_epoch", "tensorboard", "offload")
    check_bools("LoggerHook", **{name: getattr(hook, name) for name in names})
    check_seconds("LoggerHook", line_every=hook.line_every)
    if hook.out_dir is not None:
        check_folders("LoggerHook", out_dir=hook.out_dir)
    if hook.tensorboard and importlib.util.find_spec("tensorboard") is None:
        install = "pip install 'eventrunner[tensorboard]'"
        raise MissingExtraError(f"LoggerHook(tensorboard=True) needs tensorboard: {install}.")


def _counted(word: str, done: int, total: int | None) -> str:
    return f"{word} {done}" if total is None else f"{word} {done:>{len(str(total))}}/{total}"


def _over_ranks(runner: Run, scalars: dict[str, float]) -> dict[str, float]:
    """Return the mean of each over the ranks that have it; with one rank, as they are."""
    if not runner.distributed:
        return scalars
    found: dict[str, list[float]] = {}
    for own in runner.ranks.gather(scalars):
        for key, value in own.items():
            found.setdefault(key, []).append(value)
    return {key: math.fsum(values) / len(values) for key, values in found.items()}


def _by_epoch(runner: Run) -> bool:
    return runner.train_loop is not None and runner.train_loop.by_epoch


def _over(runner: Run, iterations: int) -> dict[str, float]:
    """Return what an epoch's line has of its training: means, and the learning rates of its last iteration."""
    histories = runner.message_hub.log_scalars.items()
    buffers = {key: buffer for key, buffer in histories if key.startswith("train/") and len(buffer)}
    means = {key: buffer.mean(iterations) for key, buffer in buffers.items() if not _APART.search(key)}
    return means | {key: buffer.current() for key, buffer in buffers.items() if _RATE.search(key)}


@functools.cache
def _mode_of(key: str) -> str:
    """Return the mode whose rows have a scalar; ``step`` and ``epoch`` are every row's own."""
    if key in ("step", "epoch"):
        return ""
    return next((mode for mode in ("val", "test") if key.startswith(f"{mode}/")), "train")


@functools.cache
def _is_smoothed(key: str) -> bool:
    return _SMOOTHED.search(key) is not None


@functools.cache
def _is_rate(key: str) -> bool:
    return _RATE.search(key) is not None


def _column(key: str) -> int:
    return [key.startswith(column) for column in _COLUMNS].index(True)


@functools.cache
def _is_shown(key: str) -> bool:
    return not _is_rate(key) and _TIME.search(key) is None


def _cells(fields: Mapping[str, Any], saved: Sequence[str]) -> dict[str, str]:
    """Return what a line shows of its *fields*, by column."""
    prefixes = {key: best_name(key.removeprefix("val/"), "") for key in fields if key.startswith("val/")}
    cells = {}
    for key, value in fields.items():
        if key.startswith(("train/", "val/")) and _is_shown(key):
            star = " ★" if key in prefixes and any(name.startswith(prefixes[key]) for name in saved) else ""
            cells[key] = f"{key} {shown(value):<6}{star}"
    rates = dict.fromkeys(f"{value:.1e}" for key, value in fields.items() if _is_rate(key))
    if rates:
        cells["lr"] = f"lr {' '.join(rates)}"
    if "took" in fields or "train/time" in fields:
        cells["took"] = f"{duration(fields['took']):<6}" if "took" in fields else f"{pace(fields['train/time']):<10}"
    if saved:
        regular = [name for name in saved if not name.startswith((*prefixes.values(),))] or saved
        cells["saved"] = f"● {regular[0]}" if len(regular) == 1 else f"● {len(regular)} saves to {regular[-1]}"
    if "eta" in fields:
        cells["eta"] = f"eta {clock(fields['eta'])}"
    return cells
