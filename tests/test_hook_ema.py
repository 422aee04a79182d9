"""EMAHook in real trainings of a few iterations: what is averaged, where it is used, and what is saved of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from eventrunner.bus.bus import Bus
from eventrunner.checkpoint import load_checkpoint
from eventrunner.errors import OptionError, ResumeError
from eventrunner.hook import Hook
from eventrunner.hooks import EMAHook
from eventrunner.runner import Runner
from eventrunner.training.averaging import ExponentialMovingAverage, StochasticWeightAverage

Weights = dict[str, Tensor]


class Last:
    """The last number that it was given: what val_step reads off the model reaches the metrics."""

    def update(self, value: Tensor) -> None:
        self.value = value

    def compute(self) -> Tensor:
        return self.value

    def reset(self) -> None:
        self.value = torch.tensor(float("nan"))


class Weigh(Hook):
    """Keeps the raw weights after each iteration, before any other receiver."""

    priority = "HIGHEST"

    def __init__(self) -> None:
        self.seen: list[Weights] = []

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        self.seen.append(weights(runner.model))


def weights(model: nn.Module) -> Weights:
    """Copies of a model's parameters and buffers."""
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(ours: Weights, theirs: Weights) -> bool:
    """Whether names and bits are equal."""
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def network(seed: int = 0) -> nn.Module:
    """A model with float and integer buffers."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Linear(3, 1))


def train_step(model: nn.Module, batch: Tensor) -> dict[str, Tensor]:
    """Learn a sum."""
    return {"loss": (model(batch) - batch.sum(1, keepdim=True)).square().mean()}


def first_weight(model: Any, batch: Tensor) -> Any:
    """What the metric reports: one weight of the model that is validated."""
    return model[0].weight[0, 0].clone()


def make(folder: Path, *hooks: Any, model: nn.Module | None = None, train: bool = True, **options: Any) -> Runner:
    """A run of two epochs with three batches each, validated and tested by the first weight's value."""
    model = network() if model is None else model
    data = list(torch.randn(3, 4, 2, generator=torch.Generator().manual_seed(1)))
    if train:
        options = {
            "train_dataloader": data,
            "train_cfg": {"max_epochs": options.pop("epochs", 2)},
            "train_step": train_step,
            "optimizer": torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9),
            **options,
        }
    return Runner(
        model=model,
        work_dir=folder,
        **{"val_dataloader": data[:1], "test_dataloader": data[:1], "val_step": first_weight, **options},
        val_evaluator={"weight": Last()},
        custom_hooks=list(hooks),
        default_hooks={"logger": None},
        bus=Bus(),
        device="cpu",
        log_level="ERROR",
    )


def test_the_average_is_the_one_of_the_formula(tmp_path: Path) -> None:
    """The first update copies, the others move by the momentum."""
    hook, weigh = EMAHook(momentum=0.25), Weigh()
    make(tmp_path / "run", weigh, hook).train()
    expected = weigh.seen[0]["0.weight"]
    for seen in weigh.seen[1:]:
        expected = expected + 0.25 * (seen["0.weight"] - expected)
    torch.testing.assert_close(hook.ema_model.module[0].weight, expected)


def test_training_is_untouched(tmp_path: Path) -> None:
    """With the hook and its swaps, the raw weights are bit for bit those of a run without it."""
    averaged = make(tmp_path / "a", EMAHook(momentum=0.25)).train()
    plain = make(tmp_path / "b").train()
    assert same(weights(averaged), weights(plain))


def test_validation_sees_the_average_and_training_goes_on_with_the_raw_weights(tmp_path: Path) -> None:
    """The metric read the average's weight; afterwards the model has its own again."""
    hook, weigh = EMAHook(momentum=0.25), Weigh()
    runner = make(tmp_path / "run", weigh, hook)
    runner.train()
    validated = runner.message_hub.get_scalar("val/weight").current()
    assert validated == hook.ema_model.module[0].weight[0, 0].item()
    assert validated != weigh.seen[-1]["0.weight"][0, 0].item()
    assert same(weights(runner.model), weigh.seen[-1])


def test_a_test_after_the_training_tests_the_average(tmp_path: Path) -> None:
    """The second before_run keeps what the first one made."""
    hook = EMAHook(momentum=0.25)
    runner = make(tmp_path / "run", hook)
    raw = weights(runner.train())
    assert runner.test() == {"weight": hook.ema_model.module[0].weight[0, 0].item()}
    assert same(weights(runner.model), raw)


def test_buffers_are_exchanged_with_the_parameters(tmp_path: Path) -> None:
    """In a validation BatchNorm's statistics are the average's, integers included."""
    hook = EMAHook(momentum=0.25, update_buffers=True)
    runner = make(tmp_path / "run", hook)
    inside: list[Weights] = []
    runner.on("before_val_iter")(lambda runner: inside.append(weights(runner.model)))
    runner.train()
    assert same(inside[-1], weights(hook.ema_model.module))


@pytest.mark.parametrize(("begin", "first"), [({"begin_iter": 3}, 2), ({"begin_epoch": 2}, 3), ({}, 0)])
def test_until_it_begins_the_average_follows_the_weights(tmp_path: Path, begin: dict[str, Any], first: int) -> None:
    """Up to and including the first iteration that counts (which copies), both are equal; after it they aren't."""
    hook, weigh = EMAHook(momentum=0.25, **begin), Weigh()
    runner = make(tmp_path / "run", weigh, hook)
    followed: list[bool] = []
    runner.on("after_train_iter", priority="LOWEST")(
        lambda runner: followed.append(same(weights(hook.ema_model.module), weights(runner.model)))
    )
    runner.train()
    assert followed == [True] * (first + 1) + [False] * (5 - first)
    assert hook.ema_model.steps == 6 - first


def test_averaging_begins_at_an_iteration_in_training_by_iterations(tmp_path: Path) -> None:
    """begin_iter counts from 1 over the whole run."""
    hook = EMAHook(begin_iter=4)
    make(tmp_path / "run", hook, train_cfg={"max_iters": 5}).train()
    assert hook.ema_model.steps == 2


@pytest.mark.parametrize("mode", ["val", "test"])
def test_a_failure_in_a_validation_leaves_the_raw_weights_behind(tmp_path: Path, mode: str) -> None:
    """The exception propagates, and the model has what it had before."""
    runner = make(tmp_path / "run", EMAHook(momentum=0.25), train_cfg={"max_epochs": 2, "val_begin": 3})
    raw = weights(runner.train())

    @runner.on(f"after_{mode}_iter")
    def fail(runner: Runner) -> None:
        assert not same(weights(runner.model), raw)
        raise FloatingPointError("in the middle")

    with pytest.raises(FloatingPointError, match="in the middle"):
        getattr(runner, mode)()
    assert same(weights(runner.model), raw)


def test_a_failure_in_training_swaps_nothing(tmp_path: Path) -> None:
    """Outside a validation there is nothing to put back."""
    runner, weigh = make(tmp_path / "run", EMAHook(momentum=0.25)), Weigh()
    runner.register_hook(weigh)

    @runner.on("after_train_iter", every=2)
    def fail() -> None:
        raise FloatingPointError("while training")

    with pytest.raises(FloatingPointError, match="while training"):
        runner.train()
    assert same(weights(runner.model), weigh.seen[-1])


def test_a_checkpoint_has_the_average_as_its_weights_and_the_raw_ones_beside(tmp_path: Path) -> None:
    """MMEngine's format; and saving leaves the model and the average as they were."""
    hook, weigh = EMAHook(momentum=0.25), Weigh()
    runner = make(tmp_path / "run", weigh, hook)
    runner.train()
    saved = load_checkpoint(tmp_path / "run" / "epoch_2")
    assert same(saved["state_dict"], weights(hook.ema_model.module))
    raw = {f"module.{name}": tensor for name, tensor in weigh.seen[-1].items()}
    assert same(saved["ema_state_dict"], {**raw, "n_averaged": torch.tensor(6)})
    assert same(weights(runner.model), weigh.seen[-1])


def test_a_checkpoint_saved_during_a_validation_is_no_different(tmp_path: Path) -> None:
    """While the values are exchanged the dict needs no exchange of its own."""
    runner = make(tmp_path / "run", EMAHook(momentum=0.25))
    runner.on("before_val_iter", start=2)(lambda runner: runner.save_checkpoint("inside"))
    runner.train()
    inside, after = (load_checkpoint(tmp_path / "run" / name) for name in ("inside", "epoch_2"))
    assert same(inside["state_dict"], after["state_dict"])
    assert same(inside["ema_state_dict"], after["ema_state_dict"])


class Counting(nn.Module):
    """Has a state that is no tensor: a number that each pass in training raises."""

    def __init__(self, counted: type = int) -> None:
        super().__init__()
        self.linear, self.counted, self.seen = nn.Linear(2, 1), counted, counted(0)

    def __getitem__(self, index: int) -> nn.Linear:
        return self.linear

    def forward(self, batch: Tensor) -> Tensor:
        """Count."""
        if self.training:
            self.seen = self.counted(int(self.seen) + 1)
        return self.linear(batch)  # type: ignore[no-any-return]

    def get_extra_state(self) -> dict[str, Any]:
        """The number."""
        return {"seen": self.seen}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Go on counting."""
        self.seen = state["seen"]


@pytest.mark.parametrize("kind", ["ExponentialMovingAverage", AveragedModel])
@pytest.mark.parametrize("options", [{}, {"begin_epoch": 2}])
@pytest.mark.parametrize("counted", [int, torch.tensor])
def test_extra_state_is_the_models_own_wherever_the_average_is(
    tmp_path: Path, kind: Any, options: dict[str, Any], counted: Any
) -> None:
    """In a checkpoint, in the average itself, and in the run that goes on from there."""
    hook = EMAHook(kind, **options)
    make(tmp_path / "run", hook, model=Counting(counted)).train()
    saved = load_checkpoint(tmp_path / "run" / "epoch_2")

    assert saved["state_dict"]["_extra_state"] == {"seen": 6}
    assert saved["ema_state_dict"]["module._extra_state"] == {"seen": 6}
    assert hook.ema_model.module.seen == 6
    resumed = make(
        tmp_path / "run", EMAHook(kind, **options), model=Counting(counted), train_cfg={"max_epochs": 3}, resume=True
    ).train()
    assert resumed.seen == 9


def test_extra_state_of_a_best_is_that_of_the_weights_that_were_validated(tmp_path: Path) -> None:
    """Loaded for prediction it is the model that had the score."""
    runner = make(tmp_path / "run", EMAHook(), model=Counting())
    runner.train()

    model = Counting()
    model.load_state_dict(load_checkpoint(tmp_path / "run" / "epoch_1")["state_dict"])
    assert model.seen == 3


def tied_by_data() -> nn.Module:
    """Two parameters of one memory."""
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False), nn.Linear(2, 1))
    model[1].weight.data = model[0].weight.data
    return model


def with_a_view() -> nn.Module:
    """A buffer that looks at a row of a parameter."""
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
    model.register_buffer("row", model[0].weight.detach()[0])
    return model


def with_one_parameter_twice() -> nn.Module:
    """One parameter under two names."""
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 1))
    model[1].weight = model[0].weight
    return model


@pytest.mark.parametrize("build", [tied_by_data, with_a_view, with_one_parameter_twice])
def test_training_is_untouched_where_weights_share_memory(tmp_path: Path, build: Callable[[], nn.Module]) -> None:
    """Exchanged and exchanged back, they are what they were; the validation saw the average of both."""
    hook = EMAHook(momentum=0.25)
    torch.manual_seed(0)
    averaged = make(tmp_path / "a", hook, model=build()).train()
    torch.manual_seed(0)
    plain = make(tmp_path / "b", model=build()).train()
    assert same(weights(averaged), weights(plain))
    assert not same(weights(averaged), weights(hook.ema_model.module))


def test_a_cache_that_grows_in_a_validation_is_exchanged_too(tmp_path: Path) -> None:
    """The average has what the model has made meanwhile."""

    def validate(model: Any, batch: Tensor) -> Tensor:
        model.cache = torch.ones(len(model.cache) + 1)
        return first_weight(model, batch)  # type: ignore[no-any-return]

    model, hook = network(), EMAHook(momentum=0.25)
    model.register_buffer("cache", torch.zeros(1), persistent=False)
    make(tmp_path / "run", hook, model=model, val_step=validate).train()
    assert hook.ema_model.module.cache.shape == model.cache.shape == (3,)


def test_a_model_without_shapes_is_refused_when_the_hook_is_registered(tmp_path: Path) -> None:
    """Not at the first update: there is nothing to make an average of."""
    with pytest.raises(OptionError, match=r"^EMAHook was given a model whose 0\.weight, 0\.bias have no shape yet"):
        make(tmp_path / "run", EMAHook(), model=nn.Sequential(nn.LazyLinear(1)), train=False)


def test_a_checkpoint_saved_before_any_run_has_no_average(tmp_path: Path) -> None:
    """There is none yet; a run that resumes it begins its average with the weights."""
    runner = make(tmp_path / "run", EMAHook())
    runner.save_checkpoint("fresh")
    saved = load_checkpoint(tmp_path / "run" / "fresh")
    assert "ema_state_dict" not in saved
    hook = EMAHook()
    resumed = make(tmp_path / "run", hook, model=network(7), train_cfg={"max_epochs": 1}, resume=tmp_path / "run/fresh")
    resumed.val()
    assert same(weights(hook.ema_model.module), saved["state_dict"])


@pytest.mark.parametrize("cfg", [{"max_epochs": 2}, {"max_iters": 6, "val_interval": 2}])
@pytest.mark.parametrize(
    "options",
    [
        {"momentum": 0.25},
        {"ema_type": "StochasticWeightAverage", "interval": 2},
        {"ema_type": "MomentumAnnealingEMA", "gamma": 4, "begin_iter": 5, "update_buffers": True},
    ],
)
def test_a_resumed_average_is_the_uninterrupted_one(
    tmp_path: Path, options: dict[str, Any], cfg: dict[str, int]
) -> None:
    """Three iterations and three more give the raw and the averaged weights of six, bit for bit."""
    hooks = [EMAHook(**options) for _ in range(3)]
    whole = make(tmp_path / "whole", hooks[0], train_cfg=cfg)
    whole.train()

    first = make(tmp_path / "run", hooks[1], train_cfg=cfg)
    first.on("after_train_iter", every=3, once=True)(lambda runner: runner.stop("half"))
    first.train()
    assert first.iter == 3
    second = make(tmp_path / "run", hooks[2], model=network(7), train_cfg=cfg, resume=True)
    second.train()
    assert same(weights(second.model), weights(whole.model))
    assert same(weights(hooks[2].ema_model), weights(hooks[0].ema_model))
    assert second.message_hub.get_scalar("val/weight").current() == whole.message_hub.get_scalar("val/weight").current()


def test_a_run_that_only_tests_takes_the_average_from_a_checkpoint(tmp_path: Path) -> None:
    """resume= without a training tests what the training validated."""
    trained = EMAHook(momentum=0.25)
    raw = weights(make(tmp_path / "run", trained).train())
    tester = make(tmp_path / "run", EMAHook(), train=False, model=network(7), resume=True)
    assert tester.test() == {"weight": trained.ema_model.module[0].weight[0, 0].item()}
    assert same(weights(tester.model), raw)


def test_resuming_without_the_hook_goes_on_with_the_raw_weights(tmp_path: Path) -> None:
    """Not with the averaged ones, which lie in their place in the checkpoint."""
    whole = make(tmp_path / "whole", epochs=4).train()
    make(tmp_path / "run", EMAHook(momentum=0.25)).train()
    assert same(weights(make(tmp_path / "run", epochs=4, resume=True).train()), weights(whole))


def test_a_hook_that_the_checkpoint_doesnt_know_begins_with_its_weights(tmp_path: Path) -> None:
    """The training goes on as it was, and the average begins there."""
    raw = weights(make(tmp_path / "run").train())
    hook = EMAHook(momentum=0.25)
    seen: dict[str, Tensor] = {}
    runner = make(tmp_path / "run", hook, epochs=3, resume=True)
    runner.on("before_train")(lambda: seen.update(weights(hook.ema_model.module)))
    runner.train()
    assert same(seen, raw)


def test_loaded_weights_are_what_the_average_begins_with(tmp_path: Path) -> None:
    """load_from takes the averaged weights of a checkpoint, for the model and for its new average."""
    make(tmp_path / "run", EMAHook(momentum=0.25)).train()
    saved = load_checkpoint(tmp_path / "run" / "epoch_2")["state_dict"]
    hook = EMAHook()
    runner = make(tmp_path / "other", hook, model=network(7), load_from=tmp_path / "run" / "epoch_2")
    runner.val()
    assert same(weights(hook.ema_model.module), saved)
    assert same(weights(runner.model), saved)
    assert hook.ema_model.steps == 0


def test_weights_of_another_model_are_refused(tmp_path: Path) -> None:
    """The average says what the model would have said."""
    make(tmp_path / "run").train()
    wider = nn.Sequential(nn.Linear(2, 5), nn.BatchNorm1d(5), nn.Linear(5, 1))
    with pytest.raises(ResumeError, match=r"'0.weight' has shape \[3, 2\] in the checkpoint and \[5, 2\] in the model"):
        make(tmp_path / "other", EMAHook(), model=wider, load_from=tmp_path / "run" / "epoch_2").train()


def test_what_another_receiver_adds_to_the_weights_stays_as_it_is(tmp_path: Path) -> None:
    """Only names that the average has too are exchanged."""
    runner = make(tmp_path / "run", EMAHook())

    @runner.on("before_save_checkpoint", priority="HIGH")
    def add(checkpoint: dict[str, Any]) -> None:
        checkpoint["state_dict"]["note"] = torch.ones(1)

    runner.train()
    saved = load_checkpoint(tmp_path / "run" / "epoch_2")
    assert torch.equal(saved["state_dict"]["note"], torch.ones(1))
    assert "module.note" not in saved["ema_state_dict"]


class Counted(AveragedModel):
    """An average with a piece of state more than the others."""

    def __init__(self, model: nn.Module, **options: Any) -> None:
        super().__init__(model, **options)
        self.register_buffer("extra", torch.zeros(1))


@pytest.mark.parametrize("strict", [True, False])
def test_strict_load_decides_whether_an_average_of_another_class_is_taken(tmp_path: Path, strict: bool) -> None:
    """What both have is taken, or nothing."""
    trained = EMAHook(ema_type=Counted)
    make(tmp_path / "run", trained).train()
    hook = EMAHook(strict_load=strict)
    runner = make(tmp_path / "run", hook, model=network(7), resume=True)
    if strict:
        with pytest.raises(ResumeError, match="it lacks nothing and has extra besides"):
            runner.train()
    else:
        runner.train()
        assert same(weights(hook.ema_model.module), weights(trained.ema_model.module))


def test_any_averaged_model_will_do(tmp_path: Path) -> None:
    """Torch's own averages, with torch's own options."""
    hook, weigh = (
        EMAHook(ema_type=AveragedModel, avg_fn=lambda average, new, n: average + (new - average) / (n + 1)),
        Weigh(),
    )
    make(tmp_path / "run", weigh, hook).train()
    expected = torch.stack([seen["0.weight"] for seen in weigh.seen]).mean(0)
    torch.testing.assert_close(hook.ema_model.module[0].weight, expected)


def test_a_class_may_take_options_that_its_signature_doesnt_name() -> None:
    """Only the class can judge them."""
    EMAHook(ema_type=Counted, use_buffers=True)


def test_the_same_hook_in_another_run_averages_that_runs_model(tmp_path: Path) -> None:
    """The average of the first run's model isn't carried over."""
    hook = EMAHook()
    make(tmp_path / "a", hook).train()
    runner = make(tmp_path / "b", hook, model=network(7))
    runner.train()
    assert hook.src_model is runner.model
    assert hook.ema_model.steps == 6


def test_it_can_be_built_from_a_dict(tmp_path: Path) -> None:
    """As MMEngine's configs have it."""
    runner = make(tmp_path / "run", {"type": "EMAHook", "ema_type": "StochasticWeightAverage", "interval": 2})
    hook = next(hook for hook in runner.hooks if isinstance(hook, EMAHook))
    runner.train()
    assert isinstance(hook.ema_model, StochasticWeightAverage)
    assert hook.ema_model.interval == 2


def test_the_average_can_live_on_a_device_of_its_own(tmp_path: Path) -> None:
    """The option is resolved as the Runner's device is."""
    hook = EMAHook(device="cpu")
    make(tmp_path / "run", hook).train()
    assert hook.ema_model.module[0].weight.device == torch.device("cpu")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"ema_type": "ExponentialMovingAvg"},
            "EMAHook(ema_type='ExponentialMovingAvg'): give ExponentialMovingAverage, StochasticWeightAverage, "
            "MomentumAnnealingEMA, or a subclass of torch's AveragedModel; did you mean 'ExponentialMovingAverage'?",
        ),
        (
            {"ema_type": nn.Linear},
            "EMAHook(ema_type=<class 'torch.nn.modules.linear.Linear'>): give ExponentialMovingAverage, "
            "StochasticWeightAverage, MomentumAnnealingEMA, or a subclass of torch's AveragedModel.",
        ),
        ({"strict_load": 1}, "EMAHook(strict_load=1): give True or False."),
        ({"begin_iter": -1}, "EMAHook(begin_iter=-1): give an int of 0 or more."),
        ({"begin_epoch": 1.5}, "EMAHook(begin_epoch=1.5): give an int of 0 or more."),
        ({"begin_epoch": True}, "EMAHook(begin_epoch=True): give an int of 0 or more."),
        ({"begin_iter": 2, "begin_epoch": 2}, "EMAHook(begin_iter=2, begin_epoch=2): give one of the two."),
        ({"momentun": 0.1}, "EMAHook's ExponentialMovingAverage has no option 'momentun'; did you mean 'momentum'?"),
        (
            {"begin_epochs": 1},
            "EMAHook's ExponentialMovingAverage has no option 'begin_epochs'; did you mean 'begin_epoch'?",
        ),
        (
            {"ema_type": "StochasticWeightAverage", "xyz": 1},
            "EMAHook's StochasticWeightAverage has no option 'xyz'; it takes interval, device, update_buffers.",
        ),
        ({"momentum": 2.0}, "momentum, the weight of the new value, must be a float between 0 and 1, not 2.0."),
        ({"interval": 0}, "interval=0: give an int of 1 or more."),
        (
            {"device": "gpu"},
            "device='gpu' is no device that torch knows; examples are 'cpu', 'cuda', 'cuda:1' and 'mps'.",
        ),
    ],
)
def test_an_option_that_cant_be_is_refused_at_once(options: dict[str, Any], message: str) -> None:
    """When the hook is made, before there is a run."""
    with pytest.raises(OptionError) as caught:
        EMAHook(**options)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("begin", "cfg", "message"),
    [
        (
            {"begin_epoch": 3},
            {"max_epochs": 2},
            "EMAHook(begin_epoch=3) would never begin: the training ends after epoch 2.",
        ),
        (
            {"begin_iter": 7},
            {"max_epochs": 2},
            "EMAHook(begin_iter=7) would never begin: the training ends after iter 6.",
        ),
        (
            {"begin_epoch": 2},
            {"max_iters": 6},
            "EMAHook(begin_epoch=2) would never begin: the training ends after epoch 1, as by iterations all of it is "
            "one epoch; give begin_iter.",
        ),
    ],
)
def test_a_begin_after_the_end_is_refused_when_the_hook_is_registered(
    tmp_path: Path, begin: dict[str, Any], cfg: dict[str, int], message: str
) -> None:
    """An average that never averages is a mistake."""
    with pytest.raises(OptionError) as caught:
        make(tmp_path / "run", EMAHook(**begin), train_cfg=cfg)
    assert str(caught.value) == message


def test_a_second_average_is_refused(tmp_path: Path) -> None:
    """Both would swap, and both would be saved under one name; registering the first again is fine."""
    hook = EMAHook()
    runner = make(tmp_path / "run", hook)
    runner.register_hook(hook, priority="LOW")
    with pytest.raises(OptionError) as caught:
        runner.register_hook(EMAHook(ema_type=ExponentialMovingAverage))
    assert str(caught.value) == "registering a second EMAHook: the model can be validated with one average only."
