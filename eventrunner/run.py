"""RunView: what an offloaded receiver sees of a run, as it was when the receiver's turn came."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eventrunner.errors import did_you_mean, listed

__all__ = ["RunFacts", "RunView"]


@dataclass(frozen=True, slots=True)
class RunFacts:
    """What doesn't change within one ``train()``, ``val()`` or ``test()``."""

    mode: str | None
    max_epochs: int | None
    max_iters: int | None
    rank: int
    world_size: int
    work_dir: Path
    experiment_name: str
    seed: int


@dataclass(frozen=True, slots=True)
class RunView:
    """A run at one moment. It has numbers and names alone, so that nothing that training has since changed is read.

    Attributes:
        epoch: As ``runner.epoch`` was.
        iter: As ``runner.iter`` was.
        scalars: The latest row that LoggerHook gathered, by key.
        facts: What stays the same; each is also an attribute of the view itself.
    """

    epoch: int
    iter: int
    scalars: Mapping[str, float]
    facts: RunFacts

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            if name in RunFacts.__slots__:
                return getattr(self.facts, name)
            known = ("epoch", "iter", "scalars", *RunFacts.__slots__)
            raise AttributeError(
                f"an offloaded receiver sees no {name!r} of the run, only {listed(known)}; name the payload that it "
                f"needs, or connect it with offload=False{did_you_mean(name, known) or '.'}"
            )
