"""Jobs that hang, and workers that die: whoever waits for them is told by name, and gets away."""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anyio
import pytest
from tally import LONG, MakeRow

import eventrunner.lanes.lane
from eventrunner.bus.bus import Bus
from eventrunner.errors import LaneError, LaneTimeoutError
from eventrunner.lanes.lanes import BACKENDS, Lanes, Task

DEADLINE = 0.2
KINDS = ("thread", "async", "process")
PLACES = ("barrier", "flush", "full", "exit")
FAST = {("thread", place, "asyncio") for place in PLACES} | {
    ("async", "barrier", "asyncio"),
    ("async", "exit", "trio"),
    ("process", "exit", "asyncio"),
}
ALL = [*itertools.product(KINDS, PLACES, BACKENDS)]


@dataclass
class Stuck:
    """A receiver that hangs in one of the ways to do so, and what tells that it is stuck, and that it is gone."""

    kind: str
    folder: Path
    go: threading.Event = field(default_factory=threading.Event)
    begun: threading.Event = field(default_factory=threading.Event)
    cancelled: threading.Event = field(default_factory=threading.Event)

    def receiver(self) -> Callable[..., Any]:
        async def stuck_async(path: str) -> None:
            self.begun.set()
            try:
                await anyio.sleep(1000)
            finally:
                self.cancelled.set()

        def stuck_thread(path: str) -> None:
            self.begun.set()
            self.go.wait(100)

        return {"thread": stuck_thread, "async": stuck_async, "process": stuck_process}[self.kind]

    def connect(self, bus: Bus) -> None:
        ways = {"worker": "process"} if self.kind == "process" else {}
        bus.lunch.connect(
            self.receiver(), offload=True, lane="kitchen", barrier="dinner", label="cook", max_pending=3, **ways
        )

    def wait(self) -> None:
        """Return when it hangs."""
        poll(self.path.exists if self.kind == "process" else self.begun.is_set)

    @property
    def path(self) -> Path:
        return self.folder / "pid"

    def is_gone(self) -> bool:
        """Whether what can be ended by force was."""
        if self.kind == "process":
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(self.path.read_text()), 0)
                return False
        return self.kind != "async" or self.cancelled.is_set()


def stuck_process(path: str) -> None:
    Path(path + ".part").write_text(str(os.getpid()))
    os.replace(path + ".part", path)
    time.sleep(1000)


def poll(condition: Callable[[], object]) -> None:
    until = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < until, "it never came to hold"
        time.sleep(0.001)


def kitchen() -> Bus:
    bus = Bus(())
    bus.site("lunch", ("path",))
    bus.site("dinner")
    return bus


def hang(bus: Bus, place: str, stuck: Stuck, backend: str) -> BaseException:
    """Run into the hanging job, and return what is raised of it, from the lanes themselves unless at their exit."""
    stuck.connect(bus)
    caught: list[BaseException] = []
    try:
        with bus.open_lanes(backend=backend, deadline=DEADLINE) as lanes:
            for _ in range(3):
                bus.lunch.emit(None, path=str(stuck.path))
            stuck.wait()
            try:
                if place == "barrier":
                    bus.dinner.emit(None)
                elif place == "flush":
                    lanes.flush()
                elif place == "full":
                    bus.lunch.emit(None, path="")
            except BaseException as error:  # looked at by the caller
                caught.append(error)
                raise
    except BaseException as error:  # noqa: BLE001  # as above
        caught.append(error)
    return caught[0]


def unclear(error: BaseException, *wanted: str) -> list[str]:
    """What a report doesn't say, though it should."""
    text = "".join([str(error), *getattr(error, "__notes__", [])])
    missing = [f"not said: {part!r}" for part in wanted if part not in text]
    if not isinstance(error, LaneTimeoutError):
        missing.append(f"no LaneTimeoutError: {error!r}")
    return [f"{each} in {text!r}" for each in missing]


@pytest.mark.parametrize(
    ("kind", "place", "backend"), [each if each in FAST else pytest.param(*each, marks=LONG) for each in ALL]
)
def test_who_waits_for_a_job_that_hangs_is_told_which(
    kind: str, place: str, backend: str, row: MakeRow, tmp_path: Path
) -> None:
    """Receiver, site, lane, how long, and how many jobs are behind it; and what can be ended is ended."""
    found, stuck = row("jobs that hang", "silent or unclear"), Stuck(kind, tmp_path)
    before = threading.active_count()
    error = hang(kitchen(), place, stuck, backend)
    ways = {
        "barrier": ("waited ", "s at 'dinner' for"),
        "flush": ("waited ", "s for"),
        "full": ("waited ", "to take a job of receiver cook"),
        "exit": (f"given {DEADLINE:g} s", "were closed with", "what waited is given up"),
    }
    wanted = ("3 unfinished jobs in lane 'kitchen'", "(running: receiver cook (", "test_hanging.py:", "at 'lunch'")
    found.tried += 1
    found.found += unclear(error, *wanted, *ways[place])
    if not stuck.is_gone():
        found.found.append(f"a job that hangs in {kind} outlives its lanes")
    stuck.go.set()
    if backend == "asyncio":
        poll(lambda: threading.active_count() <= before)
    found.check()


@pytest.mark.parametrize("kind", ["thread", pytest.param("async", marks=LONG), pytest.param("process", marks=LONG)])
@pytest.mark.parametrize("site", [pytest.param("before_train", marks=LONG), "after_run"])
def test_a_training_whose_job_hangs_ends_with_its_name(kind: str, site: str, row: MakeRow, tmp_path: Path) -> None:
    """It is not a process that never ends, and run.json says that it failed."""
    from tiny import QUIET, options  # not at the top, since a process that imports this module has no need of torch

    from eventrunner.runner import Runner

    found, stuck = row("jobs that hang", "silent or unclear"), Stuck(kind, tmp_path)
    chosen = options(default_hooks=QUIET, work_dir=tmp_path / "run", bus=Bus(), offload={"deadline": DEADLINE})
    runner = Runner(**chosen)
    ways = {"worker": "process"} if kind == "process" else {}
    receiver, path = stuck.receiver(), str(stuck.path)
    runner.on(site, offload=True, lane="kitchen", label="cook", **ways)(PathGiven(receiver, path))
    try:
        with pytest.raises(LaneTimeoutError) as caught:
            runner.train()
    finally:
        stuck.go.set()
    found.tried += 1
    found.found += unclear(
        caught.value, "1 unfinished job in lane 'kitchen'", "running: receiver cook (", f") at {site!r}, epoch "
    )
    found.check()


class PathGiven:
    """A receiver that asks for nothing, and hands on a path."""

    def __init__(self, call: Callable[[str], Any], path: str) -> None:
        self.call, self.path = call, path

    def __call__(self) -> Any:
        return self.call(self.path)


def test_a_lane_that_goes_on_is_waited_for_beyond_the_deadline(row: MakeRow) -> None:
    """The deadline is for a lane that finishes nothing, not for a long queue."""
    found, done = row("long queues", "given up"), list[int]()
    with Lanes(deadline=1) as lanes:
        task = Task(lambda number: (time.sleep(0.1), done.append(number)), "a", max_pending=10)
        for number in range(16):
            lanes.submit(task, (number,))
        found.tried += 1
        try:
            lanes.flush()
        except LaneTimeoutError as error:
            found.found.append(str(error))
    if done != list(range(16)):
        found.found.append(f"done: {done}")
    found.check()


def test_a_job_that_waits_for_another_lane_has_no_deadline_of_its_own(row: MakeRow) -> None:
    """Who waits for that job has one: an upload that takes long must not fail the save that is deleted after it."""
    found, go, waiting = row("long waits of jobs", "given up"), threading.Event(), threading.Event()
    with Lanes(deadline=0.1) as lanes:

        def wait() -> None:
            waiting.set()
            lanes.wait("a")

        lanes.submit(Task(go.wait, "a"), (60,))
        lanes.submit(Task(wait, "b"))
        waiting.wait(60)
        threading.Event().wait(0.3)
        lanes.deadline.seconds = 60
        go.set()
        lanes.wait("b")
        found.tried += 1
        found.found += map(repr, lanes.failures)
        lanes.failures.clear()
    found.check()


def test_a_job_that_waits_for_a_lane_that_goes_on_is_waited_for_beyond_the_deadline(row: MakeRow) -> None:
    """As a save for the rows of the log, or a deletion for uploads: nothing of it hangs."""
    found = row("long waits for waits", "given up")
    with Lanes(deadline=1.0) as lanes:
        for _ in range(15):
            lanes.submit(Task(threading.Event().wait, "a"), (0.1,))
        lanes.submit(Task(lanes.wait, "b"), ("a", lanes.mark("a")))
        found.tried += 1
        try:
            lanes.wait("b")
        except LaneTimeoutError as error:
            found.found.append(repr(error))
    found.check()


@pytest.fixture
def impatient() -> Iterator[None]:
    """What is reported after half a minute is reported at once."""
    before, eventrunner.lanes.lane.SLOW = eventrunner.lanes.lane.SLOW, 0.02
    yield
    eventrunner.lanes.lane.SLOW = before


@pytest.mark.usefixtures("impatient")
def test_a_report_that_is_an_error_does_not_end_the_wait() -> None:
    """Warnings are errors here; what waits is no part of what is wrong, and the next check raises it."""
    go = threading.Event()
    with Lanes() as lanes:
        lanes.submit(Task(lambda: (poll(lambda: lanes.failures), go.set()), "a"))
        lanes.wait("a")
        assert go.is_set()
        with pytest.raises(RuntimeWarning, match="still waiting for 1 unfinished job in lane 'a'"):
            lanes.check()
        lanes.failures.clear()


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("wait", ["flush", "glances", "barrier"])
def test_who_waits_for_long_is_told_for_whom_again_and_again(wait: str, row: MakeRow) -> None:
    """Long before the deadline; also where one wait is made of many short ones, as at the end of a run."""
    found, go, told = row("long waits", "silent"), threading.Event(), list[str]()
    bus = kitchen()
    bus.lunch.connect(lambda: go.wait(60), offload=True, lane="kitchen", barrier="dinner", label="cook")

    def warn(text: str, error: BaseException) -> None:
        told.append(text)
        if len(told) == 3:
            go.set()

    lanes = Lanes(warn=warn)
    with bus.open_lanes(lanes=lanes):
        bus.lunch.emit(None, path="")
        if wait == "flush":
            lanes.flush()
        elif wait == "barrier":
            bus.dinner.emit(None)
        else:
            while lanes.unfinished:
                with contextlib.suppress(LaneTimeoutError):
                    lanes.flush(timeout=0.005)
    found.tried += len(told)
    for text in told:
        if not text.startswith("still waiting for 1 unfinished job in lane 'kitchen' (running: receiver cook ("):
            found.found.append(text)
    if len(told) < 3:
        found.found.append(f"{wait}: {len(told)} reports")
    found.check()


@pytest.mark.usefixtures("impatient")
def test_without_anybody_to_tell_it_is_a_python_warning() -> None:
    """Lanes by hand have no log."""
    go = threading.Event()
    with Lanes() as lanes:
        lanes.submit(Task(go.wait, "a", name="cook"), (60,))
        releaser = threading.Thread(target=lambda: (poll(lambda: lanes._lanes["a"].reported), go.set()))
        releaser.start()
        with pytest.warns(RuntimeWarning, match=r"^still waiting for 1 unfinished job in lane 'a' \(running: receiver"):
            lanes.wait("a")
        releaser.join()


# Worker processes that die


@pytest.mark.parametrize(
    ("rounds", "backend"), [(1, "asyncio"), *(pytest.param(30, backend, marks=LONG) for backend in BACKENDS)]
)
def test_a_worker_process_that_dies_is_told_of_and_replaced(
    rounds: int, backend: str, row: MakeRow, tmp_path: Path
) -> None:
    """By itself or killed, amid a job or between two; the lane goes on with a fresh one."""
    found = row("deaths of worker processes", "silent, or the end of the lane")
    for number, how in itertools.product(range(rounds), ("exit", "SIGKILL", "idle")):
        path, failures = tmp_path / f"{how} {number}", list[BaseException]()
        with Lanes(backend) as lanes:
            run = Task(exec, "p", worker="process")  # a function of this module would have it imported
            lanes.submit(run, (f"import os; open({str(path)!r}, 'w').write(str(os.getpid()))",))
            lanes.wait("p")
            if how == "idle":
                os.kill(int(path.read_text()), signal.SIGKILL)
            else:
                lanes.submit(Task(exec, "p", worker="process", name="doomed"), (DEATHS[how],), origin="epoch 3")
            for text in ("next", "last"):
                lanes.submit(run, (f"open({str(path) + text!r}, 'w').close()",))
            lanes.wait("p")
            failures += lanes.failures
            lanes.failures.clear()
        found.tried += 1
        found.found += [f"{backend}, {how}: {text}" for text in wrong_death(how, path, failures)]
    found.check()


DEATHS = {"exit": "import os; os._exit(0)", "SIGKILL": "import os; os.kill(os.getpid(), 9)"}


def wrong_death(how: str, path: Path, failures: list[BaseException]) -> Iterator[str]:
    """An idle one may be found dead by the next job, which then fails; nothing but that may be lost."""
    notes = [f"{error!r} {error.__notes__}" for error in failures]
    if not all(isinstance(error, LaneError) and "worker process ended" in str(error) for error in failures):
        yield f"failures {notes}"
    if how != "idle" and (len(failures) != 1 or "receiver doomed, epoch 3" not in notes[0]):
        yield f"the job that died isn't told of: {notes}"
    if len(failures) > 1 or not Path(str(path) + "last").exists():
        yield f"the lane didn't go on: {notes}"
    if not Path(str(path) + "next").exists() and (how != "idle" or not failures):
        yield f"a job is lost: {notes}"


# Signals


def script(code: str, folder: Path) -> subprocess.Popen[str]:
    """A program that says something once it waits, and then is sent a signal."""
    here = str(Path(__file__).parent)
    start = f"""
        import signal, sys, threading, time
        sys.path[:0] = [{here!r}, {os.path.dirname(here)!r}]
        from eventrunner.bus.bus import Bus
        from eventrunner.lanes.lanes import Lanes, Task
        signal.signal(signal.SIGINT, signal.default_int_handler)
        say = lambda *what: print(*what, flush=True)
        def stuck(lane=None):
            while not here()._lanes["kitchen"].waiters:
                time.sleep(0.001)
            say("waiting")
            threading.Event().wait()
    """
    source = textwrap.dedent(start) + textwrap.dedent(code)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    pipe = subprocess.PIPE
    return subprocess.Popen(
        [sys.executable, "-c", source], stdout=pipe, stderr=pipe, text=True, env=environment, cwd=folder
    )


def signalled(program: subprocess.Popen[str], number: signal.Signals, times: int = 1) -> tuple[int, str]:
    """Send the signal once it waits, and again as another request; what became of it, and its last words."""
    with program:
        assert program.stdout is not None
        assert program.stderr is not None
        for line in program.stdout:
            if line == "waiting\n":
                break
        program.send_signal(number)
        for _ in range(times - 1):
            time.sleep(1.1)
            program.send_signal(number)
        try:
            _, errors = program.communicate(timeout=20)
        except subprocess.TimeoutExpired:
            program.kill()
            return 0, "it goes on waiting"
    return program.returncode, errors


WAITS = {
    "barrier": "bus.dinner.emit()",
    "full": "[bus.lunch.emit() for _ in range(9)]",
    "flush": "lanes.flush()",
}
BARE = """
    bus = Bus(())
    bus.site("lunch"), bus.site("dinner")
    here = lambda: lanes
    bus.lunch.connect(stuck, offload=True, lane="kitchen", barrier="dinner", label="cook", max_pending=2)
    lanes = Lanes(deadline={deadline})
    {handler}
    with bus.open_lanes(lanes=lanes):
        bus.lunch.emit()
        try:
            {wait}
        finally:
            lanes.deadline.seconds = 0.2
"""


@pytest.mark.parametrize(
    "wait", ["barrier", pytest.param("full", marks=LONG), pytest.param("flush", marks=LONG)], ids=str
)
def test_ctrl_c_gets_out_of_a_wait_for_a_job_that_hangs(wait: str, row: MakeRow, tmp_path: Path) -> None:
    """At once; leaving the lanes then takes their deadline, and says what is lost."""
    found = row("signals to who waits", "unanswered or unclear")
    code, errors = signalled(script(BARE.format(deadline=600, handler="", wait=WAITS[wait]), tmp_path), signal.SIGINT)
    found.tried += 1
    if code != -signal.SIGINT or "KeyboardInterrupt" not in errors or "(running: receiver cook (" not in errors:
        found.found.append(f"{wait}: {code}, {errors}")
    found.check()


@pytest.mark.parametrize(
    "wait", ["barrier", pytest.param("full", marks=LONG), pytest.param("flush", marks=LONG)], ids=str
)
def test_a_handler_of_a_signal_can_hurry_who_waits(wait: str, row: MakeRow, tmp_path: Path) -> None:
    """It has come amid that very wait; the deadline would have been ten minutes."""
    found = row("signals to who waits", "unanswered or unclear")
    handler = "signal.signal(signal.SIGTERM, lambda *_: lanes.deadline.shorten(0.1))"
    code, errors = signalled(
        script(BARE.format(deadline=600, handler=handler, wait=WAITS[wait]), tmp_path), signal.SIGTERM
    )
    found.tried += 1
    if code != 1 or "and was asked to wait no longer; find out what it hangs on." not in errors:
        found.found.append(f"{wait}: {code}, {errors}")
    found.check()


TRAINING = """
    from tiny import *
    from eventrunner.runner import Runner
    here = lambda: runner.session.lanes
    hooks = {{"logger": None, "checkpoint": {{"by_epoch": False, "interval": 1}}}}
    runner = Runner(**options(
        count=4, epochs=2, work_dir="run", default_hooks=hooks, offload=dict(grace=0.3, deadline={deadline})
    ))
    runner.on("before_train_iter", offload=True, lane="kitchen", barrier="after_train_epoch", label="cook",
              start=2, once=True)(stuck)
    runner.train()
"""


@pytest.mark.parametrize(
    "number",
    [pytest.param(signal.SIGINT, marks=LONG), signal.SIGTERM],
    ids=lambda number: number.name,
)
def test_a_signal_to_a_training_that_waits_at_a_barrier_ends_it(
    number: signal.Signals, row: MakeRow, tmp_path: Path
) -> None:
    """With the name of what it waits for; what was saved until then is there. At Ctrl-C it is the second that does."""
    found = row("signals to who waits", "unanswered or unclear")
    deadline, times = (600, 2) if number == signal.SIGINT else (3, 1)
    code, errors = signalled(script(TRAINING.format(deadline=deadline), tmp_path), number, times)
    found.tried += 1
    wanted = {signal.SIGINT: "KeyboardInterrupt", signal.SIGTERM: "asked to wait no longer"}[number]
    if code in (0, 75) or wanted not in errors or "(running: receiver cook (" not in errors:
        found.found.append(f"{number.name}: {code}, {errors}")
    if not (tmp_path / "run" / "iter_4").is_dir():
        found.found.append(f"{number.name}: the save before the wait is lost: {os.listdir(tmp_path / 'run')}")
    found.check()
