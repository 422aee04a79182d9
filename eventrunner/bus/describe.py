"""What runs where, for people: the connections of a bus as a table."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from eventrunner.bus.connection import Connection

__all__ = ["Plan", "PlanRow"]

_WHERE = {"all": "", "main": "on rank 0", "local_main": "on each machine's first rank"}


@dataclass(frozen=True, slots=True)
class PlanRow:
    """One line of a plan."""

    site: str
    priority: int
    receiver: str
    location: str
    filters: str
    lane: str = ""
    barrier: str = ""
    ranks: str = "all"
    collective: bool = False

    @property
    def described(self) -> str:
        """The filters, and where it runs, in words."""
        until = f", waited for at {self.barrier}" if self.barrier else ""
        lane = f"in lane {self.lane!r}{until}" if self.lane else ""
        together = "on all ranks together" if self.collective else ""
        return ", ".join(part for part in (self.filters, _WHERE[self.ranks], together, lane) if part)


@dataclass(frozen=True, slots=True)
class Plan:
    """What runs where, in the order in which it runs; ``str()`` is a table by site."""

    rows: tuple[PlanRow, ...]

    @classmethod
    def of(cls, connections: Iterable[Connection]) -> Plan:
        """Return the plan of *connections*, which come site by site and in order."""
        return cls(
            tuple(
                PlanRow(
                    site=c.site,
                    priority=c.options.priority,
                    receiver=c.name,
                    location=c.location,
                    filters=c.options.described(c.unit),
                    lane=c.task.lane if c.task is not None else "",
                    barrier=c.barrier,
                    ranks=c.options.ranks,
                    collective=c.options.collective,
                )
                for c in connections
            )
        )

    def __iter__(self) -> Iterator[PlanRow]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __str__(self) -> str:
        width = max((len(row.receiver) for row in self.rows), default=0)
        place = max((len(row.location) for row in self.rows), default=0)
        lines: list[str] = []
        for index, row in enumerate(self.rows):
            if not index or row.site != self.rows[index - 1].site:
                lines.append(row.site)
            text = f"  {row.priority:>3} {row.receiver:<{width}}  {row.location:<{place}}  {row.described}"
            lines.append(text.rstrip())
        return "\n".join(lines)
