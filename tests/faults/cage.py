"""A process of its own for what reads a hostile file: with little memory and time, and every deed of it noted."""

from __future__ import annotations

import json
import os
import resource
import signal
import site
import sys
import sysconfig
import tempfile
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from eventrunner.errors import EventRunnerError

MEMORY = 2 * 1024**3
"""Bytes of addresses that a caged process may take beyond those it has; what it uses is measured."""

SECONDS = 60
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_RUNS = (
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "os.spawn",
    "os.fork",
    "subprocess.Popen",
    "pty.spawn",
    "socket.__new__",
)
_CHANGES = ("os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.symlink", "os.link", "os.chmod", "os.truncate")
_OWN = tuple({os.path.realpath(each) for each in (sys.prefix, sys.base_prefix, *site.getsitepackages())})
_OWN += (sysconfig.get_path("stdlib"), "/proc/self", "/dev/null", str(Path(__file__).parents[2]))


@dataclass
class Outcome:
    """What came of it.

    Attributes:
        results: By what was called, ``"returned"``, the name of a checkpoint's error, or any other error in full.
        executed: Code that ran, or was about to, processes and sockets among it.
        escaped: Paths outside of the folder that were opened, and all that were changed.
        peak: Bytes of memory by which the process grew.
        died: How it ended, if not by itself.
    """

    results: dict[str, str] = field(default_factory=dict)
    executed: list[str] = field(default_factory=list)
    escaped: list[str] = field(default_factory=list)
    peak: int = 0
    died: str = ""


def caged(calls: dict[str, Callable[[], object]], folder: Path, changes: bool = False) -> Outcome:
    """Make each call in one process that may only read what is in *folder*, or change it too if it *changes* it.

    What the interpreter and installed packages read of their own is let pass.
    """
    with tempfile.TemporaryFile() as report:
        child = os.fork()
        if child == 0:
            try:
                _work(calls, folder, changes, report.fileno())
            finally:
                os._exit(1)
        _, status = os.waitpid(child, 0)
        report.seek(0)
        lines = [json.loads(line) for line in report.read().splitlines()]
    outcome = Outcome()
    for kind, *what in lines:
        if kind == "result":
            outcome.results[what[0]] = what[1]
        elif kind == "peak":
            outcome.peak = what[0]
        else:
            getattr(outcome, kind).append(what[0])
    if status:
        ended = os.waitstatus_to_exitcode(status)
        outcome.died = signal.Signals(-ended).name if ended < 0 else f"exit {ended}"
    return outcome


def _work(calls: dict[str, Callable[[], object]], folder: Path, changes: bool, report: int) -> None:
    def tell(*line: object) -> None:
        os.write(report, json.dumps(line).encode() + b"\n")

    warnings.simplefilter("ignore")
    devnull = os.open(os.devnull, os.O_WRONLY)
    os.dup2(devnull, 2)
    _limit()
    sys.addaudithook(_watch(os.path.realpath(folder), changes, tell))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for name, call in calls.items():
        tell("result", name, _result(call))
    tell("peak", 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before))
    os._exit(0)


def _limit() -> None:
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(3 * SECONDS)


def _result(call: Callable[[], object]) -> str:
    try:
        call()
    except EventRunnerError as error:
        return type(error).__name__ if len(str(error)) < 2000 else f"a message of {len(str(error))} letters"
    except BaseException as error:  # noqa: BLE001
        return "".join(traceback.format_exception(error, limit=-3))[-1500:]
    return "returned"


def _watch(folder: str, changes: bool, tell: Callable[..., None]) -> Callable[[str, tuple[Any, ...]], None]:
    busy = False

    def inside(path: object, followed: bool = True) -> bool:
        if not isinstance(path, str | bytes | os.PathLike):
            return True  # a descriptor; whoever opened it was seen
        name = os.fsdecode(path)
        real = os.path.realpath(name if followed else os.path.dirname(name) or ".")
        return real == folder or real.startswith(folder + os.sep)

    def changed(event: str, arguments: tuple[Any, ...]) -> object:
        """The path that an event changes."""
        if event in ("os.remove", "os.rmdir") and arguments[1] >= 0:
            return os.path.join(os.readlink(f"/proc/self/fd/{arguments[1]}"), os.fsdecode(arguments[0]))
        return arguments[1 if event in ("os.link", "os.symlink", "os.rename") else 0]

    def look(event: str, arguments: tuple[Any, ...]) -> None:
        if event.startswith(_RUNS) or event == "pickle.find_class":
            tell("executed", f"{event} {arguments!r}"[:300])
        elif event == "exec" and not str(getattr(arguments[0], "co_filename", "")).startswith(_OWN):
            tell("executed", f"exec {arguments[0]!r}"[:300])
        elif event == "import" and arguments[0].partition(".")[0] not in sys.modules:
            tell("executed", f"import {arguments[0]}")
        elif event == "open":
            path, _, flags = arguments
            of_a_removal = isinstance(path, str) and not os.path.isabs(path)  # if it was followed, something is gone
            if changes and (of_a_removal or (flags or 0) & os.O_DIRECTORY):
                return
            own = isinstance(path, str | bytes) and os.path.realpath(os.fsdecode(path)).startswith(_OWN)
            if not (own or inside(path, not (flags or 0) & os.O_NOFOLLOW)) or (
                (flags or 0) & _WRITES and not changes and path != os.devnull
            ):
                tell("escaped", f"open {path!r} {flags}")
        elif event.startswith(_CHANGES) and not (changes and inside(changed(event, arguments), followed=False)):
            tell("escaped", f"{event} {arguments!r}"[:300])

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal busy
        if not busy:
            busy = True
            try:
                look(event, arguments)
            finally:
                busy = False

    return hook
