"""RuntimeInfoHook in real runs: what the message hub knows, and when."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from conftest import MakeRunner
from tiny import QUIET, batches, linear, rows, train_step
from torch import nn

from eventrunner.errors import OptionError
from eventrunner.hook import Hook
from eventrunner.runner import Runner
from eventrunner.training.optim import OptimWrapper
from eventrunner.version import __version__


def mixing(*names: str) -> Any:
    """A train_step that returns something under these names, too."""
    return lambda model, batch: {**train_step(model, batch), **dict.fromkeys(names, 7.0)}


def two_groups(model: nn.Module) -> torch.optim.Optimizer:
    """An optimizer with a rate for each of two parameters."""
    return torch.optim.SGD([{"params": [parameter]} for parameter in model.parameters()], lr=0.1)


def clipped(model: nn.Module) -> OptimWrapper:
    """A wrapper that knows the gradients' norm."""
    return OptimWrapper(torch.optim.SGD(model.parameters(), lr=0.1), clip_grad={"max_norm": 1.0})


def both(model: nn.Module, batch: Any, optim_wrapper: Any) -> dict[str, Any]:
    """A step of two optimizers that logs what they do."""
    for wrapper in optim_wrapper.values():
        wrapper.update_params(train_step(model, batch)["loss"])
    return {"loss": 1.0, "gen.lr": 7.0}


@pytest.mark.parametrize(
    ("name", "optim"),
    [
        ("time", None),
        ("data_time", None),
        ("lr", None),
        ("lr", two_groups),
        ("lr/0", two_groups),
        ("lr/1", two_groups),
        ("grad_norm", clipped),
    ],
)
def test_a_name_of_the_runs_own_is_refused_at_the_first_batch(make_runner: MakeRunner, name: str, optim: Any) -> None:
    """Two values an iteration in one series are right for neither."""
    model = linear()
    options = {} if optim is None else {"optim_wrapper": optim(model)}
    runner = make_runner(default_hooks=QUIET, model=model, train_step=mixing(name), **options)
    with pytest.raises(OptionError) as caught:
        runner.train()
    assert str(caught.value) == (
        f"train_step returned {name!r}, but the run itself logs 'train/{name}', and would mix the two; give it another "
        "name."
    )
    assert runner.iter == 0


def test_the_rate_of_one_of_several_optimizers_is_refused_too(make_runner: MakeRunner) -> None:
    """It is logged under the optimizer's name."""
    model = linear()
    optimizers = {"gen": torch.optim.SGD([model.weight], lr=0.1), "critic": torch.optim.SGD([model.bias], lr=0.1)}
    runner = make_runner(default_hooks=QUIET, model=model, optim_wrapper=optimizers, train_step=both)
    with pytest.raises(OptionError, match=r"^train_step returned 'gen\.lr', but the run itself logs 'train/gen\.lr'"):
        runner.train()


def test_names_that_only_sound_like_the_runs_own_are_kept(make_runner: MakeRunner, tmp_path: Path) -> None:
    """What the run counts isn't in the same place, and a norm that it doesn't keep is the step's."""
    names = ("epoch", "iter", "step", "eta", "momentum", "grad_norm", "lr/1", "lr_scale", "times")
    runner = make_runner(train_step=mixing(*names), default_hooks={"logger": {"interval": 1}})
    runner.train()
    for name in names:
        assert list(runner.message_hub.get_scalar(f"train/{name}").data[0]) == [7.0] * 4
    row = rows(tmp_path / "run")[-1]
    assert (row["step"], row["epoch"], row["train/step"], row["train/epoch"]) == (4, 2, 7.0, 7.0)


def test_without_the_timer_the_times_are_the_steps(make_runner: MakeRunner) -> None:
    """Then nobody else keeps them."""
    runner = make_runner(train_step=mixing("time", "data_time"), default_hooks={**QUIET, "timer": None})
    runner.train()
    assert list(runner.message_hub.get_scalar("train/time").data[0]) == [7.0] * 4


class Looks(Hook):
    """Notes some infos whenever it is called at one of the sites."""

    def __init__(self, *names: str) -> None:
        self.names = names
        self.seen: list[tuple[Any, ...]] = []

    def note(self, runner: Runner) -> None:
        self.seen.append(tuple(runner.message_hub.get_info(name) for name in self.names))

    before_train = before_train_epoch = before_train_iter = note


def test_the_hub_knows_which_run_it_is(make_runner: MakeRunner) -> None:
    """Not saved: another process is another run of it."""
    runner = make_runner(default_hooks=QUIET, experiment_name="mine", randomness={"seed": 5})
    runner.train()
    hub = runner.message_hub
    infos = {name: hub.get_info(name) for name in ("seed", "experiment_name", "eventrunner_version")}
    assert infos == {"seed": 5, "experiment_name": "mine", "eventrunner_version": __version__}
    assert hub.state_dict()["runtime_info"] == {}


def test_counters_are_those_of_the_runner_at_each_site(make_runner: MakeRunner) -> None:
    """0-based, and with the ends planned."""
    looks = Looks("epoch", "iter", "max_epochs", "max_iters", "loop_stage")
    make_runner(default_hooks=QUIET, custom_hooks=[looks]).train()
    counters = [(0, 0), (0, 0), (0, 0), (0, 1), (1, 2), (1, 2), (1, 3)]
    assert looks.seen == [(epoch, count, 2, 4, "train") for epoch, count in counters]


def test_by_iterations_the_training_is_one_epoch(make_runner: MakeRunner) -> None:
    """As MMEngine has it."""
    looks = Looks("epoch", "iter", "max_epochs", "max_iters")
    make_runner(default_hooks=QUIET, custom_hooks=[looks], train_cfg={"max_iters": 3}).train()
    assert looks.seen == [(0, count, 1, 3) for count in (0, 0, 0, 1, 2)]


def test_the_stage_is_that_of_the_innermost_loop(make_runner: MakeRunner) -> None:
    """After a validation it is again what it was around it, and outside of all loops it is None."""
    seen: list[tuple[str, Any]] = []

    class Stages(Hook):
        def note(self, runner: Runner) -> None:
            seen.append((runner.mode, runner.message_hub.get_info("loop_stage", "none")))

        before_train = after_train_iter = before_val_epoch = after_val_epoch = after_train = before_test_epoch = note

        def after_run(self, runner: Runner) -> None:
            self.note(runner)

    options = {"val": True, "test_dataloader": batches(1), "count": 1, "epochs": 1}
    runner = make_runner(default_hooks=QUIET, custom_hooks=[Stages()], **options)
    runner.val()
    runner.train()
    runner.test()
    assert seen == [
        *[("val", "val"), ("val", "val"), ("val", None)],
        *[("train", stage) for stage in ("train", "train", "val", "val", None, None)],
        *[("test", "test"), ("test", None)],
    ]


def test_after_a_validation_that_failed_the_stage_is_that_of_the_training(make_runner: MakeRunner) -> None:
    """Where a receiver validates by itself and goes on without it, and at the end of the run."""

    def step(model: nn.Module, batch: Any) -> Any:
        raise RuntimeError("no validation")

    runner = make_runner(val=True, val_step=step, default_hooks=QUIET, train_cfg={"max_epochs": 1, "val_begin": 2})
    seen: list[Any] = []

    @runner.on("after_train_iter")
    def validate() -> None:
        with pytest.raises(RuntimeError, match="no validation"):
            runner.val_loop.run()
        seen.append(runner.message_hub.get_info("loop_stage"))

    runner.train()
    assert seen == ["train", "train"]
    with pytest.raises(RuntimeError, match="no validation"):
        runner.val()
    assert runner.message_hub.get_info("loop_stage") is None


def test_a_hook_may_write_to_the_counters(make_runner: MakeRunner) -> None:
    """As some of MMEngine's users do; the next epoch has them right again, and they are saved by nobody's mistake."""
    seen: list[Any] = []

    class Writes(Hook):
        def after_train_iter(self, runner: Runner) -> None:
            for key in ("epoch", "iter", "loop_stage", "eta", "seed"):
                runner.message_hub.update_info(key, -1)

        def before_train_iter(self, runner: Runner) -> None:
            seen.append(tuple(runner.message_hub.get_info(key) for key in ("epoch", "iter")))

    make_runner(epochs=2, default_hooks={"logger": None}, custom_hooks=[Writes()]).train()
    assert seen == [(0, 0), (-1, -1), (1, 2), (-1, -1)]
    resumed = make_runner(epochs=3, resume=True, default_hooks={"logger": None}, custom_hooks=[Writes()])
    resumed.train()
    assert seen[4:] == [(2, 4), (-1, -1)]


def test_the_hub_has_the_metainfo_of_the_trainings_dataset(make_runner: MakeRunner, tmp_path: Path) -> None:
    """None where the dataset has none, or the loader no dataset."""

    class Digits(torch.utils.data.TensorDataset):
        @property
        def metainfo(self) -> dict[str, Any]:
            return {"classes": ("zero", "one")}

    looks = Looks("dataset_meta")
    loader = torch.utils.data.DataLoader(Digits(torch.ones(2, 2), torch.ones(2, 1)))
    make_runner(train_dataloader=loader, default_hooks=QUIET, custom_hooks=[looks], epochs=1).train()
    assert looks.seen[-1] == ({"classes": ("zero", "one")},)
    plain = make_runner(work_dir=tmp_path / "plain", default_hooks=QUIET)
    plain.train()
    assert plain.message_hub.get_info("dataset_meta", "none") is None


class Odd(nn.Module):
    """Returns all kinds of things beside its loss."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))

    def train_step(self, batch: Any) -> dict[str, Any]:
        scalars = {
            "loss": self.weight * 2,
            "number": 3,
            "share": 0.5,
            "one": torch.ones(1, 1, dtype=torch.int64),
            "numpy": numpy.float32(0.25),
            "grad": self.weight.square(),
        }
        others = {
            "vector": torch.ones(2),
            "flag": True,
            "flags": torch.tensor([True]),
            "phase": torch.tensor(1j),
            "empty": torch.ones(0),
            "text": "a",
            "none": None,
            "nested": {"loss": 1.0},
            "list": [1.0],
        }
        return {**scalars, **others}


def test_every_number_of_the_step_is_kept_and_nothing_else(make_runner: MakeRunner) -> None:
    """Tensors of one element are numbers too; a flag is none, and nothing of all this stops the training."""
    model = Odd()
    options = {"model": model, "train_step": None, "optimizer": torch.optim.SGD(model.parameters(), lr=0.0)}
    runner = make_runner(**options, default_hooks={**QUIET, "timer": None}, count=1, epochs=1)
    runner.train()
    found = {key: buffer.current() for key, buffer in runner.message_hub.log_scalars.items()}
    assert found == {
        "train/lr": 0.0,
        "train/loss": 2.0,
        "train/number": 3.0,
        "train/share": 0.5,
        "train/one": 1.0,
        "train/numpy": 0.25,
        "train/grad": 1.0,
    }


@pytest.mark.parametrize("outputs", [None, {}], ids=repr)
def test_a_step_that_updates_the_weights_itself_may_return_nothing(make_runner: MakeRunner, outputs: Any) -> None:
    """There is nothing to keep then."""

    def step(model: nn.Module, batch: Any, optim_wrapper: OptimWrapper) -> Any:
        optim_wrapper.update_params(train_step(model, batch)["loss"])
        return outputs

    runner = make_runner(train_step=step, default_hooks={**QUIET, "timer": None})
    runner.train()
    assert runner.message_hub.log_scalars.keys() == {"train/lr"}


def test_a_kept_loss_is_the_value_at_that_time(make_runner: MakeRunner) -> None:
    """Though it is read later, and the tensor may be written to in between."""
    shared = torch.zeros(())

    def step(model: nn.Module, batch: Any) -> dict[str, Any]:
        shared.add_(1)
        return {**train_step(model, batch), "shared": shared}

    runner = make_runner(train_step=step, default_hooks=QUIET)
    runner.train()
    assert runner.message_hub.get_scalar("train/shared").data[0] == (1, 2, 3, 4)


def test_the_rate_is_the_one_used_in_the_iteration(make_runner: MakeRunner) -> None:
    """Read before it; groups are numbered where there are several."""
    model = linear()
    groups = [{"params": [model.weight]}, {"params": [model.bias], "lr": 0.5}]
    optimizer = torch.optim.SGD(groups, lr=1.0)
    schedule = {"scheduler": torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5), "by_epoch": False}
    options = {"model": model, "optimizer": optimizer, "param_scheduler": schedule}
    runner = make_runner(**options, default_hooks=QUIET)
    runner.train()
    hub = runner.message_hub
    assert hub.get_scalar("train/lr/0").data[0] == (1, 0.5, 0.25, 0.125)
    assert hub.get_scalar("train/lr/1").data[0] == (0.5, 0.25, 0.125, 0.0625)
    assert "train/lr" not in hub.log_scalars


def test_the_norm_of_gradients_is_kept_where_they_are_clipped(make_runner: MakeRunner) -> None:
    """As it was before the clip."""
    model = linear()
    clipped = OptimWrapper(torch.optim.SGD(model.parameters(), lr=0.1), clip_grad={"max_norm": 1e-6})
    norms: list[float] = []

    def measure(runner: Runner) -> None:
        norms.append(torch.cat([p.grad.flatten() for p in runner.model.parameters()]).norm().item())

    runner = make_runner(model=model, optim_wrapper=clipped, default_hooks=QUIET)
    runner.on("before_optimizer_step")(measure)
    runner.train()
    assert runner.message_hub.get_scalar("train/grad_norm").data[0] == pytest.approx(norms)


def test_metrics_are_kept_with_their_history(make_runner: MakeRunner) -> None:
    """Those of the validations in training, of val() and of test(), each under its mode."""
    runner = make_runner(val=True, test_dataloader=batches(1), default_hooks=QUIET)
    runner.train()
    first = runner.val()
    tested = runner.test()
    assert runner.message_hub.get_scalar("val/mse").data[0][-1] == first["mse"]
    assert len(runner.message_hub.get_scalar("val/mse")) == 3
    assert runner.message_hub.get_scalar("test/mse").current() == tested["mse"]


def test_a_run_without_a_training_has_no_counters(make_runner: MakeRunner) -> None:
    """They would say nothing."""
    changes: dict[str, Any] = {"train_dataloader": None, "train_cfg": None, "optimizer": None}
    runner = make_runner(val=True, **changes, default_hooks=QUIET)
    runner.val()
    assert runner.message_hub.get_info("max_epochs") is None
    assert runner.message_hub.get_info("seed") == runner.seed


def test_histories_go_on_after_a_resume(make_runner: MakeRunner, tmp_path: Path) -> None:
    """The hub is part of the checkpoint."""
    first = make_runner(epochs=1, default_hooks={"logger": None})
    first.train()
    second = make_runner(epochs=2, resume=True, default_hooks={"logger": None})
    second.train()
    losses = second.message_hub.get_scalar("train/loss").data[0]
    assert len(losses) == 4
    assert losses[:2] == first.message_hub.get_scalar("train/loss").data[0]
