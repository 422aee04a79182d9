"""The control store: by which the ranks of one attempt find each other, and speak beside their collectives.

A launcher's own store outlives the processes that it restarts, with the keys of those that died: half of the groups
made on it after a kill never come up (pytorch#135712). So rank 0 serves a store of its own on a free port, and its
address goes through the launcher's under a counter. A rank is in only where that very server sees it for the first
time and says that all have come; an address that refuses it, or is stale, is left for the next one.
"""

from __future__ import annotations

import datetime
import os
import socket
import time
from typing import Any

from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]  # public, and not in __all__

from eventrunner.errors import RankError

__all__ = ["PrefixStore", "TCPStore", "launched", "open_control"]

_PAUSE = 0.01  # seconds between two looks for an address
_ANSWER = 5.0  # seconds in which a server that is there has answered
_Seconds = datetime.timedelta


def launched() -> bool:
    """Return whether a launcher has started this process as one of several."""
    return int(os.environ.get("WORLD_SIZE") or 1) > 1 and "RANK" in os.environ


def open_control(rank: int, world: int, timeout: float) -> Any:
    """Return the store of this attempt, when every rank has come to it.

    Args:
        rank: This process's number.
        world: How many there are.
        timeout: Seconds in which all must have come.

    Raises:
        RankError: they haven't, or what the launcher says of itself is of no use.
    """
    host, port = _launcher()
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":  # nobody serves there yet, and nothing can be stale
        try:
            return TCPStore(host, port, world, rank == 0, timeout=_Seconds(seconds=timeout))
        except (RuntimeError, OSError) as error:
            raise RankError(f"rank {rank} of {world} didn't meet the others at {host}:{port}: {error}") from error
    addresses = PrefixStore("eventrunner", TCPStore(host, port, timeout=_Seconds(seconds=timeout)))
    if rank == 0:
        return _serve(addresses, host, world, timeout)
    return _find(addresses, rank, time.monotonic() + timeout)


def _launcher() -> tuple[str, int]:
    try:
        return os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    except (KeyError, ValueError):
        raise RankError(
            "WORLD_SIZE and RANK are set, but MASTER_ADDR and MASTER_PORT don't say where the ranks meet; launch the "
            "script by torchrun, or make the process group before the Runner."
        ) from None


def _serve(addresses: Any, host: str, world: int, timeout: float) -> Any:
    """Be rank 0: serve a store, say where, and wait for the others."""
    store = TCPStore(host, 0, is_master=True, wait_for_workers=False, timeout=_Seconds(seconds=timeout))
    number = addresses.add("count", 1)
    addresses.set(f"address/{number}", f"{host} {store.port}")
    try:
        store.wait([f"joined/{rank}" for rank in range(1, world)], _Seconds(seconds=timeout))
    except RuntimeError as error:
        late = [rank for rank in range(1, world) if not store.check([f"joined/{rank}"])]
        raise RankError(
            f"rank 0 of {world} has waited {timeout:g} s for the ranks {late}, which didn't come."
        ) from error
    store.set("all", "1")
    return store


def _find(addresses: Any, rank: int, until: float) -> Any:
    """Be another rank: try the newest address until one is of this attempt."""
    reason: Exception | None = None
    while time.monotonic() < until:
        number = addresses.add("count", 0)
        if number:
            try:
                return _join(addresses, number, rank, until)
            except (RuntimeError, OSError) as error:  # refused, reset, stale
                reason = error
        time.sleep(_PAUSE)
    raise RankError(f"rank {rank} found no rank 0 to meet; the last attempt ended in: {reason}")


def _join(addresses: Any, number: int, rank: int, until: float) -> Any:
    host, port = addresses.get(f"address/{number}").decode().split()
    with socket.create_connection((host, int(port)), 1.0):  # the store's own client would retry for its whole timeout
        pass
    store = TCPStore(host, int(port), wait_for_workers=False, timeout=_Seconds(seconds=_ANSWER))
    if store.add(f"joined/{rank}", 1) != 1:
        raise OSError(f"rank {rank} had joined there before")
    while not store.check(["all"]):
        if time.monotonic() >= until:
            raise OSError("the others didn't come")
        if addresses.add("count", 0) > number:
            raise OSError("there is a newer address")
        time.sleep(_PAUSE)
    store.set_timeout(_Seconds(seconds=max(until - time.monotonic(), _ANSWER)))
    return store
