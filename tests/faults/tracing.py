"""Work done in a process under strace, which can kill it at a system call, fail that call, or just write all down."""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from scenario import Scenario, Tell
from tiny import forked

CHANGING = (
    *("openat", "write", "pwrite64", "writev", "ftruncate", "fallocate", "copy_file_range", "sendfile"),
    *("rename", "renameat", "renameat2", "mkdir", "mkdirat", "link", "linkat", "symlink", "symlinkat"),
    *("unlink", "unlinkat", "rmdir", "fsync", "fdatasync", "close", "fcntl"),
)
"""The calls that change a disk, or stand between two that do."""

_TOLD = "pwritev"  # the one call by which a process under strace tells of something, so that it is never hit
_PR_SET_PTRACER, _ANYBODY = 0x59616D61, ctypes.c_ulong(-1)
_AT_MOST = 60
_LINE = re.compile(r"(?P<pid>\d+) +(?P<rest>.*)")
_CALL = re.compile(r"(?P<name>\w+)\((?P<args>.*)\) += (?P<result>-?\d+|\?).*")
_RESUMED = re.compile(r"<\.\.\. (?P<name>\w+) resumed>(?P<rest>.*)")
_UNFINISHED = " <unfinished ...>"


@dataclass(frozen=True)
class Call:
    """A system call. ``begun`` and ``ended`` are lines of the trace, and so is their order in time.

    Attributes:
        nth: Which of its name it is in its thread, from 1.
    """

    thread: int
    name: str
    args: str
    result: str
    begun: int
    ended: int
    nth: int


@dataclass(frozen=True)
class Traced:
    """What has become of a process: how it ended, what it told of before, and what it called."""

    code: int
    told: list[str]
    trace: Path

    def calls(self) -> list[Call]:
        """In the order in which they began; those that never ended aren't among them."""
        return sorted(_calls(self.trace.read_text(errors="replace").splitlines()), key=lambda call: call.begun)


def can_trace(folder: Path) -> str:
    """Why processes can't be traced here; empty if they can."""
    if shutil.which("strace") is None:
        return "there is no strace here"
    try:
        traced(lambda tell: None, folder, "trace=close")
    except RuntimeError as error:
        return str(error)
    return ""


def traced(
    work: Callable[[Tell], None], folder: Path, *expressions: str, before: Callable[[Tell], None] | None = None
) -> Traced:
    """Do *before* and then *work* in a process of its own, the latter under ``strace -e EXPRESSION …``.

    What it tells, and the trace, are written into *folder*.

    Raises:
        RuntimeError: strace can't attach to processes here.
    """
    told, trace = folder / "told", folder / "trace"
    ready, gate = os.pipe(), os.pipe()
    process = forked(_work, work, before, told, ready[1], gate[0])
    os.close(ready[1])
    os.read(ready[0], 1)
    options = [part for expression in expressions for part in ("-e", expression)]
    command = ["strace", "-f", "-y", "-s", "64", "-p", str(process.pid), "-o", str(trace), *options]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as strace:
        assert strace.stderr is not None
        said = strace.stderr.readline()
        os.write(gate[1], b"." if "attached" in said else b"-")
        process.join(_AT_MOST)
        if process.exitcode is None:
            process.kill()
            process.join()
        for descriptor in (ready[0], *gate):
            os.close(descriptor)
        if "attached" not in said:
            raise RuntimeError(f"strace can't attach to a process here: {said.strip()}")
        strace.stderr.read()  # until it has ended
    lines = told.read_text().splitlines() if told.exists() else []
    return Traced(process.exitcode, lines, trace)


def _work(
    work: Callable[[Tell], None], before: Callable[[Tell], None] | None, told: Path, ready: int, gate: int
) -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PTRACER, _ANYBODY, 0, 0, 0)  # some kernels let only a parent attach otherwise
    descriptor = os.open(told, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def tell(line: str) -> None:
        os.pwritev(descriptor, [line.encode() + b"\n"], 0)  # to a file that is appended to: at its end

    if before is not None:
        before(tell)
    os.write(ready, b".")
    if os.read(gate, 1) != b".":
        os._exit(0)
    try:
        work(tell)
    except BaseException as error:  # noqa: BLE001  # told of, and judged there
        tell(f"raised {type(error).__name__}: {error}".replace("\n", " "))
        os._exit(1)
    os._exit(0)


def run(scenario: Scenario, folder: Path, *expressions: str) -> Traced:
    """Prepare the scenario in ``folder / "run"``, and do its work under strace."""
    place = folder / "run"
    return traced(
        lambda tell: scenario.work(place, tell), folder, *expressions, before=lambda tell: scenario.prepare(place, tell)
    )


def _calls(lines: Sequence[str]) -> Iterator[Call]:
    begun: dict[str, tuple[int, str]] = {}
    counts = Counter[tuple[str, str]]()
    numbers: dict[str, int] = {}
    for number, line in enumerate(lines):
        match = _LINE.fullmatch(line)
        if match is None:
            continue
        pid, rest = match["pid"], match["rest"]
        resumed = _RESUMED.fullmatch(rest)
        if resumed is None and (name := rest.partition("(")[0]).isidentifier():
            counts[pid, name] += 1
            numbers[pid] = counts[pid, name]
        if rest.endswith(_UNFINISHED):
            begun[pid] = number, rest.removesuffix(_UNFINISHED)
            continue
        start = number
        if resumed is not None:
            start, head = begun.pop(pid, (number, ""))
            rest = head + resumed["rest"]
        if (call := _CALL.fullmatch(rest)) is not None:
            yield Call(int(pid), call["name"], call["args"], call["result"], start, number, numbers[pid])


def quoted(args: str) -> list[str]:
    """The strings among a call's arguments."""
    return re.findall(r'"([^"]*)"', args)


def descriptor_path(args: str) -> str:
    """The path of the file that a call's first argument is open on."""
    match = re.match(r"\d+<([^>]*)>", args)
    return match[1] if match else ""


def names(calls: Sequence[str]) -> str:
    """As strace takes them: those that this machine's kernel doesn't have are left out."""
    return ",".join(f"?{call}" for call in calls)


def clear(folder: Path) -> None:
    """Remove a folder with all that was done in it."""
    with contextlib.suppress(FileNotFoundError):
        shutil.rmtree(folder)
