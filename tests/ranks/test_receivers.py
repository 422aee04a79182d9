"""Receivers that only some ranks call: what would wait for the others is an error, and nothing is sent."""

from __future__ import annotations

import asyncio
import functools
import re
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.distributed._functional_collectives as functional
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Shard, distribute_tensor
from torch.nn.parallel import DistributedDataParallel
from torchmetrics import MeanMetric

from eventrunner import Bus, Runner
from eventrunner.errors import HookError
from eventrunner.hooks import SyncBuffersHook
from eventrunner.ranks.world import join

from test_one_run import make  # isort: skip
from world import on_ranks  # isort: skip


def normed() -> nn.Module:
    return DistributedDataParallel(nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)))


def forwarded() -> tuple[nn.Module, torch.Tensor]:
    model = normed()
    return model, model(a_batch()).sum()


def sharded() -> nn.Module:
    model = nn.Linear(2, 2)
    fully_shard(model, mesh=init_device_mesh("cpu", (2,)))
    return model


def spread() -> DTensor:
    return distribute_tensor(torch.arange(4.0), init_device_mesh("cpu", (2,)), [Shard(0)])


def metric() -> MeanMetric:
    made = MeanMetric(sync_on_compute=True)
    made.update(torch.tensor(1.0))
    return made


def a_batch() -> torch.Tensor:
    return torch.arange(8.0).reshape(4, 2)


COLLECTIVES: dict[str, tuple[Callable[[], Any], Callable[[Any], Any], str]] = {
    "all_reduce": (lambda: torch.ones(1), dist.all_reduce, "c10d.allreduce_"),
    "async": (lambda: torch.ones(1), lambda one: dist.all_reduce(one, async_op=True), "c10d.allreduce_"),
    "barrier": (lambda: None, lambda _: dist.barrier(), "c10d.barrier"),
    "objects": (lambda: [{"a": 1}], lambda box: dist.broadcast_object_list(box, src=0), "c10d.broadcast_"),
    "gathered objects": (lambda: [None, None], lambda box: dist.all_gather_object(box, 1), "c10d.allgather_"),
    "isend": (lambda: torch.ones(1), lambda one: dist.isend(one, dst=1), "c10d.send"),
    "functional": (
        lambda: torch.ones(1), lambda one: functional.all_reduce(one, "sum", dist.group.WORLD),
        "_c10d_functional.all_reduce",
    ),
    "ranks": (lambda: torch.ones(1), lambda one: join().mean_([one]), "c10d.allreduce_"),
    "DDP forward": (normed, lambda model: model(a_batch()), "c10d.broadcast_"),
    "DDP backward": (forwarded, lambda found: found[1].backward(), "c10d.allreduce_"),
    "FSDP2 forward": (sharded, lambda model: model(a_batch()), "c10d._allgather_base_"),
    "full_tensor": (spread, lambda tensor: tensor.full_tensor(), "_c10d_functional.all_gather_into_tensor"),
    "an operation of a sharded tensor": (spread, lambda tensor: tensor.sum().exp(), "_c10d_functional.all_reduce"),
    "compute": (metric, lambda metric: metric.compute(), "c10d.barrier"),
    "dcp.save": (lambda: {"a": torch.ones(1)}, lambda state: dcp.save(state, checkpoint_id="never"), "c10d."),
    "new_group": (lambda: None, lambda _: dist.new_group([0, 1]), "new_group"),
    "subgroups": (lambda: None, lambda _: dist.new_subgroups(1), "new_group"),
    "device mesh": (lambda: None, lambda _: init_device_mesh("cpu", (1, 2)), "new_group"),
}  # fmt: skip


def refused_each(kinds: list[str], offload: bool) -> dict[str, Any]:
    """Emit for receivers of rank 0, each of which begins a collective; after each all ranks reduce together."""
    ranks, bus = join(), Bus(())
    site = bus.site("lunch")
    cook = SimpleNamespace(ranks=ranks)
    emitters = bus.emitters(cook)
    found: dict[str, Any] = {}
    for kind in kinds:
        make, call, _ = COLLECTIVES[kind]
        receive = functools.partial(call, make())
        site.connect(receive, label=kind, ranks="main", offload=offload)
        message = ""
        try:
            with bus.open_lanes(cook):
                if emitters.lunch:
                    emitters.lunch(cook)
        except HookError as error:
            message = str(error)
        site.disconnect(receive)
        own = torch.tensor([float(ranks.rank)])
        dist.all_reduce(own)
        found[kind] = message, own.item(), ranks.gather(kind)
    return found


@pytest.mark.parametrize("offload", [False, True])
def test_a_collective_of_one_rank_is_refused_before_it_is_sent(offload: bool) -> None:
    """Whatever hides it, inline and in a lane, which need no timeout; and the other rank's next one pairs."""
    first, second = on_ranks(2, refused_each, list(COLLECTIVES), offload)
    for kind, (_, _, operation) in COLLECTIVES.items():
        message, together, kinds = first[kind]
        assert message.startswith(f"{kind} in "), (kind, first[kind])
        assert f", called by ranks='main' alone, calls {operation}" in message
        assert message.endswith(
            ": nothing was sent; connect it with collective=True, so that all ranks call it, or leave the collective "
            "to one that is."
        )
        assert second[kind][0] == ""
        assert together == second[kind][1] == 1.0
        assert kinds == [kind, kind]


def a_group() -> tuple[float, str]:
    """Have rank 0 try to make a group in a receiver; then all make one, and reduce in it."""
    bus = Bus(())
    bus.site("lunch").connect(lambda: dist.new_group([0, 1]), ranks="main")
    message = refusal_of(bus)
    own = torch.ones(1)
    dist.all_reduce(own, group=dist.new_group([0, 1]))
    return own.item(), message


def refusal_of(bus: Bus) -> str:
    """What an emission of lunch is refused with here, if it is."""
    cook = SimpleNamespace(ranks=join())
    emitters = bus.emitters(cook)
    try:
        with bus.open_lanes(cook):
            if emitters.lunch:
                emitters.lunch(cook)
    except HookError as error:
        return str(error)
    return ""


def test_a_group_that_was_refused_leaves_the_next_one_whole() -> None:
    """Groups are counted, and must be on all ranks alike."""
    (first, message), (second, nothing) = on_ranks(2, a_group)
    assert first == second == 2.0
    assert "calls new_group" in message
    assert nothing == ""


def interleaved() -> tuple[list[str], str]:
    """Let an async receiver of rank 0 wait while another one, of all ranks, reduces on the same event loop."""
    rank, bus, seen = join().rank, Bus(()), list[str]()
    started, done = asyncio.Event(), asyncio.Event()
    bus.site("lunch")

    @bus.on("lunch", ranks="main")
    async def waiting() -> None:
        started.set()
        await done.wait()
        seen.append("has waited")
        try:
            await asyncio.wait_for(asyncio.Event().wait(), 0.01)
        except TimeoutError:
            seen.append("was told")
        dist.barrier()

    @bus.on("lunch")
    async def reducing() -> None:
        if rank == 0:
            await started.wait()
        own = torch.ones(1)
        dist.all_reduce(own)
        seen.append(f"has reduced to {own.item():g}")
        done.set()

    message = refusal_of(bus)
    dist.barrier()
    return seen, message


def test_an_async_receiver_is_guarded_while_it_runs_and_not_while_it_waits() -> None:
    """When the event loop's thread is at other receivers; errors reach it as without a guard."""
    (seen, message), other = on_ranks(2, interleaved)
    assert seen == ["has reduced to 2", "has waited", "was told"]
    assert message.startswith("waiting in ")
    assert "calls c10d.barrier" in message
    assert other == (["has reduced to 2"], "")


def train_a_little() -> list[float]:
    torch.manual_seed(0)
    model = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        model(a_batch()).square().mean().backward()
        optimizer.step()
    return torch.cat([weight.detach().flatten() for weight in model.parameters()]).tolist()


def harmless() -> list[Any]:
    """Train in a lane of rank 0, which also waits for what was begun before, and reduce in another thread meanwhile."""
    bus, cook, found = Bus(()), SimpleNamespace(ranks=join()), list[Any]()
    begun, over = threading.Event(), threading.Event()
    reducing = functional.all_reduce(torch.ones(1), "sum", dist.group.WORLD)
    bus.site("lunch").connect(lambda: None)

    @bus.on("lunch", ranks="main", offload=True)
    def train() -> None:
        begun.set()
        over.wait()
        found.extend([train_a_little(), functional.wait_tensor(reducing).item()])

    emitters = bus.emitters(cook)
    with bus.open_lanes(cook):
        assert emitters.lunch
        emitters.lunch(cook)
        if cook.ranks.is_main:
            begun.wait()
        own = torch.ones(1)
        dist.all_reduce(own)
        over.set()
    return [*found, own.item()]


def test_a_guarded_receiver_computes_as_ever_while_others_communicate() -> None:
    """A guard is of one thread, and changes no result."""
    assert on_ranks(2, harmless) == [[train_a_little(), 2.0, 2.0], [2.0]]


def scoped_in_a_run(folder: Path) -> list[Any]:
    """Train with a receiver of each kind; what each saw."""
    runner, seen = make(folder), list[Any]()
    rank = runner.rank

    @runner.on("after_train_epoch", ranks="main", offload=True)
    def plot(runner: Any) -> None:
        seen.append(("main", runner.epoch))

    @runner.on("after_train_epoch", ranks="local_main")
    def look(runner: Runner) -> None:
        seen.append(("local_main", runner.epoch))

    @runner.on("after_train_epoch", collective=True)
    def agree(runner: Runner) -> None:
        own = torch.tensor([float(rank)])
        runner.ranks.mean_([own])
        seen.append(("mean", own.item()))

    runner.train()
    return sorted(seen)


def test_each_receiver_of_a_run_is_called_on_its_ranks(tmp_path: Path) -> None:
    """A collective one on all, where it may communicate."""
    first, second = on_ranks(2, scoped_in_a_run, tmp_path / "run")
    assert second == [("mean", 0.5), ("mean", 0.5)]
    mains = [("local_main", 0), ("local_main", 1), ("main", 0), ("main", 1)]
    assert first == [*mains, ("mean", 0.5), ("mean", 0.5)]


def reduces_alone(folder: Path, offload: bool) -> str:
    """Train with a receiver of rank 0 that reduces; why the run has failed."""
    runner = make(folder)

    @runner.on("after_train_iter", ranks="main", start=2, offload=offload)
    def mean(runner: Any) -> None:
        join().mean_([torch.ones(1)])

    runner.train()
    return "trained"


@pytest.mark.parametrize("offload", [False, True])
def test_a_collective_of_one_rank_fails_the_run_on_all(tmp_path: Path, offload: bool) -> None:
    """The error that names the receiver is in the other rank's, too; nobody waits for a timeout."""
    first, second = on_ranks(2, reduces_alone, tmp_path / "run", offload)
    expected = "mean in tests/ranks/test_receivers.py:"
    assert first.startswith(f"HookError: {expected}")
    assert "called by ranks='main' alone, calls c10d.allreduce_" in first
    assert second.startswith("RankFailedError: rank 0")
    assert expected in second


def differing(folder: Path, kind: str) -> str:
    """Begin a run with a collective receiver on rank 0 alone, or another one there; why it doesn't begin."""
    runner = make(folder)
    if kind == "hook" and runner.is_main:
        runner.register_hook(SyncBuffersHook())
    if kind == "filter":
        runner.on("before_train", collective=True, every=1 + runner.rank)(runner.ranks.barrier)
    runner.train()
    return "trained"


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (
            "hook",
            r"SyncBuffersHook \(sync_buffers.py:\d+\) at 'after_train_epoch' on rank 0 and LoggerHook "
            r"\(logger.py:\d+\) at 'after_train_epoch' on rank 1",
        ),
        (
            "filter",
            r"Ranks.barrier \(world.py:\d+\) at 'before_train' on rank 0 and Ranks.barrier \(world.py:\d+\) "
            r"at 'before_train', every 2 emissions on rank 1",
        ),
    ],
)
def test_collective_receivers_that_differ_are_an_error_on_every_rank(tmp_path: Path, kind: str, message: str) -> None:
    """Before the session begins, and each shows both."""
    first, second = on_ranks(2, differing, tmp_path / "run", kind)
    assert first == second
    whole = f"RankError: the first collective receiver that differs is {message}; give all ranks the same."
    assert re.fullmatch(whole, first), first
