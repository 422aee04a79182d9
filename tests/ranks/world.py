"""Several ranks in a test: processes that a launcher seems to have started, which talk by gloo.

They are forked from a server that has everything imported, and no thread: this process may have had a group itself.
"""

from __future__ import annotations

import contextlib
import faulthandler
import multiprocessing
import os
import socket
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import coverage
import torch

LIMIT = 60.0
"""Seconds after which ranks that are still there have their stacks printed, and are killed."""


@dataclass(frozen=True)
class Died:
    """A rank that ended without a result."""

    code: int | None


_NOTHING = object()


class RankDiedError(AssertionError):
    """A rank ended without a result."""


def on_ranks(
    world: int, function: Callable[..., Any], *args: Any, limit: float = LIMIT, may_die: bool = False
) -> list[Any]:
    """Call *function* in that many processes, and return what each returned, by rank.

    What one raises is returned in its place, as the exception's text behind its class's name. A rank that ends without
    a result has its exit code there, where it may.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "torch._dynamo", "torchmetrics", "eventrunner.runner"])
    pipes, processes = [], []
    for rank in range(world):
        ours, theirs = multiprocessing.Pipe()
        job = (coverage.Coverage.current() is not None, function, args)
        process = context.Process(target=_be_rank, args=(theirs, rank, world, port, limit, *job), daemon=True)
        process.start()
        theirs.close()
        pipes.append(ours)
        processes.append(process)
    try:
        found = _results(pipes, limit)
        for rank, process in enumerate(processes):
            if found[rank] is _NOTHING:
                process.join(5)
                found[rank] = Died(process.exitcode)
                if not may_die:
                    raise RankDiedError(f"rank {rank} ended without a result, with {process.exitcode}")
        return found
    finally:
        for process in processes:
            process.join(5)
            process.kill()
            process.join(5)


def _results(pipes: Sequence[Connection], limit: float) -> list[Any]:
    found: dict[Connection, Any] = {}
    while len(found) < len(pipes):
        left = [pipe for pipe in pipes if pipe not in found]
        ready = wait(left, limit + 5)
        if not ready:
            raise RankDiedError(f"ranks {[pipes.index(pipe) for pipe in left]} didn't come back")
        for pipe in ready:
            assert isinstance(pipe, Connection)
            try:
                found[pipe] = pipe.recv()
            except EOFError:
                found[pipe] = _NOTHING
    return [found[pipe] for pipe in pipes]


@contextlib.contextmanager
def _measured(measures: bool) -> Iterator[None]:
    """Measure the coverage of the block in a file of its own, which is combined with the others in the end."""
    if not measures:
        yield
        return
    root = Path(__file__).parents[2]
    cover = coverage.Coverage(str(root / ".coverage"), data_suffix=True, config_file=str(root / "pyproject.toml"))
    with cover.collect():
        yield
    cover.save()


def _be_rank(
    pipe: Connection,
    rank: int,
    world: int,
    port: int,
    limit: float,
    measures: bool,
    function: Callable[..., Any],
    args: Any,
) -> None:
    faulthandler.dump_traceback_later(limit, exit=True)
    torch.set_num_threads(1)
    os.environ.update(
        RANK=str(rank), WORLD_SIZE=str(world), LOCAL_RANK=str(rank), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port)
    )
    try:
        with _measured(measures):
            result = function(*args)
    except BaseException as error:  # noqa: BLE001  # told to the test
        if os.environ.get("SHOW_RANKS"):
            traceback.print_exc()
        result = f"{type(error).__name__}: {error}"
    pipe.send(result)
    pipe.close()
    os._exit(0)
