"""Settings: defaults, what follows from what, and what is refused."""

from __future__ import annotations

import random
from types import MappingProxyType
from typing import Any

import pytest
import torch
from conftest import MakeRunner
from torch import nn

from eventrunner.errors import OptionError
from eventrunner.session.settings import Randomness, TrainSettings, check_model, check_parameters, compile_options


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"max_epochs": 3}, TrainSettings(True, 3, 1, 1)),
        ({"max_iters": 3}, TrainSettings(False, 3, 1, 1000)),
        ({"by_epoch": True, "max_epochs": 3, "max_iters": None}, TrainSettings(True, 3, 1, 1)),
        ({"by_epoch": False, "max_iters": 9, "val_begin": 0, "val_interval": 4}, TrainSettings(False, 9, 0, 4)),
        (MappingProxyType({"max_epochs": 1}), TrainSettings(True, 1, 1, 1)),
    ],
    ids=str,
)
def test_train_cfg_is_read(given: Any, expected: TrainSettings) -> None:
    """The unit follows from the end; by epoch each is validated, by iteration each thousandth."""
    assert TrainSettings.parse(given) == expected


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"max_epochs": 1.0}, "train_cfg['max_epochs']=1.0 must be an int of 1 or more."),
        ({"max_epochs": True}, "train_cfg['max_epochs']=True must be an int of 1 or more."),
        ({"max_iters": "9"}, "train_cfg['max_iters']='9' must be an int of 1 or more."),
        ({"max_iters": 9, "val_begin": -1}, "train_cfg['val_begin']=-1 must be an int of 0 or more."),
        ({"max_iters": 9, "val_interval": 0}, "train_cfg['val_interval']=0 must be an int of 1 or more."),
        ({}, "train_cfg={} must have one of max_epochs and max_iters."),
        (
            {"by_epoch": 1, "max_epochs": 2},
            "train_cfg={'by_epoch': 1, 'max_epochs': 2}: by_epoch=1 doesn't go with max_epochs.",
        ),
    ],
)
def test_train_cfg_that_can_not_be_is_refused(given: Any, said: str) -> None:
    """Numbers that are none, and a unit that is no flag."""
    with pytest.raises(OptionError) as caught:
        TrainSettings.parse(given)
    assert str(caught.value) == said


def test_a_seed_is_drawn_where_none_is_given() -> None:
    """Another each time, and without moving the global generator."""
    before = random.getstate()
    seeds = {Randomness.parse(given).seed for given in (None, {}, {"seed": None}, {"deterministic": False})}
    assert len(seeds) == 4
    assert random.getstate() == before


def test_the_seed_is_the_given_or_the_known_one() -> None:
    """A run that goes on keeps its seed, unless it is told another."""
    assert Randomness.parse({"seed": 0}, known=7) == Randomness(0, False, False)
    assert Randomness.parse(None, known=7) == Randomness(7, False, False)
    assert Randomness.parse({"seed": 5, "deterministic": True, "diff_rank_seed": True}) == Randomness(5, True, True)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (False, "randomness=False is not a dict; it takes seed, deterministic, diff_rank_seed."),
        ({"seed": -1}, "randomness['seed']=-1 must be an int of 0 or more."),
        ({"seed": True}, "randomness['seed']=True must be an int of 0 or more."),
        ({"seed": 2**64}, f"randomness['seed']={2**64} must be below 2**64."),
        ({"deterministic": "yes"}, "randomness['deterministic']='yes' must be True or False."),
        ({"diff_rank_seed": 1}, "randomness['diff_rank_seed']=1 must be True or False."),
    ],
)
def test_randomness_that_can_not_be_is_refused(given: Any, said: str) -> None:
    """Whatever torch would refuse later, or take for something else."""
    with pytest.raises(OptionError) as caught:
        Randomness.parse(given)
    assert str(caught.value) == said


def test_the_largest_seed_is_one_that_torch_takes() -> None:
    """The bound is torch's own."""
    state = torch.get_rng_state()
    torch.manual_seed(Randomness.parse({"seed": 2**64 - 1}).seed)
    torch.set_rng_state(state)


def test_a_module_is_a_model() -> None:
    """The very object comes back."""
    model = nn.Linear(1, 1)
    assert check_model(model) is model


def test_an_optimizer_of_parts_of_the_model_is_fine() -> None:
    """Frozen parts needn't be in it, tied weights are one, and a model without parameters has none."""
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model[1].weight = model[0].weight
    check_parameters(model, [torch.optim.SGD(model[0].parameters(), lr=0.1)])
    check_parameters(nn.ReLU(), [])


def frozen_body() -> nn.Module:
    """Two layers, the first of which is frozen."""
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model[0].requires_grad_(False)
    return model


def tied() -> nn.Module:
    """Two layers with one weight."""
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2, bias=False))
    model[1].weight = model[0].weight
    return model


@pytest.mark.parametrize(
    ("model", "parts", "said"),
    [
        (
            nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)),
            ["0"],
            "2 of the 4 parameters of Sequential that require gradients are in no optimizer and stay as they are "
            "(1.weight, 1.bias); where that is meant, requires_grad_(False) says so.",
        ),
        (
            nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2)),
            ["2"],
            "4 of the 6 parameters of Sequential that require gradients are in no optimizer and stay as they are "
            "(0.weight, 0.bias, 1.weight, …); where that is meant, requires_grad_(False) says so.",
        ),
        (nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)), ["0", "1"], None),
        (frozen_body(), ["1"], None),
        (tied(), ["0"], None),
    ],
)
def test_parameters_that_no_optimizer_has_are_said_once(
    make_runner: MakeRunner, capsys: pytest.CaptureFixture[str], model: nn.Module, parts: list[str], said: str | None
) -> None:
    """They would never learn; those that are frozen aren't meant to, and several optimizers may share the rest."""
    optimizers = {f"of_{part}": torch.optim.SGD(model.get_submodule(part).parameters(), lr=0.1) for part in parts}

    def step(model: nn.Module, batch: Any, optim_wrapper: Any) -> None:
        for wrapper in optim_wrapper.values():
            wrapper.update_params(model(batch[0]).sum())

    runner = make_runner(model=model, optim_wrapper=optimizers, train_step=step, log_level="WARNING")
    runner.train()
    expected = [] if said is None else [f'reason="{said}"']
    assert [line.partition("event=optimizer ")[2] for line in capsys.readouterr().out.splitlines()] == expected


def test_a_validation_that_never_comes_is_said(make_runner: MakeRunner, capsys: pytest.CaptureFixture[str]) -> None:
    """A trial may be so short; else neither the best nor a plateau would ever be found."""
    make_runner(val=True, train_cfg={"max_epochs": 2, "val_begin": 3}, log_level="WARNING")
    assert 'reason="nothing is validated: the training ends before val_begin=3."' in capsys.readouterr().out
    make_runner(val=True, train_cfg={"max_epochs": 3, "val_begin": 3}, log_level="WARNING")
    assert capsys.readouterr().out == ""


def test_an_optimizer_of_something_else_is_refused() -> None:
    """A loss with parameters of its own would be trained, and lost."""
    model, loss = nn.Linear(1, 1), nn.PReLU()
    with pytest.raises(OptionError, match=r"^1 of the 3 parameters of AdamW are not those of Linear, and wouldn't be"):
        check_parameters(model, [torch.optim.AdamW([*model.parameters(), *loss.parameters()])])


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (False, None),
        (None, None),
        (True, {}),
        ("max-autotune", {"mode": "max-autotune"}),
        ({"backend": "eager"}, {"backend": "eager"}),
    ],
)
def test_compile_takes_what_torch_compile_takes(given: Any, expected: Any) -> None:
    """A flag, a mode, or a dict of options."""
    assert compile_options(given) == expected
