"""The hooks of a run: registered as objects or from dicts, and in which order they run."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from eventrunner.bus.priority import Priority, get_priority
from eventrunner.errors import HookError, OptionError, did_you_mean, listed
from eventrunner.hook import Hook, HookHandle, connect_hook
from eventrunner.hooks import DEFAULT_HOOKS, EarlyStoppingHook
from eventrunner.registry import HOOKS
from eventrunner.training.state import Stateful

if TYPE_CHECKING:
    from eventrunner.run import Run

__all__ = ["RunHooks"]

_numbers = itertools.count()
_ORIGIN = "_eventrunner_origin"  # the attribute of a hook that has its _Origin


@dataclass(frozen=True)
class _Origin:
    """The training run that a hook was in last, by its number, and the state that it had before the first one."""

    run: int
    state: Any


class RunHooks:
    """The hooks of *runner*, which are its bus's receivers as long as they are on it."""

    def __init__(self, runner: Run) -> None:
        self._runner, self._number = runner, next(_numbers)
        self._handles: list[HookHandle] = []
        self._priorities: dict[int, int] = {}  # by the hook's identity, its priority as a number

    def hooks(self) -> list[Hook]:
        """Return them in order of priority, then of registration."""
        live = [handle.hook for handle in self._handles if not handle.removed]
        return [
            live[place]
            for place in sorted(range(len(live)), key=[self._priorities[id(hook)] for hook in live].__getitem__)
        ]

    def add(self, hook: Any, priority: int | str | Priority | None = None) -> HookHandle:
        """Register a hook, as :meth:`eventrunner.runner.Runner.register_hook` says."""
        if isinstance(hook, Mapping):
            options = dict(hook)
            own = options.pop("priority", None)
            hook = HOOKS.build(options)
            priority = own if priority is None else priority
        if not isinstance(hook, Hook):
            raise HookError(f"registering {hook!r}: a hook is an instance of Hook or a dict with its type and options.")
        number = get_priority(hook.priority if priority is None else priority)
        _check_state(hook)
        _complete(hook)
        self._take(hook)
        hook.check_run(self._runner)
        handle = connect_hook(self._runner.bus, hook, self._runner, number)
        if priority is not None:
            hook.priority = priority
        self._handles = [known for known in self._handles if known.hook is not hook]
        self._handles.append(handle)
        self._priorities[id(hook)] = number
        return handle

    def begin(self) -> None:
        """Have the hooks that another run was given, and has used since, begin afresh in this one."""
        for hook in [hook for hook in self.hooks() if self._take(hook)]:  # all before one is checked beside another
            hook.check_run(self._runner)

    def _take(self, hook: Hook) -> bool:
        """Put a hook that was in another training last into the state in which it was first registered, if it was.

        A Runner that only evaluates leaves it as it is: it may be there for what it has gathered, as an average.
        """
        if self._runner.train_loop is None:
            return False
        origin: _Origin = vars(hook).get(_ORIGIN) or _Origin(self._number, _state_of(hook))
        was_elsewhere = origin.run != self._number
        if was_elsewhere:
            hook.forget_run()
            if origin.state is not None and isinstance(hook, Stateful):
                hook.load_state_dict(copy.deepcopy(origin.state))
        vars(hook)[_ORIGIN] = replace(origin, run=self._number)
        return was_elsewhere

    def add_defaults(self, hooks: Any) -> None:
        """Register the six default hooks, with *hooks* in place of those that it names."""
        if hooks is not None and not isinstance(hooks, Mapping):
            raise HookError(f"default_hooks={hooks!r} is not a dict; write default_hooks=dict(checkpoint=…).")
        for name, hook in {**DEFAULT_HOOKS, **(hooks or {})}.items():
            chosen = _chosen(name, hook)
            if chosen is not None:
                self.add(chosen)

    def add_custom(self, hooks: Any) -> None:
        """Register each of a list, in order."""
        if not isinstance(hooks, list | tuple):
            raise HookError(f"custom_hooks={hooks!r} is not a list; write custom_hooks=[…].")
        for hook in hooks:
            self.add(hook)

    def add_all(self, default_hooks: Any, custom_hooks: Any) -> None:
        """Register the default ones, then the custom ones; where one is refused, none stays."""
        before = len(self._handles)
        try:
            self.add_defaults(default_hooks)
            self.add_custom([] if custom_hooks is None else custom_hooks)
        except BaseException:
            for handle in self._handles[before:]:
                handle.remove()
            raise


def _complete(hook: Hook) -> None:
    """Give a subclass of a built-in hook that left out ``super().__init__()`` what that sets without arguments."""
    builtin = next((cls for cls in type(hook).__mro__ if cls.__module__.startswith("eventrunner.hooks.")), None)
    if builtin is None or builtin in (type(hook), EarlyStoppingHook):  # the last needs its metric said
        return
    for name, value in vars(builtin()).items():
        if getattr(type(hook), name, None) is getattr(builtin, name, None):  # else the subclass has its own
            vars(hook).setdefault(name, value)


def _state_of(hook: Hook) -> Any:
    """Return a copy of what a hook has to say of itself before a run; None where that is nothing yet."""
    try:
        return copy.deepcopy(hook.state_dict()) if isinstance(hook, Stateful) else None
    except Exception:  # noqa: BLE001  # its state is made in a run
        return None


def _check_state(hook: Hook) -> None:
    """Refuse a hook whose state would be saved and not be put back, or the reverse."""
    methods = ("state_dict", "load_state_dict")
    missing = [method for method in methods if not callable(getattr(hook, method, None))]
    if len(missing) == 1:
        (there,) = set(methods).difference(missing)
        raise HookError(
            f"registering {type(hook).__name__}: it has a {there} and no {missing[0]}, so that its state would be lost "
            "in a resumed run; give it both, or neither."
        )


def _chosen(name: str, hook: Any) -> Any:
    """Return the default hook of that name with the options of *hook*, or another in its place, or None for none."""
    whole = isinstance(hook, Hook) or (isinstance(hook, Mapping) and "type" in hook)
    if name not in DEFAULT_HOOKS and not whole:
        near = did_you_mean(str(name), DEFAULT_HOOKS)
        raise OptionError(
            f"default_hooks[{name!r}]={hook!r} is neither a hook nor a dict with its 'type', and {name!r} is not one "
            f"of {listed(DEFAULT_HOOKS)}{near or '.'}"
        )
    return {**DEFAULT_HOOKS[name], **hook} if isinstance(hook, Mapping) and not whole else hook
