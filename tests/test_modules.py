"""Watching modules: what goes through chosen layers is emitted on the bus."""

from __future__ import annotations

import copy
import gc
import re
import weakref
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from eventrunner.bus.bus import Bus
from eventrunner.errors import OptionError
from eventrunner.training.modules import watch_modules

Calls = list[Any]


def network() -> nn.Sequential:
    """Two layers in two blocks; ``0.0``, ``0.1``, ``1.0`` and ``1.1`` are the leaves."""
    torch.manual_seed(0)
    blocks = [nn.Sequential(nn.Linear(2, 2), nn.ReLU()), nn.Sequential(nn.Linear(2, 1), nn.Tanh())]
    return nn.Sequential(*blocks)


def hooks_on(model: nn.Module) -> int:
    """How many hooks of torch's there are on it."""
    tables = ("_forward_pre_hooks", "_forward_hooks", "_backward_hooks", "_backward_pre_hooks")
    return sum(len(getattr(module, table)) for module in model.modules() for table in tables)


def test_a_watched_module_emits_before_and_after_its_forward(bus: Bus) -> None:
    """With its name, itself, its inputs as a tuple, and its outputs."""
    model, calls = network(), Calls()
    bus.before_forward.connect(lambda runner, name, module, inputs: calls.append((runner, name, module, inputs)))
    bus.after_forward.connect(lambda runner, outputs, inputs: calls.append((runner, outputs, inputs)))
    sample = torch.ones(1, 2)
    with watch_modules(model, "0.0", bus=bus):
        model(sample)
    layer = model[0][0]
    ((runner, name, module, inputs), (sender, outputs, same)) = calls
    assert (runner, name, module) == (model, "0.0", layer)
    assert sender is model
    assert inputs[0] is same[0] is sample
    assert torch.equal(outputs, layer(sample))


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("*", ["", "0", "0.0", "0.1", "1", "1.0", "1.1"]),
        ("*.0", ["0.0", "1.0"]),
        ("0*", ["0", "0.0", "0.1"]),
        ("?", ["0", "1"]),
        ("1.[0-9]", ["1.0", "1.1"]),
        ("", [""]),
    ],
)
def test_a_pattern_chooses_modules_by_name(bus: Bus, pattern: str, names: list[str]) -> None:
    """A star matches dots, and the model itself has the empty name; the innermost is done first."""
    model, calls = network(), Calls()
    bus.before_forward.connect(lambda name: calls.append(name))
    with watch_modules(model, pattern, bus=bus) as watch:
        model(torch.ones(1, 2))
    assert watch.names == tuple(names)
    assert calls == names


def test_backward_emits_gradients_of_inputs_and_outputs(bus: Bus) -> None:
    """As tuples, from the last layer to the first."""
    model, calls = network(), Calls()
    bus.after_backward.connect(
        lambda name, module, grad_inputs, grad_outputs: calls.append((name, module, grad_inputs, grad_outputs))
    )
    with watch_modules(model, "*.0", bus=bus, backward=True):
        model(torch.ones(1, 2, requires_grad=True)).sum().backward()
    (second, first) = calls
    assert [(name, module) for name, module, *_ in calls] == [("1.0", model[1][0]), ("0.0", model[0][0])]
    assert torch.equal(first[2][0], first[3][0] @ model[0][0].weight)
    assert torch.equal(second[2][0], second[3][0] @ model[1][0].weight)
    assert torch.equal(first[3][0].sum(0), model[0][0].bias.grad)


def test_the_gradients_of_a_watched_model_are_those_of_an_unwatched_one(bus: Bus) -> None:
    """To the bit: watching changes nothing."""
    gradients = []
    for watched in (False, True):
        model = network()
        if watched:
            for site in (bus.before_forward, bus.after_forward, bus.after_backward):
                site.connect(lambda: None)
            watch_modules(model, bus=bus, backward=True)
        model(torch.ones(3, 2, requires_grad=True)).sum().backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    assert all(torch.equal(plain, watched) for plain, watched in zip(*gradients, strict=True))


def test_a_deep_copy_of_a_watched_module_is_not_watched(bus: Bus) -> None:
    """An averaged model takes the hooks along, and emits nothing in the name of the original."""
    model, calls = network(), Calls()
    bus.after_forward.connect(lambda name: calls.append(name))
    with watch_modules(model, "0.0", bus=bus):
        copied = copy.deepcopy(model)
        copied(torch.ones(1, 2))
        assert calls == []
        model(torch.ones(1, 2))
    assert calls == ["0.0"]


def test_what_is_passed_by_keyword_is_seen(bus: Bus) -> None:
    """Inputs by position, and kwargs by name."""
    linear, calls = torch.nn.Linear(2, 2), Calls()
    bus.before_forward.connect(lambda inputs, kwargs: calls.append((len(inputs), list(kwargs))))
    with watch_modules(linear, "", bus=bus):
        linear(input=torch.ones(1, 2))
    assert calls == [(0, ["input"])]


def test_without_backward_no_backward_hook_is_set(bus: Bus) -> None:
    """It would cost every pass."""
    model = network()
    watch_modules(model, "0.0", bus=bus)
    assert (hooks_on(model), len(model[0][0]._backward_hooks)) == (2, 0)


def test_removing_leaves_nothing_behind(bus: Bus) -> None:
    """On the model or on the bus; a second time does nothing."""
    model, calls = network(), Calls()
    bus.after_forward.connect(lambda name: calls.append(name))
    watch = watch_modules(model, bus=bus, backward=True)
    assert hooks_on(model) == 21
    watch.remove()
    watch.remove()
    model(torch.ones(1, 2))
    assert (hooks_on(model), calls) == (0, [])


def test_a_removed_watch_keeps_neither_model_nor_sender(bus: Bus) -> None:
    """They are collected as if they had never been watched."""
    model = network()
    bus.after_forward.connect(lambda name: None)
    with watch_modules(model, bus=bus):
        model(torch.ones(1, 2))
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None


def test_removing_takes_away_no_hook_of_others(bus: Bus) -> None:
    """Nor another watch."""
    model, calls = network(), Calls()
    model[0].register_forward_hook(lambda module, inputs, outputs: calls.append("own"))
    bus.after_forward.connect(lambda name: calls.append(name))
    with watch_modules(model, "0", bus=bus), watch_modules(model, "1", bus=bus) as second:
        second.remove()
        model(torch.ones(1, 2))
    assert calls == ["own", "0"]


def test_a_receiver_may_remove_the_watch_that_called_it(bus: Bus) -> None:
    """What has begun is finished, then it is over."""
    model, calls = network(), Calls()
    watch = watch_modules(model, "?", bus=bus)

    @bus.on("before_forward")
    def once(name: str) -> None:
        calls.append(name)
        watch.remove()

    model(torch.ones(1, 2))
    model(torch.ones(1, 2))
    assert calls == ["0"]
    assert hooks_on(model) == 0


def test_a_watch_is_removed_on_an_error(bus: Bus) -> None:
    """As a context manager should."""
    model = network()
    with pytest.raises(ValueError, match="stop"), watch_modules(model, bus=bus):
        raise ValueError("stop")
    assert hooks_on(model) == 0


def test_the_sender_is_the_one_given(bus: Bus) -> None:
    """A run's receivers hear the model that it watches, and no other run's do."""
    model, calls = network(), Calls()
    bus.after_forward.connect(lambda runner: calls.append(runner), "run")
    bus.after_forward.connect(lambda: calls.append("never"), "another run")
    with watch_modules(model, "0", bus=bus, sender="run"):
        model(torch.ones(1, 2))
    assert calls == ["run"]


def test_a_receiver_may_be_connected_while_the_modules_are_watched(bus: Bus) -> None:
    """Before it, a pass costs a truth test."""
    model, calls = network(), Calls()
    with watch_modules(model, "0", bus=bus):
        model(torch.ones(1, 2))
        with bus.after_forward.connected_to(lambda outputs: calls.append(outputs.shape)):
            model(torch.ones(1, 2))
        model(torch.ones(1, 2))
    assert calls == [(1, 2)]


def test_what_a_receiver_returns_doesnt_replace_the_outputs(bus: Bus) -> None:
    """Torch's own hooks replace them by what they return."""
    model = network()
    expected = model(torch.ones(1, 2))
    bus.before_forward.connect(lambda inputs: (torch.zeros(1, 2),))
    bus.after_forward.connect(lambda outputs: outputs * 2)
    with watch_modules(model, bus=bus):
        assert torch.equal(model(torch.ones(1, 2)), expected)


def test_an_error_in_a_receiver_leaves_the_forward_with_its_note(bus: Bus) -> None:
    """One can stop at the first bad activation."""

    def fails(name: str) -> None:
        raise FloatingPointError(name)

    model = network()
    bus.after_forward.connect(fails)
    with watch_modules(model, "1.0", bus=bus), pytest.raises(FloatingPointError, match=r"^1\.0") as caught:
        model(torch.ones(1, 2))
    place = f"tests/test_modules.py:{fails.__code__.co_firstlineno}"
    assert caught.value.__notes__ == [f"raised by receiver fails ({place}) at 'after_forward'"]


def test_a_module_with_two_names_is_found_by_both_and_watched_once(bus: Bus) -> None:
    """Tied layers: torch lists such a module under its first name only."""
    model = nn.ModuleDict({"encoder": nn.Linear(2, 2)})
    model["decoder"] = model["encoder"]
    calls = Calls()
    bus.before_forward.connect(lambda name: calls.append(name))
    with watch_modules(model, "dec*", bus=bus):
        model["encoder"](torch.ones(1, 2))
    with watch_modules(model, "*coder", bus=bus):
        model["encoder"](torch.ones(1, 2))
    assert calls == ["decoder", "encoder"]


class Split(nn.Module):
    """Returns a dict, and takes a keyword."""

    def forward(self, x: Tensor, *, scale: float = 1.0) -> dict[str, Tensor]:
        return {"x": x * scale}


def test_outputs_are_whatever_the_module_returns_and_inputs_are_positional(bus: Bus) -> None:
    """As with torch's own hooks."""
    calls = Calls()
    bus.after_forward.connect(lambda inputs, outputs: calls.append((len(inputs), list(outputs))))
    model = Split()
    with watch_modules(model, bus=bus):
        model(torch.ones(1), scale=2.0)
        model(x=torch.ones(1))
    assert calls == [(1, ["x"]), (0, ["x"])]


def test_the_sites_are_declared_on_a_bus_that_lacks_them() -> None:
    """A bus of one's own serves too, and the error comes neither late nor ever."""
    bus, model, calls = Bus(()), network(), Calls()
    with watch_modules(model, "0", bus=bus):
        bus.after_forward.connect(lambda name: calls.append(name))
        model(torch.ones(1, 2))
    assert [site.name for site in bus] == ["before_forward", "after_forward", "after_backward"]
    assert calls == ["0"]


@pytest.mark.parametrize(
    ("pattern", "ending"),
    [
        ("0.2", "; did you mean '0.1'?"),
        ("layers.*", "."),
    ],
)
def test_a_pattern_that_matches_nothing_is_refused(bus: Bus, pattern: str, ending: str) -> None:
    """It would watch nothing for ever; nothing was registered."""
    model = network()
    message = f"watching {pattern!r}: Sequential has no such module{ending}"
    with pytest.raises(OptionError, match=f"^{re.escape(message)}$"):
        watch_modules(model, pattern, bus=bus)
    assert hooks_on(model) == 0


def test_a_watch_that_torch_refuses_leaves_nothing_behind(bus: Bus) -> None:
    """A module with a backward hook of the old kind takes no full one."""
    model = network()
    model[1][0].register_backward_hook(lambda module, grad_inputs, grad_outputs: None)
    with pytest.raises(RuntimeError, match="Cannot use both regular backward hooks and full backward hooks"):
        watch_modules(model, "*.0", bus=bus, backward=True)
    assert hooks_on(model) == 1
