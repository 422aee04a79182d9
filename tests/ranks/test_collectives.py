"""Ranks with real processes: this one is rank 0 and a child, driven over a pipe, is rank 1; both talk by gloo."""

from __future__ import annotations

import datetime
import inspect
import multiprocessing
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as torch_dist

from eventrunner.errors import OptionError
from eventrunner.ranks.world import join as ranks


def join(store: str, rank: int) -> None:
    """Become one of two ranks that meet at a file."""
    torch.set_num_threads(1)
    timeout = datetime.timedelta(seconds=60)
    torch_dist.init_process_group("gloo", init_method=store, rank=rank, world_size=2, timeout=timeout)


def tensors_of(rank: int) -> list[torch.Tensor]:
    """Tensors of several kinds and shapes, one of them not contiguous; each holds its rank's own numbers."""
    kinds = [torch.float32, torch.float64, torch.float32]
    plain = [torch.arange(6, dtype=kind).reshape(2, 3) * (rank + 1) for kind in kinds]
    return [*plain[:2], plain[2].t(), torch.full((), float(rank)), torch.full((0,), 1.0)]


def facts() -> tuple[int, int, bool, bool]:
    """What a rank says of itself."""
    own = ranks()
    return own.rank, own.world, own.several, own.is_main


def reduce_all() -> list[list[Any]]:
    """The means as this rank has them."""
    tensors = tensors_of(ranks().rank)
    ranks().mean_(tensors)
    return [tensor.tolist() for tensor in tensors]


def reduce_nothing() -> list[Any]:
    """No tensors, no message, no waiting for the other rank."""
    ranks().mean_([])
    return []


def reduce_a_parameter() -> float:
    """A leaf that requires grad is changed in place too."""
    weight = torch.nn.Parameter(torch.full((1,), float(ranks().rank)))
    ranks().mean_([weight])
    return weight.item()


def tell(src: int) -> Any:
    """What this rank has after rank src gave its own dict."""
    return ranks().broadcast({"from": ranks().rank}, src=src)


def wait_at_barrier() -> Iterator[str]:
    """Say so before the barrier and after it."""
    yield "here"
    ranks().barrier()
    yield "through"


def serve(pipe: Connection, store: str) -> None:
    """Rank 1: run what it is told to, until told None, and send each thing that a generator yields."""
    join(store, 1)
    while (job := pipe.recv()) is not None:
        function, args = job
        result = function(*args)
        for part in result if inspect.isgenerator(result) else [result]:
            pipe.send(part)
    torch_dist.destroy_process_group()


@pytest.fixture(scope="module")
def rank_one(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Connection]:
    """The pipe to rank 1, while this process is rank 0."""
    store = Path(tmp_path_factory.mktemp("dist"), "store").as_uri()
    ours, theirs = multiprocessing.Pipe()
    child = multiprocessing.get_context("spawn").Process(target=serve, args=(theirs, store), daemon=True)
    child.start()
    join(store, 0)
    yield ours
    ours.send(None)
    torch_dist.destroy_process_group()
    child.join(30)
    assert child.exitcode == 0


def on_both(rank_one: Connection, function: Any, *args: Any) -> tuple[Any, Any]:
    """Run the function on both ranks: what it returned on rank 0 and on rank 1."""
    rank_one.send((function, args))
    here = function(*args)
    assert rank_one.poll(60)
    return here, rank_one.recv()


class TestAlone:
    def test_a_single_process_is_rank_0_of_1(self) -> None:
        """Without a process group every answer is that of one process."""
        assert facts() == (0, 1, False, True)

    def test_collectives_do_nothing(self) -> None:
        """Means are what they were, and objects come back themselves."""
        tensor, obj = torch.tensor([1.0, 2.0]), object()
        ranks().barrier()
        ranks().mean_([tensor])

        assert tensor.tolist() == [1.0, 2.0]
        assert ranks().broadcast(obj) is obj

    def test_integers_have_no_mean(self) -> None:
        """A counter among the buffers is an error before anything is sent, on one rank as on many."""
        with pytest.raises(OptionError, match=r"^mean_ takes floating-point tensors, not one of torch\.int64\.$"):
            ranks().mean_([torch.ones(1), torch.ones(1, dtype=torch.int64)])


class TestTwoRanks:
    def test_each_knows_its_place(self, rank_one: Connection) -> None:
        """Rank, size, and who speaks for all."""
        assert on_both(rank_one, facts) == ((0, 2, True, True), (1, 2, True, False))

    def test_means_are_equal_everywhere(self, rank_one: Connection) -> None:
        """Each tensor becomes the mean of the two, whatever its type and layout."""
        expected = [((a + b) / 2).tolist() for a, b in zip(tensors_of(0), tensors_of(1), strict=True)]

        assert on_both(rank_one, reduce_all) == (expected, expected)

    def test_a_parameter_can_be_reduced(self, rank_one: Connection) -> None:
        """No graph is recorded and no error raised for a leaf."""
        assert on_both(rank_one, reduce_a_parameter) == (0.5, 0.5)

    def test_no_tensors_need_no_message(self, rank_one: Connection) -> None:
        """An empty list is fine on every rank."""
        assert on_both(rank_one, reduce_nothing) == ([], [])

    @pytest.mark.parametrize("src", [0, 1])
    def test_an_object_reaches_the_other_rank(self, rank_one: Connection, src: int) -> None:
        """Both have what rank src gave."""
        assert on_both(rank_one, tell, src) == ({"from": src}, {"from": src})

    def test_nobody_passes_a_barrier_before_all_are_there(self, rank_one: Connection) -> None:
        """The other rank is held until this one comes."""
        rank_one.send((wait_at_barrier, ()))
        assert rank_one.recv() == "here"
        assert not rank_one.poll(0.2)

        ranks().barrier()

        assert rank_one.poll(60)
        assert rank_one.recv() == "through"
