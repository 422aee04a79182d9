"""The registry: hooks that are named in dicts."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import pytest

from eventrunner.errors import HookError, OptionError
from eventrunner.registry import HOOKS, Registry


class CheckpointHook:
    """Stands for a hook with options."""

    def __init__(self, interval: int = 1, *, by_epoch: bool = True) -> None:
        self.interval, self.by_epoch = interval, by_epoch


class EarlyStoppingHook:
    """Stands for a hook with an option that it can't do without."""

    def __init__(self, monitor: str, /, patience: int = 5) -> None:
        self.monitor = monitor


class PlainHook:
    """Stands for a hook without options."""


class OpenHook:
    """Stands for a hook that passes its options on."""

    def __init__(self, *args: Any, **options: Any) -> None:
        self.options = options


class FailingHook:
    """Stands for a hook whose constructor refuses."""

    def __init__(self, interval: int) -> None:
        raise ZeroDivisionError(f"interval {interval}")


class UnreadableHook:
    """Stands for a class written in C, whose signature can't be read."""

    __signature__ = "none"

    def __init__(self, **options: Any) -> None:
        self.options = options


@pytest.fixture
def hooks() -> Registry:
    """A registry of one's own with the classes of this file."""
    registry = Registry("hook")
    for cls in (CheckpointHook, EarlyStoppingHook, PlainHook, OpenHook, FailingHook, UnreadableHook):
        registry.register_module(module=cls)
    return registry


def test_the_decorator_registers_a_class_under_its_own_name_and_returns_it() -> None:
    """`@register_module()` leaves the class what it is."""
    registry = Registry("hook")

    @registry.register_module()
    class MyHook:
        pass

    assert registry.get("MyHook") is MyHook
    assert list(registry) == ["MyHook"]


def test_an_existing_class_can_be_registered() -> None:
    """`register_module(module=…)` is the form without a decorator, and returns the class as well."""
    registry = Registry("hook")

    assert registry.register_module(module=PlainHook) is PlainHook
    assert registry.register_module(name="Other", module=PlainHook) is PlainHook

    assert list(registry) == ["PlainHook", "Other"]


def test_a_class_can_have_another_name() -> None:
    """With `name=` the class isn't found under its own."""
    registry = Registry("hook")

    registry.register_module(name="Saver")(CheckpointHook)

    assert "Saver" in registry
    assert "CheckpointHook" not in registry


def test_a_class_can_have_several_names() -> None:
    """A list of names registers the class under each."""
    registry = Registry("hook")

    registry.register_module(["Saver", "Keeper"])(CheckpointHook)

    assert registry.get("Saver") is registry.get("Keeper") is CheckpointHook
    assert len(registry) == 2


def test_a_taken_name_names_both_places() -> None:
    """Registering twice says who asks and who has the name."""
    registry = Registry("hook")
    registry.register_module(name="Saver", module=CheckpointHook)

    with pytest.raises(OptionError) as caught:
        registry.register_module(name="Saver", module=PlainHook)

    assert str(caught.value) == (
        f"{__name__}.PlainHook can't be registered as hook 'Saver': "
        f"the name is taken by {__name__}.CheckpointHook; pass force=True to replace it, "
        "or register it in a Registry('hook', parent=…) of your own."
    )


def test_force_replaces_a_class() -> None:
    """With `force=True` the later class has the name."""
    registry = Registry("hook")
    registry.register_module(name="Saver", module=CheckpointHook)

    registry.register_module(name="Saver", force=True, module=PlainHook)

    assert registry.get("Saver") is PlainHook


def test_a_taken_name_among_several_registers_none_of_them() -> None:
    """A registration that fails half-way leaves nothing behind."""
    registry = Registry("hook")
    registry.register_module(name="Keeper", module=CheckpointHook)

    with pytest.raises(OptionError, match="'Keeper'"):
        registry.register_module(name=["Saver", "Keeper"], module=PlainHook)

    assert list(registry) == ["Keeper"]


def test_the_decorator_without_parentheses_is_refused() -> None:
    """A forgotten pair of parentheses must not turn the class into a decorator."""
    registry = Registry("hook")

    with pytest.raises(HookError, match=r"^<class '.*PlainHook'> can't be a name: write @register_module\(\), or "):
        registry.register_module(PlainHook)  # type: ignore[call-overload]

    assert len(registry) == 0


def test_only_classes_can_be_registered() -> None:
    """A function or an instance is refused."""
    with pytest.raises(HookError, match=r"^<built-in function print> can't be registered as a hook: it isn't a class"):
        Registry("hook").register_module()(print)  # type: ignore[type-var]


@pytest.mark.parametrize("name", ["", [], [""], [3], ("A", "")])
def test_a_name_must_be_a_string_with_something_in_it(name: Any) -> None:
    """An empty name, no name at all and a number are refused."""
    with pytest.raises(OptionError, match=r"PlainHook can't be registered under .*: a name is a str that isn't empty"):
        Registry("hook").register_module(name=name, module=PlainHook)


def test_an_unknown_name_is_answered_with_the_nearest_and_with_all(hooks: Registry) -> None:
    """A misspelt type shows the right one."""
    with pytest.raises(OptionError) as caught:
        hooks.get("ChekpointHook")

    assert str(caught.value) == (
        "no hook is registered as 'ChekpointHook' among CheckpointHook, EarlyStoppingHook, PlainHook, OpenHook, "
        "FailingHook, UnreadableHook; did you mean 'CheckpointHook'?"
    )


def test_an_unknown_name_in_an_empty_registry_is_answered_too() -> None:
    """There is a sentence even where there is nothing to list."""
    with pytest.raises(OptionError, match=r"^no metric is registered as 'X' among nothing\.$"):
        Registry("metric").get("X")


def test_a_dict_is_built_by_name(hooks: Registry) -> None:
    """`type` is the class, the rest goes to its constructor."""
    hook = hooks.build({"type": "CheckpointHook", "interval": 3, "by_epoch": False})

    assert type(hook) is CheckpointHook
    assert (hook.interval, hook.by_epoch) == (3, False)


def test_a_dict_is_built_by_class() -> None:
    """A class needs no registration to be built."""
    assert Registry("hook").build({"type": CheckpointHook, "interval": 3}).interval == 3


def test_defaults_hold_where_the_dict_says_nothing(hooks: Registry) -> None:
    """The dict goes before the defaults, for `type` as for options."""
    hook = hooks.build({"interval": 3}, type="CheckpointHook", interval=1, by_epoch=False)

    assert type(hook) is CheckpointHook
    assert (hook.interval, hook.by_epoch) == (3, False)


@pytest.mark.parametrize("cfg", [{"type": "CheckpointHook", "interval": 3}, {"type": "CheckpointHook", "inteval": 3}])
def test_the_dict_of_the_caller_is_not_changed(hooks: Registry, cfg: dict[str, Any]) -> None:
    """A dict can be built from twice, also after a failure."""
    before = dict(cfg)

    for _ in range(2):
        try:
            hooks.build(cfg, by_epoch=False)
        except OptionError:
            assert "inteval" in cfg

    assert cfg == before


def test_any_mapping_can_be_built_from(hooks: Registry) -> None:
    """A mapping that can't be written to does as well as a dict."""
    cfg: Mapping[str, Any] = MappingProxyType({"type": "PlainHook"})

    assert type(hooks.build(cfg)) is PlainHook


def test_a_class_that_takes_everything_gets_everything(hooks: Registry) -> None:
    """A constructor with `**options` is asked itself."""
    assert hooks.build({"type": "OpenHook", "anything": 1}).options == {"anything": 1}


def test_a_class_whose_signature_cannot_be_read_gets_everything(hooks: Registry) -> None:
    """What can't be checked isn't refused."""
    assert hooks.build({"type": "UnreadableHook", "anything": 1}).options == {"anything": 1}


def test_an_error_of_the_constructor_propagates_unchanged(hooks: Registry) -> None:
    """The registry adds nothing to what a class itself raises."""
    with pytest.raises(ZeroDivisionError, match=r"^interval 3$") as caught:
        hooks.build({"type": "FailingHook", "interval": 3})

    assert caught.value.__cause__ is None


@pytest.mark.parametrize(
    ("cfg", "message"),
    [
        ({"type": "CheckpointHook", "inteval": 3}, "CheckpointHook has no option 'inteval'; did you mean 'interval'?"),
        ({"type": "CheckpointHook", "qqq": 3}, "CheckpointHook has no option 'qqq'; it takes interval, by_epoch."),
        ({"type": "PlainHook", "interval": 3}, "PlainHook has no option 'interval'; it takes no options."),
        ({"type": "FailingHook"}, "FailingHook can't be built without its option 'interval'."),
        ({"type": "EarlyStoppingHook"}, "EarlyStoppingHook can't be built without its option 'monitor'."),
        ({"interval": 3}, "a hook can't be built from {'interval': 3}: it has no 'type'."),
        ({"type": "Plane"}, "no hook is registered as 'Plane' among "),
    ],
)
def test_a_dict_that_cannot_be_built_is_an_option_error(hooks: Registry, cfg: dict[str, Any], message: str) -> None:
    """Options are compared with the constructor's signature before it is called."""
    with pytest.raises(OptionError) as caught:
        hooks.build(cfg)

    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    ("cfg", "message"),
    [
        (CheckpointHook, f"a hook can be built from a dict with 'type', not from {CheckpointHook!r}."),
        ("CheckpointHook", "a hook can be built from a dict with 'type', not from 'CheckpointHook'."),
        ({"type": 3}, "the 'type' of a hook is a registered name or a class, not 3."),
        ({"type": print}, "the 'type' of a hook is a registered name or a class, not <built-in function print>."),
    ],
)
def test_what_is_not_a_description_is_a_type_error(hooks: Registry, cfg: Any, message: str) -> None:
    """Anything but a mapping with a name or a class is a `HookError`, which is a `TypeError`."""
    with pytest.raises(TypeError) as caught:
        hooks.build(cfg)

    assert isinstance(caught.value, HookError)
    assert str(caught.value) == message


def test_a_class_named_like_a_parents_is_found_by_the_parents_dicts() -> None:
    """A registry of one's own takes nobody's name away: beside it the parent's class has it still."""
    parent, other = Registry("hook"), Registry("hook")
    for registry in (parent, other):
        registry.register_module(module=CheckpointHook)
    own = Registry("hook", parent=parent)
    own.register_module(name="CheckpointHook", module=OpenHook)
    own.register_module(module=PlainHook)

    assert parent.get("CheckpointHook") is own.get("CheckpointHook") is OpenHook
    assert isinstance(parent.build({"type": "PlainHook"}), PlainHook)
    assert other.get("CheckpointHook") is CheckpointHook
    assert (len(parent), "PlainHook" in parent) == (1, False)


def test_a_child_finds_what_its_parent_has() -> None:
    """And says of all of them what there is."""
    parent = Registry("hook")
    parent.register_module(module=CheckpointHook)
    own = Registry("hook", parent=parent)
    own.register_module(module=PlainHook)

    assert own.get("CheckpointHook") is CheckpointHook
    with pytest.raises(OptionError, match="no hook is registered as 'PlaneHook' among CheckpointHook, PlainHook; did"):
        own.get("PlaneHook")


def test_the_shipped_registry_is_of_hooks() -> None:
    """`HOOKS` speaks of hooks."""
    with pytest.raises(OptionError, match=r"^no hook is registered as 'NoSuchThingAtAll'"):
        HOOKS.get("NoSuchThingAtAll")


def test_the_registry_does_not_import_torch() -> None:
    """Dicts of hooks can be looked at where there is no torch."""
    code = "import sys, eventrunner.registry, eventrunner.foreign; sys.exit('torch' in sys.modules)"

    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
