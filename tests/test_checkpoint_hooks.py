"""Several CheckpointHooks in one run: each saves and deletes its own, and what two save under one name is one save."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import MakeRunner

from eventrunner.bus.bus import Bus
from eventrunner.checkpoint import Store, find_newest, load_checkpoint
from eventrunner.errors import OptionError, ResumeError
from eventrunner.hook import Hook
from eventrunner.hooks import CheckpointHook
from eventrunner.runner import Runner

OFTEN = dict(interval=2, by_epoch=False, max_keep_ckpts=1, save_last=False)
FOREVER = dict(interval=4, by_epoch=False, save_last=False)


class Told(Hook):
    """Notes each checkpoint that it is told of, and fails before one of them."""

    def __init__(self, refused: int | None = None) -> None:
        self.paths: list[str] = []
        self.refused = refused

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        if runner.progress.step == self.refused:
            raise ValueError("not this one")

    def after_commit_checkpoint(self, runner: Runner, path: Path, step: int) -> None:
        self.paths.append(path.name)


def run(make_runner: MakeRunner, *hooks: dict[str, Any], told: Hook | None = None, **options: Any) -> Runner:
    """A run whose CheckpointHooks have these options, the first one in place of the default."""
    first, *rest = hooks
    others = [*(CheckpointHook(**each) for each in rest), *([told] if told else [])]
    given = {"default_hooks": {"logger": None, "checkpoint": first}, "custom_hooks": others}
    return make_runner(**{"epochs": 2, "bus": Bus(), **given, **options})


def names(folder: Path) -> list[str]:
    """The checkpoints in a folder, sorted."""
    return sorted(Store(folder).names())


@pytest.mark.parametrize("mode", ["auto", "sync"])
def test_each_keeps_its_own(make_runner: MakeRunner, tmp_path: Path, mode: str) -> None:
    """One that keeps a single save beside one that keeps each epoch; the newest of both is what is told and found."""
    runner = run(make_runner, {"mode": mode}, {**OFTEN, "interval": 3, "mode": mode}, epochs=3)
    runner.train()
    last = 3 * len(runner.train_dataloader)
    assert names(tmp_path / "run") == ["epoch_1", "epoch_2", "epoch_3", f"iter_{last // 3 * 3}"]
    assert find_newest(tmp_path / "run").path == tmp_path / "run/epoch_3"
    assert (tmp_path / "run/last_checkpoint").read_text().strip() == "epoch_3"
    assert runner.message_hub.get_info("last_ckpt") == str(tmp_path / "run/epoch_3")
    saves = runner.message_hub.get_info("saves")
    assert saves["requested"] == saves["committed"] == 3 + last // 3


def test_each_goes_on_with_its_own_in_a_resumed_run(make_runner: MakeRunner, tmp_path: Path) -> None:
    """Neither loses what it keeps, nor deletes the other's."""
    run(make_runner, {"max_keep_ckpts": 2}, OFTEN).train()
    resumed = run(make_runner, {"max_keep_ckpts": 2}, OFTEN, epochs=4, resume=True)
    resumed.train()
    last = 4 * len(resumed.train_dataloader)
    assert names(tmp_path / "run") == ["epoch_3", "epoch_4", f"iter_{last // 2 * 2}"]
    assert set(load_checkpoint(tmp_path / "run/epoch_4")["hooks"]) >= {"CheckpointHook", "CheckpointHook#2"}


@pytest.mark.parametrize("order", [(OFTEN, FOREVER), (FOREVER, OFTEN)])
def test_what_two_save_under_one_name_is_one_save_that_both_have(
    make_runner: MakeRunner, tmp_path: Path, order: tuple[dict[str, Any], ...]
) -> None:
    """It stays as long as either keeps it, in a resumed run too, and is told once."""
    told = Told()
    runner = run(make_runner, *order, told=told)
    runner.train()
    length = len(runner.train_dataloader)
    assert told.paths == [f"iter_{step}" for step in range(2, 2 * length + 1, 2)]
    fourth = {f"iter_{step}" for step in range(4, 2 * length + 1, 4)}
    assert set(names(tmp_path / "run")) == fourth | {f"iter_{2 * length // 2 * 2}"}
    run(make_runner, *order, told=Told(), epochs=3, resume=True).train()
    fourth = {f"iter_{step}" for step in range(4, 3 * length + 1, 4)}
    assert set(names(tmp_path / "run")) == fourth | {f"iter_{3 * length // 2 * 2}"}


def test_a_save_of_two_that_fails_is_neithers(make_runner: MakeRunner, tmp_path: Path) -> None:
    """Both still have what they had before it."""
    runner = run(make_runner, OFTEN, FOREVER, told=Told(refused=4))
    with pytest.raises(ValueError, match="not this one"):
        runner.train()
    assert names(tmp_path / "run") == ["iter_2"]
    often, forever = (hook for hook in runner.hooks if isinstance(hook, CheckpointHook))
    assert often.state_dict()["kept"] == ["iter_2"]
    assert forever.state_dict()["kept"] == []


def test_a_run_that_is_asked_to_end_saves_its_state_once(make_runner: MakeRunner, tmp_path: Path) -> None:
    """Not once for each hook, whose names for it are the same."""
    told = Told()
    runner = run(make_runner, {"by_epoch": False, "interval": 100}, {**OFTEN, "interval": 200}, told=told)
    runner.on("after_train_iter", start=2, once=True)(lambda: signal.raise_signal(signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        runner.train()
    assert told.paths == names(tmp_path / "run") == [f"iter_{runner.progress.step}"]
    kept = [hook.state_dict()["kept"] for hook in runner.hooks if isinstance(hook, CheckpointHook)]
    assert kept == [told.paths, told.paths]


def test_the_newest_of_all_is_told_when_a_run_is_resumed(make_runner: MakeRunner, tmp_path: Path) -> None:
    """Whichever hook has saved it."""
    run(make_runner, {}, OFTEN, epochs=2).train()
    resumed = run(make_runner, {}, OFTEN, epochs=2, resume=True)
    resumed.train()
    assert resumed.message_hub.get_info("last_ckpt") == str(tmp_path / "run/epoch_2")


def test_hooks_in_another_order_than_in_the_resumed_run_are_refused(make_runner: MakeRunner, tmp_path: Path) -> None:
    """They would take each other's saves for their own; nothing is deleted."""
    run(make_runner, FOREVER, OFTEN).train()
    before = names(tmp_path / "run")
    with pytest.raises(ResumeError, match="register them in the order that the resumed run had"):
        run(make_runner, OFTEN, FOREVER, epochs=3, resume=True).train()
    assert names(tmp_path / "run") == before


@pytest.mark.parametrize(
    ("first", "second", "words"),
    [
        ({}, {"format": "pth"}, "format='pth'"),
        ({}, {"mode": "sync"}, "mode='sync'"),
        ({}, {"offload": False}, "offload=False"),
        ({}, {"verify": True}, "verify=True"),
        ({}, {"out_dir": "elsewhere"}, "out_dir="),
        ({}, {"save_optimizer": False}, "save_optimizer=False"),
        ({}, {"save_param_scheduler": False}, "save_param_scheduler=False"),
        ({"save_best": "mse"}, {"save_best": "mse"}, "save_best="),
        ({"published_keys": "meta"}, {"published_keys": "state_dict"}, "published_keys="),
        ({}, {**OFTEN, "filename_tmpl": "epoch_{}"}, "filename_tmpl='epoch_{}'"),
        ({}, {**OFTEN, "filename_tmpl": "epoch_1{}"}, "filename_tmpl='epoch_1{}'"),
        (OFTEN, {"by_epoch": True, "filename_tmpl": "iter_{}"}, "filename_tmpl='iter_{}'"),
    ],
)
def test_a_second_hook_that_cant_go_with_the_first_is_refused(
    make_runner: MakeRunner, first: dict[str, Any], second: dict[str, Any], words: str
) -> None:
    """When it is registered, in one sentence; it isn't there then."""
    runner = run(make_runner, first, val=True)
    with pytest.raises(OptionError, match=r"beside one with") as refusal:
        runner.register_hook(CheckpointHook(**second))
    assert words in str(refusal.value)
    assert sum(isinstance(hook, CheckpointHook) for hook in runner.hooks) == 1


def test_two_hooks_serve_one_run_after_the_other(make_runner: MakeRunner, tmp_path: Path) -> None:
    """The second run's are checked beside each other as they are there, not as they were in the first."""
    hooks = [CheckpointHook(filename_tmpl="a_{}"), CheckpointHook(**OFTEN)]
    for name, cfg in (("one", {"max_epochs": 2}), ("two", {"max_iters": 6})):
        torch.manual_seed(0)
        given = {"default_hooks": {"logger": None, "checkpoint": None}, "custom_hooks": hooks, "bus": Bus()}
        make_runner(work_dir=tmp_path / name, train_cfg=cfg, **given).train()
    assert names(tmp_path / "two") == ["a_6", "iter_6"]
