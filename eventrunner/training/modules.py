"""A bridge from PyTorch's module hooks to the bus: watch what goes through chosen layers.

::

    with watch_modules(model, "layers.*.attention", bus=bus):
        ...  # after_forward(name, module, inputs, outputs) is emitted
"""

from __future__ import annotations

import fnmatch
from typing import Any

from torch import nn
from torch.utils.hooks import RemovableHandle

from eventrunner.bus.bus import Bus, Emitters, default_bus
from eventrunner.bus.sites import MODULE_SITES
from eventrunner.errors import OptionError, did_you_mean

__all__ = ["ModuleWatch", "watch_modules"]


class ModuleWatch:
    """The modules that are being watched; ``remove()``, or leaving it as a context manager, leaves nothing behind."""

    def __init__(self, names: tuple[str, ...]) -> None:
        self.names = names
        self.handles: list[RemovableHandle] = []

    def remove(self) -> None:
        """Take the module hooks away; a second time does nothing."""
        while self.handles:
            self.handles.pop().remove()

    def __enter__(self) -> ModuleWatch:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.remove()


def watch_modules(
    model: nn.Module, pattern: str = "*", *, bus: Bus = default_bus, sender: Any = None, backward: bool = False
) -> ModuleWatch:
    """Emit ``before_forward`` and ``after_forward`` for each module whose name matches *pattern*.

    A site without receivers costs a truth test per call of a module. A module that is there under several names is
    watched under the first that matches.

    Args:
        model: Its submodules are matched by the names of ``named_modules()``, the model itself by ``""``.
        pattern: A shell pattern such as ``"layers.*"``; ``*`` also matches dots.
        bus: Where to emit; the three sites are declared there if they aren't.
        sender: Who emits; by default the model. ``runner.watch(pattern)`` is the form whose sender is the run, which
            receivers connected with ``@runner.on`` and registered hooks hear.
        backward: Also emit ``after_backward``. Costs a full backward hook per module, which torch refuses for modules
            that change their inputs or outputs in place; of a module whose inputs need no gradient it warns.

    Raises:
        OptionError: no module's name matches.
    """
    chosen: dict[nn.Module, str] = {}
    names = []
    for name, module in model.named_modules(remove_duplicate=False):
        names.append(name)
        if fnmatch.fnmatchcase(name, pattern):
            chosen.setdefault(module, name)
    if not chosen:
        near = did_you_mean(pattern, filter(None, names))
        raise OptionError(f"watching {pattern!r}: {type(model).__name__} has no such module{near or '.'}")
    for spec in MODULE_SITES:
        bus.site(spec.name, spec.payload, spec.doc, spec.unit)
    who = model if sender is None else sender
    watch, emitters = ModuleWatch(tuple(chosen.values())), bus.emitters(who)
    try:
        for module, name in chosen.items():
            _watch(watch, name, module, emitters, who, backward)
    except BaseException:  # torch refuses a full backward hook beside one of the old kind
        watch.remove()
        raise
    return watch


def _watch(watch: ModuleWatch, name: str, module: nn.Module, emitters: Emitters, sender: Any, backward: bool) -> None:
    # A deep copy of the module (an averaged model is one) takes the hooks along, and is not the one to be watched.
    def before(called: nn.Module, inputs: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if called is module and emitters.before_forward:
            emitters.before_forward(sender, name=name, module=called, inputs=inputs, kwargs=kwargs)

    def after(called: nn.Module, inputs: tuple[Any, ...], kwargs: dict[str, Any], outputs: Any) -> None:
        if called is module and emitters.after_forward:
            emitters.after_forward(sender, name=name, module=called, inputs=inputs, kwargs=kwargs, outputs=outputs)

    def after_gradients(called: nn.Module, grad_inputs: Any, grad_outputs: Any) -> None:
        if called is module and emitters.after_backward:
            emitters.after_backward(
                sender, name=name, module=called, grad_inputs=grad_inputs, grad_outputs=grad_outputs
            )

    watch.handles.append(module.register_forward_pre_hook(before, with_kwargs=True))
    watch.handles.append(module.register_forward_hook(after, with_kwargs=True))
    if backward:
        watch.handles.append(module.register_full_backward_hook(after_gradients))
