"""The registry of hooks: what lets a hook be given as ``dict(type="CheckpointHook", interval=2)``.

The calls are MMEngine's (``mmengine/registry/registry.py``), for hooks only: everything else is passed as an object.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar, overload

from eventrunner.errors import HookError, OptionError, did_you_mean, listed

__all__ = ["HOOKS", "Registry"]

C = TypeVar("C", bound=type)


def _place(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


def _names(cls: type, name: str | Sequence[str] | None) -> list[str]:
    """Return the names to register a class under; its own where none is given."""
    names = [cls.__name__] if name is None else [name] if isinstance(name, str) else list(name)
    if not names or not all(isinstance(each, str) and each for each in names):
        raise OptionError(f"{_place(cls)} can't be registered under {name!r}: a name is a str that isn't empty.")
    return names


def _is_required(parameter: inspect.Parameter) -> bool:
    variadic = parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    return parameter.default is parameter.empty and not variadic


def _check_options(cls: type, options: Mapping[str, Any]) -> None:
    """Compare options with the constructor's signature; one that can't be read takes all.

    Raises:
        OptionError: the constructor doesn't take one of them, or needs one that isn't there.
    """
    try:
        parameters = inspect.signature(cls).parameters.values()
    except (TypeError, ValueError):
        return
    taken = [each.name for each in parameters if each.kind in (each.POSITIONAL_OR_KEYWORD, each.KEYWORD_ONLY)]
    takes_all = any(each.kind is each.VAR_KEYWORD for each in parameters)
    for name in options:
        if not takes_all and name not in taken:
            instead = did_you_mean(str(name), taken) or f"; it takes {listed(taken, empty='no options')}."
            raise OptionError(f"{cls.__name__} has no option {name!r}{instead}")
    for each in parameters:
        if _is_required(each) and each.name not in options:
            raise OptionError(f"{cls.__name__} can't be built without its option {each.name!r}.")


class Registry:
    """Classes by name, for building objects from dicts.

    Args:
        kind: What the classes are, in the singular, for messages.
        parent: Whose dicts may name this registry's classes too. A name that both have is then that of this one's
            class: ``Registry("hook", parent=HOOKS)`` is for hooks that are called like built-in ones.
    """

    def __init__(self, kind: str, parent: Registry | None = None) -> None:
        self._kind, self._parent = kind, parent
        self._classes: dict[str, type] = {}
        self._adopted: list[Mapping[str, type]] = []
        if parent is not None:
            parent.adopt(self._classes)

    @overload
    def register_module(self, name: str | Sequence[str] | None = None, force: bool = False, *, module: C) -> C: ...

    @overload
    def register_module(
        self, name: str | Sequence[str] | None = None, force: bool = False, module: None = None
    ) -> Callable[[C], C]: ...

    def register_module(
        self, name: str | Sequence[str] | None = None, force: bool = False, module: type | None = None
    ) -> Any:
        """Register a class: ``@HOOKS.register_module()`` above it, or ``HOOKS.register_module(module=Existing)``.

        Args:
            name: Its name or names in dicts; its ``__name__`` by default.
            force: Whether it may take the place of another.
            module: An existing class; without it, the result is a decorator.

        Returns:
            The class as it was, or the decorator.

        Raises:
            HookError: what is to be registered is not a class, or the decorator lacks its parentheses.
            OptionError: a name is taken and ``force`` isn't set; then the class is registered under none of its names.
        """
        if callable(name):
            raise HookError(f"{name!r} can't be a name: write @register_module(), or register_module(module=…).")
        if module is not None:
            return self._register(module, name, force)
        return lambda cls: self._register(cls, name, force)

    def _register(self, cls: type, name: str | Sequence[str] | None, force: bool) -> type:
        if not isinstance(cls, type):
            raise HookError(f"{cls!r} can't be registered as a {self._kind}: it isn't a class.")
        names = _names(cls, name)
        for each in names:
            if each in self._classes and not force:
                raise OptionError(
                    f"{_place(cls)} can't be registered as {self._kind} {each!r}: "
                    f"the name is taken by {_place(self._classes[each])}; pass force=True to replace it, or "
                    f"register it in a Registry({self._kind!r}, parent=…) of your own."
                )
        self._classes.update(dict.fromkeys(names, cls))
        return cls

    def get(self, name: str) -> type:
        """Return the class of that name: a child's, else this registry's own, else its parent's.

        Raises:
            OptionError: there is none.
        """
        known = self.known()
        if name not in known:
            near = did_you_mean(str(name), known) or "."
            raise OptionError(f"no {self._kind} is registered as {name!r} among {listed(known)}{near}")
        return known[name]

    def adopt(self, classes: Mapping[str, type]) -> None:
        """Have dicts name *classes*, and those that come to be in it, before this registry's own."""
        self._adopted.append(classes)

    def known(self) -> dict[str, type]:
        """Every class that a dict can name, by name."""
        found = {} if self._parent is None else self._parent.known()
        for classes in (self._classes, *self._adopted):
            found.update(classes)
        return found

    def build(self, cfg: Mapping[str, Any], /, **defaults: Any) -> Any:
        """Construct what a dict describes.

        Args:
            cfg: ``type``, a registered name or a class, and the options of its constructor. It isn't changed.
            **defaults: What holds where *cfg* says nothing; ``type`` too.

        Returns:
            The object. What its constructor raises propagates.

        Raises:
            HookError: *cfg* is not a mapping, or its ``type`` neither a name nor a class.
            OptionError: there is no ``type``, nothing registered under it, or the options aren't the constructor's.
        """
        if not isinstance(cfg, Mapping):
            raise HookError(f"a {self._kind} can be built from a dict with 'type', not from {cfg!r}.")
        options = {**defaults, **cfg}
        if "type" not in options:
            raise OptionError(f"a {self._kind} can't be built from {dict(cfg)!r}: it has no 'type'.")
        kind = options.pop("type")
        if not isinstance(kind, (str, type)):
            raise HookError(f"the 'type' of a {self._kind} is a registered name or a class, not {kind!r}.")
        cls = self.get(kind) if isinstance(kind, str) else kind
        _check_options(cls, options)
        return cls(**options)

    def __contains__(self, name: object) -> bool:
        return name in self._classes

    def __iter__(self) -> Iterator[str]:
        return iter(self._classes)

    def __len__(self) -> int:
        return len(self._classes)


YIELDING_HOOKS = Registry("hook")
"""Built-in hooks whose names stay free: many have a hook of such a name in their own code."""

HOOKS = Registry("hook", parent=YIELDING_HOOKS)
"""The hooks that dicts can name: the built-in ones and whatever ``@HOOKS.register_module()`` adds."""
