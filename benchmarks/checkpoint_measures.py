"""What ``checkpoint.py`` measures, section by section; each runs in a process of its own."""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
import os
import queue
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from checkpoint_task import (
    WIDTH,
    Block,
    Calm,
    Ours,
    ShortTask,
    Task,
    TorchSave,
    Trainer,
    Way,
    dcp_ways,
    duration,
    median_step,
    median_total,
    silenced,
    steady_memory,
    tensors_of,
)
from report import resident
from torch import Tensor, nn

from eventrunner import Bus, Checkpointer
from eventrunner.checkpoint import Store, load_checkpoint
from eventrunner.checkpoint.snapshot import Snapshotter
from eventrunner.checkpoint.staging import StagedCheckpoint
from eventrunner.files import disk

Times = dict[str, list[float]]

STEP = 0.1
"""Seconds that a step of the headline task takes."""
MS, US, MB = 1e3, 1e6, 1e-6


@dataclass(frozen=True)
class Settings:
    """What the sections are given.

    Attributes:
        folder: Where they may write, each in a folder of its own.
        repeats: How often the contenders take turns.
        large: Whether there is memory and room for states of 2 GB.
        calm: What to measure by.
    """

    folder: Path
    repeats: int
    large: bool
    calm: Calm


@dataclass(frozen=True)
class Row:
    """A line of the table.

    Attributes:
        name: What was measured.
        ours: How much it was.
        unit: Of *ours* and *baseline*.
        baseline: The same by what it is compared with.
        target: The most that *bounds* may be, if there is a target.
        bounds: What the target is for: ``ours``, ``ratio`` (ours ÷ baseline) or ``difference``.
    """

    name: str
    ours: float
    unit: str
    baseline: float | None = None
    target: float | None = None
    bounds: str = "ratio"

    @property
    def ratio(self) -> float | None:
        return self.ours / self.baseline if self.baseline else None

    @property
    def met(self) -> bool | None:
        if self.target is None:
            return None
        bounded = {"ours": self.ours, "ratio": self.ratio, "difference": self.ours - (self.baseline or 0.0)}
        value = bounded[self.bounds]
        return value is not None and value <= self.target


def lost(settings: Settings) -> list[Row]:
    """Return what a save costs a training of 17 M parameters, with a core free and with none."""
    rows: list[Row] = []
    steady_memory()
    with contextlib.ExitStack() as stack:
        task = Task()
        ours = checkpointers(stack, settings.folder, task, "lazy", "eager")
        with silenced():  # what DCP's process tells
            theirs = stack.enter_context(dcp_ways(settings.folder / "dcp"))
            ways: dict[str, Way] = {**ours, "torch.save": TorchSave(settings.folder / "torch"), **theirs}
            for way in ways.values():  # a first save has memory to get, and a process to start
                for _ in range(2):
                    Trainer(task, settings.calm).block(2, way)
        for threads, place, most, share in ((1, "one core free", 0.045, 1 / 2), (2, "all cores busy", 0.1, 1 / 3)):
            torch.set_num_threads(threads)
            task.fit(STEP)
            blocks = Trainer(task, settings.calm).rounds(settings.repeats, 10, {"no save": None, **ways})
            rows += lost_rows(blocks, place, most, share)
            rows += [
                Row(f"{place}: tensors not as at the site, {mode}", unequal(way, task), "", target=0, bounds="ours")
                for mode, way in ours.items()
            ]
    return rows


def lost_rows(blocks: dict[str, list[Block]], place: str, most: float, share: float) -> Iterator[Row]:
    each = median_step(blocks["no save"])
    lost = {
        name: statistics.median(one.total - len(one.durations) * each for one in these)
        for name, these in blocks.items()
    }
    blocked = {name: statistics.median(one.blocked for one in these) for name, these in blocks.items()}
    peer, others = "DCP, process", [name for name in blocks if name not in ("no save", "lazy", "eager")]
    yield Row(f"{place}: a step", each * MS, "ms")
    yield Row(f"{place}: 10 steps without a save, above 10 medians", lost["no save"] * MS, "ms")
    yield Row(f"{place}: blocked, lazy; {peer}", blocked["lazy"] * MS, "ms", blocked[peer] * MS, 1, "ours")
    yield Row(f"{place}: blocked, eager; {peer}", blocked["eager"] * MS, "ms", blocked[peer] * MS)
    yield Row(f"{place}: lost, lazy", lost["lazy"] * MS, "ms", None, most * MS, "ours")
    for name in others:
        target = share if name == peer else None
        yield Row(f"{place}: lost, lazy; {name}", lost["lazy"] * MS, "ms", lost[name] * MS, target)
    yield Row(f"{place}: lost, eager; {peer}", lost["eager"] * MS, "ms", lost[peer] * MS)
    for name in others:
        yield Row(f"{place}: blocked, {name}", blocked[name] * MS, "ms")


def unequal(way: Ours, task: Task) -> int:
    """How many tensors of a save are not what they were when it was asked for."""
    before = {name: tensor.clone() for name, tensor in task.tensors().items()}
    way.save(task, 10**6)
    for _ in range(3):
        task.step()
    way.checkpointer.wait()
    saved = tensors_of(load_checkpoint(way.last.path))
    way.finish()
    return sum(not torch.equal(saved[name], tensor) for name, tensor in before.items())


def stall(settings: Settings) -> list[Row]:
    """How long the training stands still, by the size of the state and by the number of its tensors."""
    steady_memory()
    torch.set_num_threads(1)
    rows: list[Row] = []
    for width in (222, WIDTH, 2226) if settings.large else (222, WIDTH):
        rows += stall_of_size(settings, width)
    task = Task()
    many = {"state_dict": {f"each.{index}": torch.randn(1024) for index in range(5000)}}
    for name, tree, threads in (
        (f"{task.nbytes * MB:.0f} MB, 1 thread", task.tree(), 1),
        (f"{task.nbytes * MB:.0f} MB, 2 threads", task.tree(), 2),
        ("5,000 tensors of 4 KB", many, 1),
    ):
        torch.set_num_threads(threads)
        times = copies(tree, settings)
        warm = statistics.median(times["foreach"]) * MS
        rows.append(Row(f"take, {name}; _foreach_copy_", statistics.median(times["take"]) * MS, "ms", warm, 1.5))
        most = None if tree is many else 3  # where it is the bytes that cost, not the names
        rows.append(Row(f"the first take, {name}; same", statistics.median(times["first"]) * MS, "ms", warm, most))
    return rows


def stall_of_size(settings: Settings, width: int) -> list[Row]:
    with contextlib.ExitStack() as stack:
        task, calm = Task(width), settings.calm
        ways = checkpointers(stack, settings.folder / str(width), task, "lazy", "eager")
        trainer = Trainer(task, calm)
        for way in (*ways.values(), *ways.values()):
            trainer.block(1, way)
        found: dict[str, list[tuple[float, float]]] = {mode: [] for mode in ways}
        for _ in range(settings.repeats):
            for mode, way in ways.items():
                os.sync()
                blocked = calm.measure(functools.partial(trainer.block, 1, way)).blocked
                found[mode].append((blocked, way.waited))
    (lazy, wait), (eager, _) = (
        [statistics.median(each) * MS for each in zip(*of, strict=True)] for of in found.values()
    )
    size = f"{task.nbytes * MB:.0f} MB"
    return [
        Row(f"blocked, lazy, {size}; eager", lazy, "ms", eager, 1, "ours"),
        Row(f"of it the wait before the step, {size}; blocked, eager", wait, "ms", eager, 0.05),
    ]


def copies(tree: dict[str, Any], settings: Settings) -> Times:
    """Seconds of a snapshot into warm memory, of the first one into prepared memory, and of the mere copying."""
    sources = list(flat(tree))
    targets = [torch.empty_like(source).copy_(source) for source in sources]
    snapshotter = Snapshotter()
    snapshotter.take(tree).release()

    def timed_take(by: Snapshotter) -> float:
        began = time.perf_counter()
        snapshot = by.take(tree)
        took = time.perf_counter() - began
        snapshot.release()
        return took

    def first() -> float:
        fresh = Snapshotter()
        fresh.prepare(sum(source.nbytes for source in sources))
        return timed_take(fresh)

    foreach = functools.partial(torch._foreach_copy_, targets, sources)
    ways = {"take": lambda: timed_take(snapshotter), "first": first, "foreach": lambda: duration(foreach)}
    return in_turns(settings, ways, 3)


def flat(tree: Any) -> Iterator[Tensor]:
    if isinstance(tree, Tensor):
        yield tree
    elif isinstance(tree, dict):
        for each in tree.values():
            yield from flat(each)


def many(settings: Settings) -> list[Row]:
    """How long saves of many small tensors (of 50 elements) block the training, and how long until they are durable."""
    steady_memory()
    torch.set_num_threads(1)
    return [row for count in (75, 3000, 20_000) for row in many_of(settings, count)]


def many_of(settings: Settings, count: int) -> list[Row]:
    model = nn.ParameterDict({f"p{index}": torch.randn(50) for index in range(count)})
    optimizer = torch.optim.AdamW(model.parameters())

    def step() -> None:
        for parameter in model.parameters():
            parameter.grad = torch.ones_like(parameter)
        optimizer.step()

    def tree() -> dict[str, Any]:
        return {"state_dict": model.state_dict(), "optimizer": optimizer.state_dict()}

    def save(into: Checkpointer, number: int) -> tuple[float, float]:
        began = time.perf_counter()
        into.save(number)
        blocked = time.perf_counter() - began
        into.wait()
        return blocked, time.perf_counter() - began

    def saved() -> None:
        path = settings.folder / "theirs.pth"
        torch.save(tree(), path)
        with open(path, "rb") as file:
            os.fsync(file.fileno())

    folders = itertools.count()

    def turn() -> dict[str, float]:
        found: dict[str, float] = {}
        folder = settings.folder / f"{count}.{next(folders)}"
        with Checkpointer(folder, model=model, optimizer=optimizer, keep=1) as ours:
            for number, name in enumerate(("first", "second", "later")):
                step()
                found[f"{name} states"] = duration(tree)
                found[name], found[f"{name} durable"] = save(ours, number)
        found["torch"] = duration(saved)
        return found

    step()
    rounds = [settings.calm.measure(turn) for _ in range(settings.repeats)]
    times = {name: statistics.median(each[name] for each in rounds) * MS for name in rounds[0]}
    what = f"{4 * count:,} tensors"
    return [
        Row(f"blocked, {what}; state_dict()", times["later"], "ms", times["later states"], 3),
        Row(f"blocked by the first save, {what}; same", times["first"], "ms", times["first states"]),
        Row(f"until durable, {what}; torch.save and fsync", times["later durable"], "ms", times["torch"], 1),
        Row(f"until the first is durable, {what}; same", times["first durable"], "ms", times["torch"], 1),
    ]


def throttled(settings: Settings) -> list[Row]:
    """Return the same where the storage takes 200 MB a second."""
    steady_memory()
    torch.set_num_threads(1)
    steps = 15
    with contextlib.ExitStack() as stack:
        task = Task()
        task.fit(STEP)
        ways: dict[str, Way | None] = {"none": None}
        ways |= checkpointers(stack, settings.folder, task, "lazy", "eager", "sync")
        trainer = Trainer(task, settings.calm)
        for way in ways.values():
            trainer.block(1, way)
        stack.enter_context(slow_storage(200e6))
        blocks = trainer.rounds(max(3, settings.repeats // 2), steps, ways)
    blocked = {name: statistics.median(one.blocked for one in these) * MS for name, these in blocks.items()}
    total = {name: median_total(these) for name, these in blocks.items()}
    rows = []
    for mode in ("lazy", "eager"):
        rows.append(Row(f"blocked, {mode}; sync", blocked[mode], "ms", blocked["sync"], 1 / 20))
        rows.append(Row(f"{steps} steps with a save, {mode}; without", total[mode], "s", total["none"], 1.1))
    return rows


class SlowOs:
    """Stands for ``os`` where files are written: a write returns when a storage of that rate would have taken it."""

    def __init__(self, rate: float) -> None:
        self.rate, self.free_at = rate, 0.0

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)

    def write(self, descriptor: int, data: memoryview) -> int:
        count = os.write(descriptor, data[: 4 * 1024 * 1024])
        self.free_at = max(self.free_at, time.perf_counter() - 0.02) + count / self.rate
        time.sleep(max(0.0, self.free_at - time.perf_counter()))
        return count


@contextlib.contextmanager
def slow_storage(rate: float) -> Iterator[None]:
    names = vars(disk)
    kept, names["os"] = names["os"], SlowOs(rate)
    try:
        yield
    finally:
        names["os"] = kept


def beside(settings: Settings) -> list[Row]:
    """Return what a training thread notices of a save of 400 MB that is made beside it."""
    torch.set_num_threads(1)
    data = torch.randn(256, WIDTH)
    weights = torch.randn(WIDTH, WIDTH)
    steps = {"compute-bound": lambda: data @ weights, "Python-bound": python_step}
    model = nn.ParameterList(torch.randn(1_000_000) for _ in range(100))
    path = settings.folder / "bare"
    payload = memoryview(bytearray(400_000_000))
    rows = []
    with Checkpointer(
        settings.folder / "ours", model=model, optimizer=torch.optim.SGD(model.parameters()), mode="lazy"
    ) as ckpt:
        way = Ours(ckpt)
        for _ in range(2):
            save_beside(way, lambda: time.sleep(0.001))
        for name, step in steps.items():
            times = in_turns(
                settings,
                {
                    "save": lambda step=step: save_beside(way, step).mean,  # type: ignore[misc]
                    "none": lambda step=step: watch(step, after(0.3)).mean,  # type: ignore[misc]
                },
            )
            ours, base = (statistics.median(times[each]) * MS for each in ("save", "none"))
            rows.append(Row(f"a {name} step during a save; without", ours, "ms", base, 1.1))
        pauses = in_turns(
            settings,
            {
                "save": lambda: save_beside(way, tick).longest,
                "bare": lambda: write_beside(path, payload, tick).longest,
                "none": lambda: watch(tick, after(0.3)).longest,
            },
        )
    ours, base, none = (statistics.median(pauses[each]) * MS for each in ("save", "bare", "none"))
    rows.append(Row("the longest pause of a Python-bound thread; bare os.write", ours, "ms", base, 5, "difference"))
    rows.append(Row("the same with nothing beside it", none, "ms"))
    return rows


@dataclass(frozen=True)
class Watched:
    """What a thread noticed while something else went on: seconds per step, and of the longest one."""

    mean: float
    longest: float


def watch(step: Callable[[], object], ended: Callable[[], bool]) -> Watched:
    count, longest, began = 0, 0.0, time.perf_counter()
    last = began
    while not ended():
        step()
        now = time.perf_counter()
        longest, last, count = max(longest, now - last), now, count + 1
    return Watched((last - began) / max(count, 1), longest)


def after(seconds: float) -> Callable[[], bool]:
    end = time.perf_counter() + seconds
    return lambda: time.perf_counter() >= end


def tick() -> None:
    """Nothing: what is watched for is when the thread doesn't even get to that."""


def python_step() -> int:
    return sum(index * index for index in range(20_000))


def save_beside(way: Ours, step: Callable[[], object]) -> Watched:
    os.sync()
    save = way.checkpointer.save(way.checkpointer.step + 1)
    assert save is not None
    way.last = save
    watched = watch(step, lambda: save.ended > 0)
    way.finish()
    return watched


def write_beside(path: Path, payload: memoryview, step: Callable[[], object]) -> Watched:
    os.sync()
    thread = threading.Thread(target=write_raw, args=(path, [payload]))
    thread.start()
    watched = watch(step, lambda: not thread.is_alive())
    path.unlink()
    return watched


def write_raw(path: Path, pieces: list[memoryview]) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    for piece in pieces:
        while piece:
            piece = piece[os.write(descriptor, piece) :]
    os.fsync(descriptor)
    os.close(descriptor)


def durable(settings: Settings) -> list[Row]:
    """From the commit of a state to its being on the disk, and back."""
    torch.set_num_threads(1)
    task = Task()
    snapshot = Snapshotter().take(task.tree())
    image, store, path = snapshot.staged(), Store(settings.folder / "ours"), settings.folder / "bare"

    def commit() -> float:
        os.sync()
        took = duration(lambda: store.commit("one", image, step=1))
        store.delete("one")
        return took

    def raw() -> float:
        os.sync()
        took = duration(lambda: write_raw(path, list(image.files.values())))
        path.unlink()
        return took

    written = in_turns(settings, {"ours": commit, "raw": raw}, 2)
    saved = store.commit("one", image, step=1)
    load = functools.partial(load_checkpoint, saved)
    readers = {"verified": lambda: duration(load), "plain": lambda: duration(lambda: load(verify=False))}
    read = in_turns(settings, readers, 2)
    return [
        compared(f"commit of {megabytes(image)}; os.write and fsync", written, "ours", "raw", 1.15),
        compared("load from the kernel's cache; without verification", read, "verified", "plain", 1.5),
    ]


def compared(name: str, times: Times, ours: str, base: str, target: float) -> Row:
    return Row(name, statistics.median(times[ours]) * MS, "ms", statistics.median(times[base]) * MS, target)


def megabytes(staged: StagedCheckpoint) -> str:
    return f"{staged.nbytes * MB:.0f} MB"


def memory(settings: Settings) -> list[Row]:
    """Return what saves need of it, and whether they ever need more."""
    torch.set_num_threads(1)
    task = ShortTask()
    task.step()
    size, rows = task.nbytes * MB, []
    for arenas, target in ((1, 1.1), (2, 2.1)):
        before = resident()
        snapshotter = Snapshotter(arenas)
        for _ in range(3):
            snapshots = [snapshotter.take(task.tree()) for _ in range(arenas)]
            for snapshot in snapshots:
                snapshot.release()
        rows.append(Row(f"memory with {arenas} copies; the state", resident() - before, "MB", size, target))
        del snapshotter, snapshot, snapshots
    with contextlib.ExitStack() as stack:
        way = checkpointers(stack, settings.folder, task, "lazy")["lazy"]
        trainer, sizes = Trainer(task, settings.calm), []
        for _ in range(60):
            trainer.block(1, way)
            sizes.append(resident())
        # Between any two saves it goes up and down by what the C library keeps.
        growth = statistics.median(sizes[-10:]) - statistics.median(sizes[:10])
        rows.append(Row("growth of memory in 50 saves; the state", growth, "MB", size, 0.02))
    return rows


def auto(settings: Settings) -> list[Row]:
    """Return whether the mode that is chosen is the better one, what the choosing costs included."""
    steady_memory()
    torch.set_num_threads(1)
    task = Task()
    task.fit(STEP)
    return [auto_of(settings, "headline", task, 5), auto_of(settings, "nothing before the step", ShortTask(), 8)]


def auto_of(settings: Settings, name: str, task: Task, steps: int) -> Row:
    saves, modes = 16, ("auto", "lazy", "eager")
    totals: Times = {mode: [] for mode in modes}
    for repeat in range(max(1, settings.repeats // 2)):
        with contextlib.ExitStack() as stack:
            ways = checkpointers(stack, settings.folder / f"{name} {repeat}", task, *modes)
            blocks = Trainer(task, settings.calm, warm_up=0).rounds(saves, steps, dict(ways))
        for mode in modes:
            totals[mode].append(sum(one.total for one in blocks[mode]))
    found = {mode: statistics.median(values) for mode, values in totals.items()}
    better = min("lazy", "eager", key=found.__getitem__)
    return Row(f"{saves} saves in {saves * steps} steps, {name}; {better}", found["auto"], "s", found[better], 1.05)


def offload(settings: Settings) -> list[Row]:
    """Return what the emitting thread pays for a receiver that runs beside it."""
    torch.set_num_threads(1)
    events = 2000
    with open(settings.folder / "log.jsonl", "w", encoding="utf-8") as file:

        def write(step: int, loss: float) -> None:
            file.write(json.dumps({"step": step, "loss": loss}) + "\n")

        bus = Bus(())
        site = bus.site("logged", ("step", "loss"))
        site.connect(write, offload=True)
        with bus.open_lanes(), queued(write) as put:
            times = [
                settings.calm.measure(
                    lambda: (spaced(lambda step: site.emit(None, step=step, loss=0.5), events), spaced(put, events))
                )
                for _ in range(settings.repeats)
            ]
    rows = []
    for name, place, target in (("median", 0.5, 5), ("99th percentile", 0.99, 20)):
        ours, base = (statistics.median(quantile(each[index], place) for each in times) * US for index in (0, 1))
        rows.append(Row(f"an offloaded event, {name}; a queue's put", ours, "µs", base, target, "ours"))
    return rows


@contextlib.contextmanager
def queued(write: Callable[[int, float], None]) -> Iterator[Callable[[int], None]]:
    """Return the least there is: a queue and a thread."""
    jobs: queue.SimpleQueue[tuple[int, float] | None] = queue.SimpleQueue()

    def work() -> None:
        while job := jobs.get():
            write(*job)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield lambda step: jobs.put((step, 0.5))
    finally:
        jobs.put(None)
        thread.join()


def spaced(emit: Callable[[int], None], count: int) -> list[float]:
    """Seconds of each emission, with about 0.3 ms of torch's arithmetic between them."""
    data, weights, times = torch.randn(40, WIDTH), torch.randn(WIDTH, WIDTH), []
    for step in range(1, count + 1):
        data @ weights
        began = time.perf_counter()
        emit(step)
        times.append(time.perf_counter() - began)
    return times


def quantile(values: list[float], place: float) -> float:
    return sorted(values)[round(place * (len(values) - 1))]


def checkpointers(stack: contextlib.ExitStack, folder: Path, task: Task, *modes: str) -> dict[str, Ours]:
    """One of each mode, open until the stack is left."""
    made = {}
    for mode in modes:
        ckpt = Checkpointer(folder / mode, model=task.model, optimizer=task.optimizer, mode=mode)
        made[mode] = Ours(stack.enter_context(ckpt))
    return made


def in_turns(settings: Settings, ways: dict[str, Callable[[], float]], times: int = 1) -> Times:
    """Return what each of them returns, in turns, so many times the repeats."""
    rounds = [settings.calm.measure(lambda: [way() for way in ways.values()]) for _ in range(times * settings.repeats)]
    return dict(zip(ways, map(list, zip(*rounds, strict=True)), strict=True))


SECTIONS: dict[str, Callable[[Settings], list[Row]]] = {
    section.__name__: section for section in (lost, stall, many, throttled, beside, durable, memory, auto, offload)
}


def run_section(name: str, settings: Settings) -> tuple[list[Row], Calm]:
    return SECTIONS[name](settings), settings.calm
