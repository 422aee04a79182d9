"""What a run's receivers and saves have cost: a table, and a trace for a browser's viewer."""

from __future__ import annotations

import json
import os
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eventrunner.bus.ledger import InlineSpan
from eventrunner.checkpoint.saver import OTHER_LANE, WRITE_LANE, Save
from eventrunner.errors import OptionError
from eventrunner.files.disk import replace_text
from eventrunner.lanes.lanes import Account, Span
from eventrunner.units import duration, size

if TYPE_CHECKING:
    from eventrunner.run import Run

__all__ = ["Row", "RunAccount", "SaveAccount", "account_of", "begin_trace", "write_trace"]

_HEADS = ("receiver", "calls", "inline", "background", "training waited")


@dataclass(slots=True)
class Row:
    """One receiver, all its sites together; times in seconds.

    Attributes:
        name: The receiver's, or the hook's.
        calls: How often it was called, inline or in its lane.
        inline: What its calls, or handing them over, took of the training thread.
        estimated: Whether that is an estimate, as it is where it was called at each iteration.
        background: What its calls took in lanes.
        waits: What the training waited for its lane, by where.
        hint: What would make it cheaper; empty where nothing is known.
    """

    name: str
    calls: int = 0
    inline: float = 0.0
    estimated: bool = False
    background: float = 0.0
    waits: dict[str, float] = field(default_factory=dict)
    hint: str = ""


@dataclass(frozen=True, slots=True)
class SaveAccount:
    """The saves that are done; times in seconds.

    Attributes:
        saves: How many were committed, by each hook that asked for one.
        failed: How many were not.
        nbytes: The bytes written.
        blocked: How long the training was blocked by requests and barriers, all saves together.
        writing: How long their writing and committing took.
        to_committed: The longest time from a request to its commit.
        hidden: The share of the writing that the training didn't wait for, from 0 to 1.
    """

    saves: int
    failed: int
    nbytes: int
    blocked: float
    writing: float
    to_committed: float
    hidden: float

    @classmethod
    def of(cls, saves: Iterable[Save], waited: float) -> SaveAccount:
        """Aggregate *saves*, for which the training *waited* so long when it needed them done."""
        done = list(saves)
        committed = [save for save in done if save.path is not None]
        writing = sum(save.ended - save.began for save in done)
        exposed = waited + sum(save.ended - save.began for save in done if not save.background)
        return cls(
            saves=len(committed),
            failed=len(done) - len(committed),
            nbytes=sum(save.nbytes for save in committed),
            blocked=sum(save.blocked for save in done),
            writing=writing,
            to_committed=max((save.ended - save.requested for save in committed), default=0.0),
            hidden=max(0.0, 1.0 - exposed / writing) if writing else 0.0,
        )

    def __str__(self) -> str:
        return (
            f"{self.saves} saves, {size(self.nbytes)}: training blocked {duration(self.blocked)}, at most "
            f"{duration(self.to_committed)} to committed, {self.hidden:.0%} of {duration(self.writing)} writing hidden"
        )


@dataclass(frozen=True, slots=True)
class RunAccount:
    """The receivers of a run, the costliest for the training first, and its saves; ``str()`` is a table."""

    rows: tuple[Row, ...]
    saves: SaveAccount | None

    def chosen(self, most: int) -> list[Row]:
        """Return at most so many receivers, though never without one that ran in the background."""
        rows = sorted(self.rows, key=lambda row: not row.background)
        return rows[: max(most, sum(row.background > 0 for row in rows))]

    def table(self, rows: Sequence[Row]) -> list[str]:
        """Return the lines of a table: its head, then one for each row."""
        cells = [_HEADS, *(_cells(row) for row in rows)]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        return ["   ".join(_padded(row, widths)).rstrip() for row in cells]

    def __str__(self) -> str:
        saves = [str(self.saves)] if self.saves is not None and self.saves.saves else []
        return "\n".join([*self.table(self.rows), *saves, *(row.hint for row in self.rows if row.hint)])


def _cells(row: Row) -> tuple[str, ...]:
    waits = ", ".join(f"{duration(seconds)} at {where}" for where, seconds in row.waits.items() if seconds >= 0.0005)
    inline = f"{'~' if row.estimated else ''}{duration(row.inline)}"
    return row.name, f"{row.calls:,}", inline, duration(row.background) if row.background else "", waits


def _padded(cells: tuple[str, ...], widths: list[int]) -> Iterator[str]:
    for index, (cell, width) in enumerate(zip(cells, widths, strict=True)):
        yield cell.ljust(width) if index in (0, len(widths) - 1) else cell.rjust(width)


def account_of(runner: Run) -> RunAccount:
    """Aggregate what the session under way, or the last one, has cost."""
    rows: dict[str, Row] = {}
    for entry in runner.ledger.entries():
        row = rows.setdefault(entry.name, Row(entry.name))
        row.calls += entry.calls
        row.inline += entry.seconds
        row.estimated = row.estimated or entry.estimated
    accounts = runner.session.last_lanes.accounts() if runner.session.last_lanes is not None else []
    lanes: set[str] = set()  # whose waits are in a row: they are the lane's, and all its receivers have them
    for account in accounts:
        _add(rows.setdefault(account.name, Row(account.name)), account, lanes)
    waited = max((sum(each.barrier_waits.values()) for each in accounts if each.lane == WRITE_LANE), default=0.0)
    saves = None if runner.session.saver is None else SaveAccount.of(runner.session.saver.saves, waited)
    return RunAccount(tuple(sorted(rows.values(), key=lambda row: -row.inline - sum(row.waits.values()))), saves)


def _add(row: Row, account: Account, lanes: set[str]) -> None:
    row.calls += account.calls
    row.background += account.busy
    if account.lane not in lanes:
        lanes.add(account.lane)
        row.waits.update({label: waited for label, waited in account.barrier_waits.items() if label != OTHER_LANE})
        if account.waited:
            row.waits["a full lane"] = row.waits.get("a full lane", 0.0) + account.waited
    if account.python_bound:
        row.hint = (
            f"{account.name} ({account.location}) computes in Python for {duration(account.cpu)} in a thread, which "
            "slows the training down; connect it with worker='process'."
        )


def begin_trace(runner: Run, path: str | os.PathLike[str]) -> None:
    """Have *path* written as the session under way ends, or now where there is none; see ``Runner.trace``.

    Raises:
        OptionError: the folder that it is to go to isn't there.
    """
    target = Path(path).absolute()
    if not target.parent.is_dir():
        raise OptionError(f"trace({str(path)!r}): there is no folder {target.parent}; make it first.")
    if runner.mode is None and runner.session.last_lanes is not None:
        write_trace(target, runner)
        return
    runner.session.trace_path = target
    runner.ledger.record()


def write_trace(path: Path, runner: Run) -> None:
    """Write what was recorded as a trace that chrome://tracing and ui.perfetto.dev open.

    The training thread has a row for its receivers, each lane one for its jobs, and the saves one from request to
    commit.
    """
    lanes = runner.session.last_lanes
    events = [
        *_inline(runner.ledger.recorded()),
        *_saves(() if runner.session.saver is None else runner.session.saver.saves),
    ]
    by_lane: dict[str, list[Span]] = defaultdict(list)
    for span in () if lanes is None else lanes.spans:
        by_lane[span.lane].append(span)
    names = {1: "training: receivers", 2: "saves: from request to commit"}
    for thread, (lane, spans) in enumerate(sorted(by_lane.items()), 3):
        names[thread] = f"lane {lane}"
        events += [_event(s.name, s.site, thread, s.began, s.ended, waited=s.began - s.submitted) for s in spans]
    meta = [{"ph": "M", "name": "thread_name", "pid": 1, "tid": key, "args": {"name": n}} for key, n in names.items()]
    replace_text(path, json.dumps({"traceEvents": [*meta, *events], "displayTimeUnit": "ms"}))


def _inline(spans: Iterable[InlineSpan]) -> Iterator[Mapping[str, Any]]:
    return (_event(name, site, 1, began, ended) for name, site, began, ended in spans)


def _saves(saves: Iterable[Save]) -> Iterator[Mapping[str, Any]]:
    for save in saves:
        facts = {"mode": save.mode, "step": save.step, "bytes": save.nbytes, "blocked": save.blocked}
        yield _event(save.name, "save", 2, save.requested, save.ended, **facts)
        if save.blocked:
            yield _event(f"blocked by {save.name}", "save", 1, save.requested, save.requested + save.blocked)


def _event(name: str, site: str, thread: int, began: float, ended: float, **facts: Any) -> Mapping[str, Any]:
    times = {"ts": began * 1e6, "dur": (ended - began) * 1e6}
    return {"ph": "X", "name": name, "cat": site, "pid": 1, "tid": thread, **times, "args": {"site": site, **facts}}
