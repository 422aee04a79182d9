"""Options of an optimizer wrapper, parsed or refused: clipping, the dtype of mixed precision, loss scaling."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_, clip_grad_value_

from eventrunner.checks import check_bools, check_numbers
from eventrunner.errors import OptionError, ResumeError, did_you_mean, listed

__all__ = [
    "check_param_groups",
    "describe",
    "make_scaler",
    "needs_closure",
    "parse_amp_dtype",
    "parse_clip",
    "refused_loss",
    "require_optimizer",
]

_CLIPPERS: dict[str, tuple[Callable[..., Tensor | None], tuple[str, ...]]] = {
    "norm": (clip_grad_norm_, ("max_norm", "norm_type", "error_if_nonfinite")),
    "value": (clip_grad_value_, ("clip_value",)),
}
"""For each type of clipping, what does it, and its options, of which the first must be given."""

_SCALER_OPTIONS = ("init_scale", "growth_factor", "backoff_factor", "growth_interval")
_AMP_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}


def require_optimizer(where: str, value: object) -> None:
    """Refuse what is no optimizer of torch's."""
    if not isinstance(value, torch.optim.Optimizer):
        raise OptionError(
            f"{where} takes an optimizer such as torch.optim.SGD(model.parameters(), lr=0.01), not {describe(value)}."
        )


def describe(value: object) -> str:
    """Return what an object is, for a message."""
    return f"the class {value.__name__}" if isinstance(value, type) else f"an object of type {type(value).__name__}"


def needs_closure(optimizer: torch.optim.Optimizer) -> bool:
    """Return whether the optimizer's step can't be called without a closure."""
    closure = inspect.signature(optimizer.step).parameters.get("closure")
    return closure is not None and closure.default is inspect.Parameter.empty


def parse_amp_dtype(dtype: object) -> torch.dtype | None:
    """Return the dtype of mixed precision, or None."""
    if dtype is None or (isinstance(dtype, torch.dtype) and dtype in _AMP_DTYPES.values()):
        return dtype
    if isinstance(dtype, str) and dtype in _AMP_DTYPES:
        return _AMP_DTYPES[dtype]
    near = did_you_mean(dtype, _AMP_DTYPES) if isinstance(dtype, str) else ""
    raise OptionError(f"OptimWrapper(dtype={dtype!r}) must be None, 'bfloat16' or 'float16'{near or '.'}")


def parse_clip(clip_grad: object) -> Callable[[list[Tensor]], Tensor | None] | None:
    """Return what clips the gradients of parameters, or None."""
    if clip_grad is None:
        return None
    if not isinstance(clip_grad, Mapping):
        raise OptionError(f"clip_grad must be None or a dict such as dict(max_norm=1.0), not {clip_grad!r}.")
    options = dict(clip_grad)
    kind = options.pop("type", "norm")
    if kind not in _CLIPPERS:
        raise OptionError(f"clip_grad has the type 'norm' or 'value', not {kind!r}.")
    clip, allowed = _CLIPPERS[kind]
    _check_options(f"clip_grad of type {kind!r}", options, allowed)
    if allowed[0] not in options:
        raise OptionError(f"clip_grad of type {kind!r} needs {allowed[0]}=, which was not given.")
    return functools.partial(clip, **options)


def make_scaler(amp_dtype: torch.dtype | None, loss_scale: object) -> torch.amp.GradScaler | None:
    """Return the scaler of losses, or None without float16."""
    if loss_scale != "dynamic" and amp_dtype is not torch.float16:
        raise OptionError(f"loss_scale={loss_scale!r} is of use with dtype='float16' only, here dtype is {amp_dtype}.")
    options = {} if loss_scale == "dynamic" else loss_scale
    options = {"init_scale": options} if isinstance(options, (int, float)) else options
    if not isinstance(options, Mapping):
        raise OptionError(f"loss_scale must be 'dynamic', a number or a dict of options, not {loss_scale!r}.")
    _check_options("loss_scale", options, _SCALER_OPTIONS)
    if options.get("growth_factor", 2) <= 1 or options.get("backoff_factor", 0.5) >= 1:
        raise OptionError(f"loss_scale needs growth_factor above 1 and backoff_factor below 1, not {dict(options)}.")
    # "cpu" keeps torch from looking for CUDA before the model is there; the scale is made on the first loss's device.
    return torch.amp.GradScaler("cpu", **options) if amp_dtype is torch.float16 else None


def _check_options(where: str, given: Mapping[Any, Any], allowed: tuple[str, ...]) -> None:
    owner = where.partition(" ")[0]
    for name, value in given.items():
        if name not in allowed:
            raise OptionError(f"{where} takes {listed(allowed)}, not {name!r}{did_you_mean(str(name), allowed) or '.'}")
        if name == "error_if_nonfinite":
            check_bools(owner, **{name: value})
        elif value != float("inf"):  # a norm may be the largest of all
            check_numbers(owner, above=0, **{name: value})


def refused_loss(loss: object) -> OptionError:
    """Return the error of a loss that nothing can go backward from."""
    return OptionError(
        f"update_params was given {_describe_loss(loss)} as loss; train_step should return a dict whose "
        "'loss' is a tensor of one element that requires grad."
    )


def _describe_loss(loss: object) -> str:
    if not isinstance(loss, Tensor):
        return describe(loss)
    if loss.numel() != 1:
        return f"a tensor of shape {tuple(loss.shape)}"
    return "a tensor that doesn't require grad (detached, made under no_grad, or of frozen parameters only)"


def check_param_groups(name: str, groups: list[dict[str, Any]], saved_groups: list[dict[str, Any]]) -> None:
    """Refuse saved groups of parameters that aren't as many, each of as many parameters, as those of optimizer *name*.

    Raises:
        ResumeError: says how to add groups that were added while it trained.
    """
    mine, saved = ([len(group["params"]) for group in each] for each in (groups, saved_groups))
    if mine != saved:
        raise ResumeError(
            f"{name} has parameter groups of {mine} parameters, the saved one of {saved}{_hint(mine, saved)}"
        )


def _hint(mine: list[int], saved: list[int]) -> str:
    """Say how to have the groups that were added while it trained before they are compared."""
    if len(saved) <= len(mine) or saved[: len(mine)] != mine:
        return "."
    return (
        "; add those that were added while it trained before they are compared, in a receiver:\n\n"
        "    def add_groups(runner, checkpoint): runner.optim_wrapper.optimizer.add_param_group(dict(params=…))\n"
        '    runner.on("after_load_checkpoint")(add_groups)'
    )
