"""The training that ``checkpoint.py`` saves, and the ways in which it is saved: ours, and those it is compared with."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import shutil
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions
from torch.distributed.checkpoint.state_dict_saver import AsyncCheckpointerType, AsyncSaveResponse, async_save

from eventrunner import Checkpointer

T = TypeVar("T")

WIDTH = 704
LAYERS = 34
"""With their biases and AdamW's two moments of each, 17 million parameters or 203 MB."""


class Task:
    """A plain MLP with AdamW; ``step`` is a training step, and has room for a wait before the optimizer's."""

    def __init__(self, width: int = WIDTH, batch: int = 32) -> None:
        torch.manual_seed(0)
        self.width = width
        linears = [nn.Linear(width, width) for _ in range(LAYERS)]
        for linear in linears:  # so that nothing fades away: arithmetic on denormal numbers is slow
            nn.init.normal_(linear.weight, std=(2 / width) ** 0.5)
        self.model: nn.Module = nn.Sequential(*(each for linear in linears for each in (linear, nn.ReLU())))
        self.optimizer: torch.optim.Optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-5)
        self.resize(batch)
        self.step()

    def resize(self, batch: int) -> None:
        self.inputs, self.wanted = torch.randn(batch, self.width), torch.randn(batch, self.width)

    def step(self, before_optimizer: Callable[[], object] | None = None) -> None:
        loss = nn.functional.mse_loss(self.model(self.inputs), self.wanted)
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        if before_optimizer is not None:
            before_optimizer()
        self.optimizer.step()
        self.optimizer.zero_grad()

    def fit(self, seconds: float) -> None:
        """Choose the batch so that a step takes about so long."""
        small, large = 8, 64
        times = []
        for batch in (small, large):
            self.resize(batch)
            times.append(min(duration(self.step) for _ in range(5)))
        each = (times[1] - times[0]) / (large - small)
        self.resize(max(1, min(1024, round(small + (seconds - times[0]) / each))))

    def tree(self) -> dict[str, Any]:
        return {"state_dict": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}

    def tensors(self) -> dict[str, Tensor]:
        return tensors_of(self.tree())

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.tensors().values())


class ShortTask(Task):
    """The same state with next to nothing before the optimizer's step: no time to copy it beside."""

    def __init__(self) -> None:
        super().__init__(batch=1)
        self.gradients = [torch.full_like(each, 1e-3) for each in self.model.parameters()]

    def step(self, before_optimizer: Callable[[], object] | None = None) -> None:
        for parameter, gradient in zip(self.model.parameters(), getattr(self, "gradients", ()), strict=False):
            parameter.grad = gradient
        self.optimizer.step()


def tensors_of(tree: dict[str, Any]) -> dict[str, Tensor]:
    """Those of a model and its optimizer, by name."""
    state = {f"{key}.{name}": each for key, of in tree["optimizer"]["state"].items() for name, each in of.items()}
    return {**tree["state_dict"], **state}


def steady_memory() -> None:
    """Have the C library keep what is freed.

    Else it gives memory back to the system and takes it again within each step, or not, as chance puts the blocks; one
    and the same step of AdamW then takes once or twice as long, for seconds on end.
    """
    trim_threshold, mmap_threshold = -1, -3
    library = ctypes.CDLL(None)
    if hasattr(library, "mallopt"):
        library.mallopt(trim_threshold, 2**31 - 1)
        library.mallopt(mmap_threshold, 2**25)


def duration(action: Callable[[], object]) -> float:
    began = time.perf_counter()
    action()
    return time.perf_counter() - began


class Calm:
    """Has measured again what other processes disturbed, and waits for a moment without them, while patience lasts.

    Attributes:
        patience: Seconds that may still be spent on that.
        measured: How many measurements were taken.
        disturbed: In how many of those that count others used more than a fifth of a core.
    """

    def __init__(self, patience: float) -> None:
        self.patience = patience
        self.measured = self.disturbed = 0

    def measure(self, action: Callable[[], T]) -> T:
        self.measured += 1
        while True:
            self._wait()
            began, others = time.perf_counter(), others_time()
            found = action()
            took, others = time.perf_counter() - began, others_time() - others
            if others <= 0.02 + took / 5:
                return found
            if self.patience <= 0:
                self.disturbed += 1
                return found
            self.patience -= took

    def _wait(self) -> None:
        while self.patience > 0:
            began, others = time.perf_counter(), others_time()
            time.sleep(0.2)
            took, others = time.perf_counter() - began, others_time() - others
            if others <= took / 10:
                return
            self.patience -= took


def others_time() -> float:
    """Seconds of processor time that all processes have used but this one, its children and the kernel's own."""
    parents, used = {}, {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it has just ended
            fields = path.read_text().rpartition(")")[2].split()
            pid = int(path.parent.name)
            parents[pid], used[pid] = int(fields[1]), sum(map(int, fields[11:13]))
    kernel, mine = 2, os.getpid()
    ours = {kernel, mine}
    while more := {pid for pid, parent in parents.items() if parent in ours} - ours:
        ours |= more
    return sum(time for pid, time in used.items() if pid not in ours) / os.sysconf("SC_CLK_TCK")


class Way(Protocol):
    """A way to save; what is slow in it and in the background is waited for in ``finish``, which is not timed."""

    def save(self, task: Task, step: int) -> None: ...

    def before_step(self) -> None: ...

    def finish(self) -> float:
        """Return when all is committed: the seconds for which the training thread was blocked."""


class Ours:
    """By a Checkpointer, with whatever it was told of."""

    def __init__(self, checkpointer: Checkpointer) -> None:
        self.checkpointer = checkpointer
        self.last: Any = None
        self.called = self.waited = 0.0

    def save(self, task: Task, step: int) -> None:
        self.called = duration(lambda: setattr(self, "last", self.checkpointer.save(step)))
        self.waited = -self.last.blocked  # which goes on growing, by the wait before the optimizer's step

    def before_step(self) -> None:
        """Return the optimizer waits by itself."""

    def finish(self) -> float:
        self.checkpointer.wait()
        shutil.rmtree(self.last.path)
        self.waited += self.last.blocked
        return self.called + self.waited


class TorchSave:
    """torch.save to a file, and nothing else until it returns. It doesn't sync."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self.path = folder / "state.pth"
        self.blocked = 0.0

    def save(self, task: Task, step: int) -> None:
        self.blocked = duration(lambda: torch.save(task.tree(), self.path))

    def before_step(self) -> None:
        """There is nothing to wait for."""

    def finish(self) -> float:
        self.path.unlink()
        return self.blocked


class Dcp:
    """torch.distributed.checkpoint.async_save, with memory to copy to that is kept from save to save.

    By default it takes new memory for each save. With *beside*, it copies in a thread, and the training waits for that
    before the optimizer's step.
    """

    def __init__(self, folder: Path, kind: AsyncCheckpointerType, beside: bool = False) -> None:
        shared = kind is AsyncCheckpointerType.PROCESS
        self.folder, self.kind = folder, kind
        self.stager = DefaultStager(StagingOptions(False, shared, beside, False))
        self.answer: Any = None
        self.blocked = 0.0

    def save(self, task: Task, step: int) -> None:
        began = time.perf_counter()
        self.answer = async_save(
            task.tree(), checkpoint_id=self.folder, async_checkpointer_type=self.kind, async_stager=self.stager
        )
        self.blocked = time.perf_counter() - began

    def before_step(self) -> None:
        if isinstance(self.answer, AsyncSaveResponse):
            self.blocked += duration(self.answer.staging_completion.result)

    def finish(self) -> float:
        done = self.answer.upload_completion if isinstance(self.answer, AsyncSaveResponse) else self.answer
        done.result()
        shutil.rmtree(self.folder)
        return self.blocked


@contextlib.contextmanager
def dcp_ways(folder: Path) -> Iterator[dict[str, Way]]:
    """DCP's ways, with the process group that they need."""
    folder.mkdir()
    dist.init_process_group("gloo", init_method=f"file://{folder.resolve()}/group", rank=0, world_size=1)
    process, thread = AsyncCheckpointerType.PROCESS, AsyncCheckpointerType.THREAD
    ways = {
        "DCP, process": Dcp(folder / "process", process),
        "DCP, process, copied beside": Dcp(folder / "beside", process, beside=True),
        "DCP, thread": Dcp(folder / "thread", thread),
    }
    try:
        yield dict(ways)
    finally:
        for way in ways.values():
            way.stager.close()
        dist.destroy_process_group()


@contextlib.contextmanager
def silenced() -> Iterator[None]:
    """Within the block, and in processes that are started in it, nothing comes out at the standard error."""
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


@dataclass(frozen=True)
class Block:
    """So many steps, with or without a save before the first of them."""

    durations: list[float]
    blocked: float = 0.0

    @property
    def total(self) -> float:
        return sum(self.durations)


class Trainer:
    """Trains in blocks, and counts the steps."""

    def __init__(self, task: Task, calm: Calm, warm_up: int = 2) -> None:
        self.task, self.calm, self.warm_up = task, calm, warm_up
        self.count = 0

    def block(self, steps: int, way: Way | None = None) -> Block:
        """Return the steps from a save to the next one, the save included; what is left to do beside is done after."""
        for _ in range(self.warm_up):  # after whatever was waited for, caches and threads are cold
            self.task.step()
        durations = []
        for index in range(steps):
            self.count += 1
            began = time.perf_counter()
            if way is not None and index == 0:
                way.save(self.task, self.count)
            self.task.step(None if way is None or index else way.before_step)
            durations.append(time.perf_counter() - began)
        blocked = 0.0 if way is None else way.finish()
        return Block(durations, blocked)

    def rounds(self, repeats: int, steps: int, ways: dict[str, Way | None]) -> dict[str, list[Block]]:
        """Blocks of all ways in turns, each time in another order. What was written is on the disk before the next."""
        blocks: dict[str, list[Block]] = {name: [] for name in ways}
        names = list(ways)
        for index in range(repeats):
            turn = index % len(names)
            for name in names[turn:] + names[:turn]:
                os.sync()
                blocks[name].append(self.calm.measure(functools.partial(self.block, steps, ways[name])))
        return blocks


def median_step(blocks: list[Block]) -> float:
    return statistics.median(each for block in blocks for each in block.durations)


def median_total(blocks: list[Block]) -> float:
    """Return the sum over a block's steps of each one's median, so that a disturbance in one of them doesn't count."""
    steps = range(len(blocks[0].durations))
    return sum(statistics.median(block.durations[step] for block in blocks) for step in steps)
