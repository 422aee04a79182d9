"""Lines and rows: what is written, where, and in which form."""

from __future__ import annotations

import contextlib
import errno
import io
import json
import logging
import os
import re
import threading
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from eventrunner.errors import OptionError
from eventrunner.report.log import RunLog, headed
from eventrunner.report.rows import RowLog
from eventrunner.units import shown

TIME = re.compile(r"time=\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z ")


def piped(capsys: pytest.CaptureFixture[str]) -> list[str]:
    """The lines on stdout, without the time that each must begin with."""
    lines = capsys.readouterr().out.splitlines()
    assert all(TIME.match(line) for line in lines), lines
    return [TIME.sub("", line) for line in lines]


@contextlib.contextmanager
def written(log: RunLog, path: Path) -> Iterator[list[str]]:
    """The lines that the block adds to the file at *path*."""
    lines: list[str] = []
    log.open(path)
    yield lines
    log.close()
    lines += path.read_text(encoding="utf-8").splitlines()


def test_a_line_in_a_pipe_has_the_time_first_and_then_pairs(capsys: pytest.CaptureFixture[str]) -> None:
    """UTC, level, event, then the fields in their order; what has blanks is quoted."""
    RunLog().logger.info("epoch 1/20", step=22, reason="good enough", flag=True, nothing=None)
    assert piped(capsys) == ['level=info event="epoch 1/20" step=22 reason="good enough" flag=True nothing=None']


def test_floats_in_a_pipe_have_six_digits(capsys: pytest.CaptureFixture[str]) -> None:
    """Full precision is what log.jsonl is for."""
    RunLog().logger.info("x", loss=1 / 3, small=3e-9, whole=2.0, bad=float("nan"))
    assert piped(capsys) == ["level=info event=x loss=0.333333 small=3e-09 whole=2 bad=nan"]


def test_code_that_takes_a_logging_logger_gets_along_with_ours(capsys: pytest.CaptureFixture[str]) -> None:
    """An adapter, for instance: it asks for name and level, and whether one is enabled, and logs at any."""
    logger = RunLog("DEBUG").logger
    adapter = logging.LoggerAdapter(logger, {"trial": 3})
    adapter.info("a %s", "word")
    adapter.log(25, "between", stacklevel=2)
    logger.log(logging.DEBUG - 1, "never")
    logger.log(logging.CRITICAL + 9, "%d of %d", 1, 2, extra=None)
    logger.bind(of=2).warn("careful")
    assert piped(capsys) == [
        'level=info event="a word" trial=3',
        "level=info event=between trial=3",
        'level=critical event="1 of 2"',
        "level=warning event=careful of=2",
    ]
    assert (logger.name, logger.level, list(logger.handlers)) == ("eventrunner", logging.DEBUG, [])
    assert [logger.isEnabledFor(level) for level in (5, 10, 20)] == [False, True, True]
    assert logger.getEffectiveLevel() == adapter.getEffectiveLevel() == logging.DEBUG


def test_nothing_in_a_pipe_moves_the_cursor(capsys: pytest.CaptureFixture[str]) -> None:
    """Control characters are spelt out, a line break too, so one event is one line."""
    RunLog().logger.info("a\rb", c="\x1b[31mred\x08", d="two\nlines")
    assert piped(capsys) == [r"level=info event=a\x0db c=\x1b[31mred\x08 d=two\nlines"]


def test_a_key_with_a_blank_is_written_with_an_underscore(capsys: pytest.CaptureFixture[str]) -> None:
    """train_step may name its losses as it likes."""
    RunLog().logger.info("x", **{"train/my loss": 1})
    assert piped(capsys) == ["level=info event=x train/my_loss=1"]


def test_a_field_does_not_take_the_place_of_time_or_level(capsys: pytest.CaptureFixture[str]) -> None:
    """A line always begins with the real ones."""
    RunLog().logger.info("x", time="never", level="none", other=1)
    assert piped(capsys) == ["level=info event=x other=1"]


def test_the_file_has_the_lines_as_a_terminal_would(tmp_path: Path) -> None:
    """A heading in a column of twelve; a reason or path without its name; floats with four digits."""
    log = RunLog("CRITICAL")
    with written(log, tmp_path / "log.txt") as lines:
        log.logger.info("stopped", reason="good enough", path="runs/1", loss=1 / 3)
        log.logger.info("alone")
    assert lines == ["stopped     good enough   runs/1   loss 0.3333", "alone"]


def test_an_event_may_say_how_it_reads(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its fields are then for programs alone."""
    log = RunLog()
    with written(log, tmp_path / "log.txt") as lines:
        log.logger.info("epoch 1/20", loss=0.5, line="epoch  1/20   train/loss 0.5000 ★")
    assert lines == ["epoch  1/20   train/loss 0.5000 ★"]
    assert piped(capsys) == ['level=info event="epoch 1/20" loss=0.5']


def test_a_line_is_written_when_the_call_returns(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """So it comes before whatever the script prints next, and a process that is killed has it."""
    log, path = RunLog(), tmp_path / "log.txt"
    with written(log, path):
        for count in range(1, 4):
            log.logger.info("a")
            print("the script's own")
            assert path.read_text() == "a\n" * count
    assert [line[-1] for line in capsys.readouterr().out.splitlines()] == ["a", "n"] * 3


def test_a_line_goes_where_stdout_is_when_it_is_logged(capsys: pytest.CaptureFixture[str]) -> None:
    """Somebody may redirect it meanwhile."""
    log = RunLog()
    log.logger.info("a")
    with contextlib.redirect_stdout(io.StringIO()) as other:
        log.logger.info("b")
    log.logger.info("c")
    assert [line.split("event=")[1] for line in capsys.readouterr().out.splitlines()] == ["a", "c"]
    assert other.getvalue().endswith("event=b\n")


def test_a_line_has_the_time_of_its_event(capsys: pytest.CaptureFixture[str]) -> None:
    """To the millisecond."""
    began = time.time()
    RunLog().logger.info("a")
    (line,) = capsys.readouterr().out.splitlines()
    moment = datetime.fromisoformat(line.removeprefix("time=").split()[0]).timestamp()
    assert began - 0.001 <= moment <= time.time()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a file that is always full")
def test_a_file_that_fails_is_raised_once_and_stdout_has_the_lines(capsys: pytest.CaptureFixture[str]) -> None:
    """Or reported to who asked for that."""
    log = RunLog()
    log.open(Path("/dev/full"))
    with pytest.raises(OSError, match="No space left"):
        log.logger.info("a")
    log.logger.info("b")
    reported: list[OSError] = []
    log.on_failure = reported.append
    log.open(Path("/dev/full"))
    log.logger.info("c")
    log.logger.info("d")
    log.close()
    assert piped(capsys) == [f"level=info event={event}" for event in "abcd"]
    assert [error.errno for error in reported] == [errno.ENOSPC]


def test_threads_write_whole_lines(tmp_path: Path) -> None:
    """Lanes log too; no line is lost, torn or doubled."""
    log = RunLog("CRITICAL")
    names = [f"{number} " + "x" * number for number in range(1, 9)]
    with written(log, tmp_path / "log.txt") as lines:
        threads = [
            threading.Thread(target=lambda name=name: [log.logger.info(name) for _ in range(50)]) for name in names
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert sorted(lines) == sorted(name for name in names for _ in range(50))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forked_worker_leaves_its_parents_lines_alone(tmp_path: Path) -> None:
    """It writes its own, in turn; the parent's come once."""
    log, path = RunLog("CRITICAL"), tmp_path / "log.txt"
    with written(log, path) as lines:
        log.logger.info("a")
        child = os.fork()
        if child == 0:
            log.logger.info("child")
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        log.logger.info("b")
    assert lines == ["a", "child", "b"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forked_process_writes_its_own_lines_in_turn(tmp_path: Path) -> None:
    """A run that was made before the fork may be trained behind it."""
    log, path = RunLog("CRITICAL"), tmp_path / "log.txt"
    log.logger.info("a")
    child = os.fork()
    if child == 0:
        with written(log, path):
            for event in "bcd":
                log.logger.info(event)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert path.read_text() == "b\nc\nd\n"


def test_levels_from_warning_on_are_named(tmp_path: Path) -> None:
    """Info and debug aren't; every way of logging works."""
    log = RunLog("CRITICAL")
    with written(log, tmp_path / "log.txt") as lines:
        for method in ("debug", "info", "warning", "warn", "error"):
            getattr(log.logger, method)("x")
        log.logger.log(30, "y")
    assert lines == ["x", "x", "warning   x", "warning   x", "error   x", "warning   y"]


@pytest.mark.parametrize(
    ("level", "expected"), [("DEBUG", "dwe"), ("INFO", "we"), ("WARNING", "we"), ("ERROR", "e"), ("CRITICAL", "")]
)
def test_the_level_is_the_least_that_reaches_stdout(
    level: str, expected: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The file has them all."""
    log = RunLog(level)
    with written(log, tmp_path / "log.txt") as lines:
        log.logger.debug("d")
        log.logger.warning("w")
        log.logger.error("e")
    assert "".join(line[-1] for line in piped(capsys)) == expected
    assert len(lines) == 3


def test_of_another_rank_only_errors_are_shown_with_its_number(capsys: pytest.CaptureFixture[str]) -> None:
    """The first one speaks for all."""
    log = RunLog("DEBUG", rank=3)
    log.logger.warning("x")
    log.logger.error("y")
    assert [line.partition("level=")[2] for line in capsys.readouterr().out.splitlines()] == ["error event=y rank=3"]


@pytest.mark.parametrize(("level", "end"), [("info", "; did you mean 'INFO'?"), ("LOUD", "."), (10, ".")])
def test_another_level_is_refused(level: Any, end: str) -> None:
    """With the nearest there is."""
    with pytest.raises(OptionError) as caught:
        RunLog(level)
    allowed = "DEBUG, INFO, WARNING, ERROR, CRITICAL"
    assert str(caught.value) == f"log_level={level!r} is not one of {allowed}{end}"


def test_an_exception_is_logged_with_its_traceback(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Below the line in the file, and as one field of one line in a pipe."""
    log = RunLog()
    with written(log, tmp_path / "log.txt") as lines:
        try:
            raise ZeroDivisionError("oh")
        except ZeroDivisionError:
            log.logger.exception("failed", path="x")
    assert lines[0] == "error   failed      x"
    assert lines[1] == "Traceback (most recent call last):"
    assert lines[-1] == "ZeroDivisionError: oh"
    (line,) = piped(capsys)
    assert line.startswith('level=error event=failed path=x exception="Traceback (most recent call last):\\n')


def test_positional_arguments_are_put_in(capsys: pytest.CaptureFixture[str]) -> None:
    """As the standard library's loggers do; a per cent sign alone is just one."""
    log = RunLog()
    log.logger.info("%d of %s", 3, "four")
    log.logger.info("50 %")
    assert piped(capsys) == ['level=info event="3 of four"', 'level=info event="50 %"']


def test_a_bound_logger_adds_its_fields(capsys: pytest.CaptureFixture[str]) -> None:
    """As structlog has it."""
    RunLog().logger.bind(fold=3).info("x", y=1)
    assert piped(capsys) == ["level=info event=x fold=3 y=1"]


def test_two_logs_in_one_process_do_not_mix(tmp_path: Path) -> None:
    """Nothing is configured globally."""
    one, other = RunLog("CRITICAL"), RunLog("CRITICAL")
    with written(one, tmp_path / "one") as lines, written(other, tmp_path / "other") as others:
        one.logger.info("1")
        other.logger.info("2")
    assert (lines, others) == (["1"], ["2"])


def test_a_log_that_is_opened_again_appends(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In between, events reach stdout alone."""
    log = RunLog()
    for name in ("a", "b"):
        with written(log, tmp_path / "log.txt") as lines:
            log.logger.info(name)
        log.logger.info("between")
    assert lines == ["a", "b"]
    assert len(piped(capsys)) == 4
    log.open(tmp_path / "log.txt")
    with written(log, tmp_path / "other.txt") as lines:  # opening another closes the first
        log.logger.info("c")
    assert lines == ["c"]


def test_a_stream_that_cannot_show_a_sign_gets_a_plain_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """And a question mark for what has no plain form; the line never fails."""
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii", write_through=True)
    monkeypatch.setattr("sys.stdout", stream)
    RunLog().logger.info("★ ● a · b … ü")
    assert stream.buffer.getvalue().decode().endswith('event="* o a - b ... ?"\n')


def test_what_draws_steps_aside_for_each_line(capsys: pytest.CaptureFixture[str]) -> None:
    """A line is printed within ``aside``."""
    log, order = RunLog(), []

    @contextlib.contextmanager
    def aside() -> Iterator[None]:
        order.append(len(capsys.readouterr().out))
        yield
        order.append(len(capsys.readouterr().out))

    log.aside = aside
    log.logger.info("x")
    assert order[0] == 0
    assert order[1] > 0


@pytest.mark.parametrize(
    ("value", "text"),
    [
        *[(0.0, "0.0000"), (0.01, "0.0100"), (0.8287, "0.8287"), (-0.5, "-0.5000"), (1.3534, "1.353")],
        *[(12.345, "12.35"), (1234.5, "1234.5"), (12345.0, "1.23e+04"), (0.00123, "1.23e-03"), (-1e-9, "-1.00e-09")],
        *[(float("nan"), "nan"), (float("-inf"), "-inf"), (3, "3"), (True, "True"), ("text", "text"), (None, "None")],
    ],
)
def test_numbers_are_shown_with_four_digits(value: Any, text: str) -> None:
    """Very small and very large ones with three and an exponent; only floats are numbers in this sense."""
    assert shown(value) == text


def test_parts_begin_in_one_column_below_short_headings() -> None:
    """Empty parts are left out, and so is space at the end."""
    assert headed("best", "a", "", "b") == "best        a   b"
    assert headed("interrupted", "a") == "interrupted a"
    assert headed("alone") == "alone"


def texts(path: Path) -> list[Any]:
    """The rows of a file, which must all be whole."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def filled(path: Path, *rows: dict[str, Any]) -> RowLog:
    """A log with rows in it."""
    log = RowLog(path)
    for row in rows:
        log.write(row)
    return log


def test_a_row_can_be_read_at_once(tmp_path: Path) -> None:
    """By another process too: it isn't kept in a buffer. Folders are made."""
    path = tmp_path / "new" / "log.jsonl"
    log = filled(path, {"step": 1, "train/loss": 0.5})
    assert texts(path) == [{"step": 1, "train/loss": 0.5}]
    log.close()


def test_a_nan_comes_back_as_one(tmp_path: Path) -> None:
    """In Python's form of JSON."""
    filled(tmp_path / "log.jsonl", {"step": 1, "train/loss": float("nan")}).close()
    assert '"train/loss": NaN' in (tmp_path / "log.jsonl").read_text()


def test_a_log_that_is_opened_again_goes_on(tmp_path: Path) -> None:
    """After its last row."""
    for step in (1, 2):
        filled(tmp_path / "log.jsonl", {"step": step}).close()
    assert texts(tmp_path / "log.jsonl") == [{"step": 1}, {"step": 2}]


def test_a_torn_line_does_not_swallow_the_next_row(tmp_path: Path) -> None:
    """A killed process leaves half a line; the next one begins a line of its own."""
    path = tmp_path / "log.jsonl"
    path.write_text('{"step": 1}\n{"step": 2, "tr')
    filled(path, {"step": 3}).close()
    assert path.read_text() == '{"step": 1}\n{"step": 2, "tr\n{"step": 3}\n'


def test_cutting_back_drops_what_comes_after_the_step(tmp_path: Path) -> None:
    """What stays is byte for byte what it was, and is returned; the log goes on behind it."""
    path = tmp_path / "log.jsonl"
    log = filled(path, {"step": 1, "train/loss": 0.1}, {"step": 2, "val/acc": 1}, {"step": 3, "train/loss": 0.3})
    before = path.read_text().splitlines()
    assert log.cut_back(2, validates_again=False) == [{"step": 1, "train/loss": 0.1}, {"step": 2, "val/acc": 1}]
    log.write({"step": 3, "train/loss": 0.5})
    log.close()
    assert path.read_text().splitlines() == [*before[:2], '{"step": 3, "train/loss": 0.5}']


def test_cutting_back_drops_the_validation_that_comes_again(tmp_path: Path) -> None:
    """Only that of the very step, and not its other rows."""
    rows = [
        {"step": 1, "val/acc": 1},
        {"step": 2, "train/loss": 1},
        {"step": 2, "val/acc": 2},
        {"step": 2, "test/a": 1},
    ]
    log = filled(tmp_path / "log.jsonl", *rows)
    assert log.cut_back(2, validates_again=True) == [rows[0], rows[1], rows[3]]
    log.close()


def test_cutting_back_drops_what_is_no_row(tmp_path: Path) -> None:
    """Half a line, bytes that are no text, and JSON that is something else."""
    path = tmp_path / "log.jsonl"
    path.write_bytes(b'{"step": 1}\n\n12\n[]\n{"loss": 1}\n{"step": "2"}\n\xff\xfe\n{"step": 2}\n{"step": 3')
    log = RowLog(path)
    log.cut_back(5, validates_again=False)
    log.close()
    assert texts(path) == [{"step": 1}, {"step": 2}]


def test_cutting_back_leaves_the_old_file_whole_if_it_fails(tmp_path: Path) -> None:
    """Here a folder stands where the new one is to be written, which takes the old one's place in one rename."""
    path = tmp_path / "log.jsonl"
    log = filled(path, {"step": 1}, {"step": 2})
    (tmp_path / f".log.jsonl.{os.getpid()}").mkdir()
    with pytest.raises(IsADirectoryError):
        log.cut_back(1, validates_again=False)
    assert texts(path) == [{"step": 1}, {"step": 2}]
