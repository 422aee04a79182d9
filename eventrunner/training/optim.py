"""OptimWrapper: what becomes of a loss. It is scaled, its gradients are accumulated and clipped, the optimizer steps.

The names are MMEngine's (``mmengine/optim/optimizer/optimizer_wrapper.py``). One class does what MMEngine divides
among ``OptimWrapper`` and ``AmpOptimWrapper``, on the CPU too.
"""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.autograd import profiler

from eventrunner.checks import check_ints
from eventrunner.errors import OptionError, ResumeError, listed
from eventrunner.training.accumulation import NO_GROUP, LossGroup
from eventrunner.training.optim_options import (
    check_param_groups,
    make_scaler,
    needs_closure,
    parse_amp_dtype,
    parse_clip,
    refused_loss,
    require_optimizer,
)

__all__ = ["OptimWrapper"]

_zero_grad = torch.optim.Optimizer.zero_grad
_source = getattr(_zero_grad, "__code__", None)
_is_torchs = _source is not None and _source.co_filename.startswith(os.path.dirname(torch.__file__))


class OptimWrapper:
    """An optimizer, and what happens between a loss and its step.

    The wrapper owns the optimizer's calls, not its parameters. ``update_params`` never makes the host wait for the
    device, save for float16, where torch's scaler reads back whether the gradients were finite, and for
    ``error_if_nonfinite``.

    The losses of one step are a group of accumulation. A group begins after a step and has the gradients of its own
    losses alone: what else left some (another optimizer's backward, a hook, an interrupted batch) is in no step.

    Args:
        optimizer: any ``torch.optim.Optimizer``. One whose ``step`` needs a closure (LBFGS) can't be driven by
            ``update_params``; a ``train_step`` that takes ``optim_wrapper`` calls ``step(closure)``.
        accumulative_counts: losses per step. Each loss is divided by it, so that the step follows their mean. A change
            of the attribute takes effect when the next group begins.
        clip_grad: None, ``dict(max_norm=…, norm_type=2.0, error_if_nonfinite=False)`` or
            ``dict(type="value", clip_value=…)``: the arguments of ``torch.nn.utils.clip_grad_norm_`` and
            ``clip_grad_value_``. ``max_norm=float("inf")`` measures the norm and changes nothing.
        dtype: None, or ``"bfloat16"`` or ``"float16"`` for mixed precision (a ``torch.dtype`` is taken too).
        loss_scale: of use with float16 only: ``"dynamic"``, a number that stays, or a dict of
            ``torch.amp.GradScaler``'s options. A step whose gradients overflowed is left out by the scaler,
            ``before_step`` and ``after_step`` are called all the same.

    Attributes:
        optimizer: the optimizer itself.
        amp_dtype: what autocast computes in, or None; None says that there is no need to enter ``autocast``.
        inner_count: losses that went backward so far.
        begins_groups: whether ``update_params`` calls ``begin_loss``. A loop that calls it before a ``train_step``, so
            that the step may call backward too, sets it to False.
        holds_gradients: whether between the losses of a group ``update_params`` keeps their gradients out of ``.grad``,
            where others could add to them; so in an ``OptimWrapperDict`` and in a run.
        before_step: called at each step, when gradients are complete, unscaled and not yet clipped.
        after_step: called at each step, when weights have changed and gradients are still there.
        grad_norm: the total norm before the last clip, on the gradients' device; None without clipping by norm.

    Raises:
        OptionError: an argument has a value that it can't have.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        accumulative_counts: int = 1,
        clip_grad: Mapping[str, Any] | None = None,
        dtype: str | torch.dtype | None = None,
        loss_scale: str | float | Mapping[str, Any] = "dynamic",
    ) -> None:
        require_optimizer("OptimWrapper(optimizer=…)", optimizer)
        check_ints("OptimWrapper", 1, accumulative_counts=accumulative_counts)
        self.optimizer = optimizer
        self.accumulative_counts = accumulative_counts
        self.amp_dtype = parse_amp_dtype(dtype)
        self.inner_count = 0
        self.begins_groups, self.holds_gradients = True, False
        self.before_step: Callable[[], None] | None = None
        self.after_step: Callable[[], None] | None = None
        self.grad_norm: Tensor | None = None
        self._group = LossGroup(accumulative_counts)
        self._clip = parse_clip(clip_grad)
        self._scaler = make_scaler(self.amp_dtype, loss_scale)
        self.weight = 1.0
        """What each loss counts, where ranks have unequal shares of a batch."""
        self._fixed_scale = float(loss_scale) if isinstance(loss_scale, (int, float)) else None
        self._needs_closure = needs_closure(optimizer)
        # Whether a loss that is a group of its own can do without scale_loss, backward and should_update.
        self._is_direct = type(self) is OptimWrapper and self._scaler is None
        if self._needs_closure and self._scaler is not None:
            raise OptionError(
                f"{_name(optimizer)} steps with a closure, for which dtype='float16' has no loss scaling."
            )

    @property
    def clips(self) -> bool:
        """Whether gradients are clipped, so that ``grad_norm`` may come to be known."""
        return self._clip is not None

    @property
    def loss_scaler(self) -> torch.amp.GradScaler | None:
        """The scaler of losses; None without float16."""
        return self._scaler

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The optimizer's own list, not a copy."""
        return self.optimizer.param_groups

    @property
    def defaults(self) -> dict[str, Any]:
        """The optimizer's own defaults, not a copy."""
        return self.optimizer.defaults

    def initialize_count_status(self, init_counts: int, max_counts: int | None) -> None:
        """Say where the training stands: so many losses went backward, and so many will have in the end.

        With ``max_counts`` known, a last group of fewer than ``accumulative_counts`` losses is divided by its own size
        and steps too; else :meth:`end_group` has to be called. Where ``init_counts`` isn't the wrapper's own count, its
        remainder by ``accumulative_counts`` is taken to be a group whose gradients are in ``.grad``.
        """
        if init_counts < 0 or (max_counts is not None and max_counts < 0):
            raise OptionError(f"counts can't be negative, as init_counts={init_counts}, max_counts={max_counts} are.")
        moved = init_counts != self.inner_count
        self._group.restart(init_counts, self.accumulative_counts, max_counts, moved)
        self.inner_count = init_counts

    def expect_batches(self, batches: int | None) -> None:
        """Say how many batches are still to come, if it is known; each is taken to have as many losses as the last."""
        self._group.expect_batches(self.inner_count, batches)

    def end_batch(self, batches: int | None) -> None:
        """Say that the losses of a batch are counted, and how many batches are still to come, if it is known."""
        self._group.end_batch(self.inner_count, batches)

    def begin_loss(self) -> None:
        """Make the gradients those of the group under way, or none where the next loss begins one."""
        group = self._group
        if group.gradients is not None:
            group.put_back(self._params())
        elif not group.losses and any(param.grad is not None for param in self._params()):
            self.zero_grad()

    def update_params(self, loss: Tensor) -> None:
        """Call backward, and where a group of losses is complete: step, then forget the gradients.

        Where that fails or is interrupted, the next loss begins a group: what the gradients are is not known.

        Raises:
            OptionError: loss is not a tensor of one element that requires grad, or the optimizer needs a closure.
        """
        if self._needs_closure or not isinstance(loss, Tensor):
            raise self._refusal(loss)
        if self.begins_groups:
            self.begin_loss()
        direct = self._is_direct and self.accumulative_counts == 1 and not self._group.losses
        if self.weight != 1.0:
            loss = loss * self.weight
        try:
            if direct:
                torch.autograd.backward(loss)
                self.inner_count += 1
            else:
                self.backward(self.scale_loss(loss))
            if direct or self.should_update():
                self.step()
                self.zero_grad()
            elif self.holds_gradients:
                self.hold()
        except BaseException as error:
            if isinstance(error, RuntimeError) and not (loss.requires_grad and loss.numel() == 1):
                raise self._refusal(loss) from None
            self._abandon_group(error)
            raise

    def scale_loss(self, loss: Tensor) -> Tensor:
        """Return the loss divided by the size of the group it belongs to; the very same tensor where that is 1."""
        size = self._group.size_at(self.inner_count, self.accumulative_counts)
        return loss if size == 1 else loss / size

    def backward(self, loss: Tensor, **kwargs: Any) -> None:
        """Add the gradients of an already scaled loss and count it; kwargs are those of ``torch.autograd.backward``."""
        group = self._group
        if group.gradients is not None:
            group.put_back(self._params())
        losses, size = group.losses if group.is_open() else 0, group.size_at(self.inner_count, self.accumulative_counts)
        if self._scaler is not None:
            loss = self._scaler.scale(loss)
        torch.autograd.backward(loss, **kwargs)
        self.inner_count += 1
        group.losses, group.size = losses + 1, size

    def completes_next(self) -> bool:
        """Return whether the next loss completes a group: only then ranks need to reduce gradients."""
        group = self._group
        return (group.losses if group.is_open() else 0) + 1 >= group.size_at(self.inner_count, self.accumulative_counts)

    def should_update(self) -> bool:
        """Return whether the losses counted so far complete a group."""
        return not self._group.is_open()

    def end_group(self) -> bool:
        """Step with the mean of the losses there are where a group has fewer than it was to have; say whether it did.

        For the end of the data: nothing else says that the last group is complete where the number of losses wasn't
        known, or wasn't as said.
        """
        group = self._group
        if not group.is_open():
            return False
        self.begin_loss()
        with torch.no_grad():
            for param in self._params():
                if param.grad is not None:
                    param.grad.mul_(group.size / group.losses)
        self.step()
        self.zero_grad()
        return True

    @property
    def in_group(self) -> bool:
        """Whether a group has losses and isn't complete."""
        return self._group.is_open()

    def gradients(self) -> list[Tensor]:
        """Return the gradients that there are."""
        return [param.grad for param in self._params() if param.grad is not None]

    def hold(self) -> None:
        """Keep the gradients of the group under way, if there is one, out of ``.grad`` until its next loss."""
        if self._group.is_open() and self._group.gradients is None:
            self._group.hold(self._params())

    def step(self, closure: Callable[[], Any] | None = None) -> None:
        """Unscale, ``before_step``, clip, step, ``after_step``; the gradients stay.

        Args:
            closure: for optimizers that evaluate the model themselves. ``before_step`` then comes before its first
                call, and gradients are clipped after each.

        Raises:
            OptionError: a closure was given, and losses are scaled for float16.
        """
        if closure is not None and self._scaler is not None:
            raise OptionError("step(closure) was called, which dtype='float16' has no loss scaling for.")
        if self._group.gradients is not None:
            self._group.put_back(self._params())
        if self._scaler is not None:
            self._scaler.unscale_(self.optimizer)
        if self.before_step is not None:
            self.before_step()
        if closure is not None:
            self.optimizer.step(functools.partial(self._evaluate_and_clip, closure))
        else:
            if self._clip is not None:
                self._clip_gradients(self._clip)
            if self._scaler is None:
                self.optimizer.step()
            else:
                self._scaler.step(self.optimizer)
                self._scaler.update(self._fixed_scale)
        self._group.losses = 0
        if self.after_step is not None:
            self.after_step()

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the gradients, and with them the group under way; by default their memory is given back.

        An optimizer's own ``zero_grad`` is called. Torch's mostly makes a label for a profiler, which costs a small
        model a tenth of its iteration, so where none of Python's profilers of torch runs, what else it does is done
        here; an ``ExecutionTraceObserver`` alone doesn't see the label.
        """
        optimizer, group = self.optimizer, self._group
        group.losses, group.gradients = 0, None
        if (
            not (set_to_none and _is_torchs)
            or type(optimizer).zero_grad is not _zero_grad
            or "zero_grad" in vars(optimizer)
            or profiler._is_profiler_enabled  # noqa: SLF001  # of all threads; there is no public one
        ):
            optimizer.zero_grad(set_to_none=set_to_none)
            return
        for params in optimizer.param_groups:
            for param in params["params"]:
                param.grad = None

    def autocast(self, device_type: str) -> contextlib.AbstractContextManager[Any]:
        """Return the context for a forward pass and its loss, which does nothing where ``amp_dtype`` is None.

        Backward and step belong outside of it: torch runs them in the types that forward chose.
        """
        if self.amp_dtype is None:
            return contextlib.nullcontext()
        return torch.autocast(device_type, dtype=self.amp_dtype)

    def get_lr(self) -> dict[str, list[float]]:
        """Return ``{"lr": [...]}``, one number per parameter group."""
        return {"lr": [float(group["lr"]) for group in self.param_groups]}

    def get_momentum(self) -> dict[str, list[float]]:
        """Return ``{"momentum": [...]}`` per parameter group: ``momentum``, or the first of ``betas``, or 0."""
        return {"momentum": [_momentum(group) for group in self.param_groups]}

    def state_dict(self) -> dict[str, Any]:
        """Return ``optimizer``, ``inner_count``, ``scaler`` with float16, and ``group`` where losses are accumulated.

        ``group`` has the gradients of the group under way as far as the wrapper holds them: a caller that saves within
        a group and doesn't set ``holds_gradients`` has to save ``.grad`` of each parameter as well. Tensors are the
        live ones, not copies. With float16 the scale is read from the device.
        """
        state = {"optimizer": self.optimizer.state_dict(), "inner_count": self.inner_count}
        if self._scaler is not None:
            state["scaler"] = self._scaler.state_dict()
        if self.accumulative_counts > 1 or self._group.losses:
            state["group"] = self._group.state(self.accumulative_counts, self._params())
        return state

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take over what ``state_dict`` gave; a group that is under way keeps the size that it was begun with.

        Raises:
            ResumeError: the state has other parts or other parameter groups than this wrapper; nothing was loaded.
        """
        self.check_state_dict(state_dict)
        self.optimizer.load_state_dict(state_dict["optimizer"])
        self.inner_count = state_dict["inner_count"]
        if self._scaler is not None:
            self._scaler.load_state_dict(state_dict["scaler"])
        self._group.load(state_dict.get("group", NO_GROUP), self.inner_count, self._params())

    def check_state_dict(self, state_dict: Mapping[str, Any], name: str = "OptimWrapper") -> None:
        """Raise ResumeError, which begins with name, if ``load_state_dict`` couldn't load the state."""
        parts = ("optimizer", "inner_count") if self._scaler is None else ("optimizer", "inner_count", "scaler")
        saved_parts = [str(part) for part in state_dict if part != "group"]
        if set(parts) != set(saved_parts):
            raise ResumeError(f"{name} has the state {listed(parts)}, the saved one is {listed(saved_parts)}.")
        check_param_groups(name, self.param_groups, state_dict["optimizer"]["param_groups"])

    def changed_count(self, state_dict: Mapping[str, Any]) -> str | None:
        """Return how ``accumulative_counts`` differs from that of a state; None where it doesn't."""
        group = state_dict.get("group", NO_GROUP)
        was, losses, size = group["accumulative_counts"], group["losses"], group["size"]
        if was == self.accumulative_counts:
            return None
        rest = f"; the group under way, of {losses} losses so far, is still one of {size}" if losses else ""
        return f"accumulative_counts is {self.accumulative_counts} and was {was}{rest}."

    def _refusal(self, loss: Any) -> OptionError:
        if self._needs_closure:
            return OptionError(
                f"update_params can't step {_name(self.optimizer)}, which needs a closure: write a train_step that "
                "takes optim_wrapper and calls optim_wrapper.step(closure)."
            )
        return refused_loss(loss)

    def _params(self) -> Iterator[Tensor]:
        for group in self.optimizer.param_groups:
            yield from group["params"]

    def _abandon_group(self, error: BaseException) -> None:
        """Leave the gradients as they are, for a look at what went wrong, but no longer as those of a group."""
        group = self._group
        if group.is_open():
            error.add_note(f"the group of accumulation under way is dropped, with {group.losses} losses so far")
        group.losses, group.gradients = 0, None
        if self._scaler is not None:  # it may have unscaled gradients for a step that never came
            state, self._scaler = self._scaler.state_dict(), torch.amp.GradScaler("cpu")
            self._scaler.load_state_dict(state)

    def _clip_gradients(self, clip: Callable[[list[Tensor]], Tensor | None]) -> None:
        self.grad_norm = clip([p for group in self.param_groups for p in group["params"]])

    def _evaluate_and_clip(self, closure: Callable[[], Any]) -> Any:
        loss = closure()
        if self._clip is not None:
            self._clip_gradients(self._clip)
        return loss


def _name(optimizer: torch.optim.Optimizer) -> str:
    return type(optimizer).__name__


def _momentum(group: Mapping[str, Any]) -> float:
    return float(group["momentum"] if "momentum" in group else group.get("betas", (0.0,))[0])
