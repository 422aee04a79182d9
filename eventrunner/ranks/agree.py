"""Agreement: what one rank asks of a run is done by all at the same tick, and the first failure ends all.

The ranks of a session write events to the control store, each once and all in one order. On every rank a thread, the
sentinel, reads them. A request is a gate: the sentinel first puts it where the loop looks anyway, then reads how many
ticks the loop has passed and posts that; once all ranks have, the gate opens at the highest of these and one. Nobody
can have passed that tick: the loop counts it first, and then looks. The loop itself posts no tick, as it may be in a
collective that waits for a rank which waits for its number. As long as nobody asks, there is nothing but the count.
Where all ranks come together anyway, at the end of an epoch or a validation, they meet, and do at once what was asked.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import json
import os
import re
import selectors
import socket
import threading
import traceback
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, Self, cast

import torch

from eventrunner.errors import RankFailedError
from eventrunner.ranks.control import PrefixStore
from eventrunner.ranks.world import Ranks, keep_group

__all__ = ["Agreement", "Failure", "Ticking"]

_FOREVER = datetime.timedelta(days=3650)  # a wait of torch's that ends prints two warnings
_GRACE = 1.0  # seconds in which a rank that has been told of a failure comes out by itself
_ECHO = 0.3  # seconds for the cause of a connection that has closed to be told
_LEAVE = 2.0  # seconds that rank 0, which serves the store, waits for the others to have read their last event
_CONNECTION = re.compile("gloo|nccl", re.IGNORECASE)
_LONGEST = 20_000  # characters of a traceback that are sent
_FOREIGN = (*(str(Path(each).parent) for each in (Path(__file__).parent, torch.__file__, os.__file__)), "<")


class Ticking(Protocol):
    """Whose loop is agreed on: a session.

    Attributes:
        ticks: How often it has looked, the same number on each rank wherever it is in the program.
        requested: What it does when it looks.
        later: What is to be looked at once more then.
    """

    ticks: int
    requested: list[Callable[[], Any]]
    later: list[Callable[[], Any]]


@dataclass(frozen=True, slots=True)
class Failure:
    """What a rank has failed of, and where."""

    rank: int
    where: str
    error: str
    traceback: str = ""

    @classmethod
    def of(cls, error: BaseException, rank: int, iteration: int) -> Self:
        """Return that of an exception: the site, and the innermost line that isn't torch's, Python's or ours."""
        frames = traceback.extract_tb(error.__traceback__)
        sites = [frame.filename[14:-1] for frame in frames if frame.filename.startswith("<receivers of ")]
        lines = [
            f"{Path(each.filename).name}:{each.lineno}" for each in frames if not each.filename.startswith(_FOREIGN)
        ]
        where = ", ".join([*sites[-1:], *lines[-1:], f"iteration {iteration}"])
        text = "".join(traceback.format_exception(error))
        return cls(rank, where, "".join(traceback.format_exception_only(error)).splitlines()[0], text[-_LONGEST:])

    def exception(self) -> RankFailedError:
        """Return it as what another rank raises; the traceback is a note."""
        error = RankFailedError(str(self))
        if self.traceback:
            error.add_note(f"on rank {self.rank}:\n{self.traceback}")
        return error

    def __str__(self) -> str:
        return f"rank {self.rank}, {self.where}: {self.error}"


_GONE = Failure(0, "which serves the control store", "its process is gone")


class Agreement:
    """What the ranks of one session agree on. All ranks must make it, in the same place.

    Args:
        ranks: They, several.
        session: Whose ticks count.
        answer: Called as ``answer(kind, **told)`` at a tick that is the same on all ranks, for each request, in one
            order.
        end: Called by the sentinel with the failure of another rank where this one's training thread hasn't come out
            by itself. If that is still so when it returns, the process exits with 1.
    """

    def __init__(
        self, ranks: Ranks, session: Ticking, answer: Callable[..., Any], end: Callable[[Failure], Any]
    ) -> None:
        self._rank, self._world = ranks.rank, ranks.world
        self._session, self._answer, self._end = session, answer, end
        self.failure: Failure | None = None
        """The first, once it is known here."""
        self._gates: dict[str, _Gate] = {}
        self._ended = self._here = 0  # ranks that have ended, and those that have come to a meeting, all in all
        self._due: list[_Gate] = []  # what was asked before the last meeting, and
        self._met = threading.Semaphore(0)  # whether everybody has come to it
        self._aborting = threading.Lock()
        self._out = threading.Event()  # set: the training thread leaves by itself
        self._over = threading.Event()  # set: there are no more events, or one was a failure
        prefix = f"session/{next(ranks.sessions)}"
        self._posts = _Events(ranks, prefix, "training")
        self._events = _Events(ranks, prefix, "sentinel")
        self._lifeline = _Lifelines(ranks, prefix) if ranks.is_main else _Lifeline(ranks, prefix, self._abort)
        self._thread = threading.Thread(target=self._watch, name="sentinel", daemon=True)
        self._thread.start()

    def post(self, kind: str, **told: Any) -> None:
        """Ask all ranks for something. For the training thread alone, which has a store client of its own."""
        if self.failure is None:
            self._posts.post(kind="ask", asked=[kind, told])

    def meet(self) -> None:
        """Wait until all ranks are here, and do what any has asked for before. All must call it, in the same place."""
        self._posts.post(kind="here")
        self._met.acquire()
        self.check()
        for gate in self._due:
            self._do(gate)

    def fail(self, error: BaseException, iteration: int) -> BaseException:
        """Tell all ranks that this one fails with *error*, unless another has before; return what it is to raise."""
        if self._out.is_set():
            return error
        self._out.set()
        keep_group()
        if _CONNECTION.search(str(error)):  # one closes when a rank has gone: which, and why
            self._over.wait(_ECHO)
        if self.failure is None:
            with contextlib.suppress(Exception):  # of the store, which the sentinel then sees too
                self._posts.post(kind="abort", failure=dataclasses.asdict(Failure.of(error, self._rank, iteration)))
            self._over.wait(_GRACE)
        if self.failure is None or self.failure.rank == self._rank or isinstance(error, RankFailedError):
            return error
        return self.failure.exception()

    def check(self) -> None:
        """Raise what another rank has failed of."""
        if self.failure is not None:
            raise self.failure.exception()

    def close(self) -> None:
        """Wait until every rank is here, as what one asks may need all to answer.

        Raises:
            RankFailedError: one has failed instead.
        """
        with contextlib.suppress(Exception):  # of the store, which the sentinel sees too
            self._posts.post(kind="end")
        self._over.wait()
        self._out.set()
        self.check()  # else the sentinel may still wait for events of a store that is gone
        self._thread.join()
        self._lifeline.close()

    def leave(self) -> None:
        """End, failed or not: rank 0, with which the store goes, when the others have read what was first."""
        self._lifeline.close()

    def _watch(self) -> None:
        try:
            while not self._over.is_set():
                self._take(**self._events.read())
        except Exception as error:  # noqa: BLE001  # whatever torch raises where nobody serves any more
            self._abort(dataclasses.replace(_GONE, error=f"{_GONE.error}: {error}"))

    def _take(self, kind: str, rank: int, id: str, **told: Any) -> None:  # noqa: A002
        if kind == "ask":
            self._shut(id, *told["asked"])
        elif kind == "tick":
            self._gates[told["gate"]].count(rank, told["ticks"], self._world)
        elif kind == "here":
            self._here += 1
            if self._here % self._world == 0:
                self._due = [gate for gate in self._gates.values() if not gate.done]
                self._met.release()
        elif kind == "abort":
            self._abort(Failure(**told["failure"]))
        else:
            self._ended += 1
            if self._ended == self._world:
                with self._aborting:
                    self._over.set()

    def _shut(self, name: str, kind: str, told: dict[str, Any]) -> None:
        """Put a gate before the loop, and then say how far it has come; but for what others are asking for already.

        What is known is so by the events read alone, and not by what the loop has done: all ranks must decide alike.
        """
        if all(gate.known.is_set() or gate.asked != (kind, told) for gate in self._gates.values()):
            gate = self._gates[name] = _Gate(self, (kind, told))
            self._session.requested.append(gate)
            self._events.post(kind="tick", gate=name, ticks=self._session.ticks)

    def pass_gate(self, gate: _Gate) -> None:
        """In the training thread, at a tick: do what is behind a gate, if it opens at this one."""
        gate.known.wait()
        self.check()
        if self._session.ticks < gate.opens:
            self._session.later.append(gate)
        else:
            self._do(gate)

    def _do(self, gate: _Gate) -> None:
        if not gate.done:
            gate.done = True
            kind, told = gate.asked
            self._answer(kind, **told)

    def _abort(self, failure: Failure) -> None:
        with self._aborting:
            if self._over.is_set():  # another was first, or all have ended
                return
            self.failure = failure
            self._over.set()
        keep_group()
        self._session.requested.append(self.check)
        for gate in self._gates.values():
            gate.known.set()
        self._met.release()
        if self._rank:
            self._lifeline.close()
        if not self._out.wait(_GRACE):
            self._end(failure)
            if not self._out.is_set():
                os._exit(1)


class _Gate:
    """What was asked of all ranks, and the tick at which they do it."""

    def __init__(self, agreement: Agreement, asked: tuple[str, dict[str, Any]]) -> None:
        self._agreement, self.asked, self._ticks = agreement, asked, dict[int, int]()
        self.opens, self.known, self.done = 0, threading.Event(), False

    def __call__(self) -> None:
        self._agreement.pass_gate(self)

    def count(self, rank: int, ticks: int, world: int) -> None:
        self._ticks[rank] = ticks
        if len(self._ticks) == world:
            self.opens = max(self._ticks.values()) + 1
            self.known.set()


class _Events:
    """The events of a session, as one thread reads and posts them: a client of the store blocks all who share it."""

    def __init__(self, ranks: Ranks, prefix: str, who: str) -> None:
        self._store = PrefixStore(prefix, ranks.control.clone())
        self._rank, self._who = ranks.rank, f"{who} of rank {ranks.rank}"
        self._read, self._end, self._posted = 0, 0, 0

    def post(self, **event: Any) -> None:
        """Write an event behind the last. It is there whole or not at all, wherever the process is killed."""
        self._posted += 1
        text = json.dumps({"rank": self._rank, "id": f"{self._posted} by the {self._who}", **event})
        self._end = max(self._end, self._read)
        while self._store.compare_set(str(self._end), "", text).decode() != text:
            self._end += 1

    def read(self) -> dict[str, Any]:
        """Return the next event, as soon as there is one."""
        self._store.wait([str(self._read)], _FOREVER)
        event: dict[str, Any] = json.loads(self._store.get(str(self._read)))
        self._read += 1
        return event


_lines: weakref.WeakSet[socket.socket] = weakref.WeakSet()


def _close_lines() -> None:
    """In a process that was forked, a worker: keep no line open that ends with its parent."""
    for line in list(_lines):
        line.close()


os.register_at_fork(after_in_child=_close_lines)


class _Lifeline:
    """A connection to rank 0, which the kernel closes when the process at either end is gone."""

    def __init__(self, ranks: Ranks, prefix: str, on_failure: Callable[[Failure], Any]) -> None:
        port = int(PrefixStore(prefix, ranks.control.clone()).get("lifeline"))
        self._socket = socket.create_connection((ranks.control.host, port), _LEAVE)
        _lines.add(self._socket)
        self._socket.settimeout(None)
        self._socket.sendall(f"{ranks.rank} ".encode())
        self._on_failure = on_failure
        threading.Thread(target=self._watch, name="lifeline", daemon=True).start()

    def close(self) -> None:
        """Say that this rank leaves, and why it does is known."""
        with self._socket, contextlib.suppress(OSError):  # or the other end is gone, or it was said before
            self._socket.sendall(b".")
            self._socket.shutdown(socket.SHUT_RDWR)

    def _watch(self) -> None:
        if not _received(self._socket):  # rank 0 says nothing
            self._on_failure(_GONE)


class _Lifelines:
    """The other ends, on rank 0."""

    def __init__(self, ranks: Ranks, prefix: str) -> None:
        self._events = _Events(ranks, prefix, "lifelines")
        self._left, self._server = ranks.world - 1, socket.create_server(("", 0))
        _lines.add(self._server)
        PrefixStore(prefix, ranks.control.clone()).set("lifeline", str(self._server.getsockname()[1]))
        self._thread = threading.Thread(target=self._watch, name="lifelines", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Wait for the others to leave, as the store goes with this process."""
        self._thread.join(_LEAVE)

    def _watch(self) -> None:
        said: dict[socket.socket, bytes] = {}
        with self._server, selectors.DefaultSelector() as selector:
            selector.register(self._server, selectors.EVENT_READ)
            while self._left:
                for key, _ in selector.select():
                    if key.fileobj is self._server:
                        line, _ = self._server.accept()
                        _lines.add(line)
                        said[line] = b""
                        selector.register(line, selectors.EVENT_READ)
                        continue
                    line = cast(socket.socket, key.fileobj)
                    found = _received(line)
                    said[line] += found
                    if not found:
                        selector.unregister(line)
                        line.close()
                        self._part(said[line].decode())

    def _part(self, said: str) -> None:
        rank, _, last = said.partition(" ")
        self._left -= 1
        if last != ".":
            gone = Failure(int(rank or -1), "which ran", "its process is gone")
            self._events.post(kind="abort", failure=dataclasses.asdict(gone))


def _received(line: socket.socket) -> bytes:
    try:
        return line.recv(64)
    except OSError:  # reset
        return b""
