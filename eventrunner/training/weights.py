"""Weights from a checkpoint or a file, compared with a model before any of them is loaded."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Mapping, Sequence, Set
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from eventrunner.errors import ResumeError, listed

__all__ = [
    "INSTEAD",
    "check_weights",
    "gradients_of",
    "load_model",
    "load_what_fits",
    "parameter_names",
    "same_names",
    "set_gradients",
    "shortened",
]

INSTEAD = "give this run the same, or take the weights alone with load_from=."
_EXTRA_STATE = "_extra_state"
_NONE: frozenset[str] = frozenset()


def parameter_names(model: nn.Module) -> set[str]:
    """Return the names of all parameters, those of a shared tensor all."""
    return {name for name, _ in model.named_parameters(remove_duplicate=False)}


def gradients_of(model: nn.Module) -> dict[str, Tensor]:
    """Return the gradients that there are: those of an accumulation under way, as a step clears them."""
    return {name: each.grad for name, each in model.named_parameters() if each.grad is not None}


def set_gradients(model: nn.Module, gradients: Mapping[str, Tensor]) -> None:
    """Give each parameter the gradient of its name, and none where there is none."""
    for name, parameter in model.named_parameters():
        gradient = gradients.get(name)
        parameter.grad = None if gradient is None else gradient.to(parameter.device)


def load_model(model: nn.Module, weights: Mapping[str, Any], absent: Set[str] = _NONE) -> None:
    """Load weights whose names and shapes are exactly the model's; into another dtype they are cast.

    Names are compared behind the model's own load hooks, which may rename what older versions saved.

    Args:
        model: What they are loaded into.
        weights: By name.
        absent: The names of those that may be missing; the model keeps its own.

    Raises:
        ResumeError: the weights are others; the model is left as it was.
    """
    way_out = "load them into the model that they are of, or what fits with load_from=dict(path=…, strict=False)."
    check_weights(model, weights, absent, part="weights", traits=("shape", "layout"), instead=way_out)
    model.load_state_dict(weights, strict=not absent)


def load_what_fits(model: nn.Module, weights: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """Load those of the weights that the model has by name and shape.

    Returns:
        The names of the model's that stayed as they were, and of the weights that were left.

    Raises:
        ResumeError: none fits.
    """
    own, found = model.state_dict(), _under_own_names(model, weights)
    fitting = {name: each for name, each in found.items() if name in own and _same_shape(own[name], each)}
    if not fitting:
        raise ResumeError(
            f"loading weights into {type(model).__name__}: none of {listed(list(found)[:5])} … has the name and shape "
            f"of one of {listed(list(own)[:5])} …; rename them in a receiver of after_load_checkpoint."
        )
    model.load_state_dict(fitting, strict=False)
    return sorted(own.keys() - fitting.keys()), sorted(found.keys() - fitting.keys())


def check_weights(
    model: nn.Module,
    weights: Mapping[str, Any],
    absent: Set[str] = _NONE,
    *,
    part: str = "model",
    traits: Sequence[str] = ("shape", "dtype", "layout"),
    instead: str = INSTEAD,
) -> None:
    """Refuse weights that aren't the model's by name and by *traits*; it may keep its own of those *absent*.

    Raises:
        ResumeError: it says what differs, and *instead* what can be done.
    """
    own: dict[str, Any] = model.state_dict()
    named = weights.keys() == own.keys() and all(_same_shape(own[name], weights[name]) for name in own)
    found = weights if named else _under_own_names(model, weights)
    same_names(part, {name: None for name in own if name in found or name not in absent}, found, instead)
    for name in found:
        _same_tensor(type(model).__name__, name, own[name], found[name], traits)


def same_names(part: str, own: Mapping[str, Any], saved: Mapping[str, Any], instead: str = INSTEAD) -> None:
    """Refuse to load *saved* where its names aren't *own*'s; the message says *instead* what can be done.

    Raises:
        ResumeError: it names what is missing and what is too much.
    """
    missing, surplus = sorted(own.keys() - saved.keys()), sorted(saved.keys() - own.keys())
    if missing or surplus:
        raise ResumeError(
            f"the checkpoint's {part} and this run's differ: it lacks {listed(missing[:5])} and has "
            f"{listed(surplus[:5])} besides; {instead}"
        )


def shortened(names: Sequence[str]) -> str:
    """Return the names for a sentence: the first ten, and how many more there are."""
    return listed(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")


def _same_tensor(model: str, name: str, own: Any, saved: Any, traits: Sequence[str]) -> None:
    for trait in traits if isinstance(own, Tensor) and not is_lazy(own) else ():
        mine, theirs = getattr(own, trait), getattr(saved, trait, None)
        if mine != theirs:
            raise ResumeError(
                f"loading weights into {model}: {name!r} has {trait} {_shown(theirs)} in the checkpoint and "
                f"{_shown(mine)} in the model."
            )


def _same_shape(own: Any, saved: Any) -> bool:
    return not isinstance(own, Tensor) or is_lazy(own) or own.shape == getattr(saved, "shape", None)


def _shown(trait: Any) -> str:
    return str(list(trait) if isinstance(trait, torch.Size) else trait)


def _under_own_names(model: nn.Module, weights: Mapping[str, Any]) -> dict[str, Any]:
    """Return weights as the model's load hooks rename them: loaded into a model of tensors without contents.

    Extra states are left out of it, since a module would take one for good.
    """
    extra = {name: value for name, value in weights.items() if name.rpartition(".")[2] == _EXTRA_STATE}
    renamed = {name: value for name, value in weights.items() if name not in extra}
    versions = getattr(weights, "_metadata", {})
    with _emptied(model):
        for name, module in model.named_modules(remove_duplicate=False):
            prefix = f"{name}." if name else ""
            module._load_from_state_dict(renamed, prefix, versions.get(name, {}), False, [], [], [])  # noqa: SLF001
    return {**renamed, **extra}


@contextlib.contextmanager
def _emptied(model: nn.Module) -> Iterator[None]:
    """Give the model tensors without contents within the block, so that what is loaded changes nothing."""
    tables: list[dict[str, Any]] = [
        table
        for module in model.modules()
        for table in (module._parameters, module._buffers)  # noqa: SLF001  # an attribute could have a setter
    ]
    kept = [dict(table) for table in tables]
    try:
        for table in tables:
            table.update({name: _without_contents(tensor) for name, tensor in table.items()})
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "for .*: copying from a non-meta parameter")
            yield
    finally:
        for table, tensors in zip(tables, kept, strict=True):
            table.clear()
            table.update(tensors)


def _without_contents(tensor: Tensor | None) -> Tensor | None:
    if tensor is None or is_lazy(tensor):
        return tensor
    empty = torch.empty_like(tensor, device="meta")
    return nn.Parameter(empty, requires_grad=False) if isinstance(tensor, nn.Parameter) else empty
