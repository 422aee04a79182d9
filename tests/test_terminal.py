"""What a person sees: real runs under real pseudo-terminals and in real pipes, read back as a screen would show it."""

from __future__ import annotations

import contextlib
import fcntl
import io
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from tiny import batches, options

from eventrunner.bus.bus import Bus
from eventrunner.hook import Hook
from eventrunner.runner import Runner

SCRIPT = """
import torch
from eventrunner import Runner

torch.set_num_threads(1)
inputs = torch.linspace(-1, 1, 40).reshape(20, 2, 1)
model = torch.nn.Linear(1, 1)
torch.nn.init.zeros_(model.weight)
torch.nn.init.zeros_(model.bias)


class MeanError:
    def update(self, output, target):
        self.errors.append((output - target).abs().mean())

    def compute(self):
        return torch.stack(self.errors).mean()

    def reset(self):
        self.errors = []


def train_step(model, batch):
    return {"loss": (model(batch) - 2 * batch - 1).square().mean()}


def val_step(model, batch):
    return model(batch), 2 * batch + 1


runner = Runner(
    model=model,
    train_step=train_step,
    val_step=val_step,
    optimizer=torch.optim.SGD(model.parameters(), lr=0.05),
    train_dataloader=list(inputs),
    val_dataloader=list(inputs[:4]),
    test_dataloader=list(inputs[4:8]),
    val_evaluator={"error": MeanError()},
    train_cfg=dict(max_epochs=9),
    default_hooks=dict(checkpoint=dict(save_best="error", mode="sync")),
    device="cpu",
)


@runner.on("after_val_epoch")
def good_enough(runner, metrics):
    if metrics["error"] < 0.5:
        runner.stop("good enough")


@runner.on("after_train_epoch")
def greet(runner):
    print("a line of the user's own")


runner.train()
runner.test()
"""

ON_A_TERMINAL = """\
runs/fit/001 · Linear, 2 parameters · SGD · cpu, 1 thread · seed N
6 hooks + 2 receivers on 20 sites, listed in runs/fit/001/log.txt
a line of the user's own
epoch 1/9   train/loss N   val/error N ★   lr N   TIME   ● epoch_1
a line of the user's own
epoch 2/9   train/loss N   val/error N ★   lr N   TIME   ● epoch_2
a line of the user's own
epoch 3/9   train/loss N   val/error N ★   lr N   TIME   ● epoch_3
stopped     good enough   (good_enough, fit.py:49)   epoch 3, step 60   TIME
best        val/error N   runs/fit/001/best_error_epoch_3
saves       3 of 3 committed, SIZE in TIME, training blocked TIME   runs/fit/001/epoch_3
next        runner.test() · Runner(..., resume=True)
resumes     at step 60, none lost
test        test/error N   TIME
"""

IN_A_PIPE = """\
level=info event=run work_dir=runs/fit/001 model=Linear parameters=2 optimizer=SGD device=cpu threads=1 seed=N
level=info event=plan hooks=6 receivers=2 sites=20 path=runs/fit/001/log.txt
a line of the user's own
level=info event="epoch 1/9" step=20 train/loss=N train/lr=N val/error=N took=N saved=epoch_1,best_error_epoch_1
a line of the user's own
level=info event="epoch 2/9" step=40 train/loss=N train/lr=N val/error=N took=N saved=epoch_2,best_error_epoch_2
a line of the user's own
level=info event="epoch 3/9" step=60 train/loss=N train/lr=N val/error=N took=N saved=epoch_3,best_error_epoch_3
level=info event=stopped reason="good enough" where="good_enough, fit.py:49" epoch=3 step=60 took=N
level=info event=best val/error=N path=runs/fit/001/best_error_epoch_3
level=info event=saves requested=3 committed=3 failed=0 bytes=N took=N blocked=N path=runs/fit/001/epoch_3
level=info event=next what="runner.test() · Runner(..., resume=True)"
level=info event=resumes step=60 lost=0
level=info event=test step=60 test/error=N took=N
"""

BAR = re.compile(r"[━-]{9}.*  epoch [12]/2  iter \d+/8")
_STAMP = re.compile(r"^time=\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z ", re.MULTILINE)
_TABLE = re.compile(r"^(time   |            [A-Z\w]| *level=info event=time ).*\n?", re.MULTILINE)
_STEPS = (
    (re.compile(r" +eta(=[\d.]+| [\d:]+)"), ""),  # there where a second or more is left
    (re.compile(r"(?<=seed )\d+|(?<=(?:seed|ytes|took|cked)=)[\d.]+(?:e-\d+)?"), "N"),
    (re.compile(r"\b[\d.]+ m?s/it\b"), "PACE"),
    (re.compile(r"\b[\d.]+ (ms|s)\b|\b\d+:\d\d(:\d\d)?\b"), "TIME"),
    (re.compile(r"\b[\d.]+ ([kMGT]?B)\b"), "SIZE"),
    (re.compile(r"(?<![\w/])-?\d+\.\d+(e[-+]\d+)?\b|(?<==)\d+(\.\d+)?e-\d+"), "N"),
    (re.compile(r" +$", re.MULTILINE), ""),
    (re.compile(r"  +"), " "),
)


def normal(text: str) -> str:
    """A text with measured numbers replaced, without what only a slow run has, and with one blank between columns."""
    text = _TABLE.sub("", _STAMP.sub("", text))
    for pattern, replacement in _STEPS:
        text = pattern.sub(replacement, text)
    return text


def screen(data: str) -> list[str]:
    """The lines that a terminal shows after *data*, whatever had been drawn and erased; understands what rich sends."""
    lines, row, column = [""], 0, 0
    for token in re.findall(r"\x1b\[[0-9;?]*[A-Za-z]|[\r\n]|[^\x1b\r\n]+|\x1b", data):
        if token == "\r":
            column = 0
        elif token == "\n":
            row, column = row + 1, 0
            lines += [""] * (row == len(lines))
        elif token == "\x1b[2K":
            lines[row] = ""
        elif re.fullmatch(r"\x1b\[\d+A", token):
            row -= int(token[2:-1])
            assert row >= 0, "the cursor left the screen"
        elif not re.fullmatch(r"\x1b\[([0-9;]*m|\?25[lh])", token):
            assert "\x1b" not in token, token
            lines[row] = lines[row].ljust(column)[:column] + token + lines[row][column + len(token) :]
            column += len(token)
    return lines


def without_bar(data: str) -> bool:
    """Whether nothing of the bar is left: no character of it, and the cursor is shown again."""
    return not any(line.strip() for line in screen(data)) and data.rfind("\x1b[?25h") >= data.rfind("\x1b[?25l")


@dataclass
class End:
    """One end of a pseudo-terminal or a pipe, and what came out of it."""

    is_terminal: bool
    columns: int = 100
    data: bytearray = field(default_factory=bytearray)

    def __post_init__(self) -> None:
        self.out, self.into = pty.openpty() if self.is_terminal else os.pipe()
        if self.is_terminal:
            fcntl.ioctl(self.into, termios.TIOCSWINSZ, struct.pack("HHHH", 40, self.columns, 0, 0))
        self._thread = threading.Thread(target=self._drain)
        self._thread.start()

    def _drain(self) -> None:
        with contextlib.suppress(OSError):  # a pty says so that its other end is closed
            while chunk := os.read(self.out, 65536):
                self.data += chunk

    def text(self) -> str:
        """Everything that was written, with line ends as before the terminal changed them; *into* is closed."""
        self._thread.join(timeout=60)
        os.close(self.out)
        return self.data.decode().replace("\r\n", "\n")


def texts(*ends: End) -> list[str]:
    """What was written to each; all are closed before any is waited for, as one may be a copy of the other."""
    for end in ends:
        os.close(end.into)
    return [end.text() for end in ends]


@dataclass
class Seen:
    """What was written to stdout and stderr, raw, and how a script ended."""

    out: str = ""
    err: str = ""
    code: int = 0


def run_script(folder: Path, out: bool, err: bool, columns: int = 100, script: str = SCRIPT) -> Seen:
    """Run a script as ``python -W error fit.py``; *out* and *err* say whether each is a terminal, else a pipe."""
    (folder / "fit.py").write_text(script)
    ends = End(out, columns), End(err, columns)
    package = str(Path(__file__).parent.parent)
    done = subprocess.run(
        [sys.executable, "-W", "error", "fit.py"],
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=ends[0].into,
        stderr=ends[1].into,
        env={**os.environ, "PYTHONPATH": package, "TERM": "xterm-256color", "PYTHONIOENCODING": "utf-8"},
        timeout=100,
        check=False,
    )
    return Seen(*texts(*ends), done.returncode)


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Makes stdout and stderr terminals, or pipes, of their own within a ``with`` block."""
    monkeypatch.setenv("TERM", "xterm-256color")
    for name in ("NO_COLOR", "FORCE_COLOR", "COLUMNS"):
        monkeypatch.delenv(name, raising=False)

    @contextlib.contextmanager
    def watch(out: bool = True, err: bool = True, columns: int = 100, encoding: str = "utf-8") -> Iterator[Seen]:
        seen, ends, streams = Seen(), (End(out, columns), End(err, columns)), []
        before = sys.stdout, sys.stderr
        for end in ends:
            raw = io.FileIO(end.into, "w", closefd=False)
            streams.append(io.TextIOWrapper(io.BufferedWriter(raw), encoding, line_buffering=end.is_terminal))
        sys.stdout, sys.stderr = streams
        try:
            yield seen
        finally:
            left_behind = [now is not then for now, then in zip((sys.stdout, sys.stderr), streams, strict=True)]
            sys.stdout, sys.stderr = before
            for stream in streams:
                stream.close()
            seen.out, seen.err = texts(*ends)
            assert left_behind == [False, False], "the run left its own streams in place"

    return watch


@pytest.fixture
def run(bus: Bus) -> Callable[..., Runner]:
    """``run(**changes)``: a tiny run with logs, a bar and a best, in ``runs/``."""

    def make(**changes: Any) -> Runner:
        hooks = {"checkpoint": {"save_best": "mse", "rule": "less"}, **changes.pop("default_hooks", {})}
        if hooks["checkpoint"] is not None:  # a save at once, so that what is written doesn't hang on the disk's speed
            hooks["checkpoint"] = {"mode": "sync", **hooks["checkpoint"]}
        chosen = {"val": True, "count": 4, "log_level": "INFO", "progress": True, "default_hooks": hooks, "bus": bus}
        return Runner(**options(**{**chosen, "work_dir": Path("runs/a"), **changes}))

    return make


def paths_in(text: str) -> set[str]:
    """Everything in a text that is a path of the run."""
    return set(re.findall(r"runs/[\w/.]*\w", text))


# A script, as people run it


@pytest.mark.slow
def test_a_script_on_a_terminal_reads_like_this(tmp_path: Path) -> None:
    """No warning (they are errors here), lines on stdout, the bar on stderr, which it leaves empty."""
    seen = run_script(tmp_path, out=True, err=True, columns=80)
    assert seen.code == 0, seen
    assert normal(seen.out) == normal(ON_A_TERMINAL)
    assert re.search(r"epoch \d/9  iter \d+/180", seen.err)
    assert without_bar(seen.err)
    assert all((tmp_path / path).exists() for path in paths_in(seen.out))
    assert len(paths_in(seen.out)) == 4
    kept = (tmp_path / "runs/fit/001/log.txt").read_text()
    lines = [
        line for line in kept.splitlines() if re.match(r"epoch|stopped|best|saves|time| {12}|next|resumes|test", line)
    ]
    assert lines == [line for line in seen.out.splitlines()[2:] if not line.startswith("a line")]


@pytest.mark.slow
def test_a_script_in_a_pipe_reads_like_this(tmp_path: Path) -> None:
    """The UTC time first, then pairs with plain values; nothing on stderr; nothing that moves a cursor."""
    seen = run_script(tmp_path, out=False, err=False)
    assert (seen.code, seen.err) == (0, "")
    assert normal(seen.out) == normal(IN_A_PIPE)
    assert not set(seen.out) & set("\r\x1b\b★●")
    stamped = [line for line in seen.out.splitlines() if _STAMP.match(line)]
    assert len(stamped) == len(seen.out.splitlines()) - 3
    assert all((tmp_path / path).exists() for path in paths_in(seen.out))


@pytest.mark.slow
def test_with_stdout_piped_away_the_bar_stays_on_the_terminal(tmp_path: Path) -> None:
    """As under ``| tee log``: the log is clean, and the person still sees how it goes."""
    seen = run_script(tmp_path, out=False, err=True)
    assert seen.code == 0
    assert normal(seen.out) == normal(IN_A_PIPE)
    assert re.search(r"epoch \d/9  iter \d+/180", seen.err)
    assert without_bar(seen.err)


@pytest.mark.slow
def test_an_interrupted_script_says_so_and_dies_of_it(tmp_path: Path) -> None:
    """SIGINT in the middle of an epoch: the bar is gone, files are closed, and the shell learns of the signal."""
    script = SCRIPT.replace("max_epochs=9", "max_epochs=10**6").replace("runner.stop(", "runner.logger.info(")
    (tmp_path / "fit.py").write_text(script)
    out, err = End(is_terminal=True), End(is_terminal=True)
    package = str(Path(__file__).parent.parent)
    env = {**os.environ, "PYTHONPATH": package, "TERM": "xterm"}
    process = subprocess.Popen([sys.executable, "fit.py"], cwd=tmp_path, stdout=out.into, stderr=err.into, env=env)
    while b"epoch       2/" not in out.data and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=60) == -signal.SIGINT
    seen = Seen(*texts(out, err))
    ending = normal(seen.out)[normal(seen.out).index("interrupted") :].splitlines()
    assert re.fullmatch(r"interrupted (in )?epoch \d+, step \d+ TIME", ending[0])
    assert re.fullmatch(r"best val/error N runs/fit/001/best_error_epoch_\d+", ending[1])
    said = r"saves (\d+) of (\d+) committed, SIZE in TIME, training blocked TIME runs/fit/001/(epoch|iter)_\d+"
    saves = re.fullmatch(said, ending[2])
    assert saves is not None
    assert saves[1] == saves[2]
    assert ending[3] == "next Runner(..., resume=True)"
    assert re.fullmatch(r"resumes at step \d+, none lost", ending[4])
    bar, traceback = seen.err[: seen.err.index("Traceback")], seen.err[seen.err.index("Traceback") :]
    assert without_bar(bar)
    assert "\nKeyboardInterrupt\n" in traceback
    assert '"interrupted after epoch' in (tmp_path / "runs/fit/001/run.json").read_text()


# Within this process, on terminals of its own


@pytest.mark.slow
def test_a_line_of_any_kind_of_output_appears_intact_above_the_bar(
    watched: Callable[..., Any], run: Callable[..., Runner]
) -> None:
    """Longer than the terminal is wide, with markup, tabs and colour, in parts, and on stderr."""
    runner = run()
    long = "x" * 120 + " [bold]not markup[/bold]\tand  a tab"

    def talk(runner: Runner) -> None:
        print(long)
        print("begun", end="")
        sys.stderr.writelines(["to ", "stderr\n"])
        print(" and ended", flush=True)

    runner.on("after_train_epoch")(talk)
    with watched() as seen:
        runner.train()
    lines = seen.out.splitlines()
    assert lines.count(long) == lines.count("begun and ended") == 2
    assert [line for line in screen(seen.err) if line.strip()] == ["to stderr"] * 2
    assert BAR.search(seen.err)


def test_a_line_that_was_never_ended_is_written_at_the_end(
    watched: Callable[..., Any], run: Callable[..., Runner]
) -> None:
    """Above the last lines of the run."""
    runner = run(default_hooks={"checkpoint": None})

    def mutter(runner: Runner) -> None:
        print("...", end="")

    runner.on("after_train", priority="LOWEST")(mutter)
    with watched() as seen:
        runner.train()
    assert "...completed" in seen.out


def test_one_terminal_shows_lines_and_no_trace_of_the_bar(
    watched: Callable[..., Any], run: Callable[..., Runner]
) -> None:
    """As in life, stdout and stderr are the same one."""
    runner = run()
    with watched() as seen:
        end = os.dup(sys.stdout.fileno())
        os.dup2(end, sys.stderr.fileno())
        os.close(end)
        runner.train()
    shown = screen(seen.out)
    assert [line.split()[0] for line in shown if line and not line.startswith("            ")] == [
        *("runs/a", "6", "epoch", "epoch", "completed", "best", "saves", "time", "next", "resumes")
    ]
    assert "\x1b[2K" in seen.out


def test_columns_stand_in_line(watched: Callable[..., Any], run: Callable[..., Runner]) -> None:
    """With a star or without, and where a validation is left out; a column grows where a number first needs more."""
    runner = run(count=3, epochs=12, train_cfg={"max_epochs": 12, "val_interval": 3})
    with watched() as seen:
        runner.train()
    lines = [line for line in seen.out.splitlines() if line.startswith("epoch")]
    assert len(lines) == 12
    assert {line.index("train/loss") for line in lines} == {len("epoch 12/12   ")}
    for column in (" lr ", " ● "):
        assert len({line.index(column) for line in lines[6:]}) == 1
    assert [line.count("val/mse") for line in lines] == [0, 0, 1] * 4


@pytest.mark.parametrize(
    ("changes", "middle"),
    [
        (
            {"train_cfg": {"max_epochs": 2}},
            """\
            epoch 1/2   train/loss N   val/mse N ★   lr N   TIME   ● epoch_1
            epoch 2/2   train/loss N   val/mse N ★   lr N   TIME   ● epoch_2
            completed   2 epochs, 8 steps   TIME
            best        val/mse N   runs/a/best_mse_epoch_2
            saves       2 of 2 committed, SIZE in TIME, training blocked TIME   runs/a/epoch_2
            next        Runner(..., load_from='runs/a/best_mse_epoch_2')
            resumes     at step 8, none lost
            """,
        ),
        (
            {"train_cfg": {"max_epochs": 1, "val_begin": 0}, "default_hooks": {"checkpoint": {"save_best": None}}},
            """\
            epoch 0/1   val/mse N   TIME
            epoch 1/1   train/loss N   val/mse N   lr N   TIME   ● epoch_1
            completed   1 epoch, 4 steps   TIME
            saves       1 of 1 committed, SIZE in TIME, training blocked TIME   runs/a/epoch_1
            next        Runner(..., load_from='runs/a/epoch_1')
            resumes     at step 4, none lost
            """,
        ),
        (
            {"train_cfg": {"max_epochs": 2, "val_interval": 2}, "default_hooks": {"checkpoint": None}},
            """\
            epoch 1/2   train/loss N   lr N   TIME
            epoch 2/2   train/loss N   val/mse N   lr N   TIME
            completed   2 epochs, 8 steps   TIME
            resumes     at step 0, 8 steps lost
            """,
        ),
        (
            {"train_cfg": {"max_iters": 7, "val_interval": 4}, "default_hooks": {"logger": {"interval": 2}}},
            """\
            iter 2/7   train/loss N   lr N   PACE
            iter 4/7   train/loss N   lr N   PACE   ● iter_4
            iter 4/7   val/mse N ★   ● best_mse_iter_4
            iter 6/7   train/loss N   lr N   PACE
            iter 7/7   val/mse N ★   ● iter_7
            completed   7 steps   TIME
            best        val/mse N   runs/a/best_mse_iter_7
            saves       2 of 2 committed, SIZE in TIME, training blocked TIME   runs/a/iter_7
            next        Runner(..., load_from='runs/a/best_mse_iter_7')
            resumes     at step 7, none lost
            """,
        ),
        (
            {
                "default_hooks": {
                    "checkpoint": {"interval": 2, "by_epoch": False, "save_best": "mse", "rule": "less"},
                    "logger": {"log_metric_by_epoch": False},
                },
            },
            """\
            iter 4/8   train/loss N   val/mse N ★   lr N   TIME   ● 2 saves to iter_4
            iter 8/8   train/loss N   val/mse N ★   lr N   TIME   ● 2 saves to iter_8
            completed   2 epochs, 8 steps   TIME
            best        val/mse N   runs/a/best_mse_iter_8
            saves       4 of 4 committed, SIZE in TIME, training blocked TIME   runs/a/iter_8
            next        Runner(..., load_from='runs/a/best_mse_iter_8')
            resumes     at step 8, none lost
            """,
        ),
        (
            {
                "epochs": 3,
                "test_dataloader": batches(1),
                "custom_hooks": [dict(type="EarlyStoppingHook", monitor="mse", rule="less", patience=1, min_delta=9)],
            },
            """\
            epoch 1/3   train/loss N   val/mse N ★   lr N   TIME   ● epoch_1
            early stop   mse hasn't improved on N in 1 validation
            epoch 2/3   train/loss N   val/mse N ★   lr N   TIME   ● epoch_2
            stopped     early stop   epoch 2, step 8   TIME
            best        val/mse N   runs/a/best_mse_epoch_2
            saves       2 of 2 committed, SIZE in TIME, training blocked TIME   runs/a/epoch_2
            next        runner.test() · Runner(..., resume=True)
            resumes     at step 8, none lost
            """,
        ),
    ],
    ids=["by epoch", "validated before", "no saves", "by iteration", "saved by iteration", "early stop"],
)
def test_a_run_reads_like_this(
    watched: Callable[..., Any], run: Callable[..., Runner], changes: dict[str, Any], middle: str
) -> None:
    """After the two lines of its introduction."""
    runner = run(**changes)
    with watched() as seen:
        runner.train()
    assert normal(seen.out).splitlines()[2:] == [normal(line.strip()) for line in middle.splitlines() if line.strip()]
    assert all(Path(path).exists() for path in paths_in(seen.out))


class Breaks(Hook):
    """Raises in the second iteration of the second epoch."""

    def __init__(self, error: BaseException) -> None:
        self.error = error

    def after_train_iter(self, runner: Runner, batch_idx: int) -> None:
        if (runner.epoch, batch_idx) == (1, 1):
            raise self.error


@pytest.mark.parametrize(
    ("error", "ending"),
    [
        (ZeroDivisionError("by\nzero"), "failed      ZeroDivisionError: by   in epoch 2, step 5   TIME"),
        (MemoryError(), "failed      MemoryError   in epoch 2, step 5   TIME"),
        (KeyboardInterrupt(), "interrupted in epoch 2, step 5   TIME"),
    ],
    ids=["failed", "without message", "interrupted"],
)
def test_a_run_that_breaks_off_says_how_and_what_is_saved(
    watched: Callable[..., Any], run: Callable[..., Runner], error: BaseException, ending: str
) -> None:
    """The error propagates; the bar is gone by then."""
    runner = run(custom_hooks=[Breaks(error)])
    with watched() as seen, pytest.raises(type(error)):
        runner.train()
    expected = f"""\
epoch 1/2   train/loss N   val/mse N ★   lr N   TIME   ● epoch_1
{ending}
best        val/mse N   runs/a/best_mse_epoch_1
saves       1 of 1 committed, SIZE in TIME, training blocked TIME   runs/a/epoch_1
next        Runner(..., resume=True)
resumes     at step 4, 2 steps lost
"""
    assert normal(seen.out).splitlines()[2:] == normal(expected).splitlines()
    assert without_bar(seen.err)


def test_a_run_that_fails_before_it_begins_has_an_ending_too(
    watched: Callable[..., Any], run: Callable[..., Runner]
) -> None:
    """A receiver that comes before the logger raised, so nothing else was said."""
    runner = run()

    def refuse(runner: Runner) -> None:
        raise LookupError("no data")

    runner.on("before_run", priority="HIGHEST")(refuse)
    with watched() as seen, pytest.raises(LookupError):
        runner.train()
    assert normal(seen.out) == "failed LookupError: no data epoch 0, step 0 TIME\nresumes at step 0, none lost\n"


@pytest.mark.parametrize(
    ("ending", "site", "last"),
    [
        (SystemExit(3), "before_train_iter", "resumes at step 4, 1 step lost"),
        (KeyboardInterrupt(), "before_train_iter", "resumes at step 4, 1 step lost"),
        (signal.SIGTERM, "before_train_iter", "resumes at step 6, none lost"),
        (signal.SIGINT, "before_train_iter", "resumes at step 6, none lost"),
        (None, "before_train_iter", "resumes at step 8, none lost"),
    ],
    ids=["failed", "interrupted amid", "preempted", "Ctrl-C", "completed"],
)
def test_the_last_line_says_where_a_resume_begins_and_what_it_loses(
    watched: Callable[..., Any],
    run: Callable[..., Runner],
    ending: BaseException | signal.Signals | None,
    site: str,
    last: str,
) -> None:
    """And that is where it begins."""
    runner = run()

    def end() -> None:
        if isinstance(ending, BaseException):
            raise ending
        if ending is not None:
            signal.raise_signal(ending)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    runner.on(site, start=6, once=True)(end)
    try:
        with watched() as seen, pytest.raises((SystemExit, KeyboardInterrupt)) if ending else contextlib.nullcontext():
            runner.train()
    finally:
        signal.signal(signal.SIGINT, before)
    assert normal(seen.out).splitlines()[-1] == last
    begun: list[int] = []
    resumed = run(resume=True)
    resumed.on("before_train")(lambda runner: begun.append(runner.iter))
    resumed.train()
    assert f"resumes at step {begun[0]}, " in last


def test_the_last_line_doesnt_count_what_a_resume_has_cut_off(
    watched: Callable[..., Any], run: Callable[..., Runner]
) -> None:
    """A run that was taken back to its first epoch, and fails before it saves, would go on there."""
    run().train()
    runner = run(resume=Path("runs/a/epoch_1").absolute())
    runner.on("before_train_iter", start=1)(lambda: 1 / 0)
    with watched() as seen, pytest.raises(ZeroDivisionError):
        runner.train()
    assert normal(seen.out).splitlines()[-1] == "resumes at step 4, none lost"


def test_a_stop_midway_says_who_and_where(watched: Callable[..., Any], run: Callable[..., Runner]) -> None:
    """By the file and line that called stop; the state is saved under its iteration's number."""
    runner = run()

    def tired(runner: Runner) -> None:
        if runner.iter == 5:
            runner.stop("seen enough")

    runner.on("after_train_iter")(tired)
    line = tired.__code__.co_firstlineno + 2
    with watched() as seen:
        runner.train()
    stopped, _, saves, _, _ = normal(seen.out).splitlines()[-5:]
    assert stopped.startswith("stopped seen enough (tired, ")
    assert stopped.endswith(f"test_terminal.py:{line}) in epoch 2, step 6 TIME")
    assert saves == "saves 2 of 2 committed, SIZE in TIME, training blocked TIME runs/a/iter_6"


def test_a_stop_without_a_reason_is_just_a_stop(watched: Callable[..., Any], run: Callable[..., Runner]) -> None:
    """``train_loop.stop_training = True`` has no author, and a word isn't said twice."""
    runner = run()

    def stop(runner: Runner) -> None:
        runner.train_loop.stop_training = True

    runner.on("after_train_epoch")(stop)
    with watched() as seen:
        runner.train()
    assert "\nstopped epoch 1, step 4 TIME\n" in normal(seen.out)


def test_several_bests_stand_below_each_other(watched: Callable[..., Any], run: Callable[..., Runner]) -> None:
    """One line each, their paths in one column; a star at the metric that it is for."""
    values = iter([(0.5, 20.0), (0.75, 30.0)])

    class Two:
        def update(self, *outputs: Any) -> None:
            pass

        def compute(self) -> dict[str, float]:
            return dict(zip(("acc", "acc_loss"), next(values), strict=True))

        def reset(self) -> None:
            pass

    two = {"save_best": ["two/acc", "two/acc_loss"]}
    runner = run(val_evaluator={"two": Two()}, default_hooks={"checkpoint": two})
    with watched() as seen:
        runner.train()
    first, second, *_ = (line for line in seen.out.splitlines() if line.startswith("epoch"))
    assert first.count("★") == 2
    assert re.search(r"val/two/acc 0.7500 ★   val/two/acc_loss 30.00 {6}lr", second)
    assert [line for line in seen.out.splitlines() if line.startswith("best")] == [
        "best        val/two/acc 0.7500       runs/a/best_two_acc_epoch_2",
        "best        val/two/acc_loss 20.00   runs/a/best_two_acc_loss_epoch_1",
    ]


@pytest.mark.parametrize("mode", ["val", "test"])
def test_an_evaluation_is_one_line(watched: Callable[..., Any], run: Callable[..., Runner], mode: str) -> None:
    """After the introduction, which is said once; no ending follows, as nothing was trained."""
    runner = run(test_dataloader=batches(1))
    with watched() as seen:
        getattr(runner, mode)()
        getattr(runner, mode)()
    assert normal(seen.out).splitlines()[2:] == [f"{mode} {mode}/mse N TIME"] * 2
    assert seen.err == ""


def test_without_a_logger_nothing_is_printed_at_all(watched: Callable[..., Any], run: Callable[..., Runner]) -> None:
    """No line and no bar."""
    runner = run(default_hooks={"logger": None})
    with watched() as seen:
        runner.train()
    assert (seen.out, seen.err) == ("", "")


def test_without_progress_there_are_lines_and_no_bar(watched: Callable[..., Any], run: Callable[..., Runner]) -> None:
    """Nothing is written to stderr."""
    runner = run(progress=False)
    with watched() as seen:
        runner.train()
    assert "completed" in seen.out
    assert seen.err == ""


def test_no_color_is_obeyed(
    watched: Callable[..., Any], run: Callable[..., Runner], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bar is drawn without any; lines have none in the first place."""
    monkeypatch.setenv("NO_COLOR", "1")
    runner = run()
    with watched() as seen:
        runner.train()
    assert BAR.search(seen.err)
    assert not re.search(r"\x1b\[[0-9;]*m", seen.err)
    assert "\x1b" not in seen.out


def test_a_dumb_terminal_gets_lines_and_no_bar(
    watched: Callable[..., Any], run: Callable[..., Runner], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing that it can't do is asked of it."""
    runner = run()
    with watched() as seen:
        monkeypatch.setenv("TERM", "dumb")
        runner.train()
    assert "epoch 1/2   train/loss" in seen.out
    assert seen.err == ""


def test_a_pipe_has_no_bar_even_where_colour_is_forced(
    watched: Callable[..., Any], run: Callable[..., Runner], monkeypatch: pytest.MonkeyPatch
) -> None:
    """FORCE_COLOR is set by build services, whose logs are files."""
    runner = run()
    with watched(out=False, err=False) as seen:
        monkeypatch.setenv("FORCE_COLOR", "1")
        runner.train()
    assert seen.err == ""
    assert not set(seen.out) & set("\r\x1b\b")


def test_a_terminal_that_knows_only_ascii_gets_plain_signs(
    watched: Callable[..., Any], run: Callable[..., Runner]
) -> None:
    """In lines and bar; the file has the real ones."""
    runner = run()
    with watched(encoding="ascii") as seen:
        runner.train()
    lines = normal(seen.out).splitlines()
    assert lines[0] == "runs/a - Linear, 3 parameters - SGD - cpu, 1 thread - seed N"
    assert lines[2] == normal("epoch 1/2   train/loss N   val/mse N *   lr N   TIME   o epoch_1")
    assert BAR.search(seen.err)
    assert seen.err.isascii()
    assert "★" in Path("runs/a/log.txt").read_text(encoding="utf-8")


def test_the_bar_has_the_loss_of_the_last_row(watched: Callable[..., Any], run: Callable[..., Runner]) -> None:
    """Which is read anyway: an iteration without a row costs nothing more."""
    runner = run(count=40, default_hooks={"logger": {"interval": 1}})
    runner.on("after_train_epoch")(lambda: time.sleep(0.3))  # the bar is drawn eight times a second
    with watched() as seen:
        runner.train()
    assert re.search(r"iter \d+/80  loss \d[\d.e-]*  .* eta \d", seen.err)


def test_the_bar_counts_without_a_length(watched: Callable[..., Any], run: Callable[..., Runner]) -> None:
    """A stream of batches has no end to reckon with, so there is no time left to show."""

    class Stream:
        def __iter__(self) -> Iterator[Any]:
            return iter(batches(4))

    runner = run(train_dataloader=Stream(), default_hooks={"logger": {"log_metric_by_epoch": False}})
    with watched() as seen:
        runner.train()
    assert re.search(r"epoch [12]/2  iter \d ", seen.err)
    assert "eta" not in seen.err
    assert "\niter 8   train/loss" in seen.out


def test_a_line_says_how_long_is_left(watched: Callable[..., Any], run: Callable[..., Runner]) -> None:
    """Where that is a second or more."""
    runner = run()

    def foresee(runner: Runner) -> None:
        runner.message_hub.update_info("eta", 71.4, resumed=False)

    runner.on("before_train_epoch", priority=55)(foresee)  # between IterTimerHook and LoggerHook
    runner.on("after_train", priority="HIGHEST")(foresee)
    with watched() as seen:
        runner.train()
    assert seen.out.count("   eta 1:11\n") == 2


def test_a_stream_that_was_replaced_during_the_run_stays_replaced(
    watched: Callable[..., Any], run: Callable[..., Runner]
) -> None:
    """Only what the bar put in place is taken out again."""
    runner = run()
    mine = io.StringIO()

    def capture(runner: Runner) -> None:
        sys.stdout = mine

    runner.on("after_train")(capture)
    with watched():
        terminal = sys.stdout
        runner.train()
        replaced, sys.stdout = sys.stdout, terminal
    assert replaced is mine
    assert "completed" in mine.getvalue()


def test_a_forked_worker_prints_past_the_bar(watched: Callable[..., Any], run: Callable[..., Runner]) -> None:
    """The child has the bar's picture and perhaps its lock, but no thread that draws: it must touch neither."""
    runner = run()

    def fork(runner: Runner) -> None:
        child = os.fork()
        if not child:
            print("from a worker", flush=True)
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0

    runner.on("after_train_epoch")(fork)
    with watched() as seen:
        runner.train()
    assert seen.out.splitlines().count("from a worker") == 2
    assert without_bar(seen.err)


def test_nothing_of_the_bar_outlives_the_run(watched: Callable[..., Any], run: Callable[..., Runner]) -> None:
    """No thread, after a second training too."""
    runner = run()
    with watched() as seen:
        before = set(threading.enumerate())
        runner.stop()
        runner.train()
        runner.train()
        for thread in set(threading.enumerate()) - before:
            thread.join(timeout=10)
            assert not thread.is_alive()
    assert without_bar(seen.err)


@pytest.mark.parametrize("name", ["stdout", "stderr"])
def test_a_run_does_without_a_stream_that_there_is_not(
    watched: Callable[..., Any], run: Callable[..., Runner], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """As under pythonw; the file has all lines."""
    runner = run()
    with watched(), monkeypatch.context() as patch:
        patch.setattr(sys, name, None)
        runner.train()
    assert "\ncompleted   2 epochs" in Path("runs/a/log.txt").read_text(encoding="utf-8")
