"""A bridge from PyTorch's module hooks to the bus: watch what goes through chosen layers.

::

    with watch_modules(model, "layers.*.attention", bus=bus):
        ...  # after_forward(name, module, inputs, outputs) is emitted
"""

from __future__ import annotations

import fnmatch
import warnings
from typing import Any

from torch import nn
from torch.utils.hooks import RemovableHandle

from eventrunner.bus import Bus, Emitters, default_bus
from eventrunner.errors import OptionError, did_you_mean
from eventrunner.sites import MODULE_SITES

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
        sender: Who emits; by default the model.
        backward: Also emit ``after_backward``. Costs a full backward hook per module, which torch refuses for modules
            that change their inputs or outputs in place.

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
    def before(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        if emitters.before_forward:
            emitters.before_forward(sender, name=name, module=module, inputs=inputs)

    def after(module: nn.Module, inputs: tuple[Any, ...], outputs: Any) -> None:
        if emitters.after_forward:
            emitters.after_forward(sender, name=name, module=module, inputs=inputs, outputs=outputs)

    def after_gradients(module: nn.Module, grad_inputs: Any, grad_outputs: Any) -> None:
        if emitters.after_backward:
            emitters.after_backward(
                sender, name=name, module=module, grad_inputs=grad_inputs, grad_outputs=grad_outputs
            )

    watch.handles.append(module.register_forward_pre_hook(before))
    watch.handles.append(module.register_forward_hook(after))
    if backward:
        # Of a first layer, whose inputs need no gradient, torch warns that they get none, which is no surprise here.
        warnings.filterwarnings("ignore", "Full backward hook is firing", UserWarning)
        watch.handles.append(module.register_full_backward_hook(after_gradients))
