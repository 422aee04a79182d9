"""Lanes: order, room, waiting, failures, and that nothing is lost and nothing stays."""

from __future__ import annotations

import asyncio
import functools
import gc
import math
import os
import pickle
import random
import signal
import subprocess
import sys
import textwrap
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextvars import ContextVar, copy_context
from pathlib import Path
from typing import Any

import anyio
import pytest
import structlog
from hypothesis import given, settings
from hypothesis import strategies as st

from eventrunner.bus.bus import Bus
from eventrunner.errors import LaneError, LaneFullError, LaneTimeoutError, MissingExtraError, OptionError
from eventrunner.lanes.lane import Job
from eventrunner.lanes.lanes import BACKENDS, Account, Lanes, Task, run_now
from eventrunner.lanes.task import call_in_process

both_backends = pytest.mark.parametrize("backend", BACKENDS)


def threads() -> set[threading.Thread]:
    """The threads that are alive, but for those that trio keeps idle for its next use."""
    return {thread for thread in threading.enumerate() if not thread.name.startswith("Trio thread")}


@pytest.fixture(autouse=True)
def _no_thread_stays() -> Iterator[None]:
    before = threads()
    yield
    for thread in threads() - before:
        thread.join(5)
    assert threads() <= before


def poll(condition: Callable[[], object]) -> None:
    """Return once *condition* holds."""
    until = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < until, "it never came to hold"
        time.sleep(0.0005)


def join(lanes: Lanes) -> None:
    """Wait for the threads of lanes that were given up."""
    assert lanes._loop.state.loop is not None
    lanes._loop.state.loop.join(20)
    assert not lanes._loop.state.loop.is_alive()


def somebody_waits_for(lanes: Lanes, lane: str) -> bool:
    return bool(lanes._lanes[lane].waiters)


def leave(kind: type[BaseException], block: Callable[[Lanes], None], **options: Any) -> Any:
    """What leaves the lanes when *block* was done in them."""
    with pytest.raises(kind) as caught, Lanes(**options) as lanes:
        block(lanes)
    return caught.value


class Held:
    """A job that runs until it is let go; ``begun`` is set once it runs."""

    def __init__(self) -> None:
        self.begun, self.go = threading.Event(), threading.Event()

    def __call__(self) -> None:
        self.begun.set()
        assert self.go.wait(20)


def hold(lanes: Lanes, lane: str, **options: Any) -> Held:
    """Keep a lane busy; returns once it is."""
    held = Held()
    lanes.submit(Task(held, lane, name="held", **options))
    assert held.begun.wait(20)
    return held


def boom(text: str = "boom") -> None:
    raise ValueError(text)


async def async_boom(text: str = "boom") -> None:
    await anyio.sleep(0)
    raise ValueError(text)


async def async_function() -> None: ...


class AsyncObject:
    async def __call__(self) -> None: ...


class CustomError(Exception):
    """Can be pickled and not unpickled."""

    def __init__(self, one: str, two: str) -> None:
        super().__init__(f"{one} and {two}")


# What a process runs: top-level functions of this module.


def write_text(path: str, text: str) -> None:
    Path(path).write_text(text)


def raise_custom() -> None:
    raise CustomError("one", "two")


def interrupt_myself() -> None:
    os.kill(os.getpid(), signal.SIGINT)


def sleep_with_pid(path: str) -> None:
    Path(path + ".part").write_text(str(os.getpid()))
    os.replace(path + ".part", path)
    time.sleep(100)


# ---------------------------------------------------------------------------------------------------------------- tasks


def test_a_task_has_defaults() -> None:
    """Only the call and the lane must be given."""
    task = Task(boom, "log")
    assert (task.name, task.max_pending, task.on_full, task.on_error, task.retries) == (
        "boom",
        1000,
        "wait",
        "raise",
        0,
    )
    assert (task.worker, task.native, task.awaits, task.disable_after) == ("thread", False, False, 0)


@pytest.mark.parametrize(
    ("call", "awaits"),
    [
        (boom, False),
        (async_boom, True),
        (functools.partial(functools.partial(async_boom, "x")), True),
        (AsyncObject(), True),
        (AsyncObject().__call__, True),
        (Held(), False),
        (list.append, False),
        (lambda: None, False),
    ],
)
def test_a_task_knows_whether_its_call_is_an_async_def(call: Callable[..., Any], awaits: bool) -> None:
    """Behind partials, bound methods and callable objects too."""
    assert Task(call, "log").awaits is awaits


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({}, "receiver boom"),
        ({"name": "write"}, "receiver write"),
        ({"name": "write", "location": "a.py:3"}, "receiver write (a.py:3)"),
        ({"location": "a.py:3", "site": "on_log"}, "receiver boom (a.py:3) at 'on_log'"),
        ({"site": "on_log"}, "receiver boom at 'on_log'"),
    ],
)
def test_a_task_is_told_by_what_is_known_of_it(options: dict[str, Any], text: str) -> None:
    """Parts that are not known are left out."""
    assert str(Task(boom, "log", **options)) == text


def test_a_callable_object_is_named_after_its_class() -> None:
    """It has no name of its own."""
    assert Task(Held(), "log").name == "Held"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"on_full": "drop_oldst"},
            "receiver boom (a.py:3): on_full='drop_oldst': give one of wait, coalesce, drop_oldest, error; did you "
            "mean 'drop_oldest'?",
        ),
        (
            {"worker": "processes"},
            "receiver boom (a.py:3): worker='processes': give one of thread, process; did you mean 'process'?",
        ),
        ({"worker": 3}, "receiver boom (a.py:3): worker=3: give one of thread, process."),
        (
            {"on_error": "wran"},
            "receiver boom (a.py:3): on_error='wran': give one of raise, warn, disable_after=<failures in a row, "
            "from 1>; did you mean 'warn'?",
        ),
        (
            {"on_error": "disable_after=0"},
            "receiver boom (a.py:3): on_error='disable_after=0': give one of raise, warn, disable_after=<failures "
            "in a row, from 1>.",
        ),
        (
            {"on_error": None},
            "receiver boom (a.py:3): on_error=None: give one of raise, warn, disable_after=<failures in a row, from "
            "1>.",
        ),
        ({"max_pending": 0}, "receiver boom (a.py:3): max_pending=0: give an int of 1 or more."),
        ({"max_pending": True}, "receiver boom (a.py:3): max_pending=True: give an int of 1 or more."),
        ({"max_pending": 2.5}, "receiver boom (a.py:3): max_pending=2.5: give an int of 1 or more."),
        ({"retries": -1}, "receiver boom (a.py:3): retries=-1: give an int of 0 or more."),
        (
            {"lane": ""},
            "receiver boom (a.py:3): lane='': give the name of a lane, which is any text but an empty one.",
        ),
        (
            {"lane": None},
            "receiver boom (a.py:3): lane=None: give the name of a lane, which is any text but an empty one.",
        ),
        ({"call": 3}, "a task of lane 'log' must be something to call, not 3."),
        (
            {"call": async_boom, "worker": "process"},
            "worker='process' can't run receiver async_boom (a.py:3), which is an async def; pass worker='thread', or "
            "move the work to a plain function at the top level of a module.",
        ),
    ],
)
def test_an_option_that_cannot_be_is_refused_at_once(options: dict[str, Any], message: str) -> None:
    """The message names the option, the receiver, and what is allowed."""
    with pytest.raises(OptionError) as caught:
        Task(**{"call": boom, "lane": "log", "location": "a.py:3", **options})
    assert str(caught.value) == message


def test_a_call_that_cannot_be_sent_to_a_process_is_refused_at_once() -> None:
    """A local function has no address in another process."""
    with pytest.raises(
        OptionError, match=r"^worker='process' can't send receiver f \(a.py:3\) to another process \("
    ) as caught:
        Task(lambda: None, "log", name="f", location="a.py:3", worker="process")
    assert str(caught.value).endswith("); move it to the top level of a module.")


@pytest.mark.parametrize(
    ("on_error", "count"), [("raise", 0), ("warn", 0), ("disable_after=3", 3), ("disable_after=012", 12)]
)
def test_disable_after_takes_a_number(on_error: str, count: int) -> None:
    """It is part of the text."""
    assert Task(boom, "log", on_error=on_error).disable_after == count


# ---------------------------------------------------------------------------------------------------------------- order


@both_backends
@settings(max_examples=20, deadline=None)
@given(
    jobs=st.lists(st.tuples(st.integers(0, 2), st.booleans(), st.integers(0, 300)), max_size=60),
)
def test_jobs_of_a_lane_neither_overlap_nor_overtake(backend: str, jobs: list[tuple[int, bool, int]]) -> None:
    """Whatever tasks they are of and however long they take, plain functions and ``async def`` mixed."""
    done: dict[int, list[int]] = {lane: [] for lane in range(3)}
    inside = dict.fromkeys(range(3), 0)

    def enter(lane: int) -> None:
        inside[lane] += 1
        assert inside[lane] == 1

    def leave(lane: int, number: int) -> None:
        done[lane].append(number)
        inside[lane] -= 1

    def plain(lane: int, number: int, length: int) -> None:
        enter(lane)
        for _ in range(length):
            pass
        leave(lane, number)

    async def awaited(lane: int, number: int, length: int) -> None:
        enter(lane)
        for _ in range(length // 100):
            await anyio.sleep(0)
        leave(lane, number)

    tasks = {(lane, call): Task(call, str(lane)) for lane in range(3) for call in (plain, awaited)}
    with Lanes(backend) as lanes:
        for number, (lane, is_async, length) in enumerate(jobs):
            lanes.submit(tasks[lane, awaited if is_async else plain], (lane, number), {"length": length})
    for lane in range(3):
        assert done[lane] == [number for number, job in enumerate(jobs) if job[0] == lane]


@both_backends
def test_lanes_run_beside_each_other(backend: str) -> None:
    """Three jobs in three lanes meet, which they can't one after the other."""
    meeting = threading.Barrier(3)
    with Lanes(backend) as lanes:
        for lane in "abc":
            lanes.submit(Task(meeting.wait, lane), (20,))


@both_backends
def test_async_jobs_of_all_lanes_share_one_loop(backend: str) -> None:
    """They meet on it, and plain functions are elsewhere."""
    where: dict[str, int] = {}
    events: list[anyio.Event] = []

    async def meet(name: str) -> None:
        where[name] = threading.get_ident()
        events.append(anyio.Event())
        if len(events) == 2:
            events[0].set()
        else:
            await events[0].wait()

    def plain() -> None:
        where["plain"] = threading.get_ident()

    with Lanes(backend) as lanes:
        lanes.submit(Task(meet, "a"), ("a",))
        lanes.submit(Task(meet, "b"), ("b",))
        lanes.submit(Task(plain, "c"))
    assert where["a"] == where["b"] != where["plain"]
    assert threading.get_ident() not in where.values()


def test_a_coroutine_that_a_plain_function_returns_is_awaited() -> None:
    """It is not thrown away."""
    done: list[str] = []

    async def work() -> None:
        done.append("awaited")

    with Lanes() as lanes:
        lanes.submit(Task(lambda: work(), "a"))
    assert done == ["awaited"]


def test_jobs_put_in_by_several_threads_keep_each_threads_order() -> None:
    """None is lost, and what one thread put in comes in its order."""
    done: list[tuple[int, int]] = []
    with Lanes() as lanes:
        task = Task(lambda *what: done.append(what), "a", max_pending=7)

        def produce(producer: int) -> None:
            for number in range(300):
                lanes.submit(task, (producer, number))

        producers = [threading.Thread(target=produce, args=(producer,)) for producer in range(4)]
        for each in producers:
            each.start()
        for each in producers:
            each.join()
    assert len(done) == 1200
    for producer in range(4):
        assert [number for who, number in done if who == producer] == list(range(300))


def test_threads_that_use_a_new_lane_at_once_get_the_same_one() -> None:
    """A lane is made once."""
    start, done = threading.Barrier(8), []
    with Lanes() as lanes:
        task = Task(done.append, "a")

        def produce() -> None:
            start.wait(20)
            lanes.submit(task, (threading.get_ident(),))

        producers = [threading.Thread(target=produce) for _ in range(8)]
        for each in producers:
            each.start()
        for each in producers:
            each.join()
    assert len(done) == 8
    assert [account.calls for account in lanes.accounts()] == [8]


# ----------------------------------------------------------------------------------------------------------------- room


def test_a_submitter_waits_where_the_lane_is_full() -> None:
    """The waiting is counted, and the running job takes up room as well."""
    done: list[int] = []
    with Lanes() as lanes:
        held, task = hold(lanes, "a"), Task(done.append, "a", max_pending=2)
        lanes.submit(task, (1,))
        submitter = threading.Thread(target=lanes.submit, args=(task, (2,)))
        submitter.start()
        poll(lambda: somebody_waits_for(lanes, "a"))
        assert lanes.mark("a") == 2
        held.go.set()
        submitter.join()
    account = lanes.accounts()[1]
    assert done == [1, 2]
    assert account.waits >= 1
    assert account.waited > 0


def test_a_full_lane_that_coalesces_replaces_the_newest_waiting_job_of_the_task() -> None:
    """The replacement goes to the end of the queue; other tasks' jobs and older ones stay."""
    done: list[str] = []
    with Lanes() as lanes:
        held = hold(lanes, "a")
        task, other = Task(done.append, "a", max_pending=4, on_full="coalesce"), Task(done.append, "a")
        for text in ("1", "2"):
            lanes.submit(task, (text,))
        lanes.submit(other, ("other",))
        for text in ("3", "4", "5"):
            lanes.submit(task, (text,))
        held.go.set()
    assert done == ["1", "other", "5"]
    assert [(account.coalesced, account.dropped, account.calls) for account in lanes.accounts()[1:]] == [
        (3, 0, 2),
        (0, 0, 1),
    ]


def test_a_full_lane_that_drops_the_oldest_drops_the_oldest_waiting_job_of_any_task() -> None:
    """The running job is not dropped, and the drop is in the account of the task that lost a job."""
    done: list[str] = []
    with Lanes() as lanes:
        held = hold(lanes, "a")
        task, other = Task(done.append, "a", max_pending=3, on_full="drop_oldest"), Task(done.append, "a")
        lanes.submit(other, ("other",))
        for text in ("1", "2", "3"):
            lanes.submit(task, (text,))
        held.go.set()
    assert done == ["2", "3"]
    assert [(account.dropped, account.calls) for account in lanes.accounts()] == [(0, 1), (1, 0), (1, 2)]


@pytest.mark.parametrize("on_full", ["coalesce", "drop_oldest"])
def test_a_full_lane_without_a_job_to_replace_is_waited_for(on_full: Any) -> None:
    """Where the one unfinished job runs, there is no other choice."""
    done: list[int] = []
    with Lanes() as lanes:
        held, task = hold(lanes, "a"), Task(done.append, "a", max_pending=1, on_full=on_full)
        submitter = threading.Thread(target=lanes.submit, args=(task, (1,)))
        submitter.start()
        poll(lambda: somebody_waits_for(lanes, "a"))
        assert not lanes._lanes["a"].jobs
        held.go.set()
        submitter.join()
    assert done == [1]
    assert lanes.accounts()[1].waits == 1


def test_a_full_lane_can_be_an_error() -> None:
    """The message names the lane, the number, the task, and the ways out; the job is not in."""
    with Lanes() as lanes:
        held = hold(lanes, "a")
        task = Task(boom, "a", max_pending=1, on_full="error", location="a.py:3", site="on_log")
        with pytest.raises(LaneFullError) as caught:
            lanes.submit(task)
        held.go.set()
    assert str(caught.value) == (
        "lane 'a' can't take a job of receiver boom (a.py:3) at 'on_log': max_pending=1 jobs are unfinished; raise "
        "max_pending, or pass on_full='wait', 'coalesce' or 'drop_oldest'."
    )
    assert lanes.accounts()[1].calls == 0


@pytest.mark.parametrize("on_full", ["wait", "coalesce", "drop_oldest"])
def test_no_job_goes_missing_while_many_threads_overfill_a_lane(on_full: Any) -> None:
    """Each is done, dropped or replaced, and never more are unfinished than may be."""
    seed = random.randrange(2**32)
    print("seed", seed)
    most, done = [0], []
    with Lanes() as lanes:

        def job(producer: int, number: int) -> None:
            most[0] = max(most[0], lanes._lanes["a"]._pending())
            done.append((producer, number))

        tasks = [Task(job, "a", max_pending=3, on_full=on_full, name=str(which)) for which in range(2)]

        def produce(producer: int) -> None:
            chance = random.Random(seed + producer)
            for number in range(300):
                lanes.submit(chance.choice(tasks), (producer, number))
                for _ in range(chance.randrange(2000)):
                    pass

        producers = [threading.Thread(target=produce, args=(producer,)) for producer in range(3)]
        for each in producers:
            each.start()
        for each in producers:
            each.join()
        lanes.flush()
        assert lanes._lanes["a"]._pending() == 0
    accounts = lanes.accounts()
    assert sum(account.calls for account in accounts) == len(done) == len(set(done))
    assert sum(account.calls + account.dropped + account.coalesced for account in accounts) == 900
    assert most[0] <= 3
    for producer in range(3):
        numbers = [number for who, number in done if who == producer]
        assert numbers == sorted(numbers)


@pytest.mark.parametrize("on_full", ["coalesce", "drop_oldest"])
def test_replaced_jobs_leave_nothing_behind(on_full: Any) -> None:
    """Neither in the queue nor as tokens, however often the same place is taken."""
    with Lanes() as lanes:
        held, task = hold(lanes, "a"), Task(lambda _: None, "a", max_pending=3, on_full=on_full)
        for number in range(2000):
            lanes.submit(task, (number,))
        lane = lanes._lanes["a"]
        assert (len(lane.jobs), lane.wake.qsize()) == (2, 2)
        held.go.set()


def test_a_job_that_the_worker_takes_first_is_not_replaced() -> None:
    """A job that is gone when its place is to be taken is left to the worker."""
    with Lanes() as lanes:
        held, task = hold(lanes, "a"), Task(lambda: None, "a", on_full="coalesce")
        lanes.submit(task)
        lane = lanes._lanes["a"]
        taken = lane.jobs.popleft()
        assert not lane._remove(taken)
        lane.jobs.append(taken)
        held.go.set()


# -------------------------------------------------------------------------------------------------------------- waiting


def test_a_ticket_is_for_the_jobs_so_far() -> None:
    """Waiting for it does not wait for what comes after."""
    with Lanes() as lanes:
        done: list[int] = []
        lanes.submit(Task(done.append, "a"), (1,))
        ticket = lanes.mark("a")
        held = Held()
        lanes.submit(Task(held, "a"))
        lanes.wait("a", ticket)
        assert (ticket, done) == (1, [1])
        assert lanes.mark("a") == 2
        held.go.set()


def test_a_lane_that_had_no_job_is_finished() -> None:
    """It can be marked, waited for and flushed."""
    with Lanes() as lanes:
        assert lanes.mark("a") == 0
        lanes.wait("a")
        lanes.flush("a")
        lanes.flush()
    assert lanes.accounts() == []


def test_waiting_does_not_raise_what_failed() -> None:
    """Flushing does."""
    with Lanes() as lanes:
        lanes.submit(Task(boom, "a"))
        lanes.wait("a")
        assert len(lanes.failures) == 1
        with pytest.raises(ValueError, match="boom"):
            lanes.flush("a")


def test_flushing_one_lane_leaves_the_others_alone() -> None:
    """A lane that is busy is not waited for."""
    with Lanes() as lanes:
        held, done = hold(lanes, "a"), list[int]()
        lanes.submit(Task(done.append, "b"), (1,))
        lanes.flush("b")
        assert done == [1]
        held.go.set()


@both_backends
def test_a_job_can_wait_for_another_lane(backend: str) -> None:
    """A commit waits for the log."""
    done: list[str] = []
    with Lanes(backend) as lanes:

        def commit(ticket: int) -> None:
            lanes.wait("log", ticket)
            done.append("commit")

        held = hold(lanes, "log")
        lanes.submit(Task(done.append, "log"), ("log",))
        lanes.submit(Task(commit, "save"), (lanes.mark("log"),))
        poll(lambda: somebody_waits_for(lanes, "log"))
        held.go.set()
    assert done == ["log", "commit"]


@pytest.mark.parametrize(
    ("attempt", "message"),
    [
        (
            lambda lanes: lanes.wait("a"),
            "lane 'a' can't be waited for by one of its own jobs, which it would wait for.",
        ),
        (lambda lanes: lanes.flush(), "lane 'a' can't be waited for by one of its own jobs, which it would wait for."),
        (
            lambda lanes: lanes.submit(Task(boom, "a", max_pending=1)),
            "lane 'a' is full and can't be waited for by one of its own jobs, which it would wait for.",
        ),
        (lambda lanes: lanes.close(), "lanes can't be closed by one of their own jobs, which they would wait for."),
    ],
)
def test_a_job_that_would_wait_for_itself_is_an_error(attempt: Callable[[Lanes], None], message: str) -> None:
    """It is not a deadlock."""
    with pytest.raises(LaneError) as caught, Lanes() as lanes:
        lanes.submit(Task(attempt, "a"), (lanes,))
    assert str(caught.value) == message


@both_backends
def test_an_async_job_that_would_hold_up_the_loop_is_an_error(backend: str) -> None:
    """It is told how to wait."""
    with Lanes(backend) as lanes:

        async def job() -> None:
            lanes.wait("b")

        held = hold(lanes, "b")
        lanes.submit(Task(job, "a"))
        lanes.wait("a")
        held.go.set()
        with pytest.raises(LaneError) as caught:
            lanes.check()
    assert str(caught.value) == (
        "lane 'b' can't be waited for on the event loop, which other jobs need meanwhile; await "
        "anyio.to_thread.run_sync with the call."
    )


@both_backends
def test_an_async_job_waits_for_another_lane_in_a_thread(backend: str) -> None:
    """As the message says; and its own lane is refused there too."""
    done: list[str] = []
    with Lanes(backend) as lanes:

        async def job() -> None:
            await anyio.to_thread.run_sync(lanes.wait, "b")
            done.append("waited")
            await anyio.to_thread.run_sync(lanes.wait, "a")

        held = hold(lanes, "b")
        lanes.submit(Task(job, "a"))
        poll(lambda: somebody_waits_for(lanes, "b"))
        assert done == []
        held.go.set()
        with pytest.raises(LaneError, match="by one of its own jobs"):
            lanes.flush("a")
    assert done == ["waited"]


@both_backends
def test_jobs_can_put_jobs_into_lanes_while_these_are_being_closed(backend: str) -> None:
    """New lanes too, from the event loop too; closing waits for them all."""
    done: list[str] = []
    with Lanes(backend) as lanes:

        def first() -> None:
            assert begun.wait(20)
            lanes.submit(Task(second, "a"))

        async def second() -> None:
            lanes.submit(Task(third, "new"))

        def third() -> None:
            lanes.submit(Task(done.append, "a"), ("fourth",))

        begun = threading.Event()
        lanes.submit(Task(first, "a"))
        begun.set()
    assert done == ["fourth"]


def test_waiting_has_a_deadline() -> None:
    """The error names the lane, how many jobs are unfinished, and the one that runs."""
    with Lanes() as lanes:
        held = Held()
        lanes.submit(Task(held, "a", location="a.py:3", site="on_log"), origin="epoch 3, iter 120")
        assert held.begun.wait(20)
        for attempt in (functools.partial(lanes.wait, "a"), lanes.flush):
            with pytest.raises(LaneTimeoutError) as caught:
                attempt(timeout=0.01)
            assert str(caught.value) == (
                "waited 0.01 s for 1 unfinished job in lane 'a' (running: receiver Held (a.py:3) at 'on_log', epoch 3, "
                "iter 120); allow more time, or find out what it hangs on."
            )
        held.go.set()


def test_waiting_for_a_job_that_never_came_has_a_deadline_too() -> None:
    """A ticket of the future is waited for in vain."""
    with Lanes() as lanes:
        lanes.submit(Task(gc.isenabled, "a"))
        lanes.flush()
        with pytest.raises(LaneTimeoutError, match=r"^waited 0.01 s for lane 'a'; allow more time"):
            lanes.wait("a", 2, timeout=0.01)


def test_no_deadline_is_too_long() -> None:
    """Infinity is as good as none, and a century is no overflow."""
    with Lanes(deadline=math.inf) as lanes:
        for timeout in (math.inf, 4e9):
            held = hold(lanes, "a")
            waiter = threading.Thread(target=lanes.flush, args=(None, timeout))
            waiter.start()
            poll(lambda: somebody_waits_for(lanes, "a"))
            held.go.set()
            waiter.join()


def test_seconds_of_waiting_are_accounted_by_label() -> None:
    """Per lane, so for each of its tasks; a lane that was finished cost nothing."""
    with Lanes() as lanes:
        for label in ("before_optimizer_step", "", "before_optimizer_step"):
            held = hold(lanes, "a")
            waiter = threading.Thread(target=lanes.wait, args=("a",), kwargs={"label": label})
            waiter.start()
            poll(lambda: somebody_waits_for(lanes, "a"))
            held.go.set()
            waiter.join()
        lanes.wait("a", label="after_train")
    waits = lanes.accounts()[0].barrier_waits
    assert set(waits) == {"before_optimizer_step", ""}
    assert all(seconds > 0 for seconds in waits.values())


def test_a_job_whose_token_was_lost_to_an_interrupt_is_still_done() -> None:
    """An interrupt between the two halves of a submission leaves a job in the queue that nobody told the worker of."""
    done: list[int] = []
    with Lanes() as lanes:
        lanes.submit(Task(done.append, "a"), (1,))
        lanes.flush()
        lane = lanes._lanes["a"]
        (stats,) = lanes._stats.values()
        lane.jobs.append(Job(stats, (2,), None, "", 0.0, copy_context(), number=2))
        lane.number = 2
        lanes.flush()
        assert done == [1, 2]
        lane.jobs.append(Job(stats, (3,), None, "", 0.0, copy_context(), number=3))
    assert done == [1, 2, 3]


# ------------------------------------------------------------------------------------------------------------- failures


@pytest.mark.parametrize(
    ("options", "origin", "note"),
    [
        (
            {"name": "write", "location": "a.py:3", "site": "on_log"},
            "epoch 3, iter 120",
            "raised by receiver write (a.py:3) at 'on_log', epoch 3, iter 120, in lane 'a'",
        ),
        ({}, "", "raised by receiver boom, in lane 'a'"),
        ({"site": "on_log"}, "", "raised by receiver boom at 'on_log', in lane 'a'"),
        ({}, 7, "raised by receiver boom, 7, in lane 'a'"),
    ],
)
def test_a_failure_says_where_it_comes_from(options: dict[str, Any], origin: object, note: str) -> None:
    """In one note; its traceback is its own."""
    with Lanes() as lanes:
        lanes.submit(Task(boom, "a", **options), origin=origin)
        with pytest.raises(ValueError, match="boom") as caught:
            lanes.flush()
    assert caught.value.__notes__ == [note]
    assert [entry.name for entry in caught.traceback][-1] == "boom"


@both_backends
def test_an_async_failure_has_its_own_traceback(backend: str) -> None:
    """It leads to the line of the coroutine that raised."""
    with pytest.raises(ValueError, match="boom") as caught, Lanes(backend) as lanes:
        lanes.submit(Task(async_boom, "a"))
    assert [entry.name for entry in caught.traceback][-1] == "async_boom"
    assert caught.value.__notes__ == ["raised by receiver async_boom, in lane 'a'"]


def test_the_text_of_an_origin_is_made_only_for_a_failure() -> None:
    """A quiet job costs no formatting."""

    class Origin:
        asked = 0

        def __str__(self) -> str:
            Origin.asked += 1
            return "epoch 3"

    with Lanes() as lanes:
        for call in (gc.isenabled, boom):
            lanes.submit(Task(call, "a"), origin=Origin())
            lanes.wait("a")
        assert Origin.asked == 1
        with pytest.raises(ValueError, match="boom"):
            lanes.check()


def test_an_origin_that_cannot_be_told_does_not_hide_the_failure() -> None:
    """The error of the job is the one that is raised."""

    class Origin:
        def __str__(self) -> str:
            raise RuntimeError("no text")

    with pytest.raises(ValueError, match="boom") as caught, Lanes() as lanes:
        lanes.submit(Task(boom, "a"), origin=Origin())
    assert caught.value.__notes__ == [
        "raised by receiver boom, from somewhere that can't be told (RuntimeError), in lane 'a'"
    ]


def test_check_raises_the_failures_one_by_one_the_oldest_first() -> None:
    """And nothing when there is none."""
    with Lanes() as lanes:
        lanes.check()
        for text in ("first", "second"):
            lanes.submit(Task(boom, "a"), (text,))
        lanes.wait("a")
        for text in ("first", "second"):
            with pytest.raises(ValueError, match=text):
                lanes.check()
        lanes.check()


def test_who_owns_the_lanes_is_told_of_a_failure_at_once() -> None:
    """In the worker, when the failure is already there to be seen."""
    seen: list[tuple[int, bool]] = []
    lanes = Lanes(on_failure=lambda: seen.append((len(lanes.failures), threading.current_thread() is main)))
    main = threading.current_thread()
    with pytest.raises(ValueError, match="boom"), lanes:
        lanes.submit(Task(boom, "a"))
    assert seen == [(1, False)]


def test_a_callback_that_fails_hides_nothing() -> None:
    """Both errors are kept, and the lane goes on."""
    done: list[int] = []

    def on_failure() -> None:
        raise KeyError("callback")

    def block(lanes: Lanes) -> None:
        lanes.submit(Task(boom, "a"))
        lanes.submit(Task(done.append, "a"), (1,))

    error = leave(ValueError, block, on_failure=on_failure)
    assert done == [1]
    assert error.__notes__[1:] == ["besides, KeyError: 'callback'"]


@both_backends
@pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt, GeneratorExit, asyncio.CancelledError])
@pytest.mark.parametrize("is_async", [False, True])
def test_a_job_that_raises_what_is_no_exception_fails_like_any_other(
    backend: str, kind: type[BaseException], is_async: bool
) -> None:
    """It ends neither the worker nor the event loop."""
    done: list[int] = []

    def plain() -> None:
        raise kind("out")

    async def awaited() -> None:
        raise kind("out")

    async def after() -> None:
        done.append(1)

    with Lanes(backend) as lanes:
        lanes.submit(Task(awaited if is_async else plain, "a", retries=3))
        lanes.submit(Task(after, "a"))
        lanes.wait("a")
        (failure,) = lanes.failures
        lanes.failures.clear()
    assert done == [1]
    assert "CancelledError" in type(failure).__name__ or isinstance(failure, kind)
    assert failure.__notes__[0].startswith("raised by receiver test_a_job_that_raises")


def test_a_failing_job_is_tried_again() -> None:
    """At once, before the next job, as often as was said; one that succeeds then has not failed."""
    tries: list[str] = []

    def flaky(name: str, failures: int) -> None:
        tries.append(name)
        if tries.count(name) <= failures:
            raise ValueError(f"{name} {tries.count(name)}")

    with Lanes() as lanes:
        task = Task(flaky, "a", retries=2)
        lanes.submit(task, ("good", 2))
        lanes.submit(task, ("bad", 9))
        with pytest.raises(ValueError, match="bad 3") as caught:
            lanes.flush()
    assert tries == ["good"] * 3 + ["bad"] * 3
    assert caught.value.__notes__ == [f"raised by {task}, in lane 'a'"]
    assert [(account.calls, account.failures) for account in lanes.accounts()] == [(2, 1)]


def test_what_is_no_exception_is_not_tried_again() -> None:
    """Who wants out wants out."""
    tries: list[int] = []

    def leave() -> None:
        tries.append(1)
        raise SystemExit(3)

    with pytest.raises(SystemExit), Lanes() as lanes:
        lanes.submit(Task(leave, "a", retries=2))
    assert tries == [1]


def test_a_task_that_warns_raises_nothing_and_goes_on() -> None:
    """Each failure is told to the owner of the lanes, with the error."""
    told: list[tuple[str, BaseException]] = []
    with Lanes(warn=lambda *what: told.append(what)) as lanes:
        for text in ("one", "two"):
            lanes.submit(Task(boom, "a", on_error="warn", site="on_log"), (text,), origin="epoch 3")
    assert [text for text, _ in told] == [
        f"receiver boom at 'on_log', epoch 3, in lane 'a': ValueError: {text}" for text in ("one", "two")
    ]
    assert [str(error) for _, error in told] == ["one", "two"]
    assert [account.failures for account in lanes.accounts()] == [1, 1]


def test_by_default_a_task_that_warns_does_it_once() -> None:
    """As a Python warning."""
    with Lanes() as lanes:
        held, task = hold(lanes, "a"), Task(boom, "a", on_error="warn")
        for text in ("one", "two"):
            lanes.submit(task, (text,))
        threading.Timer(0.01, held.go.set).start()
        with pytest.warns(RuntimeWarning) as caught:
            lanes.flush()
    assert [str(each.message) for each in caught] == ["receiver boom, in lane 'a': ValueError: one"]


def test_a_warning_that_is_an_error_is_a_failure() -> None:
    """It is raised, with what it was to warn of as its context."""
    with pytest.raises(RuntimeWarning, match="ValueError: boom") as caught, Lanes() as lanes:
        lanes.submit(Task(boom, "a", on_error="warn"))
    assert isinstance(caught.value.__context__, ValueError)


def test_a_task_that_keeps_failing_can_be_disabled() -> None:
    """After so many failures in a row; its jobs that wait and those that come are dropped, other tasks go on."""
    done: list[str] = []
    with Lanes() as lanes:
        held = hold(lanes, "a")
        task, other = Task(boom, "a", on_error="disable_after=2"), Task(done.append, "a")
        for text in ("one", "two", "three"):
            lanes.submit(task, (text,))
        lanes.submit(other, ("other",))
        threading.Timer(0.01, held.go.set).start()
        with pytest.warns(RuntimeWarning) as caught:
            lanes.flush()
        lanes.submit(task, ("four",))
        assert lanes.mark("a") == 5
    assert [str(each.message) for each in caught] == [
        "receiver boom, in lane 'a', failed 1 in a row and is disabled after 2: ValueError: one",
        "receiver boom, in lane 'a', failed 2 in a row and is disabled: ValueError: two",
    ]
    assert done == ["other"]
    account = lanes.accounts()[1]
    assert (account.calls, account.failures, account.dropped) == (2, 2, 2)


def test_a_success_starts_the_count_of_failures_anew() -> None:
    """Only failures in a row disable a task."""
    told: list[str] = []
    with Lanes(warn=lambda text, _: told.append(text)) as lanes:
        task = Task(lambda fails: boom() if fails else None, "a", on_error="disable_after=2")
        for fails in (True, False, True, False, True):
            lanes.submit(task, (fails,))
    assert len(told) == 3
    assert all("failed 1 in a row" in text for text in told)
    assert lanes.accounts()[0].calls == 5


def test_a_task_is_not_disabled_in_the_next_lanes() -> None:
    """A task may be used again; what became of its jobs belongs to the lanes."""
    task, told = Task(boom, "a", on_error="disable_after=1"), list[str]()
    for _ in range(2):
        with Lanes(warn=lambda text, _: told.append(text)) as lanes:
            lanes.submit(task)
            lanes.submit(task)
    assert len(told) == 2


# ------------------------------------------------------------------------------------------------------------ the whole


@both_backends
def test_a_block_without_jobs_starts_no_thread(backend: str) -> None:
    """A run that offloads nothing pays nothing."""
    before = set(threading.enumerate())
    with Lanes(backend) as lanes:
        assert lanes.is_open
        assert set(threading.enumerate()) == before
    assert not lanes.is_open


@both_backends
def test_no_thread_is_left_after_the_block(backend: str) -> None:
    """Neither the loop's, nor a worker's; and the next lanes work as well."""
    before = threads()
    for _ in range(3):
        done: list[int] = []
        with Lanes(backend) as lanes:
            for lane in "abc":
                lanes.submit(Task(done.append, lane), (1,))
            assert threads() > before
        assert threads() == before
        assert done == [1, 1, 1]


@both_backends
@pytest.mark.parametrize("kind", [ValueError, KeyboardInterrupt, SystemExit, GeneratorExit])
def test_leaving_by_an_exception_does_all_queued_jobs_first(backend: str, kind: type[BaseException]) -> None:
    """The exception goes on unmasked."""
    done: list[int] = []

    async def later(number: int) -> None:
        await anyio.sleep(0)
        done.append(number)

    def block(lanes: Lanes) -> None:
        held = hold(lanes, "a")
        for number in range(10):
            lanes.submit(Task(later if number % 2 else done.append, "a"), (number,))
        threading.Timer(0.01, held.go.set).start()
        raise kind("mine")

    error = leave(kind, block, backend=backend)
    assert done == list(range(10))
    assert error.args == ("mine",)
    assert not hasattr(error, "__notes__")


def test_the_exception_that_leaves_the_block_notes_what_failed_in_it() -> None:
    """With where that came from."""

    def block(lanes: Lanes) -> None:
        lanes.submit(Task(boom, "a"), origin="epoch 3")
        raise KeyError("mine")

    assert leave(KeyError, block).__notes__ == [
        "besides, ValueError: boom\n  raised by receiver boom, epoch 3, in lane 'a'"
    ]


def test_closing_raises_the_first_failure_which_notes_the_others() -> None:
    """Up to twenty of them."""
    lanes = Lanes()
    with lanes:
        for number in range(25):
            lanes.submit(Task(boom, "a"), (f"boom {number}",))
        with pytest.raises(ValueError, match="boom 0") as caught:
            lanes.close()
        assert not lanes.is_open
    notes = caught.value.__notes__
    assert len(notes) == 22
    assert notes[1] == "besides, ValueError: boom 1\n  raised by receiver boom, in lane 'a'"
    assert notes[-1] == "besides, 4 more"
    assert not lanes.failures


def test_closing_twice_does_nothing() -> None:
    """Nor does leaving the block after it."""
    lanes = Lanes()
    lanes.close()
    with lanes:
        lanes.submit(Task(gc.isenabled, "a"))
        lanes.close()
        lanes.close()
    lanes.close()
    lanes.flush()
    assert [account.calls for account in lanes.accounts()] == [1]


def test_a_job_outside_of_the_block_is_an_error() -> None:
    """Before, and after, whether or not the lane has been used."""
    lanes, used = Lanes(), Task(gc.isenabled, "a")
    with pytest.raises(LaneError) as caught:
        lanes.submit(used)
    message = "lane 'a' can't take a job of receiver isenabled: the lanes are not open; use them by 'with'."
    assert str(caught.value) == message
    with lanes:
        lanes.submit(used)
    with pytest.raises(LaneError) as caught:
        lanes.submit(used)
    assert str(caught.value) == "lane 'a' can't take a job of receiver isenabled: it is closed."
    with pytest.raises(LaneError, match="the lanes are not open"):
        lanes.submit(Task(boom, "a"))


def test_lanes_are_opened_once() -> None:
    """Neither within the block nor after it again."""
    lanes = Lanes()
    with lanes, pytest.raises(LaneError, match=r"^lanes can't be opened a second time; make new Lanes\(\)\.$"), lanes:
        pass
    with pytest.raises(LaneError, match="a second time"), lanes:
        pass


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"backend": "asincio"}, "backend='asincio': give one of asyncio, trio; did you mean 'asyncio'?"),
        ({"backend": "uvloop"}, "backend='uvloop': give one of asyncio, trio."),
        ({"deadline": 0}, "deadline=0: give a number of seconds above 0."),
        ({"deadline": math.nan}, "deadline=nan: give a number of seconds above 0."),
        ({"deadline": True}, "deadline=True: give a number of seconds above 0."),
        ({"deadline": "10min"}, "deadline='10min': give a number of seconds above 0."),
    ],
)
def test_lanes_that_cannot_be_are_refused(options: dict[str, Any], message: str) -> None:
    """When they are made."""
    with pytest.raises(OptionError) as caught:
        Lanes(**options)
    assert str(caught.value) == message


def test_a_missing_trio_is_told_when_the_lanes_are_made(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the command that installs it."""
    monkeypatch.setitem(sys.modules, "trio", None)
    with pytest.raises(MissingExtraError, match=r"^backend='trio' needs trio: pip install 'eventrunner\[trio\]'\.$"):
        Lanes("trio")


def test_memory_stays_flat() -> None:
    """Neither jobs nor their arguments are kept, the last one's included, while the lanes are open."""

    class Large:
        pass

    kept: weakref.WeakSet[Large] = weakref.WeakSet()
    with Lanes() as lanes:
        task = Task(lambda _: None, "a")
        for _ in range(10_000):
            large = Large()
            kept.add(large)
            lanes.submit(task, (large,))
        del large
        lanes.flush()
        lane = lanes._lanes["a"]
        assert not lane.jobs
        poll(lambda: lane.wake.empty() and not kept)
        assert lanes.accounts()[0].calls == 10_000


def test_what_is_queued_when_a_deadline_passes_is_told_and_given_up() -> None:
    """A call in a thread can't be stopped: its thread stays until it returns, and nothing after it is done."""
    done: list[int] = []
    lanes, task = Lanes(deadline=0.02), Task(done.append, "a")

    def block() -> None:
        lanes.submit(Task(held, "a", site="on_log"), origin="epoch 3")
        for number in range(2):
            lanes.submit(task, (number,))
        hold(lanes, "b", site="on_save")
        assert held.begun.wait(20)

    held = Held()
    with pytest.raises(LaneTimeoutError) as caught, lanes:
        block()
    assert str(caught.value) == (
        "the lanes, given 0.02 s, were closed with 3 unfinished jobs in lane 'a' (running: receiver Held at "
        "'on_log', epoch 3); 1 unfinished job in lane 'b' (running: receiver held at 'on_save'); what waited is given "
        "up."
    )
    assert not lanes.is_open
    assert [account.dropped for account in lanes.accounts()] == [0, 2, 0]
    with pytest.raises(LaneError, match="it is closed"):
        lanes.submit(task, (3,))
    held.go.set()
    lanes._lanes["b"].running.stats.task.call.go.set()  # type: ignore[union-attr]
    join(lanes)
    assert done == []


def test_a_failure_before_the_deadline_comes_first() -> None:
    """And notes that the deadline passed."""
    with Lanes() as lanes:
        lanes.submit(Task(boom, "a"))
        held = hold(lanes, "a")
        with pytest.raises(ValueError, match="boom") as caught:
            lanes.close(timeout=0.01)
        held.go.set()
    late = "besides, LaneTimeoutError: the lanes, given 0.01 s, were closed with 1 unfinished job in lane 'a'"
    assert caught.value.__notes__[1].startswith(late)


@both_backends
def test_an_async_job_that_hangs_is_cancelled_at_the_deadline(backend: str) -> None:
    """It is not tried again, and no thread is left."""
    tries: list[int] = []
    before = threads()

    async def hang() -> None:
        tries.append(1)
        await anyio.sleep(100)

    with Lanes(backend) as lanes:
        lanes.submit(Task(hang, "a", retries=3, name="hang"))
        poll(lambda: tries)
        with pytest.raises(LaneTimeoutError, match="running: receiver hang") as caught:
            lanes.close(timeout=0.01)
    assert tries == [1]
    assert threads() == before
    assert caught.value.__notes__ == [
        "besides, LaneError: cancelled, because the lanes were closed before it was finished\n  raised by receiver "
        "hang, in lane 'a'"
    ]


def test_an_async_job_that_comes_to_the_loop_too_late_is_cancelled() -> None:
    """It was a plain function when the lanes were given up, and then had something to await."""
    done: list[int] = []

    async def later() -> None:
        await anyio.sleep(0)
        done.append(1)

    with Lanes() as lanes:
        held = Held()

        def plain() -> Any:
            held()
            return later()

        lanes.submit(Task(plain, "a"))
        assert held.begun.wait(20)
        with pytest.raises(LaneTimeoutError):
            lanes.close(timeout=0.01)
        held.go.set()
    join(lanes)
    assert done == []


def test_who_waits_for_lanes_that_are_given_up_is_told() -> None:
    """The jobs will not be done, so that waiting for them is an error, then and later."""
    caught: list[str] = []
    with Lanes() as lanes:
        held = hold(lanes, "a")
        lanes.submit(Task(boom, "a"))

        def wait() -> None:
            with pytest.raises(LaneError) as error:
                lanes.wait("a")
            caught.append(str(error.value))

        waiter = threading.Thread(target=wait)
        waiter.start()
        poll(lambda: somebody_waits_for(lanes, "a"))
        with pytest.raises(LaneTimeoutError):
            lanes.close(timeout=0.01)
        waiter.join()
        wait()
        held.go.set()
    assert caught == ["lane 'a' was closed before the jobs that were waited for were finished."] * 2


def test_a_submitter_that_waits_for_room_when_the_lane_closes_is_told() -> None:
    """Its job was not taken."""
    caught: list[str] = []
    with Lanes() as lanes:
        held = hold(lanes, "a")

        def submit() -> None:
            with pytest.raises(LaneError) as error:
                lanes.submit(Task(boom, "a", max_pending=1))
            caught.append(str(error.value))

        submitter = threading.Thread(target=submit)
        submitter.start()
        poll(lambda: somebody_waits_for(lanes, "a"))
        with pytest.raises(LaneTimeoutError):
            lanes.close(timeout=0.01)
        submitter.join()
        held.go.set()
    assert caught == ["lane 'a' can't take a job of receiver boom: it is closed."]


# ------------------------------------------------------------------------------------------------------------ processes


@both_backends
@pytest.mark.slow
def test_jobs_run_in_a_process_of_their_lane(backend: str, tmp_path: Path) -> None:
    """One that dies or leaves is a failure, and the next job gets a process that lives; Ctrl-C does not reach them."""
    before, texts = threads(), {}
    with Lanes(backend) as lanes:
        lane = {"lane": "p", "worker": "process"}
        lanes.submit(Task(os._exit, **lane), (3,), origin="epoch 3")
        for name in ("first", "second"):
            lanes.submit(Task(write_text, **lane), (str(tmp_path / name),), {"text": name})
        lanes.submit(Task(sys.exit, **lane), (3,))
        lanes.submit(Task(raise_custom, **lane))
        lanes.submit(Task(interrupt_myself, **lane))
        lanes.submit(Task(boom, **lane), ("remote",))
        lanes.submit(Task(boom, **lane), (threading.Lock(),))
        lanes.submit(Task(write_text, **lane), (str(tmp_path / "last"), "last"))
        lanes.wait("p")
        failures = list(lanes.failures)
        lanes.failures.clear()
    texts = {path.name: path.read_text() for path in tmp_path.iterdir()}
    died, left, custom, remote, unsendable = failures
    assert texts == {"first": "first", "second": "second", "last": "last"}
    assert repr(died) == "LaneError('the worker process ended before the call returned')"
    assert died.__notes__ == ["raised by receiver _exit, epoch 3, in lane 'p'"]
    assert isinstance(left, SystemExit)
    assert repr(custom) == "LaneError('CustomError: one and two')"
    assert str(remote) == "remote"
    assert "raise ValueError(text)\nValueError: remote" in remote.__notes__[0]
    assert remote.__notes__[0].startswith("in the worker process:\nTraceback")
    assert remote.__notes__[1] == "raised by receiver boom, in lane 'p'"
    assert isinstance(unsendable, TypeError | pickle.PicklingError)
    for thread in threads() - before:
        thread.join(5)
    assert threads() == before
    assert all(account.cpu == 0 for account in lanes.accounts())


@pytest.mark.parametrize(
    ("call", "sent"),
    [(gc.isenabled, "None"), (boom, "ValueError('boom')"), (raise_custom, "LaneError('CustomError: one and two')")],
)
def test_what_comes_back_from_a_process_can_be_sent(call: Callable[[], Any], sent: str) -> None:
    """An error that can't be sent has a substitute with its text; each has its traceback as a note."""
    handler = signal.getsignal(signal.SIGINT)
    try:
        error = call_in_process(pickle.dumps((call, (), {})))
    finally:
        signal.signal(signal.SIGINT, handler)
    assert repr(pickle.loads(pickle.dumps(error))) == sent
    if error is not None:
        assert call.__name__ in error.__notes__[0]


@both_backends
def test_a_process_that_hangs_is_killed_at_the_deadline(backend: str, tmp_path: Path) -> None:
    """It does not outlive the lanes."""
    path = tmp_path / "pid"
    with Lanes(backend) as lanes:
        lanes.submit(Task(sleep_with_pid, "p", worker="process"), (str(path),))
        poll(path.exists)
        with pytest.raises(LaneTimeoutError, match="running: receiver sleep_with_pid"):
            lanes.close(timeout=0.01)
    with pytest.raises(ProcessLookupError):
        os.kill(int(path.read_text()), 0)


# ----------------------------------------------------------------------------------------------------------- interrupts


def script(code: str) -> subprocess.Popen[str]:
    """A Python program that can print, be written to, and be interrupted."""
    start = "import os, signal, sys, threading, time\nfrom eventrunner.lanes.lanes import Lanes, Task\n"
    start += "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a shell may have it ignored
    source = start + "say = lambda *what: print(*what, flush=True)\n" + textwrap.dedent(code)
    command = [sys.executable, "-W", "error", "-c", source]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent.parent), *sys.path])}
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True, env=environment)


@both_backends
def test_ctrl_c_while_waiting_comes_through_at_once_and_the_rest_is_still_done(backend: str) -> None:
    """The interrupt arrives while the job runs on, and the program ends by it, after all jobs."""
    program = script(f"""
        def first():
            while not lanes._lanes["a"].waiters:
                time.sleep(0.001)
            say("waiting")
            say("first", sys.stdin.readline().strip())
        with Lanes({backend!r}) as lanes:
            lanes.submit(Task(first, "a"))
            lanes.submit(Task(say, "a"), ("second",))
            try:
                lanes.flush()
            except KeyboardInterrupt:
                say("interrupted")
                raise
    """)
    with program:
        assert program.stdin is not None
        assert program.stdout is not None
        assert program.stderr is not None
        assert program.stdout.readline() == "waiting\n"
        program.send_signal(signal.SIGINT)
        assert program.stdout.readline() == "interrupted\n"
        program.stdin.write("go\n")
        program.stdin.flush()
        assert program.stdout.read() == "first go\nsecond\n"
        assert program.stderr.read().strip().splitlines()[-1] == "KeyboardInterrupt"
    assert program.returncode == -signal.SIGINT


def test_a_second_ctrl_c_gives_up_the_draining_and_says_what_is_lost() -> None:
    """Whoever insists gets out; a daemon thread that hangs does not keep the program."""
    program = script("""
        def first():
            sys.stdin.readline()
            while not lanes._lanes["a"].waiters:
                time.sleep(0.001)
            say("draining")
            threading.Event().wait()
        with Lanes() as lanes:
            lanes.submit(Task(first, "a"))
            lanes.submit(Task(say, "a"), ("second",))
            try:
                say("flushing")
                lanes.flush()
            except KeyboardInterrupt:
                say("interrupted")
                raise
    """)
    with program:
        assert program.stdin is not None
        assert program.stdout is not None
        assert program.stderr is not None
        assert program.stdout.readline() == "flushing\n"
        program.send_signal(signal.SIGINT)
        assert program.stdout.readline() == "interrupted\n"
        program.stdin.write("go\n")
        program.stdin.flush()
        assert program.stdout.readline() == "draining\n"
        program.send_signal(signal.SIGINT)
        assert program.stdout.read() == ""
        errors = program.stderr.read()
    assert "During handling of the above exception" in errors
    assert errors.strip().splitlines()[-1] == (
        "the lanes were closed with 2 unfinished jobs in lane 'a' (running: receiver first); what waited is given up"
    )
    assert program.returncode == -signal.SIGINT


@pytest.fixture
def no_more_threads() -> Iterator[Callable[[], object]]:
    """What makes the start of any thread fail from then on, by asking for more stack than there is."""
    yield lambda: threading.stack_size(1 << 46)
    threading.stack_size(0)


def test_a_lane_that_gets_no_thread_is_a_failure_and_nothing_hangs(no_more_threads: Callable[[], object]) -> None:
    """The jobs that can't be done are told of; lanes that have a worker finish what they have."""
    done: list[int] = []
    with Lanes() as lanes:
        held = hold(lanes, "a")
        poll(lambda: len(lanes._loop.workers) == 2)  # the lane's, and the one that takes in new lanes
        no_more_threads()
        lanes.submit(Task(done.append, "a"), (1,))
        for lane in "bc":
            lanes.submit(Task(done.append, lane), (2,))
        poll(lambda: lanes._lanes["b"].closed and lanes._lanes["c"].closed)
        held.go.set()
        with pytest.raises(RuntimeError, match="can't start new thread") as caught:
            lanes.close()
    assert not lanes.is_open
    assert done == [1]
    assert any("unfinished job in lane 'c'" in note for note in caught.value.__notes__)


def test_lanes_whose_event_loop_gets_no_thread_take_no_more_jobs(no_more_threads: Callable[[], object]) -> None:
    """The failure is told, and submitting is an error."""
    with Lanes() as lanes:
        go = threading.Event()
        loop = threading.Thread(target=lambda: go.wait(20) and lanes._loop.run())
        lanes._loop.state.loop = loop
        loop.start()
        lanes.submit(Task(boom, "a"))
        no_more_threads()
        go.set()
        join(lanes)
        for lane in "ab":
            with pytest.raises(LaneError, match="it is closed"):
                lanes.submit(Task(boom, lane))
        with pytest.raises(RuntimeError, match="can't start new thread"):
            lanes.close()


def test_lanes_that_get_no_thread_at_all_say_so_at_once(no_more_threads: Callable[[], object]) -> None:
    """The submission raises, each time, and closing has nothing to do."""
    with Lanes() as lanes:
        no_more_threads()
        for _ in range(2):
            with pytest.raises(RuntimeError, match="can't start new thread"):
                lanes.submit(Task(boom, "a"))
    assert lanes.accounts() == []


# ------------------------------------------------------------------------------------------------------------- accounts


def test_each_task_has_an_account() -> None:
    """In the order in which they came, with what they are of and the seconds they took."""
    with Lanes() as lanes:
        tasks = [
            Task(time.sleep, lane, name=lane, location=f"{lane}.py:3", site="on_log", native=True) for lane in "ba"
        ]
        for _ in range(2):
            for task in tasks:
                lanes.submit(task, (0.001,))
    accounts = lanes.accounts()
    assert [(a.lane, a.name, a.location, a.site, a.calls, a.native) for a in accounts] == [
        ("b", "b", "b.py:3", "on_log", 2, True),
        ("a", "a", "a.py:3", "on_log", 2, True),
    ]
    for account in accounts:
        assert account.busy >= 0.002
        assert 0 < account.cpu < account.busy
        assert (account.failures, account.dropped, account.coalesced, account.waits, account.waited) == (0, 0, 0, 0, 0)


@pytest.mark.parametrize(
    ("cpu", "busy", "options", "bound"),
    [
        (1.5, 2.0, {}, True),
        (1.5, 2.0, {"native": True}, False),
        (1.5, 2.0, {"worker": "process"}, False),
        (1.5, 3.0, {}, False),
        (0.9, 1.0, {}, False),
    ],
)
def test_an_account_tells_whether_a_process_would_suit_better(
    cpu: float, busy: float, options: dict[str, Any], bound: bool
) -> None:
    """Where most of the time, and over a second, was spent computing in a thread."""
    assert Account("a", "f", "", "", 1, 0, 0, 0, 0, 0.0, busy, cpu, {}, **options).python_bound is bound


def test_the_last_jobs_can_be_seen_on_a_time_line() -> None:
    """When each was submitted, began and ended, and whether it failed."""
    before = time.perf_counter()
    with Lanes() as lanes:
        lanes.submit(Task(gc.isenabled, "a", site="on_log"))
        lanes.submit(Task(boom, "a", on_error="raise"))
        lanes.wait("a")
        lanes.failures.clear()
    first, second = lanes.spans
    assert (first.lane, first.name, first.site, first.failed) == ("a", "isenabled", "on_log", False)
    assert (second.name, second.failed) == ("boom", True)
    moments = [before, first.submitted, first.began, first.ended, second.began, second.ended, time.perf_counter()]
    assert moments == sorted(moments)
    assert first.submitted < second.submitted < second.began
    assert lanes.spans.maxlen == 100_000


# -------------------------------------------------------------------------------------------------------------- at once


def test_a_job_can_be_done_at_once_in_the_caller() -> None:
    """In its thread, with what it raises."""
    where: list[tuple[int, int]] = []
    run_now(Task(lambda x, y: where.append((threading.get_ident(), x + y)), "a"), (1,), {"y": 2})
    assert where == [(threading.get_ident(), 3)]
    with pytest.raises(ValueError, match="boom"):
        run_now(Task(boom, "a"), (), {})


@both_backends
def test_an_async_job_can_be_done_at_once_too(backend: str) -> None:
    """Within a running event loop as well, as in a notebook."""
    done: list[int] = []

    async def work(number: int) -> None:
        await anyio.sleep(0)
        done.append(number)

    run_now(Task(work, "a"), (1,), {}, backend)

    async def notebook() -> None:
        run_now(Task(work, "a"), (2,), {}, backend)

    anyio.run(notebook)
    assert done == [1, 2]


# --------------------------------------------------------------------------------------------------- context variables

word: ContextVar[str] = ContextVar("word", default="")


@both_backends
def test_a_job_has_the_context_variables_of_whom_it_was_submitted_by(backend: str) -> None:
    """As they were then; what a job sets is its own, and tries of one job share it."""
    seen: list[str] = []

    def plain() -> None:
        seen.append(word.get())
        word.set("the job's own")
        if len(seen) == 1:
            raise ValueError("again")

    async def awaited() -> None:
        await anyio.sleep(0)
        seen.append(word.get())

    with Lanes(backend) as lanes:
        word.set("first")
        lanes.submit(Task(plain, "a", retries=1))
        word.set("second")
        lanes.submit(Task(awaited, "a"))
        lanes.submit(Task(plain, "a"))
        word.set("third")
        lanes.submit(Task(lambda: seen.append(word.get()), "a"))
    assert seen == ["first", "the job's own", "second", "second", "third"]
    run_now(Task(awaited, "a"), (), {}, backend)
    assert seen[-1] == "third"


@both_backends
def test_structlogs_bound_variables_reach_offloaded_and_async_receivers(backend: str) -> None:
    """They are context variables: a line that a receiver logs beside its sender has them."""
    lines: list[dict[str, Any]] = []

    def render(logger: Any, method: str, event: Any) -> Any:
        lines.append(dict(event))
        raise structlog.DropEvent

    logger = structlog.wrap_logger(None, processors=[structlog.contextvars.merge_contextvars, render])
    bus = Bus(())
    site = bus.site("lunch", ())
    site.connect(lambda: logger.info("plain"), offload=True, lane="one")

    @bus.on("lunch", lane="one")
    async def awaited() -> None:
        await anyio.sleep(0)
        logger.info("awaited")

    with structlog.contextvars.bound_contextvars(trial=3), bus.open_lanes(backend=backend):
        site.emit()
    assert lines == [{"event": "plain", "trial": 3}, {"event": "awaited", "trial": 3}]
