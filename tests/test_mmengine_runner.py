"""What hooks and scripts in the manner of MMEngine's users ask a Runner for, besides its sites."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import MakeRunner
from tiny import QUIET, batches, same
from torch.utils.data import DataLoader, TensorDataset

import eventrunner
from eventrunner import EpochBasedTrainLoop, Hook, IterBasedTrainLoop, Runner, hooks, load_checkpoint
from eventrunner.errors import LockedError, OptionError
from eventrunner.files.lock import FolderLock

LOOPS = (EpochBasedTrainLoop, IterBasedTrainLoop)
DATASET = TensorDataset(torch.arange(8.0)[:, None].expand(8, 2), torch.ones(8, 1))


@pytest.mark.parametrize(
    ("train_cfg", "kind"),
    [({"max_epochs": 1}, EpochBasedTrainLoop), ({"max_iters": 2}, IterBasedTrainLoop)],
    ids=["epochs", "iterations"],
)
def test_the_loops_type_tells_the_unit(make_runner: MakeRunner, train_cfg: dict[str, int], kind: type) -> None:
    """By isinstance, which is how MMEngine's hooks ask."""
    seen: list[tuple[bool, ...]] = []

    class Asks(Hook):
        def before_train(self, runner: Runner) -> None:
            seen.append(tuple(isinstance(runner.train_loop, each) for each in LOOPS))

    make_runner(train_cfg=train_cfg, default_hooks=QUIET, custom_hooks=[Asks()]).train()
    assert seen == [tuple(each is kind for each in LOOPS)]
    assert {each.__name__ for each in LOOPS} <= set(eventrunner.__all__)


@pytest.mark.parametrize("resume", [False, True])
def test_a_hook_can_ask_whether_the_run_is_resumed(make_runner: MakeRunner, resume: bool) -> None:
    """By MMEngine's private name, and by a path too."""
    assert make_runner(resume=resume)._resume is resume


def test_a_path_to_resume_from_is_a_resume(make_runner: MakeRunner, tmp_path: Path) -> None:
    """As MMEngine has it."""
    make_runner(epochs=1).train()
    assert make_runner(epochs=2, resume=tmp_path / "run" / "epoch_1")._resume is True


def test_a_loader_is_built_as_it_is() -> None:
    """MMEngine's builder gives back what needs no building."""
    loader, plain = DataLoader(DATASET), batches(2)
    assert Runner.build_dataloader(loader) is loader
    assert Runner.build_dataloader(plain) is plain


def test_a_loader_is_built_from_its_arguments(make_runner: MakeRunner) -> None:
    """Those of torch's DataLoader; by a runner too, with its seed."""
    runner = make_runner()
    given = {"dataset": DATASET, "batch_size": 4, "shuffle": True}
    first, second = (runner.build_dataloader(given, seed=runner.seed) for _ in range(2))
    assert isinstance(first, DataLoader)
    assert (first.batch_size, len(first)) == (4, 2)
    assert same([list(batch) for batch in first], [list(batch) for batch in second])
    assert given == {"dataset": DATASET, "batch_size": 4, "shuffle": True}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"batch_size": 4}, "build_dataloader() was given a dict without 'dataset'; give DataLoader's arguments."),
        (
            {"dataset": DATASET, "batch_sise": 4},
            "build_dataloader(): DataLoader has no argument 'batch_sise'; did you mean 'batch_size'?",
        ),
        (
            {"dataset": {"type": "CIFAR10"}},
            "build_dataloader(): dataset={'type': 'CIFAR10'} is a config; give the object itself.",
        ),
        (
            {"dataset": DATASET, "sampler": {"type": "DefaultSampler"}},
            "build_dataloader(): sampler={'type': 'DefaultSampler'} is a config; give the object itself.",
        ),
        (3, "build_dataloader() was given an object of type int, which can't be iterated over; "),
    ],
    ids=["no dataset", "misspelt", "config", "sampler", "no loader"],
)
def test_what_no_loader_can_be_built_from_is_refused(given: Any, message: str) -> None:
    """With what is allowed instead."""
    with pytest.raises(OptionError) as caught:
        Runner.build_dataloader(given)
    assert str(caught.value).startswith(message)


def test_a_hook_can_set_the_train_dataloader(make_runner: MakeRunner) -> None:
    """It is used from the next epoch on."""
    seen: list[int] = []

    class Swaps(Hook):
        def after_train_epoch(self, runner: Runner) -> None:
            runner.train_dataloader = batches(3)

        def after_train_iter(self, runner: Runner) -> None:
            seen.append(runner.epoch)

    runner = make_runner(count=2, epochs=2, default_hooks=QUIET, custom_hooks=[Swaps()])
    runner.train()
    assert seen == [0, 0, 1, 1, 1]
    assert len(runner.train_dataloader) == 3


def test_a_train_dataloader_that_cannot_be_one_is_refused(make_runner: MakeRunner) -> None:
    """As when the Runner is made; nor can one be set where nothing is trained."""
    runner = make_runner()
    before = runner.train_dataloader
    with pytest.raises(OptionError, match="train_dataloader was given a"):
        runner.train_dataloader = iter(batches(2))
    assert runner.train_dataloader is before
    changes: dict[str, Any] = {"train_dataloader": None, "train_cfg": None, "optimizer": None}
    evaluates = make_runner(val=True, **changes)
    with pytest.raises(OptionError, match="of a Runner that was made without a training"):
        evaluates.train_dataloader = batches(2)


def test_an_evaluator_takes_the_number_of_samples(make_runner: MakeRunner) -> None:
    """MMEngine's own loops pass it; the metrics count by themselves."""
    runner = make_runner(val=True)
    metrics = runner.val()
    assert runner.val_evaluator.evaluate(2) == runner.val_evaluator.evaluate(size=2) == metrics


@pytest.mark.parametrize("own", [True, False])
def test_a_checkpoint_is_saved_where_mmengines_form_says(make_runner: MakeRunner, tmp_path: Path, own: bool) -> None:
    """In the run's folder or another one, with all of the run's state, and durable when the call returns."""
    saved: list[Path | None] = []

    class Saves(Hook):
        def after_train_epoch(self, runner: Runner) -> None:
            folder = str(runner.work_dir) if own else tmp_path / "elsewhere"
            saved.append(runner.save_checkpoint(folder, "mine.pth", save_optimizer=True, meta={"a": 1}, by_epoch=True))

    told: list[Path] = []
    runner = make_runner(epochs=1, default_hooks={"logger": None}, custom_hooks=[Saves()])
    runner.on("after_commit_checkpoint")(lambda path: told.append(path))
    runner.train()
    expected = (runner.work_dir if own else tmp_path / "elsewhere") / "mine.pth"
    assert saved == [expected]
    assert expected in told
    checkpoint = load_checkpoint(expected)
    assert same(dict(checkpoint["state_dict"]), runner.model.state_dict())
    assert {"optimizer", "hooks", "loop"} <= checkpoint.keys()
    resumed = make_runner(epochs=2, work_dir=tmp_path / "again", resume=expected) if not own else None
    if resumed is not None:
        resumed.train()
        assert resumed.progress.step == 4


def test_one_name_alone_is_that_of_a_folder_of_the_run(make_runner: MakeRunner, tmp_path: Path) -> None:
    """Without the optimizer where it says so."""
    runner = make_runner(epochs=1, default_hooks=QUIET)
    runner.train()
    path = runner.save_checkpoint("mine", save_optimizer=False)
    assert path == tmp_path / "run" / "mine"
    assert "optimizer" not in load_checkpoint(path)


def test_a_folder_that_another_run_writes_to_is_refused(make_runner: MakeRunner, tmp_path: Path) -> None:
    """As it is for a run's own checkpoints."""
    runner = make_runner(epochs=1, default_hooks=QUIET)
    (tmp_path / "elsewhere").mkdir()
    with FolderLock(tmp_path / "elsewhere"), pytest.raises(LockedError):
        runner.save_checkpoint(tmp_path / "elsewhere", "mine")
    assert not (tmp_path / "elsewhere" / "mine").exists()


THEIRS = {
    "Runner": """
        experiment_name model_name work_dir log_dir max_epochs max_iters epoch iter launcher distributed rank world_size
        deterministic seed timestamp hooks train_loop val_loop test_loop train_dataloader val_dataloader test_dataloader
        val_evaluator test_evaluator val_interval val_begin from_cfg setup_env set_randomness build_model wrap_model
        scale_lr build_optim_wrapper build_param_scheduler build_evaluator build_dataloader get_hooks_info
        load_or_resume train val test call_hook register_hook register_default_hooks register_custom_hooks
        register_hooks load_checkpoint save_checkpoint dump_config message_hub visualizer log_processor logger model
        optim_wrapper param_schedulers cfg auto_scale_lr _resume _hooks _train_loop _load_from""",
    "MessageHub": """
        get_instance get_current_instance update_scalar update_scalars update_info pop_info update_info_dict log_scalars
        runtime_info get_scalar get_info state_dict load_state_dict""",
    "HistoryBuffer": "update data register_statistics statistics mean max min current",
    "OptimWrapper": """
        update_params backward zero_grad step optim_context initialize_count_status should_update should_sync scale_loss
        inner_count param_groups defaults get_lr get_momentum state_dict load_state_dict""",
    "Evaluator": "dataset_meta process evaluate offline_evaluate",
    "CheckpointHook": """
        interval by_epoch save_optimizer save_param_scheduler out_dir max_keep_ckpts save_last save_best rule
        greater_keys less_keys file_client_args filename_tmpl backend_args published_keys save_begin""",
    "LoggerHook": """
        interval ignore_last interval_exp_name out_dir out_suffix keep_local file_client_args log_metric_by_epoch
        backend_args""",
    "EMAHook": "ema_type strict_load begin_iter begin_epoch",
    "EarlyStoppingHook": "monitor rule min_delta strict check_finite patience stopping_threshold",
    "EmptyCacheHook": "before_epoch after_epoch after_iter",
    "hooks": """
        Hook CheckpointHook LoggerHook EMAHook RuntimeInfoHook IterTimerHook DistSamplerSeedHook ParamSchedulerHook
        EmptyCacheHook SyncBuffersHook EarlyStoppingHook ProfilerHook NPUProfilerHook NaiveVisualizationHook
        PrepareTTAHook""",
}
"""Public names of MMEngine 0.10.7 that hooks use, options of its built-in hooks, and four private names."""


@pytest.mark.parametrize("owner", THEIRS)
def test_what_is_not_here_stands_in_the_readmes_table(make_runner: MakeRunner, owner: str) -> None:
    """Each name of MMEngine's is one of ours, or the table says what there is instead."""
    runner = make_runner(val=True)
    here: dict[str, Any] = {
        "Runner": dir(runner),
        "MessageHub": dir(runner.message_hub),
        "HistoryBuffer": dir(eventrunner.HistoryBuffer),
        "OptimWrapper": dir(runner.optim_wrapper),
        "Evaluator": dir(runner.val_evaluator),
        "hooks": dir(hooks),
    }
    ours = here.get(owner) or inspect.signature(getattr(hooks, owner)).parameters
    readme = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
    table = readme.split("## Coming from MMEngine")[1].split("\n## ")[0]
    missing = [name for name in THEIRS[owner].split() if name not in ours]
    assert [name for name in missing if not re.search(rf"\b{name}\b", table)] == []
