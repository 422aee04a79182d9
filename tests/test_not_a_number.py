"""What becomes of losses, scores and weights that are no numbers."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import MeanSquaredError, linear, rows, train_step
from torch import nn

from eventrunner.checkpoint import Store, find_newest, load_checkpoint, read_manifest
from eventrunner.checkpoint.finite import has_finite_weights
from eventrunner.checkpoint.plan import encode
from eventrunner.checkpoint.staging import stage
from eventrunner.checkpointer import Checkpointer
from eventrunner.errors import EventRunnerError, InvalidLossError, OptionError
from eventrunner.hooks import CheckInvalidLossHook
from eventrunner.registry import YIELDING_HOOKS, Registry
from eventrunner.runner import Runner

NAN, INF = math.nan, math.inf
MakeRunner = Callable[..., Runner]


def spoilt_from(epoch: int, value: float = NAN) -> Callable[[Runner], None]:
    """A receiver that spoils a weight at the end of an epoch and of all later ones."""

    def spoil(runner: Runner) -> None:
        with torch.no_grad():
            if runner.epoch + 1 >= epoch:
                runner.model.weight[0, 0] = value

    return spoil


def saved(folder: Path) -> list[str]:
    """The names of the checkpoints in a folder."""
    return sorted(Store(folder).names())


class Given(MeanSquaredError):  # noqa: N818  # the error is a distance
    """Given values, one for each validation; the last one then stays."""

    def __init__(self, *values: float) -> None:
        super().__init__()
        self.values = list(values)

    def compute(self) -> Any:
        return torch.tensor(self.values.pop(0) if len(self.values) > 1 else self.values[0])


def trained(make_runner: MakeRunner, *values: float, name: str = "score", **changes: Any) -> Runner:
    """A run of as many epochs as there are values of its metric."""
    best = {"mode": "sync", "save_best": name, "rule": changes.pop("rule", "greater")}
    hooks = {"checkpoint": {**best, **changes.pop("checkpoint", {})}}
    chosen = {"val": True, "val_evaluator": {name: Given(*values)}, "epochs": len(values), "default_hooks": hooks}
    runner = make_runner(**{**chosen, **changes})
    runner.train()
    return runner


# Scores


@pytest.mark.parametrize(
    ("rule", "values", "best"),
    [
        ("greater", (1.0, INF, 2.0), 2),
        ("less", (1.0, -INF, 2.0), 2),
        ("greater", (INF, INF), 1),
        ("greater", (-INF, 1.0), 2),
        ("greater", (-INF, -INF), 1),
        ("less", (INF, INF), 1),
        ("greater", (NAN, 0.5, NAN, 0.4), 2),
        ("less", (NAN, INF, NAN), 2),
    ],
)
@pytest.mark.slow
def test_an_infinity_is_a_score_and_a_nan_is_none(
    make_runner: MakeRunner, rule: str, values: tuple[float, ...], best: int
) -> None:
    """The first one is the best there is, if it is any number; the manifest stays JSON that all can read."""
    runner = trained(make_runner, *values, rule=rule)
    (name,) = [name for name in saved(runner.work_dir) if name.startswith("best")]
    assert name == f"best_score_epoch_{best}"
    text = (runner.work_dir / name / "MANIFEST.json").read_text()
    noted = json.loads(text, parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))["meta"]["best"]["score"]
    assert float(noted) == values[best - 1]


def test_only_nans_have_no_best(make_runner: MakeRunner) -> None:
    """And end no run."""
    assert saved(trained(make_runner, NAN, NAN).work_dir) == ["epoch_1", "epoch_2"]


def test_an_infinite_best_is_beaten_by_nothing_in_a_resumed_run(make_runner: MakeRunner) -> None:
    """It is remembered as what it is."""
    trained(make_runner, INF, 1.0)
    resumed = trained(make_runner, 5.0, 6.0, epochs=4, resume=True)
    assert [name for name in saved(resumed.work_dir) if name.startswith("best")] == ["best_score_epoch_1"]
    assert resumed.message_hub.get_info("best_score") == INF


@pytest.mark.parametrize("key", ["val/mse", "mse"])
@pytest.mark.parametrize("asked", ["val/mse", "mse"])
def test_a_metric_may_be_called_as_it_is_logged(make_runner: MakeRunner, key: str, asked: str) -> None:
    """Its own name counts first; that of the log does where there is no such metric."""
    if (key, asked) == ("val/mse", "mse"):
        with pytest.raises(OptionError, match="the evaluator reports 'val/mse'"):
            trained(make_runner, 0.5, name=key, checkpoint={"save_best": asked, "rule": "less"})
        return
    changes = {"checkpoint": {"save_best": asked, "rule": "less"}, "custom_hooks": []}
    stop = {"type": "EarlyStoppingHook", "monitor": asked, "rule": "less", "patience": 1}
    runner = trained(make_runner, 0.5, 0.1, 0.3, 0.2, name=key, **{**changes, "custom_hooks": [stop]})
    assert [name for name in saved(runner.work_dir) if name.startswith("best")] == ["best_mse_epoch_2"]
    assert (runner.stop_reason, runner.epoch) == ("early_stop", 3)
    resumed = trained(make_runner, 0.4, 0.05, name=key, epochs=5, resume=True, checkpoint=changes["checkpoint"])
    assert [name for name in saved(resumed.work_dir) if name.startswith("best")] == ["best_mse_epoch_4"]


# Losses


def diverging(at: int, until: int = 10**9, key: str = "loss") -> Callable[..., dict[str, Any]]:
    """A step whose loss, or another entry, is no number from one iteration to another."""
    count = 0

    def step(model: nn.Module, batch: Any) -> dict[str, Any]:
        nonlocal count
        count += 1
        outputs = train_step(model, batch)
        outputs[key] = outputs["loss"] * (NAN if at <= count < until else 1.0)
        return outputs

    return step


def test_a_loss_that_is_no_number_is_warned_of_once(
    make_runner: MakeRunner, capsys: pytest.CaptureFixture[str]
) -> None:
    """At the first row that has it; and again, where it has been one meanwhile."""
    step = diverging(4, 6, "part_loss")
    hooks = {"checkpoint": None, "logger": {"interval": 2, "window_size": 1}}
    make_runner(train_step=step, count=6, epochs=2, default_hooks=hooks, log_level="WARNING").train()
    lines = [line for line in capsys.readouterr().out.splitlines() if "event=loss" in line]
    assert len(lines) == 1
    assert "train/part_loss is nan at step 4; dict(type='CheckInvalidLossHook') ends such a run" in lines[0]


def test_each_loss_is_warned_of_for_itself(make_runner: MakeRunner, capsys: pytest.CaptureFixture[str]) -> None:
    """As long as one isn't a number, no more is said of it; metrics and norms are no losses."""

    def step(model: nn.Module, batch: Any) -> dict[str, Any]:
        return {**train_step(model, batch), "loss_a": INF, "loss_b": -INF, "accuracy": NAN}

    make_runner(train_step=step, count=4, default_hooks={"logger": {"interval": 1}}, log_level="WARNING").train()
    said = [line for line in capsys.readouterr().out.splitlines() if "event=loss" in line]
    assert [key for line in said for key in ("loss_a is inf", "loss_b is -inf", "accuracy") if key in line] == [
        "loss_a is inf",
        "loss_b is -inf",
    ]


@pytest.mark.parametrize("interval", [1, 3])
def test_a_run_whose_loss_is_no_number_is_ended(make_runner: MakeRunner, interval: int) -> None:
    """At the first iteration at which it is looked at; as by an exception, so nothing is saved of that state."""
    hook = {"type": CheckInvalidLossHook, "interval": interval}  # by name it may be another's by now
    runner = make_runner(train_step=diverging(5), count=4, epochs=3, custom_hooks=[hook])
    with pytest.raises(InvalidLossError, match=f"the loss of iteration {5 if interval == 1 else 6} is nan") as caught:
        runner.train()
    assert isinstance(caught.value, EventRunnerError)
    assert isinstance(caught.value, AssertionError)  # as the assert that people write
    assert saved(runner.work_dir) == ["epoch_1"]


def test_a_loss_that_is_a_number_ends_no_run(make_runner: MakeRunner) -> None:
    """Nor does a step that returns none."""
    make_runner(custom_hooks=[CheckInvalidLossHook(interval=1)]).train()

    def own(model: nn.Module, batch: Any, optim_wrapper: Any) -> None:
        optim_wrapper.update_params(train_step(model, batch)["loss"])

    make_runner(custom_hooks=[CheckInvalidLossHook(interval=1)], train_step=own, work_dir=Path("other")).train()


@pytest.mark.parametrize("interval", [0, -1, 1.5, True, "1"])
def test_an_interval_that_cant_be_is_refused(interval: Any) -> None:
    """When the hook is made."""
    with pytest.raises(OptionError, match="give an int of 1 or more"):
        CheckInvalidLossHook(interval=interval)


def test_a_hook_of_ones_own_may_have_the_name_of_one_that_yields() -> None:
    """It takes its place in dicts, without force; a second one is refused as ever."""
    assert "CheckInvalidLossHook" in YIELDING_HOOKS
    yielding = Registry("hook")
    yielding.register_module(module=CheckInvalidLossHook)
    own = Registry("hook", parent=yielding)
    assert own.get("CheckInvalidLossHook") is CheckInvalidLossHook

    class Mine(CheckInvalidLossHook):
        """Somebody's."""

    own.register_module(name="CheckInvalidLossHook", module=Mine)
    assert own.get("CheckInvalidLossHook") is Mine
    with pytest.raises(OptionError, match="the name is taken"):
        own.register_module(name="CheckInvalidLossHook", module=CheckInvalidLossHook)


# Weights


@pytest.mark.parametrize("value", [NAN, INF, -INF])
@pytest.mark.parametrize(("mode", "form"), [("sync", "safetensors"), ("lazy", "safetensors"), ("eager", "pth")])
def test_the_last_checkpoint_with_numbers_is_kept(make_runner: MakeRunner, value: float, mode: str, form: str) -> None:
    """Beside as many newer ones as are to be kept; the manifest says which aren't."""
    hooks = {"checkpoint": {"max_keep_ckpts": 1, "mode": mode, "format": form}}
    runner = make_runner(epochs=5, default_hooks=hooks)
    runner.on("after_train_epoch")(spoilt_from(3, value))
    runner.train()
    assert saved(runner.work_dir) == ["epoch_2", "epoch_5"]
    assert read_manifest(runner.work_dir / "epoch_5").meta == {"finite": False}
    assert read_manifest(runner.work_dir / "epoch_2").meta == {}


def test_one_that_was_kept_goes_with_the_next_of_numbers(make_runner: MakeRunner) -> None:
    """Then it is superfluous, as it would have been."""
    runner = make_runner(epochs=5, default_hooks={"checkpoint": {"max_keep_ckpts": 1, "mode": "sync"}})

    @runner.on("after_train_epoch")
    def recover(runner: Runner) -> None:
        with torch.no_grad():
            for weight in runner.model.parameters():
                weight.fill_(NAN if runner.epoch in (1, 2) else 0.5)

    runner.train()
    assert saved(runner.work_dir) == ["epoch_5"]


def test_a_resumed_run_goes_on_from_the_last_of_numbers(
    make_runner: MakeRunner, capsys: pytest.CaptureFixture[str]
) -> None:
    """It says what it passes over; one that is named is taken."""
    runner = make_runner(epochs=4, default_hooks={"checkpoint": {"max_keep_ckpts": 1}})
    runner.on("after_train_epoch")(spoilt_from(3))
    runner.train()
    assert "its weights have an inf or a nan in them" in find_newest(runner.work_dir).rejected[0][1]
    capsys.readouterr()
    resumed = make_runner(epochs=5, resume=True, log_level="WARNING")
    began: list[int] = []
    resumed.on("before_train")(lambda runner: began.append(runner.epoch))
    resumed.train()
    assert began == [2]
    assert "its weights have an inf or a nan in them; to go on from it, name it" in capsys.readouterr().out
    assert all(torch.isfinite(weight).all() for weight in resumed.model.parameters())


def test_what_is_advised_at_the_end_has_numbers(make_runner: MakeRunner, capsys: pytest.CaptureFixture[str]) -> None:
    """Where the run would be resumed, and what there is to load."""
    runner = make_runner(epochs=4, default_hooks={"checkpoint": {"max_keep_ckpts": 1}}, log_level="INFO")
    runner.on("after_train_epoch")(spoilt_from(3))
    runner.train()
    said = capsys.readouterr().out
    assert "load_from='run/epoch_2'" in said
    assert "event=resumes step=4 lost=4" in said


def test_without_any_of_numbers_the_run_begins_afresh(make_runner: MakeRunner) -> None:
    """There is nothing else to go on from."""
    runner = make_runner()
    runner.on("after_train_epoch")(spoilt_from(1))
    runner.train()
    resumed = make_runner(resume=True)
    resumed.train()
    assert resumed.iter == 4
    assert all(torch.isfinite(weight).all() for weight in resumed.model.parameters())


def test_a_mask_of_infinities_is_no_weight(make_runner: MakeRunner) -> None:
    """Buffers may hold what they like."""
    model = linear()
    model.register_buffer("mask", torch.tensor([0.0, -INF]))
    runner = make_runner(model=model, epochs=3, default_hooks={"checkpoint": {"max_keep_ckpts": 1}})
    runner.train()
    assert saved(runner.work_dir) == ["epoch_3"]
    assert read_manifest(runner.work_dir / "epoch_3").meta == {}


def test_a_checkpoint_that_is_deleted_on_purpose_goes(make_runner: MakeRunner) -> None:
    """Only where its successor has no numbers is it kept."""
    runner = make_runner(epochs=1, default_hooks={"checkpoint": {"mode": "sync"}})
    runner.train()
    runner.delete_checkpoint("epoch_1")
    assert saved(runner.work_dir) == []


def test_a_loop_of_ones_own_keeps_its_last_checkpoint_with_numbers(tmp_path: Path) -> None:
    """And goes on from that one."""

    def run(steps: int, spoil: int = 10**9, resume: bool = False) -> int:
        model = linear()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        with Checkpointer(tmp_path / "saves", model=model, optimizer=optimizer, keep=1, resume=resume) as ckpt:
            began = ckpt.step
            while ckpt.step < steps:
                if ckpt.step + 1 >= spoil:
                    with torch.no_grad():
                        model.bias.fill_(NAN)
                ckpt.save(ckpt.step + 1)
        return began

    run(4, spoil=3)
    assert saved(tmp_path / "saves") == ["step_2", "step_4"]
    with pytest.warns(RuntimeWarning, match="its weights have an inf or a nan"):
        assert run(5, resume=True) == 2
    assert load_checkpoint(tmp_path / "saves/step_5")["state_dict"]["bias"].isfinite().all()


@pytest.mark.parametrize(
    "dtype",
    [*(torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64), torch.float8_e5m2],
)
@pytest.mark.parametrize("at", [0, 40_000, 69_999])
def test_each_element_of_each_kind_of_number_is_looked_at(dtype: torch.dtype, at: int) -> None:
    """In pieces that leave the other cores to the training."""
    weights = torch.ones(70_000).to(dtype)
    assert has_finite_weights(stage(encode({"state_dict": {"w": weights}})), lambda: ["w"])
    spoilt = torch.ones(70_000)
    spoilt[at] = NAN
    image = stage(encode({"state_dict": {"w": spoilt.to(dtype), "n": torch.arange(3), "e": torch.ones(0)}}))
    assert not has_finite_weights(image, lambda: ["w"])
    assert has_finite_weights(image, lambda: ["n", "e"])


def test_a_save_without_weights_has_none_that_are_no_numbers() -> None:
    """A file that isn't there isn't looked at."""
    assert has_finite_weights(stage(encode({"x": torch.tensor(NAN)})), tuple)


def test_rows_have_what_is_no_number(make_runner: MakeRunner) -> None:
    """As Python's json writes it."""
    runner = make_runner(train_step=diverging(1, key="other_loss"), default_hooks={"logger": {"interval": 1}})
    runner.train()
    assert all(math.isnan(row["train/other_loss"]) for row in rows(runner.work_dir))
