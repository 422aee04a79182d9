"""The terminal: what is said as a run begins and as it ends, and a bar on stderr between the two.

Training only counts. A thread reads the counters and draws, eight times a second, so the bar costs an iteration
nothing. Where stderr is no terminal (a pipe, a notebook, a batch system) or a dumb one, there is no bar.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import torch
from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text
from torch.nn.parameter import is_lazy

from eventrunner.checkpoint.verify import is_of_use, listing, newest_finite
from eventrunner.report.log import drop_unwritten, headed, is_terminal
from eventrunner.session.rundir import abandoned_in
from eventrunner.units import clock, duration, pace, shown, shown_path, size

if TYPE_CHECKING:
    from eventrunner.report.account import RunAccount
    from eventrunner.run import Run

__all__ = ["Bar", "conclude", "introduce"]

_MOST_RECEIVERS = 6  # in the table at the end


class Bar:
    """The progress of a run's training; does nothing where there is no terminal to draw on.

    While it stands, ``sys.stderr`` and, if that is a terminal, ``sys.stdout`` are stand-ins that write whole lines
    above it. Where the terminal fails, the bar is gone for good, and the log's file says so.
    """

    def __init__(self, runner: Run) -> None:
        self._runner = runner
        self.loss: float | None = None  # of the last row
        self._total, self._first, self._began = runner.max_iters, runner.iter, time.perf_counter()
        console = Console(file=sys.stderr, force_jupyter=False)  # the stream itself, not what will stand in for it
        wanted = runner.show_progress and runner.is_main
        # rich takes a pipe for a terminal where FORCE_COLOR says so, and a bar in a log is what nobody wants.
        self._shown = wanted and is_terminal(sys.stderr) and console.is_terminal and not console.is_dumb_terminal
        self._console = console
        self._live = Live(
            console=console,
            get_renderable=self._draw,
            auto_refresh=False,  # rich's own thread would be made anew for each line that is written above
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        self._streams: dict[str, _Above] = {}
        self._lock, self._over = threading.RLock(), threading.Event()
        self._thread = threading.Thread(target=self._keep_drawing, name="eventrunner bar", daemon=True)
        self._pid = os.getpid()
        self._failure: Exception | None = None

    def start(self) -> None:
        """Begin to draw."""
        if self._shown:
            self._runner.log.aside = self.aside
            for name in ("stdout", "stderr"):
                stream = getattr(sys, name)
                if is_terminal(stream):
                    self._streams[name] = _Above(stream, self)
                    setattr(sys, name, self._streams[name])
            with self._drawing():
                self._live.start(refresh=True)
            self._thread.start()

    def stop(self) -> None:
        """Take the bar away and give the streams back."""
        if not self._shown:
            return
        self._over.set()
        with self._lock, self._drawing():
            self._live.stop()
            self._live.console.show_cursor(True)  # an interrupt may have hit another stop half-way
        self._runner.log.aside = contextlib.nullcontext
        for name, above in self._streams.items():
            if getattr(sys, name) is above:  # else somebody has put something of their own there since
                setattr(sys, name, above.stream)
            with self._drawing():
                above.finish()
        self._streams = {}
        if self._thread.is_alive():
            self._thread.join()
        if self._failure is not None:
            self._runner.log.report_failure("stderr", self._failure)

    @contextlib.contextmanager
    def aside(self) -> Iterator[None]:
        """Within the block the bar is gone; it comes back with the next drawing, so that many lines cost one."""
        if os.getpid() != self._pid:  # a forked worker has no bar, only the picture of one, and maybe a held lock
            yield
            return
        with self._lock:
            with self._drawing():
                self._live.stop()
            yield

    @contextlib.contextmanager
    def _drawing(self) -> Iterator[None]:
        """End the drawing where the terminal fails within the block; the training goes on."""
        try:
            yield
        except Exception as error:  # noqa: BLE001  # of the stream, in whatever way
            self._over.set()
            self._failure = self._failure or error
            drop_unwritten(self._live.console.file, error)

    def _keep_drawing(self) -> None:
        while not self._over.wait(0.125):
            with self._lock:
                if not self._over.is_set():
                    with self._drawing():
                        self._live.start()
                        self._live.refresh()

    def _draw(self) -> Table:
        runner, done, total = self._runner, self._runner.iter, self._total
        loop = runner.train_loop
        if loop is not None and loop.reloading is not None:
            self._began = time.perf_counter()  # the pace is that of the training
            again, used = loop.reloading
            return self._bar(again, used, f"loading used batches once more  {again}/{used}")
        each = (time.perf_counter() - self._began) / max(done - self._first, 1)
        epochs = runner.max_epochs or 1
        parts = [f"epoch {min(runner.epoch + 1, epochs)}/{epochs}"] if epochs > 1 else []
        parts.append(f"iter {done}" + ("" if total is None else f"/{total}"))
        parts += [] if self.loss is None else [f"loss {shown(self.loss)}"]
        if done > self._first:
            parts.append(pace(each))
            parts += [] if total is None else [f"eta {clock(each * (total - done))}"]
        return self._bar(done, total, "  ".join(parts))

    def _bar(self, done: int, total: int | None, text: str) -> Table:
        """Return the bar with a text, which has the room first."""
        width = max(10, min(24, self._console.width - len(text) - 4))
        grid = Table.grid(padding=(0, 2))
        grid.add_row(ProgressBar(total=total, completed=done, width=width), Text(text, no_wrap=True))
        return grid


class _Above:
    """Stands in for a stream on the bar's terminal: whole lines are written above the bar, as they are."""

    def __init__(self, stream: TextIO, bar: Bar) -> None:
        self.stream, self._bar, self._begun = stream, bar, ""

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def write(self, text: str) -> int:
        """Write what ends in a line break and keep the rest: the bar has the line below."""
        self._begun += text  # at once, so that an interrupt from here on loses nothing of it
        if "\n" in text:
            with self._bar.aside():
                lines, line_break, rest = self._begun.rpartition("\n")
                self.stream.write(lines + line_break)
                self._begun = rest
                self.stream.flush()
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        """Write each."""
        for line in lines:
            self.write(line)

    def finish(self) -> None:
        """Write what is left; the bar is gone."""
        self.stream.write(self._begun)
        self.stream.flush()
        self._begun = ""


def introduce(runner: Run) -> None:
    """Say what runs, in two lines."""
    model, device, threads = type(runner.unwrapped).__name__, str(runner.device), torch.get_num_threads()
    parameters = sum(parameter.numel() for parameter in runner.unwrapped.parameters() if not is_lazy(parameter))
    facts: dict[str, Any] = {
        "work_dir": runner.work_dir,
        "model": model,
        "parameters": parameters,
        "optimizer": " + ".join(type(wrapper.optimizer).__name__ for _, wrapper in runner.optim_wrappers),
        "device": device,
        "threads": threads,
    }
    parts = [shown_path(runner.work_dir), f"{model}, {_counted(parameters, 'parameter')}", facts["optimizer"]]
    parts += [f"{device}, {_counted(threads, 'thread')}"]
    if not runner.resume:  # else the checkpoint's seed will count, which isn't read yet
        facts["seed"] = runner.seed
        parts += [f"seed {runner.seed}"]
    runner.logger.info("run", **facts, line=" · ".join(part for part in parts if part))
    _count_receivers(runner)


def _count_receivers(runner: Run) -> None:
    plan, path = runner.bus.describe(runner), runner.log_dir / "log.txt"
    hooks, sites = len(runner.hooks), len({row.site for row in plan})
    functions = len({row.receiver for row in plan} - {type(hook).__name__ for hook in runner.hooks})
    line = _counted(hooks, "hook") + (f" + {_counted(functions, 'receiver')}" if functions else "")
    line += f" on {_counted(sites, 'site')}, listed in {shown_path(path)}"
    runner.logger.info("plan", hooks=hooks, receivers=functions, sites=sites, path=path, line=line)


def conclude(runner: Run, took: float, failure: BaseException | None, account: RunAccount) -> None:
    """Say how a training ended, what was best, what is saved, what its receivers have cost, and what may come next."""
    _say_ending(runner, took, failure)
    bests: dict[str, Any] = runner.message_hub.get_info("best", {})
    scores = {name: f"val/{name} {shown(best['score'])}" for name, best in bests.items()}
    width = max(map(len, scores.values()), default=0)
    for name, best in bests.items():
        line = headed("best", scores[name].ljust(width), shown_path(best["path"]))
        runner.logger.info("best", **{f"val/{name}": best["score"]}, path=Path(best["path"]), line=line)
    _say_saves(runner)
    _say_account(runner, account)
    steps = _next_steps(runner, [best["path"] for best in bests.values()])
    if steps:
        runner.logger.info("next", what=" · ".join(steps), line=headed("next", " · ".join(steps)))
    _say_resume(runner)


def _say_ending(runner: Run, took: float, failure: BaseException | None) -> None:
    reason, where = runner.stop_reason, runner.session.stop_where
    head = {"completed": "completed", "exception": "failed", "interrupted": "interrupted"}.get(reason, "stopped")
    if head == "failed" and failure is not None:
        reason = f"{type(failure).__name__}: {failure}".partition("\n")[0].removesuffix(": ")
    own = where.partition(", ")[2].startswith("eventrunner/")  # a hook of ours that has said why, in a line before
    fields = {"where": where} if where and not own and head == "stopped" else {}
    said = [] if reason == head else [reason.replace("_", " ") if own else reason]
    said += [f"({where})" for where in fields.values()]
    line = headed(head, *said, _progress(runner, head), duration(took))
    counted = {"epoch": runner.epoch, "step": runner.iter, "took": round(took, 3)}
    runner.logger.info(head, **({} if reason == head else {"reason": reason}), **fields, **counted, line=line)


def _progress(runner: Run, head: str) -> str:
    loop = runner.train_loop
    if loop is None or not loop.by_epoch:
        return _counted(runner.iter, "step") if head == "completed" else f"step {runner.iter}"
    if head == "completed":
        return f"{_counted(runner.epoch, 'epoch')}, {_counted(runner.iter, 'step')}"
    midway = bool(loop.position.consumed)
    return f"{'in ' if midway else ''}epoch {runner.epoch + midway}, step {runner.iter}"


def _say_saves(runner: Run) -> None:
    saves = runner.message_hub.get_info("saves")
    if not saves:
        return
    last = runner.message_hub.get_info("last_ckpt")
    said = (
        f"{saves['committed']} of {saves['requested']} committed, {size(saves['bytes'])} in {duration(saves['took'])}, "
        f"training blocked {duration(saves['blocked'])}"
    )
    times = {"took": round(saves["took"], 3), "blocked": round(saves["blocked"], 6)}
    fields = {**saves, **times, **({"path": Path(last)} if last else {})}
    runner.logger.info("saves", **fields, line=headed("saves", said, shown_path(last) if last else ""))


def _say_account(runner: Run, account: RunAccount) -> None:
    """Say the table on a terminal, an event for each of its receivers in a pipe; and what would make one cheaper."""
    rows = account.chosen(_MOST_RECEIVERS)
    table = account.table(rows)
    for row, line in zip([None, *rows], table, strict=True):
        fields: dict[str, Any] = {"unit": "s"}
        if row is not None:
            fields = {"receiver": row.name, "calls": row.calls, "inline": round(row.inline, 6)}
            fields |= {"estimated": True} if row.estimated else {}
        if row is not None and row.background:
            fields |= {"background": round(row.background, 6), "waited": round(sum(row.waits.values()), 6)}
        runner.logger.info("time", **fields, line=headed("time" if row is None else "", line))
    for row in account.rows:
        if row.hint:
            runner.logger.warning("receiver", reason=row.hint)


def _next_steps(runner: Run, bests: list[str]) -> list[str]:
    last, reason = _last_of_use(runner), runner.stop_reason
    steps = (
        ["runner.test()"]
        if runner.test_loop is not None and reason not in ("exception", "interrupted", "preempted")
        else []
    )
    if reason == "completed":
        return steps + [f"Runner(..., load_from={shown_path(path)!r})" for path in (bests or [last])[:1] if path]
    return steps + (["Runner(..., resume=True)"] if last or bests else [])


def _last_of_use(runner: Run) -> str:
    """Return the newest checkpoint that the run has saved; if its weights aren't numbers, the newest with such."""
    last: str = runner.message_hub.get_info("last_ckpt", "")
    if not last or runner.session.saver is None or all(save.finite for save in runner.session.saver.saves):
        return last
    found = newest_finite(runner.checkpoint_dir)
    return str(runner.checkpoint_dir / found) if found else ""


def _say_resume(runner: Run) -> None:
    """Say where the run would go on if it were resumed, and what that loses: the last line, whatever the ending."""
    abandoned = abandoned_in(runner.work_dir)
    saved = [each for _, each in listing(runner.checkpoint_dir).complete if is_of_use(each)]
    step = next((each.step for each in reversed(saved) if not abandoned(each)), 0)
    lost = max(runner.progress.step - step, 0)
    line = headed("resumes", f"at step {step}, {_counted(lost, 'step') if lost else 'none'} lost")
    runner.logger.info("resumes", step=step, lost=lost, line=line)


def _counted(number: int, noun: str) -> str:
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"
