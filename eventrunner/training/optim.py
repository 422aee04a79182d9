"""OptimWrapper: what becomes of a loss. It is scaled, its gradients are accumulated and clipped, the optimizer steps.

The names are MMEngine's (``mmengine/optim/optimizer/optimizer_wrapper.py``). One class does what MMEngine divides
among ``OptimWrapper`` and ``AmpOptimWrapper``, on the CPU too.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import os
from collections.abc import Callable, ItemsView, Iterator, KeysView, Mapping, ValuesView
from typing import Any

import torch
from torch import Tensor
from torch.autograd import profiler
from torch.nn.utils import clip_grad_norm_, clip_grad_value_

from eventrunner.checks import check_bools, check_ints, check_numbers
from eventrunner.errors import OptionError, ResumeError, did_you_mean, listed

__all__ = ["OptimWrapper", "OptimWrapperDict", "build_optim", "named_wrappers"]

_CLIPPERS: dict[str, tuple[Callable[..., Tensor | None], tuple[str, ...]]] = {
    "norm": (clip_grad_norm_, ("max_norm", "norm_type", "error_if_nonfinite")),
    "value": (clip_grad_value_, ("clip_value",)),
}
"""For each type of clipping, what does it, and its options, of which the first must be given."""

_NO_GROUP = {"accumulative_counts": 1, "losses": 0, "size": 1, "per_batch": 1, "gradients": {}}
"""What the state of a wrapper without accumulation leaves out."""

_SCALER_OPTIONS = ("init_scale", "growth_factor", "backoff_factor", "growth_interval")
_AMP_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}
_zero_grad = torch.optim.Optimizer.zero_grad
_source = getattr(_zero_grad, "__code__", None)
_is_torchs = _source is not None and _source.co_filename.startswith(os.path.dirname(torch.__file__))


class OptimWrapper:
    """An optimizer, and what happens between a loss and its step.

    The wrapper owns the optimizer's calls, not its parameters. ``update_params`` never makes the host wait for the
    device, save for float16, where torch's scaler reads back whether the gradients were finite, and for
    ``error_if_nonfinite``.

    The losses of one step are a group of accumulation. A group begins after a step, with no gradients, whoever left
    some (another optimizer's backward, a hook, an interrupted batch), and has the gradients of its own losses alone.

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
        _require_optimizer("OptimWrapper(optimizer=…)", optimizer)
        check_ints("OptimWrapper", 1, accumulative_counts=accumulative_counts)
        self.optimizer = optimizer
        self.accumulative_counts = accumulative_counts
        self.amp_dtype = _parse_amp_dtype(dtype)
        self.inner_count = 0
        self.begins_groups, self.holds_gradients = True, False
        self.before_step: Callable[[], None] | None = None
        self.after_step: Callable[[], None] | None = None
        self.grad_norm: Tensor | None = None
        self._max_counts: int | None = None
        self._losses = 0  # of the group under way
        self._size = accumulative_counts  # the losses that it is to have
        self._held: dict[Tensor, Tensor] | None = None  # its gradients by parameter while they aren't in .grad
        self._per_batch = 1  # losses in the last batch
        self._before_batch = 0  # losses before the batch under way
        self._clip = _parse_clip(clip_grad)
        self._scaler = _make_scaler(self.amp_dtype, loss_scale)
        self._fixed_scale = float(loss_scale) if isinstance(loss_scale, (int, float)) else None
        self._needs_closure = _needs_closure(optimizer)
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
        self._max_counts = max_counts
        if init_counts != self.inner_count and self._held is None:
            self._losses = 0 if init_counts == max_counts else init_counts % self.accumulative_counts
            self._size = self._planned_size(init_counts - self._losses)
        self.inner_count = init_counts

    def expect_batches(self, batches: int | None) -> None:
        """Say how many batches are still to come, if it is known; each is taken to have as many losses as the last."""
        self._before_batch = self.inner_count
        known = batches is not None and batches >= 0 and self._per_batch > 0
        self._max_counts = self.inner_count + self._per_batch * (batches or 0) if known else None

    def end_batch(self, batches: int | None) -> None:
        """Say that the losses of a batch are counted, and how many batches are still to come, if it is known."""
        self._per_batch = self.inner_count - self._before_batch
        self.expect_batches(batches)

    def begin_loss(self) -> None:
        """Make the gradients those of the group under way, or none where the next loss begins one."""
        if self._held is not None:
            self._put_back()
        elif not self._losses and any(param.grad is not None for param in self._params()):
            self.zero_grad()

    def update_params(self, loss: Tensor) -> None:
        """Backward, and where a group of losses is complete: step, then forget the gradients.

        Where that fails or is interrupted, the next loss begins a group: what the gradients are is not known.

        Raises:
            OptionError: loss is not a tensor of one element that requires grad, or the optimizer needs a closure.
        """
        if self._needs_closure or not isinstance(loss, Tensor):
            raise self._refusal(loss)
        if self.begins_groups:
            self.begin_loss()
        direct = self._is_direct and self.accumulative_counts == 1 and not self._losses
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
        """The loss divided by the size of the group it belongs to; the very same tensor where that is 1."""
        size = self._group_size()
        return loss if size == 1 else loss / size

    def backward(self, loss: Tensor, **kwargs: Any) -> None:
        """Add the gradients of an already scaled loss and count it; kwargs are those of ``torch.autograd.backward``."""
        if self._held is not None:
            self._put_back()
        losses, size = self._losses if self._is_open() else 0, self._group_size()
        if self._scaler is not None:
            loss = self._scaler.scale(loss)
        torch.autograd.backward(loss, **kwargs)
        self.inner_count += 1
        self._losses, self._size = losses + 1, size

    def should_update(self) -> bool:
        """Whether the losses counted so far complete a group."""
        return not self._is_open()

    def end_group(self) -> bool:
        """Step with the mean of the losses there are where a group has fewer than it was to have; whether it did.

        For the end of the data: nothing else says that the last group is complete where the number of losses wasn't
        known, or wasn't as said.
        """
        if not self._is_open():
            return False
        self.begin_loss()
        with torch.no_grad():
            for param in self._params():
                if param.grad is not None:
                    param.grad.mul_(self._size / self._losses)
        self.step()
        self.zero_grad()
        return True

    def hold(self) -> None:
        """Keep the gradients of the group under way, if there is one, out of ``.grad`` until its next loss."""
        if self._is_open() and self._held is None:
            self._held = {param: param.grad for param in self._params() if param.grad is not None}
            for param in self._held:
                param.grad = None

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
        if self._held is not None:
            self._put_back()
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
        self._losses = 0
        if self.after_step is not None:
            self.after_step()

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the gradients, and with them the group under way; by default their memory is given back.

        An optimizer's own ``zero_grad`` is called. Torch's mostly makes a label for a profiler, which costs a small
        model a tenth of its iteration, so where none of Python's profilers of torch runs, what else it does is done
        here; an ``ExecutionTraceObserver`` alone doesn't see the label.
        """
        optimizer = self.optimizer
        self._losses, self._held = 0, None
        if (
            not (set_to_none and _is_torchs)
            or type(optimizer).zero_grad is not _zero_grad
            or "zero_grad" in vars(optimizer)
            or profiler._is_profiler_enabled  # noqa: SLF001  # of all threads; there is no public one
        ):
            optimizer.zero_grad(set_to_none=set_to_none)
            return
        for group in optimizer.param_groups:
            for param in group["params"]:
                param.grad = None

    def autocast(self, device_type: str) -> contextlib.AbstractContextManager[Any]:
        """The context for a forward pass and its loss, which does nothing where ``amp_dtype`` is None.

        Backward and step belong outside of it: torch runs them in the types that forward chose.
        """
        if self.amp_dtype is None:
            return contextlib.nullcontext()
        return torch.autocast(device_type, dtype=self.amp_dtype)

    def get_lr(self) -> dict[str, list[float]]:
        """``{"lr": [...]}``, one number per parameter group."""
        return {"lr": [float(group["lr"]) for group in self.param_groups]}

    def get_momentum(self) -> dict[str, list[float]]:
        """``{"momentum": [...]}`` per parameter group: ``momentum``, or the first of ``betas``, or 0."""
        return {"momentum": [_momentum(group) for group in self.param_groups]}

    def state_dict(self) -> dict[str, Any]:
        """``optimizer``, ``inner_count``, ``scaler`` with float16, and ``group`` where losses are accumulated.

        ``group`` has the gradients of the group under way as far as the wrapper holds them: who saves amid a group and
        doesn't set ``holds_gradients`` has to save ``.grad`` of each parameter as well. Tensors are the live ones, not
        copies. With float16 the scale is read from the device.
        """
        state = {"optimizer": self.optimizer.state_dict(), "inner_count": self.inner_count}
        if self._scaler is not None:
            state["scaler"] = self._scaler.state_dict()
        if self.accumulative_counts > 1 or self._losses:
            state["group"] = self._group_state()
        return state

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take over what ``state_dict`` gave; a group that is under way keeps the size that it was begun with.

        Raises:
            ResumeError: the state has other parts or other parameter groups than this wrapper; nothing was loaded.
        """
        self.check_state_dict(state_dict)
        self.optimizer.load_state_dict(state_dict["optimizer"])
        self.inner_count = self._before_batch = state_dict["inner_count"]
        if self._scaler is not None:
            self._scaler.load_state_dict(state_dict["scaler"])
        self._load_group(state_dict.get("group", _NO_GROUP))

    def check_state_dict(self, state_dict: Mapping[str, Any], name: str = "OptimWrapper") -> None:
        """Raise ResumeError, which begins with name, if ``load_state_dict`` couldn't load the state."""
        parts = ("optimizer", "inner_count") if self._scaler is None else ("optimizer", "inner_count", "scaler")
        saved_parts = [str(part) for part in state_dict if part != "group"]
        if set(parts) != set(saved_parts):
            raise ResumeError(f"{name} has the state {listed(parts)}, the saved one is {listed(saved_parts)}.")
        mine = [len(group["params"]) for group in self.param_groups]
        saved = [len(group["params"]) for group in state_dict["optimizer"]["param_groups"]]
        if mine != saved:
            raise ResumeError(
                f"{name} has parameter groups of {mine} parameters, the saved one of {saved}{_hint(mine, saved)}"
            )

    def changed_count(self, state_dict: Mapping[str, Any]) -> str | None:
        """How ``accumulative_counts`` differs from that of a state that ``state_dict`` gave; None where it doesn't."""
        group = state_dict.get("group", _NO_GROUP)
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
        return OptionError(
            f"update_params was given {_describe_loss(loss)} as loss; train_step should return a dict whose "
            "'loss' is a tensor of one element that requires grad."
        )

    def _params(self) -> Iterator[Tensor]:
        for group in self.optimizer.param_groups:
            yield from group["params"]

    def _is_open(self) -> bool:
        """Whether a group is under way that further losses belong to."""
        return 0 < self._losses < self._size

    def _group_size(self) -> int:
        return self._size if self._is_open() else self._planned_size(self.inner_count)

    def _planned_size(self, start: int) -> int:
        if self._max_counts is None or start >= self._max_counts:
            return self.accumulative_counts
        return min(self.accumulative_counts, self._max_counts - start)

    def _put_back(self) -> None:
        held, self._held = self._held or {}, None
        for param in self._params():
            param.grad = held.get(param)

    def _abandon_group(self, error: BaseException) -> None:
        """Leave the gradients to whoever looks for what went wrong, but no longer as those of a group."""
        if self._is_open():
            error.add_note(f"the group of accumulation under way is dropped, with {self._losses} losses so far")
        self._losses, self._held = 0, None
        if self._scaler is not None:  # it may have unscaled gradients for a step that never came
            state, self._scaler = self._scaler.state_dict(), torch.amp.GradScaler("cpu")
            self._scaler.load_state_dict(state)

    def _group_state(self) -> dict[str, Any]:
        indices = {param: index for index, param in enumerate(self._params())}
        return {
            "accumulative_counts": self.accumulative_counts,
            "losses": self._losses,
            "size": self._size,
            "per_batch": self._per_batch,
            "gradients": {indices[param]: gradient for param, gradient in (self._held or {}).items()},
        }

    def _load_group(self, group: Mapping[str, Any]) -> None:
        params, gradients = list(self._params()), group["gradients"]
        self._losses, self._size, self._per_batch = group["losses"], group["size"], group["per_batch"]
        held = {params[index]: gradient.to(params[index].device) for index, gradient in gradients.items()}
        self._held = held or None

    def _clip_gradients(self, clip: Callable[[list[Tensor]], Tensor | None]) -> None:
        self.grad_norm = clip([p for group in self.param_groups for p in group["params"]])

    def _evaluate_and_clip(self, closure: Callable[[], Any]) -> Any:
        loss = closure()
        if self._clip is not None:
            self._clip_gradients(self._clip)
        return loss


class OptimWrapperDict:
    """Several optimizers by name, for a ``train_step`` that takes ``optim_wrapper`` and updates each itself.

    Each wrapper counts and accumulates on its own, also in a parameter of two: what a loss leaves in parameters of the
    others is in no step that they make by ``update_params``. ``before_step`` and ``after_step``, when set, are set on
    all.

    Raises:
        OptionError: no wrapper, something that isn't an ``OptimWrapper``, or wrappers of unlike ``dtype``.
    """

    def __init__(self, /, **wrappers: OptimWrapper) -> None:
        if not wrappers:
            raise OptionError("OptimWrapperDict() needs at least one OptimWrapper, by name.")
        for name, wrapper in wrappers.items():
            if not isinstance(wrapper, OptimWrapper):
                raise OptionError(f"OptimWrapperDict({name}=…) takes an OptimWrapper, not {_describe(wrapper)}.")
        dtypes = {name: wrapper.amp_dtype for name, wrapper in wrappers.items()}
        if len(set(dtypes.values())) > 1:
            raise OptionError(f"the wrappers of an OptimWrapperDict must have one dtype, not {dtypes}.")
        self._wrappers = dict(wrappers)
        for wrapper in self.values():
            wrapper.holds_gradients = True
        self.amp_dtype = next(iter(dtypes.values()))

    def __getitem__(self, name: str) -> OptimWrapper:
        return self._wrappers[name]

    def __contains__(self, name: object) -> bool:
        return name in self._wrappers

    def keys(self) -> KeysView[str]:
        """The names, in order."""
        return self._wrappers.keys()

    def values(self) -> ValuesView[OptimWrapper]:
        """The wrappers, in order."""
        return self._wrappers.values()

    def items(self) -> ItemsView[str, OptimWrapper]:
        """Names and wrappers, in order."""
        return self._wrappers.items()

    @property
    def param_groups(self) -> dict[str, list[dict[str, Any]]]:
        """Each optimizer's own list, by name."""
        return {name: wrapper.param_groups for name, wrapper in self.items()}

    @property
    def before_step(self) -> Callable[[], None] | None:
        """What the first wrapper calls before its step; setting it sets it on all."""
        return next(iter(self.values())).before_step

    @before_step.setter
    def before_step(self, call: Callable[[], None] | None) -> None:
        for wrapper in self.values():
            wrapper.before_step = call

    @property
    def after_step(self) -> Callable[[], None] | None:
        """What the first wrapper calls after its step; setting it sets it on all."""
        return next(iter(self.values())).after_step

    @after_step.setter
    def after_step(self, call: Callable[[], None] | None) -> None:
        for wrapper in self.values():
            wrapper.after_step = call

    def update_params(self, loss: Tensor) -> None:
        """Always an error: nothing says which of the optimizers a loss is for.

        Raises:
            OptionError: says what to write instead.
        """
        raise OptionError(
            f"update_params can't tell which of {listed(self.keys())} a loss is for: several optimizers need a "
            "train_step that takes optim_wrapper and calls optim_wrapper[name].update_params(loss) for each."
        )

    def initialize_count_status(self, init_counts: int, max_counts: int | None) -> None:
        """Nothing, as in MMEngine: how often train_step updates each wrapper is not known; tell each its own.

        A run tells each how many batches are to come.
        """

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the gradients of all."""
        for wrapper in self.values():
            wrapper.zero_grad(set_to_none)

    def autocast(self, device_type: str) -> contextlib.AbstractContextManager[Any]:
        """The context for forward passes; see :meth:`OptimWrapper.autocast`."""
        return next(iter(self.values())).autocast(device_type)

    def get_lr(self) -> dict[str, list[float]]:
        """``{"name.lr": [...]}`` for each, one number per parameter group."""
        return {f"{name}.{key}": lr for name, wrapper in self.items() for key, lr in wrapper.get_lr().items()}

    def get_momentum(self) -> dict[str, list[float]]:
        """``{"name.momentum": [...]}`` for each, one number per parameter group."""
        return {f"{name}.{key}": m for name, wrapper in self.items() for key, m in wrapper.get_momentum().items()}

    def state_dict(self) -> dict[str, Any]:
        """Each wrapper's state, by name."""
        return {name: wrapper.state_dict() for name, wrapper in self.items()}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take over what ``state_dict`` gave.

        Raises:
            ResumeError: other names, or a wrapper that its state doesn't fit; nothing was loaded.
        """
        if set(state_dict) != set(self.keys()):
            raise ResumeError(f"the optimizers are {listed(self.keys())}, the saved ones {listed(state_dict)}.")
        for name, wrapper in self.items():
            wrapper.check_state_dict(state_dict[name], f"OptimWrapper {name!r}")
        for name, wrapper in self.items():
            wrapper.load_state_dict(state_dict[name])


def build_optim(optim_wrapper: Any, optimizer: Any) -> OptimWrapper | OptimWrapperDict:
    """The wrapper that is meant by a runner's two arguments, of which exactly one must be given.

    Args:
        optim_wrapper: an ``OptimWrapper``, an ``OptimWrapperDict``, or a dict of wrappers or optimizers by name.
        optimizer: a ``torch.optim.Optimizer``. Each argument takes what the other does, too.

    Raises:
        OptionError: both or neither were given, or something else, MMEngine's config dicts among it.
    """
    if (optim_wrapper is None) == (optimizer is None):
        given = "neither was" if optimizer is None else "both were"
        raise OptionError(f"a training takes either optim_wrapper= or optimizer=; {given} given.")
    where, value = ("optim_wrapper", optim_wrapper) if optimizer is None else ("optimizer", optimizer)
    if isinstance(value, OptimWrapperDict):
        return value
    if isinstance(value, dict) and "type" not in value:
        return OptimWrapperDict(**{name: _wrap(f"{where}[{name!r}]", part) for name, part in value.items()})
    return _wrap(f"{where}=", value)


def _wrap(where: str, value: Any) -> OptimWrapper:
    if isinstance(value, dict) and "type" in value:
        raise OptionError(
            f"{where} was given a config dict of type {value['type']!r}; pass the object, such as "
            "OptimWrapper(torch.optim.SGD(model.parameters(), lr=0.01))."
        )
    if isinstance(value, OptimWrapper):
        return value
    _require_optimizer(where, value)
    return OptimWrapper(value)


def _require_optimizer(where: str, value: object) -> None:
    if not isinstance(value, torch.optim.Optimizer):
        raise OptionError(
            f"{where} takes an optimizer such as torch.optim.SGD(model.parameters(), lr=0.01), not {_describe(value)}."
        )


def _describe(value: object) -> str:
    return f"the class {value.__name__}" if isinstance(value, type) else f"an object of type {type(value).__name__}"


def _hint(mine: list[int], saved: list[int]) -> str:
    """How to have the groups that were added in the course of the training before they are compared."""
    if len(saved) <= len(mine) or saved[: len(mine)] != mine:
        return "."
    return (
        "; add those that were added while it trained before they are compared, in a receiver:\n\n"
        "    def add_groups(runner, checkpoint): runner.optim_wrapper.optimizer.add_param_group(dict(params=…))\n"
        '    runner.on("after_load_checkpoint")(add_groups)'
    )


def _describe_loss(loss: object) -> str:
    if not isinstance(loss, Tensor):
        return _describe(loss)
    if loss.numel() != 1:
        return f"a tensor of shape {tuple(loss.shape)}"
    return "a tensor that doesn't require grad (detached, made under no_grad, or of frozen parameters only)"


def _name(optimizer: torch.optim.Optimizer) -> str:
    return type(optimizer).__name__


def _needs_closure(optimizer: torch.optim.Optimizer) -> bool:
    closure = inspect.signature(optimizer.step).parameters.get("closure")
    return closure is not None and closure.default is inspect.Parameter.empty


def _momentum(group: Mapping[str, Any]) -> float:
    return float(group["momentum"] if "momentum" in group else group.get("betas", (0.0,))[0])


def _parse_amp_dtype(dtype: object) -> torch.dtype | None:
    if dtype is None or (isinstance(dtype, torch.dtype) and dtype in _AMP_DTYPES.values()):
        return dtype
    if isinstance(dtype, str) and dtype in _AMP_DTYPES:
        return _AMP_DTYPES[dtype]
    near = did_you_mean(dtype, _AMP_DTYPES) if isinstance(dtype, str) else ""
    raise OptionError(f"OptimWrapper(dtype={dtype!r}) must be None, 'bfloat16' or 'float16'{near or '.'}")


def _parse_clip(clip_grad: object) -> Callable[[list[Tensor]], Tensor | None] | None:
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


def _make_scaler(amp_dtype: torch.dtype | None, loss_scale: object) -> torch.amp.GradScaler | None:
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


def named_wrappers(optim: OptimWrapper | OptimWrapperDict | None) -> list[tuple[str, OptimWrapper]]:
    """Return the wrappers, each with the prefix of its keys in the log: ``""``, or ``name.`` among several."""
    if isinstance(optim, OptimWrapperDict):
        return [(f"{name}.", wrapper) for name, wrapper in optim.items()]
    return [] if optim is None else [("", optim)]
