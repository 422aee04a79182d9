"""The group of losses that make up one step, and their gradients between one loss and the next."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

__all__ = ["NO_GROUP", "LossGroup"]

NO_GROUP = {"accumulative_counts": 1, "losses": 0, "size": 1, "per_batch": 1, "gradients": {}}
"""What the state of a wrapper without accumulation leaves out."""


class LossGroup:
    """The losses of one step, counted, and sized before the first of them goes backward.

    A group is under way from its first loss to the one before its last. What a method calls *counted* is the losses of
    the training that went backward so far, and *usual* how many a step mostly has.

    Attributes:
        losses: Those of the group that went backward so far.
        size: The losses that the group is to have.
        gradients: Those of the group under way, by parameter, while they are kept out of ``.grad``; else None.
    """

    def __init__(self, usual: int) -> None:
        self.losses = 0
        self.size = usual
        self.gradients: dict[Tensor, Tensor] | None = None
        self._expected: int | None = None  # losses of the whole training
        self._per_batch = 1  # losses in the last batch
        self._before_batch = 0  # losses before the batch under way

    def is_open(self) -> bool:
        """Return whether a group is under way that further losses belong to."""
        return 0 < self.losses < self.size

    def size_at(self, counted: int, usual: int) -> int:
        """Return the size of the group that the next loss belongs to."""
        return self.size if self.is_open() else self._planned(counted, usual)

    def _planned(self, begin: int, usual: int) -> int:
        expected = self._expected
        return usual if expected is None or begin >= expected else min(usual, expected - begin)

    def restart(self, counted: int, usual: int, expected: int | None, moved: bool) -> None:
        """Expect so many losses in the end; where the count was *moved*, its remainder is taken for a group's."""
        self._expected = expected
        if moved and self.gradients is None:
            self.losses = 0 if counted == expected else counted % usual
            self.size = self._planned(counted - self.losses, usual)

    def expect_batches(self, counted: int, batches: int | None) -> None:
        """Expect so many more batches, each with as many losses as the last."""
        self._before_batch = counted
        known = batches is not None and batches >= 0 and self._per_batch > 0
        self._expected = counted + self._per_batch * (batches or 0) if known else None

    def end_batch(self, counted: int, batches: int | None) -> None:
        """Note how many losses the batch had that has ended, and expect so many more batches."""
        self._per_batch = counted - self._before_batch
        self.expect_batches(counted, batches)

    def hold(self, params: Iterable[Tensor]) -> None:
        """Keep the gradients out of ``.grad``."""
        self.gradients = {param: param.grad for param in params if param.grad is not None}
        for param in self.gradients:
            param.grad = None

    def put_back(self, params: Iterable[Tensor]) -> None:
        """Make the gradients that were held those of the parameters, and none others."""
        held, self.gradients = self.gradients or {}, None
        for param in params:
            param.grad = held.get(param)

    def state(self, usual: int, params: Iterable[Tensor]) -> dict[str, Any]:
        """Return the group, and the gradients that it holds by the number of the parameter."""
        indices = {param: index for index, param in enumerate(params)}
        return {
            "accumulative_counts": usual,
            "losses": self.losses,
            "size": self.size,
            "per_batch": self._per_batch,
            "gradients": {indices[param]: gradient for param, gradient in (self.gradients or {}).items()},
        }

    def load(self, state: Mapping[str, Any], counted: int, params: Iterable[Tensor]) -> None:
        """Take over what :meth:`state` gave."""
        numbered = list(params)
        self.losses, self.size, self._per_batch = state["losses"], state["size"], state["per_batch"]
        self._before_batch = counted
        held = {numbered[index]: gradient.to(numbered[index].device) for index, gradient in state["gradients"].items()}
        self.gradients = held or None
