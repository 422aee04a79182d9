"""Steps: the functions of one batch that a user writes, or that a model has as methods."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from eventrunner.bus.signature import where
from eventrunner.errors import OptionError, listed
from eventrunner.lanes.task import inert_kind
from eventrunner.ranks.parallel import method_of

__all__ = ["Step", "bind_step", "check_outputs", "check_step", "loss_of", "takes_optimizer"]

Step = Callable[..., Any]


def takes_optimizer(step: Step) -> bool:
    """Whether a train step has a parameter ``optim_wrapper``: such a step updates the weights itself."""
    try:
        return "optim_wrapper" in inspect.signature(step).parameters
    except (TypeError, ValueError):
        return False


def bind_step(function: Step | None, model: nn.Module, method: str, **extra: Any) -> Step:
    """Return ``step(batch)``, of a function of model and batch, or of the model's own method.

    ``functools.partial`` keeps the loop's frames out of the traceback of a failing model.
    """
    if function is not None:
        return functools.partial(function, model, **extra)
    own = method_of(model, method)
    return functools.partial(own, **extra) if extra else own


def check_step(function: Step | None, model: Any, method: str) -> None:
    """Refuse a step that can't be called with what the loop has, before any batch was loaded for it.

    Raises:
        OptionError: there is neither a function nor a method, it has other parameters, or a ``yield`` or ``await``.
    """
    step = getattr(model, method, None) if function is None else function
    if not callable(step):
        raise OptionError(f"{method}={step!r} can't be called; give a function of (model, batch).")
    kind = inert_kind(step)
    if kind:
        raise OptionError(
            f"{method} in {where(step)} gives a {kind}, of which nothing runs until it is driven; write a plain "
            "function that returns its result."
        )
    positional = ["batch"] if function is None else ["model", "batch"]
    keywords = ["optim_wrapper"] if method == "train_step" and takes_optimizer(step) else []
    try:
        signature = inspect.signature(step)
    except (TypeError, ValueError):
        return
    try:
        signature.bind(*positional, **dict.fromkeys(keywords))
    except TypeError as error:
        owner = f"{type(model).__name__}." if function is None else ""
        names = listed((*positional, *keywords))
        raise OptionError(
            f"{owner}{method}{signature} in {where(step)} can't be called with ({names}): {error}."
        ) from None


def loss_of(outputs: Any) -> torch.Tensor:
    """Return the loss in what a train step returned.

    Raises:
        OptionError: there is none.
    """
    if not isinstance(outputs, torch.Tensor):  # it would warn of being indexed by a name
        try:
            loss: torch.Tensor = outputs["loss"]
        except (TypeError, KeyError, IndexError):
            pass
        else:
            return loss
    found = f"a dict with {listed(map(repr, outputs))}" if isinstance(outputs, dict) else type(outputs).__name__
    raise OptionError(f"train_step returned {found}; it must return a dict with 'loss', a scalar tensor.")


def check_outputs(outputs: Any) -> None:
    """Refuse what a step that updates the weights itself can't return.

    Raises:
        OptionError: it is neither a mapping nor None.
    """
    if outputs is not None and not isinstance(outputs, Mapping):
        raise OptionError(
            f"train_step returned {type(outputs).__name__}; one that takes optim_wrapper must return a dict of what is "
            "to be logged, or nothing."
        )
