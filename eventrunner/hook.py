"""Hook: an object whose methods are named after sites.

Overriding a method is all there is to it: :func:`connect_hook` connects the overridden ones, so a hook costs nothing
at the sites that it doesn't implement. Names, signatures and helpers are MMEngine's (``mmengine/hooks/hook.py``).
"""

from __future__ import annotations

import functools
import inspect
import itertools
import os
import weakref
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from eventrunner.bus.bus import Bus, Site
from eventrunner.bus.connection import Connection
from eventrunner.bus.options import parse_options
from eventrunner.bus.priority import Priority, get_priority
from eventrunner.bus.signature import Receiver, is_plain, label, where, working_directory
from eventrunner.bus.sites import RUN_SITES
from eventrunner.errors import HookError, OptionError, SignatureError, did_you_mean
from eventrunner.foreign import SITES, private_hint, site_hint

if TYPE_CHECKING:
    from torch import Tensor

    from eventrunner.run import Run

__all__ = ["Hook", "HookHandle", "connect_hook", "options"]

F = TypeVar("F", bound=Callable[..., Any])
Batch = Any
"""What the dataloader yields, on the device: a tensor or any nesting of containers."""

_OPTIONS = "__eventrunner_options__"
_COMMON = {"mutates": None, "ranks": "all", "collective": False}  # of a hook's options, those that its methods share
_PREFIXES = ("before_", "after_", "on_")
_MEANT = {
    "after_save_checkpoint": "after_commit_checkpoint",
    "before_commit_checkpoint": "before_save_checkpoint",
    "before_load_checkpoint": "after_load_checkpoint",
}
_SYNONYMS = {
    "validate": "val",
    "training": "train",
    "valid": "val",
    "validation": "val",
    "eval": "val",
    "evaluation": "val",
    "testing": "test",
    "batch": "iter",
    "step": "iter",
    "iteration": "iter",
}
_FAN_IN = {
    "_before_epoch": ("before_train_epoch", "before_val_epoch", "before_test_epoch"),
    "_after_epoch": ("after_train_epoch", "after_val_epoch", "after_test_epoch"),
    "_before_iter": ("before_train_iter", "before_val_iter", "before_test_iter"),
    "_after_iter": ("after_train_iter", "after_val_iter", "after_test_iter"),
}


def options(**given: Any) -> Callable[[F], F]:
    """Give one method of a hook connection options of its own: ``@options(priority="HIGH", every=10)``.

    They are those of :meth:`Site.connect`. A method's own priority goes before the hook's. On a fan-in method such as
    ``_after_iter`` they hold for all of its sites that the hook doesn't implement by name.

    Raises:
        OptionError: an option that there isn't, or a value that it can't have.
    """

    def mark(method: F) -> F:
        try:
            parse_options(**given)
        except OptionError as error:
            raise OptionError(f"@options on {label(method)} in {where(method)}: {error}") from None
        setattr(method, _OPTIONS, {**getattr(method, _OPTIONS, {}), **given})
        return method

    return mark


class Hook:
    """Base of hooks: override the methods of the sites that concern you.

    ``priority`` (a name, 0–100 or ``Priority``; 0 runs first) holds for all of them, and so do ``mutates``, ``ranks``
    and ``collective``, as in ``Site.connect``. A hook that has a ``state_dict`` and a ``load_state_dict`` is saved with
    every checkpoint and restored on resume. Registered with another Runner that trains, it is put back into the state
    in which it was first registered; what is set after that holds. An override may name fewer arguments than its site
    has; it gets those that it names.
    """

    priority: int | str | Priority = "NORMAL"
    mutates: tuple[str, ...] | None = None
    ranks: str = "all"
    collective: bool = False
    stages: ClassVar[tuple[str, ...]] = tuple(spec.name for spec in RUN_SITES)
    """The sites of a run, in the order in which a run emits them."""

    def check_run(self, runner: Run) -> None:
        """No site: called when the hook is registered, before it is connected; raise where the run doesn't suit it."""

    def forget_run(self) -> None:
        """No site: called before the hook begins in another training Runner than its last; forget what was of that one.

        What its ``state_dict`` tells is put back by itself, as it was when the hook was first registered.
        """

    def own_tensors(self) -> Iterable[Tensor]:
        """No site: tensors of the hook's state that only its own receivers change, which say so with ``mutates``.

        A save may copy them in the background. Other tensors of a hook are copied before training goes on.
        """
        return ()

    def before_run(self, runner: Run) -> None:
        """Before anything else of ``train()``, ``val()`` or ``test()``."""

    def after_load_checkpoint(self, runner: Run, checkpoint: dict[str, Any]) -> None:
        """React to a checkpoint that was read; what is changed in it now is what the run takes from it."""

    def before_train(self, runner: Run) -> None:
        """Before the first epoch, or the one that a resumed run goes on with."""

    def before_train_epoch(self, runner: Run) -> None:
        """Before an epoch's dataloader is asked for its batches."""
        self._before_epoch(runner, mode="train")

    def before_train_iter(self, runner: Run, batch_idx: int, data_batch: Batch = None) -> None:
        """Before a batch goes forward; *batch_idx* counts from 0 in the epoch, or by iterations over the run."""
        self._before_iter(runner, batch_idx=batch_idx, data_batch=data_batch, mode="train")

    def before_optimizer_step(self, runner: Run) -> None:
        """React to gradients that are complete and unscaled, not yet clipped."""

    def after_optimizer_step(self, runner: Run) -> None:
        """React to weights that have changed; the gradients are still there."""

    def after_train_iter(
        self, runner: Run, batch_idx: int, data_batch: Batch = None, outputs: dict[str, Any] | None = None
    ) -> None:
        """After forward, backward and step; *outputs* is what ``train_step`` returned, losses still tensors."""
        self._after_iter(runner, batch_idx=batch_idx, data_batch=data_batch, outputs=outputs, mode="train")

    def after_train_epoch(self, runner: Run) -> None:
        """After the last batch of an epoch and before its validation."""
        self._after_epoch(runner, mode="train")

    def before_val(self, runner: Run) -> None:
        """Before a validation, nested in training or by ``val()``."""

    def before_val_epoch(self, runner: Run) -> None:
        """Before the validation's first batch."""
        self._before_epoch(runner, mode="val")

    def before_val_iter(self, runner: Run, batch_idx: int, data_batch: Batch = None) -> None:
        """Before a validation batch goes forward."""
        self._before_iter(runner, batch_idx=batch_idx, data_batch=data_batch, mode="val")

    def after_val_iter(
        self, runner: Run, batch_idx: int, data_batch: Batch = None, outputs: Sequence[Any] | None = None
    ) -> None:
        """After a validation batch; *outputs* is what ``val_step`` returned."""
        self._after_iter(runner, batch_idx=batch_idx, data_batch=data_batch, outputs=outputs, mode="val")

    def after_val_epoch(self, runner: Run, metrics: dict[str, float] | None = None) -> None:
        """After the validation's last batch; *metrics* by name, without a ``val/`` before it."""
        self._after_epoch(runner, mode="val")

    def after_val(self, runner: Run) -> None:
        """After a validation."""

    def before_save_checkpoint(self, runner: Run, checkpoint: dict[str, Any]) -> None:
        """Before *checkpoint* is saved; what is changed in it now is what is saved. Its tensors are the live ones."""

    def after_commit_checkpoint(self, runner: Run, path: Any, step: int) -> None:
        """React to the checkpoint at *path*, complete and durable, with the state after *step* iterations."""

    def on_log(self, runner: Run, scalars: dict[str, float], step: int) -> None:
        """React to plain floats by key, gathered after *step* iterations: what a tracker wants."""

    def after_train(self, runner: Run) -> None:
        """After training, however it ended: see ``runner.stop_reason``."""

    def before_test(self, runner: Run) -> None:
        """Before a test."""

    def before_test_epoch(self, runner: Run) -> None:
        """Before the test's first batch."""
        self._before_epoch(runner, mode="test")

    def before_test_iter(self, runner: Run, batch_idx: int, data_batch: Batch = None) -> None:
        """Before a test batch goes forward."""
        self._before_iter(runner, batch_idx=batch_idx, data_batch=data_batch, mode="test")

    def after_test_iter(
        self, runner: Run, batch_idx: int, data_batch: Batch = None, outputs: Sequence[Any] | None = None
    ) -> None:
        """After a test batch."""
        self._after_iter(runner, batch_idx=batch_idx, data_batch=data_batch, outputs=outputs, mode="test")

    def after_test_epoch(self, runner: Run, metrics: dict[str, float] | None = None) -> None:
        """After the test's last batch."""
        self._after_epoch(runner, mode="test")

    def after_test(self, runner: Run) -> None:
        """After a test."""

    def on_exception(self, runner: Run, exception: BaseException) -> None:
        """React to *exception*, which the run is failing with and which propagates whatever is done here."""

    def on_receiver_error(self, runner: Run, site: str, error: BaseException) -> None:
        """React to the error of a receiver in a run that was failing already; it goes no further than this."""

    def after_run(self, runner: Run) -> None:
        """Come last of all, on failure too."""

    def _before_epoch(self, runner: Run, mode: str = "train") -> None:
        """Stand for the three ``before_*_epoch`` at once; *mode* is train, val or test."""

    def _after_epoch(self, runner: Run, mode: str = "train") -> None:
        """Stand for the three ``after_*_epoch`` at once."""

    def _before_iter(self, runner: Run, batch_idx: int, data_batch: Batch = None, mode: str = "train") -> None:
        """Stand for the three ``before_*_iter`` at once."""

    def _after_iter(
        self, runner: Run, batch_idx: int, data_batch: Batch = None, outputs: Any = None, mode: str = "train"
    ) -> None:
        """Stand for the three ``after_*_iter`` at once."""

    def every_n_epochs(self, runner: Run, n: int, start: int = 0) -> bool:
        """Return whether the epoch under way is number ``start``, ``start + n``, … counted from 1."""
        ahead = runner.epoch + 1 - start
        return ahead >= 0 and n > 0 and ahead % n == 0

    def every_n_train_iters(self, runner: Run, n: int, start: int = 0) -> bool:
        """Return the same of the iteration under way."""
        ahead = runner.iter + 1 - start
        return ahead >= 0 and n > 0 and ahead % n == 0

    def every_n_iters(self, runner: Run, n: int) -> bool:
        """Return whether the iteration under way is a multiple of *n*, counted from 1 over the whole run."""
        return self.every_n_train_iters(runner, n)

    def every_n_inner_iters(self, batch_idx: int, n: int) -> bool:
        """Return whether the batch is a multiple of *n*, counted from 1 in its epoch."""
        return n > 0 and (batch_idx + 1) % n == 0

    def end_of_epoch(self, dataloader: Any, batch_idx: int) -> bool:
        """Return whether the batch is the last of *dataloader*, which must have a length."""
        return bool(batch_idx + 1 == len(dataloader))

    def is_last_train_epoch(self, runner: Run) -> bool:
        """Return whether the epoch under way is the last one planned."""
        return runner.epoch + 1 == runner.max_epochs

    def is_last_train_iter(self, runner: Run) -> bool:
        """Return whether the iteration under way is the last one planned."""
        return runner.iter + 1 == runner.max_iters

    def get_triggered_stages(self) -> list[str]:
        """Return the sites of a run that this hook implements, in the order of :attr:`stages`."""
        return [name for name in self.stages if _is_method(self, name) and _source(self, name)]


class HookHandle:
    """A registered hook; ``remove()``, or leaving it as a context manager, disconnects all of it."""

    def __init__(self, hook: Any, sender: Any) -> None:
        self.hook, self.sender = hook, sender
        self.removed = False
        self._connected: list[tuple[Site, Receiver, Connection | None]] = []

    @property
    def sites(self) -> tuple[Site, ...]:
        """Where the hook is connected; nowhere once it is removed."""
        return tuple(site for site, _, _ in self._connected)

    def connect(self, site: Site, method: Receiver, connection: Connection) -> None:
        """Connect one method as it was read, to be disconnected with the others."""
        self._connected.append((site, method, site.admit(connection, method, self.sender)))

    def remove(self) -> None:
        """Disconnect every method of the hook from this sender; a second time does nothing."""
        connected, self._connected, self.removed = self._connected, [], True
        for site, method, connection in connected:
            if site.connection(method, self.sender) is connection:  # or else it was registered anew since
                site.disconnect(method, self.sender)

    def __enter__(self) -> HookHandle:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.remove()


def connect_hook(bus: Bus, hook: Any, sender: Any, priority: int | str | Priority | None = None) -> HookHandle:
    """Connect all site methods of *hook* to *sender*'s emissions; either all of them or, on an error, none.

    A method that begins with ``before_``, ``after_`` or ``on_`` and resembles no site declares one, whose payload is
    open.

    Args:
        bus: Where its sites are.
        hook: A ``Hook``, or any object with methods named after sites.
        sender: Whose emissions it hears.
        priority: Instead of ``hook.priority``, which is NORMAL where the hook has none.

    Raises:
        HookError: *hook* is a class, or a method is named almost, but not quite, like a site, or as in another
            framework.
        SignatureError: a method asks for something that its site doesn't offer.
        OptionError: a priority or filter that can't be.
    """
    if isinstance(hook, type):
        raise HookError(f"connecting {hook.__name__}: give an object, as in {hook.__name__}(), not the class.")
    given = {name: getattr(hook, name, default) for name, default in _COMMON.items()}
    common = {"priority": _priority(hook, priority), "label": _name(hook), **given}
    kind, sites = _kind_of(hook), {site.name: site for site in bus}
    _refuse_near_misses(tuple(sites), hook, kind)
    known = kind.connections.setdefault((common["priority"], repr(given), working_directory()), {})
    methods: list[tuple[str, Receiver, Connection]] = []
    for method in kind.methods:
        if method.name in sites or method.name.startswith(_PREFIXES):
            # What isn't there is declared once nothing can be refused any more.
            site = sites[method.name] if method.name in sites else bus.draft(method.name)
            receiver = getattr(hook, method.name)
            methods.append((method.name, receiver, _connection(hook, receiver, method, site, common, known)))
    handle = HookHandle(hook, sender)
    try:
        for name, receiver, connection in methods:
            site = sites[name] if name in sites else bus.site(name, None, f"Declared by {_name(hook)}.")
            handle.connect(site, receiver, connection)
    except BaseException:  # a receiver of receiver_connected failed
        handle.remove()
        raise
    return handle


@dataclass(frozen=True, slots=True)
class _Method:
    """A public method that a hook doesn't merely inherit from ``Hook``.

    ``source`` is the one that has the hook's own code for it, ``options`` are what :func:`options` gave that.
    """

    name: str
    source: str
    options: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class _Kind:
    """What was read of a class of hooks, for all of its objects that have no function of their own among *names*.

    ``contents`` are what the class had then. ``connections`` are those of its methods, by what they depend on besides,
    with nobody as the receiver. None of it holds the class, which may be one of many that are made and dropped.
    """

    contents: Sequence[tuple[str, int]]
    names: frozenset[str]
    methods: Sequence[_Method]
    connections: dict[Hashable, dict[Hashable, Connection]] = field(default_factory=dict)


_kinds: weakref.WeakKeyDictionary[type, _Kind] = weakref.WeakKeyDictionary()


def _kind_of(hook: Any) -> _Kind:
    """Read the methods of *hook*: once for its class, as long as neither that nor the object is changed.

    Raises:
        HookError: a private method is named almost like one that is called, or as one that is in another framework.
        SignatureError: a fan-in method can't take what it is called with.
    """
    cls = type(hook)
    # Without its private names, of which Python adds one when it is asked for annotations.
    contents = [(name, id(own)) for each in cls.__mro__[:-1] for name, own in vars(each).items() if name[:2] != "__"]
    kind = _kinds.get(cls)
    if kind is not None and kind.contents == contents and kind.names.isdisjoint(_own(hook)):
        return kind
    _refuse_uncalled_private(hook)
    methods = [_Method(name, _source(hook, name) or name, _options(hook, name)) for name in _methods(hook)]
    for fan_in in _FAN_IN:
        if any(method.source == fan_in for method in methods):
            _check_fan_in(hook, fan_in)
    names = {name for name in (*dir(cls), *dir(Hook)) if name[:1] != "_" or name in _FAN_IN}
    called = {name for name in names if callable(getattr(cls, name, None)) or callable(getattr(Hook, name, None))}
    kind = _Kind(contents, frozenset(called), methods)
    functions = [value for method in methods for value in method.options.values() if callable(value)]
    if kind.names.isdisjoint(_own(hook)) and not functions:
        _kinds[cls] = kind
    return kind


def _connection(
    hook: Any,
    receiver: Receiver,
    method: _Method,
    site: Site,
    common: Mapping[str, Any],
    known: dict[Hashable, Connection],
) -> Connection:
    """Read a method as a connection to *site*, or take it from one that is *known* of such a hook."""
    fan_in = getattr(hook, method.source) if method.source in _FAN_IN else None
    traits = site.traits
    if traits in known:
        return known[traits].of_another(receiver, fan_in)
    connection = site.check(receiver, **{**common, **method.options})
    if fan_in is not None:  # plans and errors point at the hook's own code, not at Hook's
        connection.location = where(fan_in)
        if _takes_in_order(fan_in, connection.payload or ()):
            connection.shortcut = fan_in, connection.payload or (), method.name.split("_")[1]
    if not connection.is_conditional and connection.task is None:
        known[traits] = connection.of_another(_nobody, _nobody)
    return connection


def _nobody() -> None:
    """Stands for a method of no hook in particular."""


def _takes_in_order(fan_in: Receiver, payload: Sequence[str]) -> bool:
    """Return whether an emission can call it by position, as the method of ``Hook`` that would call it does."""
    parameters = inspect.signature(fan_in).parameters
    by_keyword = any(each.kind is each.KEYWORD_ONLY for each in parameters.values())
    return tuple(parameters) == ("runner", *payload, "mode") and is_plain(fan_in) and not by_keyword


def _methods(hook: Any) -> list[str]:
    names = sorted({*dir(type(hook)), *_own(hook)})
    return [name for name in names if name[:1] != "_" and _source(hook, name) and _is_method(hook, name)]


def _is_method(hook: Any, name: str) -> bool:
    if name in _own(hook) and not hasattr(Hook, name):
        return False  # a function that was given to the hook to keep, whatever it is called
    static = inspect.getattr_static(hook, name)  # doesn't run a property
    return callable(static) or isinstance(static, staticmethod | classmethod | functools.partialmethod)


def _source(hook: Any, name: str) -> str | None:
    """Return the method that has the hook's own code for *name*: that of the name, or the fan-in one behind it."""
    candidates = [name, *(private for private, sites in _FAN_IN.items() if name in sites)]
    return next((candidate for candidate in candidates if _overrides(hook, candidate)), None)


def _overrides(hook: Any, name: str) -> bool:
    return name in _own(hook) or getattr(type(hook), name, None) is not getattr(Hook, name, None)


def _check_fan_in(hook: Any, source: str) -> None:
    """Refuse a fan-in method that can't take, by keyword, what the three site methods behind it pass on."""
    passed = list(inspect.signature(getattr(Hook, source)).parameters)[2:]
    method = getattr(hook, source)
    try:
        inspect.signature(method).bind(None, **dict.fromkeys(passed))
    except TypeError as error:
        raise SignatureError(
            f"{_name(hook)}.{source} in {where(method)} must take runner, {', '.join(passed)}: {error}."
        ) from None


def _own(hook: Any) -> Mapping[str, Any]:
    return getattr(hook, "__dict__", {})


def _options(hook: Any, name: str) -> Mapping[str, Any]:
    source = _source(hook, name) or name
    static = inspect.getattr_static(hook, source)  # a staticmethod that was marked isn't the function that it gives
    found: Mapping[str, Any] = getattr(static, _OPTIONS, None) or getattr(getattr(hook, source), _OPTIONS, {})
    return found


def _priority(hook: Any, priority: int | str | Priority | None) -> int:
    try:
        return get_priority(getattr(hook, "priority", Priority.NORMAL) if priority is None else priority)
    except OptionError as error:
        raise OptionError(f"connecting {_name(hook)}: {error}") from None


def _refuse_near_misses(sites: tuple[str, ...], hook: Any, kind: _Kind) -> None:
    for method in kind.methods:
        reason = "" if method.name in sites else _near_miss(method.name, sites)
        if reason:
            raise HookError(
                f"hook {_name(hook)} has a method {method.name!r} ({where(getattr(hook, method.name))}){reason}"
            )


def _refuse_uncalled_private(hook: Any) -> None:
    for name in dir(type(hook)):
        if name[:1] != "_" or name in _FAN_IN:
            continue
        near = [fan_in for fan_in in _FAN_IN if _is_slip(name, fan_in)]
        if near:
            raise HookError(
                f"hook {_name(hook)} has a method {name!r} ({where(getattr(hook, name))}) that nothing calls; did you "
                f"mean {near[0]!r}?"
            )
    for cls in type(hook).__mro__:
        if cls.__module__.startswith("eventrunner.hooks."):
            _refuse_uncalled(hook, cls)


def _refuse_uncalled(hook: Any, builtin: type) -> None:
    """Refuse what overrides a method of MMEngine's hook of that name, where neither *builtin* nor *hook* calls it."""
    own = list(itertools.takewhile(lambda cls: cls is not builtin, type(hook).__mro__))
    codes = {name: getattr(each, "__code__", None) for cls in own for name, each in vars(cls).items()}
    for name in codes:
        hint = private_hint(builtin.__name__, name)
        if hint and not any(name in code.co_names for each, code in codes.items() if code and each != name):
            raise HookError(
                f"hook {_name(hook)} overrides {builtin.__name__}.{name} ({where(getattr(hook, name))}), which nothing "
                f"calls: {hint}."
            )


@functools.lru_cache(maxsize=1024)
def _near_miss(name: str, sites: tuple[str, ...]) -> str:
    """How the error goes on for a method whose name is a slip or another framework's; empty for an honest one."""
    prefixed = name.startswith(_PREFIXES)
    hint = site_hint(name) if prefixed or name in SITES else None
    if hint:
        return f": {hint}."
    meant = _MEANT.get(name) or "_".join(_SYNONYMS.get(word, word) for word in name.split("_"))
    if meant in sites:
        near = f"; did you mean {meant!r}?"
    elif prefixed:
        # A one-letter slip in the shortest name (on_log) leaves a ratio of 0.83; in longer ones much more, and there
        # a lower bar would take honest names of one's own for slips.
        near = did_you_mean(name, sites, 0.8 if len(name) < 8 else 0.86)
    else:
        # Where the beginning isn't a site's, most names are honest: only what is one slip away isn't.
        near = did_you_mean(name, [site for site in sites if _is_slip(name, site)], 0.0)
    return near and f" that no site calls, and no site of that name is declared{near}"


def _is_slip(name: str, site: str) -> bool:
    """Return whether one letter too many, too few or wrong, or two in the wrong order, make *name* of *site*."""
    if abs(len(name) - len(site)) > 1:  # most pairs, and there are a thousand in a run's hooks
        return False
    start = len(os.path.commonprefix((name, site)))  # noqa: RUF071  # of letters, as is meant here
    name, site = name[start:], site[start:]
    end = len(os.path.commonprefix((name[::-1], site[::-1])))  # noqa: RUF071
    name, site = name[: len(name) - end], site[: len(site) - end]
    return (len(name) <= 1 and len(site) <= 1) or (len(name) == 2 and name == site[::-1])


def _name(hook: Any) -> str:
    return type(hook).__name__
