"""How a model is trained by several ranks: wrapped by torch, and what is under such a wrapper."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from eventrunner.errors import OptionError, did_you_mean, listed
from eventrunner.ranks.world import Ranks

__all__ = ["Parallel", "method_of", "parallelize", "reduces", "unwrapped"]

Parallel = str | Mapping[str, Any] | Callable[[nn.Module, Ranks], nn.Module] | None

_KINDS = ("auto", "ddp")


def parallelize(model: nn.Module, parallel: Parallel, ranks: Ranks, device: torch.device) -> nn.Module:
    """Return what the ranks train: *model* in torch's wrapper, or as it is where there is nothing to wrap.

    Args:
        model: On *device*. One that is wrapped or sharded already is left alone.
        parallel: ``"auto"`` and ``"ddp"`` are ``DistributedDataParallel``, ``dict(type="ddp", …)`` the same with
            options of its own; a function of the model and the ranks returns what it likes; None leaves the model.
        ranks: Those that train it; with one, only a function is asked.
        device: Of this rank.

    Raises:
        OptionError: something else, or a function that returned no module.
        RankError: a model that isn't the same on all ranks; on every one of them.
    """
    if callable(parallel):
        made = parallel(model, ranks)
        if not isinstance(made, nn.Module):
            raise OptionError(f"parallel={parallel!r} returned {made!r}; it must return a torch.nn.Module.")
        return made
    options = _options(parallel)
    if options is None or not ranks.several or _is_parallel(model):
        return model
    if not any(parameter.requires_grad for parameter in model.parameters()):
        return model  # which torch refuses to wrap, as there is nothing to reduce
    names = [f"{name} {tuple(each.shape)}" for name, each in model.named_parameters()]
    ranks.check_same("a parameter of the model", names)
    devices = None if device.type == "cpu" else [device]
    return DistributedDataParallel(model, device_ids=devices, **options)


def reduces(model: nn.Module) -> bool:
    """Return whether torch reduces the model's gradients as a part of each backward, unless it is told not to."""
    return isinstance(model, DistributedDataParallel)


def method_of(model: nn.Module, name: str) -> Callable[..., Any]:
    """Return a method of the model, which under a wrapper is called by way of the wrapper's forward.

    Else torch wouldn't notice that there was one, and would reduce no gradients.
    """
    inner = unwrapped(model)
    method: Callable[..., Any] = getattr(inner, name)
    return method if inner is model else functools.partial(_call_within, model, inner, method)


def _call_within(model: nn.Module, inner: nn.Module, method: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    def forward(*given: Any, **named: Any) -> Any:
        del inner.forward  # its class's is what the method calls
        return method(*given, **named)

    inner.forward = forward
    try:
        return model(*args, **kwargs)
    finally:
        vars(inner).pop("forward", None)


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the model that is under ``DistributedDataParallel``, so that names are those that one process has."""
    return unwrapped(model.module) if isinstance(model, DistributedDataParallel) else model


def _options(parallel: object) -> dict[str, Any] | None:
    if parallel is None:
        return None
    options = dict(parallel) if isinstance(parallel, Mapping) else {"type": parallel}
    kind = options.pop("type", "auto")
    if kind not in _KINDS:
        near = did_you_mean(str(kind), _KINDS) or "."
        raise OptionError(
            f"parallel={parallel!r} must be {listed(map(repr, _KINDS))}, a dict with one of them as its type, a "
            f"function of (model, ranks), or None{near}"
        )
    return options


def _is_parallel(model: nn.Module) -> bool:
    """Return whether it, or a part of it, is wrapped or sharded."""
    if any(isinstance(module, DistributedDataParallel) for module in model.modules()):
        return True
    return any(hasattr(parameter, "placements") for parameter in model.parameters())  # a DTensor's
