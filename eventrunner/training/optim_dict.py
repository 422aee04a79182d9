"""Several optimizers by name, and the wrapper that is meant by a runner's arguments."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, ItemsView, KeysView, Mapping, ValuesView
from typing import Any

from torch import Tensor

from eventrunner.errors import OptionError, ResumeError, listed
from eventrunner.training.optim import OptimWrapper
from eventrunner.training.optim_options import describe, require_optimizer

__all__ = ["OptimWrapperDict", "build_optim", "named_wrappers"]


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
                raise OptionError(f"OptimWrapperDict({name}=…) takes an OptimWrapper, not {describe(wrapper)}.")
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
        """Return the names, in order."""
        return self._wrappers.keys()

    def values(self) -> ValuesView[OptimWrapper]:
        """Return the wrappers, in order."""
        return self._wrappers.values()

    def items(self) -> ItemsView[str, OptimWrapper]:
        """Return names and wrappers, in order."""
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
        """Refuse any loss, as nothing says which of the optimizers it is for.

        Raises:
            OptionError: says what to write instead.
        """
        raise OptionError(
            f"update_params can't tell which of {listed(self.keys())} a loss is for: several optimizers need a "
            "train_step that takes optim_wrapper and calls optim_wrapper[name].update_params(loss) for each."
        )

    def initialize_count_status(self, init_counts: int, max_counts: int | None) -> None:
        """Do nothing, as in MMEngine: how often train_step updates each wrapper is not known; call each one's own.

        A run calls each one's ``expect_batches``.
        """

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the gradients of all."""
        for wrapper in self.values():
            wrapper.zero_grad(set_to_none)

    def autocast(self, device_type: str) -> contextlib.AbstractContextManager[Any]:
        """Return the context for forward passes; see :meth:`OptimWrapper.autocast`."""
        return next(iter(self.values())).autocast(device_type)

    def get_lr(self) -> dict[str, list[float]]:
        """Return ``{"name.lr": [...]}`` for each, one number per parameter group."""
        return {f"{name}.{key}": lr for name, wrapper in self.items() for key, lr in wrapper.get_lr().items()}

    def get_momentum(self) -> dict[str, list[float]]:
        """Return ``{"name.momentum": [...]}`` for each, one number per parameter group."""
        return {f"{name}.{key}": m for name, wrapper in self.items() for key, m in wrapper.get_momentum().items()}

    def state_dict(self) -> dict[str, Any]:
        """Return each wrapper's state, by name."""
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
    """Return the wrapper that is meant by a runner's two arguments, of which exactly one must be given.

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
    require_optimizer(where, value)
    return OptimWrapper(value)


def named_wrappers(optim: OptimWrapper | OptimWrapperDict | None) -> list[tuple[str, OptimWrapper]]:
    """Return the wrappers, each with the prefix of its keys in the log: ``""``, or ``name.`` among several."""
    if isinstance(optim, OptimWrapperDict):
        return [(f"{name}.", wrapper) for name, wrapper in optim.items()]
    return [] if optim is None else [("", optim)]
