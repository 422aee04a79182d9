"""Wrong arguments: each is refused when the Runner is made, in one sentence, and nothing has been written by then."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import MeanSquaredError, batches, linear, options, train_step, val_step
from torch import nn
from torch.optim.lr_scheduler import ReduceLROnPlateau, StepLR

from eventrunner import foreign
from eventrunner.bus.bus import Bus
from eventrunner.errors import ArgumentError, CheckpointNotFoundError, EventRunnerError, HookError, OptionError
from eventrunner.hook import Hook
from eventrunner.hooks import CheckpointHook
from eventrunner.runner import Runner
from eventrunner.training.optim import OptimWrapper

ALL = ", ".join(Runner.__init__.__kwdefaults__)
ALL_TRAIN = "by_epoch, max_epochs, max_iters, val_begin, val_interval"
SIX = "runtime_info, timer, sampler_seed, logger, param_scheduler, checkpoint"


class Unhearing(Hook):
    """Its method is misspelt."""

    def after_train_epochs(self, runner: Runner) -> None:
        raise AssertionError


def of_model(build: Callable[[nn.Module], dict[str, Any]]) -> Callable[[], dict[str, Any]]:
    """Arguments that go with a model of their own."""

    def arguments() -> dict[str, Any]:
        model = linear()
        return {"model": model, **build(model)}

    return arguments


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    """An optimizer of the model."""
    return torch.optim.SGD(model.parameters(), lr=0.1)


def scheduled(build: Callable[[torch.optim.Optimizer], Any], **more: Any) -> Callable[[], dict[str, Any]]:
    """Arguments with a schedule of their optimizer."""

    def arguments() -> dict[str, Any]:
        model = linear()
        optimizer = sgd(model)
        return {"model": model, "optimizer": optimizer, "param_scheduler": build(optimizer), **more}

    return arguments


def no_training() -> dict[str, Any]:
    """Nothing of what a training needs."""
    return {"train_dataloader": None, "train_cfg": None, "optimizer": None}


def with_val(**changes: Any) -> dict[str, Any]:
    """All that a validation needs, changed."""
    return {
        "val_dataloader": batches(1),
        "val_evaluator": {"mse": MeanSquaredError()},
        "val_step": val_step,
        **changes,
    }


def yields(model: Any, batch: Any) -> Any:
    """A step of which nothing would run."""
    yield 1


async def waits(model: Any, batch: Any) -> Any:
    """Another."""


def three_arguments(model: Any, batch: Any, extra: Any) -> Any:
    """A step that wants more than there is."""
    raise AssertionError


CASES: dict[str, tuple[Any, str]] = {
    # the model
    "no model": (
        lambda: {"model": 3},
        "Runner(model=3): the model must be a torch.nn.Module.",
    ),
    "a class": (
        lambda: {"model": nn.Linear},
        "Runner(model=…) was given the class Linear; pass an object: Linear(…).",
    ),
    # what a training needs
    "no loader": (
        lambda: {"train_dataloader": None},
        "train_cfg, optimizer given without train_dataloader: training needs all three.",
    ),
    "no optimizer": (
        lambda: {"optimizer": None},
        "train_dataloader, train_cfg given without optimizer: training needs all three.",
    ),
    "only a scheduler": (
        scheduled(lambda optimizer: StepLR(optimizer, 1), train_dataloader=None, train_cfg=None),
        "optimizer given without train_dataloader, train_cfg: training needs all three.",
    ),
    "nothing but a scheduler": (
        lambda: {**no_training(), "param_scheduler": StepLR(sgd(linear()), 1)},
        "param_scheduler given without train_dataloader, train_cfg, optimizer: training needs all three.",
    ),
    "two optimizers": (
        of_model(lambda model: {"optimizer": sgd(model), "optim_wrapper": OptimWrapper(sgd(model))}),
        "a training takes either optim_wrapper= or optimizer=; both were given.",
    ),
    "an optimizer of another model": (
        lambda: {"optimizer": sgd(linear())},
        "2 of the 2 parameters of SGD are not those of Linear, and wouldn't be saved with it; make the optimizer of "
        "model.parameters(), and whatever else is trained a part of the model.",
    ),
    "no train_step": (
        lambda: {"train_step": None},
        "training needs train_step=f(model, batch) that returns a dict with 'loss', or a model with a "
        "train_step(batch) method, which Linear doesn't have.",
    ),
    "a train_step of three arguments": (
        lambda: {"train_step": three_arguments},
        f"train_step(model: 'Any', batch: 'Any', extra: 'Any') -> 'Any' in {__file__}:"
        f"{three_arguments.__code__.co_firstlineno} can't be called with (model, batch): missing a required argument: "
        "'extra'.",
    ),
    "a train_step with a yield": (
        lambda: {"train_step": yields},
        f"train_step in {__file__}:{yields.__code__.co_firstlineno} gives a generator, of which nothing runs until it "
        "is driven; write a plain function that returns its result.",
    ),
    "an async train_step": (
        lambda: {"train_step": functools.partial(waits)},
        f"train_step in {__file__}:{waits.__code__.co_firstlineno} gives a coroutine, of which nothing runs until it "
        "is driven; write a plain function that returns its result.",
    ),
    "a val_step with a yield": (
        lambda: with_val(val_step=yields),
        f"val_step in {__file__}:{yields.__code__.co_firstlineno} gives a generator, of which nothing runs until it "
        "is driven; write a plain function that returns its result.",
    ),
    "several optimizers without a step for them": (
        of_model(lambda model: {"optimizer": None, "optim_wrapper": {"only": sgd(model)}}),
        "several optimizers need a train_step(model, batch, optim_wrapper) that calls "
        "optim_wrapper[name].update_params(loss) for each.",
    ),
    "a loader's config": (
        lambda: {"train_dataloader": {"batch_size": 2}},
        "train_dataloader was given a dict; pass the object, such as a torch.utils.data.DataLoader.",
    ),
    "a generator": (
        lambda: {"train_dataloader": (batch for batch in batches(2))},
        "train_dataloader was given a generator, which one pass uses up; pass an iterable that begins anew, such as a "
        "DataLoader or a list of batches.",
    ),
    # train_cfg
    "train_cfg of no kind": (
        lambda: {"train_cfg": 3},
        f"train_cfg=3 is not a dict; it takes {ALL_TRAIN}.",
    ),
    "train_cfg misspelt": (
        lambda: {"train_cfg": {"max_epoch": 3}},
        f"train_cfg has no key 'max_epoch'; it takes {ALL_TRAIN}; did you mean 'max_epochs'?",
    ),
    "train_cfg with MMEngine's type": (
        lambda: {"train_cfg": {"type": "EpochBasedTrainLoop", "max_epochs": 3}},
        f"train_cfg has no key 'type'; it takes {ALL_TRAIN}.",
    ),
    "no end": (
        lambda: {"train_cfg": {"by_epoch": True}},
        "train_cfg={'by_epoch': True} must have one of max_epochs and max_iters.",
    ),
    "two ends": (
        lambda: {"train_cfg": {"max_epochs": 1, "max_iters": 2}},
        "train_cfg={'max_epochs': 1, 'max_iters': 2} must have one of max_epochs and max_iters.",
    ),
    "the other unit": (
        lambda: {"train_cfg": {"by_epoch": False, "max_epochs": 1}},
        "train_cfg={'by_epoch': False, 'max_epochs': 1}: by_epoch=False doesn't go with max_epochs.",
    ),
    "no epoch": (
        lambda: {"train_cfg": {"max_epochs": 0}},
        "train_cfg['max_epochs']=0 must be an int of 1 or more.",
    ),
    # evaluation
    "no val_step": (
        lambda: with_val(val_step=None),
        "val_dataloader is given without val_step: pass val_step=f(model, batch) that returns what the metrics' "
        "update takes, or give Linear a val_step(batch) method.",
    ),
    "a val_step of one argument": (
        lambda: with_val(val_step=lambda batch: batch),
        f"val_step(batch) in {__file__}:LINE can't be called with (model, batch): too many positional arguments.",
    ),
    "a val_step that is none": (
        lambda: with_val(val_step=3),
        "val_step=3 can't be called; give a function of (model, batch).",
    ),
    "no val_evaluator": (
        lambda: with_val(val_evaluator=None),
        "val_dataloader is given without val_evaluator, as in {'accuracy': metric}.",
    ),
    "no val_dataloader": (
        lambda: with_val(val_dataloader=None),
        "val_evaluator is given without val_dataloader: there is nothing to evaluate.",
    ),
    "a val_dataloader of no kind": (
        lambda: with_val(val_dataloader=3),
        "val_dataloader was given an object of type int, which can't be iterated over; pass an iterable of batches, "
        "such as a DataLoader.",
    ),
    "no test_evaluator": (
        lambda: {"test_dataloader": batches(1)},
        "test_dataloader is given without test_evaluator, as in {'accuracy': metric}.",
    ),
    "no test_dataloader": (
        lambda: {"test_evaluator": {"mse": MeanSquaredError()}},
        "test_evaluator is given without test_dataloader: there is nothing to evaluate.",
    ),
    "a metric that is none": (
        lambda: with_val(val_evaluator={"mse": 3}),
        "the evaluator's 'mse' is of type int, which has no update, compute, reset; a metric has update, compute and "
        "reset.",
    ),
    # schedules
    "a scheduler's config": (
        lambda: {"param_scheduler": {"type": "StepLR", "step_size": 1}},
        "param_scheduler={'type': 'StepLR', 'step_size': 1}: give torch's object, as in "
        "dict(scheduler=torch.optim.lr_scheduler.StepLR(optimizer, 10), by_epoch=True).",
    ),
    "a scheduler of another optimizer": (
        lambda: {"param_scheduler": StepLR(sgd(linear()), 1)},
        "param_scheduler StepLR drives another optimizer than the one that this run steps.",
    ),
    "a plateau without a validation": (
        scheduled(lambda optimizer: {"scheduler": ReduceLROnPlateau(optimizer), "monitor": "mse"}),
        "param_scheduler ReduceLROnPlateau follows a metric of the validation: give val_dataloader and val_evaluator.",
    ),
    "a plateau that follows a misspelt metric": (
        scheduled(lambda optimizer: {"scheduler": ReduceLROnPlateau(optimizer), "monitor": "mes"}, **with_val()),
        "param_scheduler monitor='mes': the evaluator reports 'mse'; did you mean 'mse'?",
    ),
    # hooks
    "custom_hooks that are no list": (
        lambda: {"custom_hooks": {"type": "EMAHook"}},
        "custom_hooks={'type': 'EMAHook'} is not a list; write custom_hooks=[…].",
    ),
    "custom_hooks that are a number": (
        lambda: {"custom_hooks": 3},
        "custom_hooks=3 is not a list; write custom_hooks=[…].",
    ),
    "a hook that is none": (
        lambda: {"custom_hooks": [3]},
        "registering 3: a hook is an instance of Hook or a dict with its type and options.",
    ),
    "a misspelt hook": (
        lambda: {"custom_hooks": [{"type": "EMAHok"}]},
        "did you mean 'EMAHook'?",
    ),
    "a misspelt option of a hook": (
        lambda: {"default_hooks": {"checkpoint": {"intervall": 2}}},
        "CheckpointHook has no option 'intervall'; did you mean 'interval'?",
    ),
    "a misspelt method of a hook": (
        lambda: {"custom_hooks": [Unhearing()]},
        "did you mean 'after_train_epoch'?",
    ),
    "default_hooks that are no dict": (
        lambda: {"default_hooks": [1]},
        "default_hooks=[1] is not a dict; write default_hooks=dict(checkpoint=…).",
    ),
    "a misspelt default hook": (
        lambda: {"default_hooks": {"chekpoint": {"interval": 2}}},
        "default_hooks['chekpoint']={'interval': 2} is neither a hook nor a dict with its 'type', and 'chekpoint' is "
        f"not one of {SIX}; did you mean 'checkpoint'?",
    ),
    "a misspelt default hook to leave out": (
        lambda: {"default_hooks": {"loger": None}},
        "default_hooks['loger']=None is neither a hook nor a dict with its 'type', and 'loger' is not one of "
        f"{SIX}; did you mean 'logger'?",
    ),
    "a best of another metric": (
        lambda: {**with_val(), "default_hooks": {"checkpoint": {"save_best": "loss"}}},
        "CheckpointHook(save_best='loss'): the evaluator reports 'mse'.",
    ),
    "a best without a validation": (
        lambda: {"custom_hooks": [CheckpointHook(save_best="mse")], "default_hooks": {"checkpoint": None}},
        "CheckpointHook(save_best='mse') needs a val_dataloader and a val_evaluator.",
    ),
    # the rest
    "randomness that is a seed": (
        lambda: {"randomness": 0},
        "randomness=0 is not a dict; it takes seed, deterministic, diff_rank_seed.",
    ),
    "randomness misspelt": (
        lambda: {"randomness": {"sed": 1}},
        "randomness has no key 'sed'; it takes seed, deterministic, diff_rank_seed; did you mean 'seed'?",
    ),
    "a seed that is none": (
        lambda: {"randomness": {"seed": "1"}},
        "randomness['seed']='1' must be an int of 0 or more.",
    ),
    "a device that isn't": (
        lambda: {"device": "gpu"},
        "device='gpu' is no device that torch knows; examples are 'cpu', 'cuda', 'cuda:1' and 'mps'.",
    ),
    "compile of no kind": (
        lambda: {"compile": 3},
        "compile=3 must be True, False, a mode or a dict of torch.compile's options.",
    ),
    "a log level": (
        lambda: {"log_level": "LOUD"},
        "log_level='LOUD' is not one of DEBUG, INFO, WARNING, ERROR, CRITICAL.",
    ),
    "work_dir of no kind": (
        lambda: {"work_dir": 3},
        "work_dir=3 is not a folder's path; leave it out for runs/<script>/<number>.",
    ),
    "work_dir that is a file": (
        lambda: {"work_dir": __file__},
        f"work_dir={__file__!r} is a file; give a folder.",
    ),
    "resume of no kind": (
        lambda: {"resume": 3},
        "resume=3 must be True, False or a checkpoint's path.",
    ),
    "resume of nothing": (
        lambda: {"resume": "nowhere"},
        "nothing is at nowhere, and there is no checkpoint in ..",
    ),
    "resume of a file": (
        lambda: {"resume": __file__},
        f"resume={__file__!r} is a file; load_from= takes its weights, if it has any.",
    ),
    "load_from of no kind": (
        lambda: {"load_from": 3},
        "load_from=3 is not the path of a checkpoint or of a file with weights.",
    ),
    "load_from of nothing": (
        lambda: {"load_from": "nowhere.pth"},
        "nothing is at nowhere.pth, and there is no checkpoint in ..",
    ),
}


def short(text: str) -> str:
    """A sentence without the folder of this file, as a message shortens it."""
    return text.replace(f"{Path(__file__).parents[1]}/tests/", "tests/")


@pytest.mark.parametrize("case", CASES)
def test_a_wrong_argument_is_refused_in_one_sentence(tmp_path: Path, case: str) -> None:
    """Of this kind, in these words, before a folder was made or a receiver connected."""
    change, said = CASES[case]
    bus = Bus()
    with pytest.raises(EventRunnerError) as caught:
        Runner(**{**options(bus=bus), **change()})
    message = str(caught.value)
    if "LINE" in said:
        before, after = short(said).split("LINE")
        assert message.startswith(before)
        assert message.endswith(after)
    elif said.startswith("did you mean"):
        assert message.endswith(said)
    else:
        assert message.replace(f"{Path(__file__).parents[1]}/tests/", "tests/") == short(said)
    assert list(tmp_path.iterdir()) == []
    assert len(bus.describe()) == 0


def test_every_refusal_is_of_its_builtin_kind_too() -> None:
    """Code that catches ValueError, TypeError or FileNotFoundError goes on working."""
    kinds = {
        "no model": (OptionError, ValueError),
        "custom_hooks that are no list": (HookError, TypeError),
        "resume of nothing": (CheckpointNotFoundError, FileNotFoundError),
    }
    for case, kind in kinds.items():
        for each in kind:
            with pytest.raises(each):
                Runner(**{**options(), **CASES[case][0]()})


@pytest.mark.parametrize("name", foreign.ARGUMENTS)
def test_a_foreign_argument_says_what_it_is_called_here(tmp_path: Path, name: str) -> None:
    """Of Lightning, Hugging Face, Keras, Composer and MMEngine; it is no alias."""
    with pytest.raises(ArgumentError) as caught:
        Runner(**{name: 1})
    row = foreign.ARGUMENTS[name]
    assert str(caught.value) == f"Runner() has no argument {name!r}: that is {row[0]} name; here {row[1]}."
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "end"),
    [("modle", "; did you mean 'model'?"), ("work_dirs", "; did you mean 'work_dir'?"), ("xyz", f"; it takes {ALL}.")],
)
def test_a_misspelt_argument_has_the_nearest(name: str, end: str) -> None:
    """Or, where none is near, all there are."""
    with pytest.raises(ArgumentError) as caught:
        Runner(**{name: 1})
    assert str(caught.value) == f"Runner() has no argument {name!r}{end}"


@pytest.mark.parametrize("name", foreign.METHODS)
def test_a_foreign_method_says_what_it_is_called_here(name: str, bus: Bus) -> None:
    """An AttributeError, so hasattr() stays honest."""
    runner = Runner(**options(bus=bus))
    row = foreign.METHODS[name]
    with pytest.raises(AttributeError) as caught:
        getattr(runner, name)
    assert str(caught.value) == f"Runner has no {name!r}: that is {row[0]} name; here {row[1]}."
    assert not hasattr(runner, name)


def test_an_unknown_attribute_is_an_attribute_error(bus: Bus) -> None:
    """As plain as Python's."""
    with pytest.raises(AttributeError, match=r"^Runner has no attribute 'nonsense'\.$"):
        Runner(**options(bus=bus)).nonsense  # noqa: B018


def test_a_step_whose_signature_can_not_be_read_is_taken(bus: Bus) -> None:
    """Some built-ins have none; what they take shows when they are called."""
    assert Runner(**options(bus=bus, train_step=max)).train_loop is not None


def test_a_models_own_step_is_checked_too(bus: Bus) -> None:
    """With its class's name before it."""

    class Odd(nn.Linear):
        def train_step(self) -> None:
            raise AssertionError

    model = Odd(2, 1)
    with pytest.raises(
        OptionError, match=r"^Odd\.train_step\(\) -> 'None' in .* can't be called with \(batch\): too many"
    ):
        Runner(**options(bus=bus, model=model, train_step=None))


def test_the_evaluators_of_validation_and_test_may_be_the_same(bus: Bus) -> None:
    """Without a test_evaluator the validation's is used, even where there is a test alone."""
    parts = with_val(val_dataloader=None, test_dataloader=batches(1))
    runner = Runner(**options(bus=bus, **parts, **no_training()))
    assert list(runner.test()) == ["mse"]


def test_what_is_refused_late_leaves_no_hook_behind(bus: Bus, tmp_path: Path) -> None:
    """A folder that can't be made is found last; the error is the system's."""
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="Not a directory"):
        Runner(**options(bus=bus, work_dir=tmp_path / "file" / "run", train_step=train_step))
