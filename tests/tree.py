"""A tree of state for a ``Saver``, by itself."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from eventrunner.checkpoint.saver import Save


@dataclass
class Tree:
    """What is saved: *tree*, of which only an optimizer's step changes the tensors *late*."""

    tree: Mapping[str, Any]
    step: int = 0
    epoch: int = 0
    late: Sequence[Tensor] = field(default_factory=list)
    finished: Callable[[Save], None] = lambda save: None

    def state(self, **parts: bool) -> Mapping[str, Any]:
        return self.tree

    def stepped(self) -> Sequence[Tensor]:
        return self.late

    def parameters(self) -> Collection[str]:
        return ()
