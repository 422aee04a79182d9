"""CheckpointHook in real runs: what is saved when, what stays, which is the best, and what can be gone on from."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import MakeRunner
from tiny import batches, linear, same, weights

from eventrunner.bus.bus import Bus
from eventrunner.checkpoint import Store, find_newest, load_checkpoint, load_weights, read_manifest, verify_checkpoint
from eventrunner.errors import CheckpointError, OptionError, ResumeError, RunExistsError
from eventrunner.hook import Hook
from eventrunner.hooks import CheckpointHook
from eventrunner.runner import Runner


class Given:
    """Reports one of the *scores* after the other, whatever the model says; the last again when there is no more."""

    def __init__(self, *scores: Any) -> None:
        self.scores = list(scores)

    def update(self, output: torch.Tensor, target: torch.Tensor) -> None:
        pass

    def compute(self) -> Any:
        return self.scores.pop(0) if len(self.scores) > 1 else self.scores[0]

    def reset(self) -> None:
        pass


class Sites(Hook):
    """Notes what is in the folder whenever a save is about to begin, and when it is committed."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, list[str]]] = []

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        self.seen.append(("before", names(runner.checkpoint_dir)))

    def after_commit_checkpoint(self, runner: Runner, path: Path, step: int) -> None:
        self.seen.append((path.name, names(runner.checkpoint_dir)))


def names(folder: Path) -> list[str]:
    """The checkpoints in a folder, the oldest first, each verified."""
    found = Store(folder).names() if folder.is_dir() else []
    for name in found:
        verify_checkpoint(folder / name)
    return found


def numbers(folder: Path, prefix: str = "epoch_") -> list[int]:
    """The numbers of the regular checkpoints, sorted."""
    return sorted(int(name.removeprefix(prefix)) for name in names(folder) if name.startswith(prefix))


def inodes(checkpoint: Path) -> set[int]:
    """The files of a checkpoint but for its manifest, as the disk knows them."""
    return {path.stat().st_ino for path in checkpoint.iterdir() if path.name != "MANIFEST.json"}


@pytest.fixture
def make(make_runner: MakeRunner) -> Callable[..., Runner]:
    """``make(interval=5, …)``: a tiny run with these options of CheckpointHook; ``run=…`` has those of the Runner."""

    def make_with(*, run: dict[str, Any] | None = None, **hook: Any) -> Runner:
        return make_runner(**{"val": True, "default_hooks": {"logger": None, "checkpoint": hook}, **(run or {})})

    return make_with


def scored(*scores: Any, epochs: int | None = None, **changes: Any) -> dict[str, Any]:
    """Options of a run whose validations report these scores."""
    return {"epochs": epochs or len(scores), "val_evaluator": {"accuracy": Given(*scores)}, **changes}


# When


@pytest.mark.parametrize(
    ("hook", "epochs", "saved"),
    [
        (dict(interval=5, by_epoch=True), 20, [5, 10, 15, 20]),
        (dict(interval=5, max_keep_ckpts=2), 20, [15, 20]),
        (dict(), 3, [1, 2, 3]),
        (dict(interval=3), 7, [3, 6, 7]),
        (dict(interval=3, save_last=False), 7, [3, 6]),
        (dict(interval=-1), 4, [4]),
        (dict(interval=-1, save_last=False), 4, []),
        (dict(save_begin=5), 10, [5, 6, 7, 8, 9, 10]),
        (dict(save_begin=5, interval=2), 10, [5, 7, 9, 10]),
        (dict(save_begin=5, interval=2, save_last=False), 10, [5, 7, 9]),
        (dict(save_begin=5, save_last=False), 3, []),
        (dict(max_keep_ckpts=1), 4, [4]),
    ],
)
@pytest.mark.slow
def test_epochs_are_saved_at_the_interval(
    make: Callable[..., Runner], tmp_path: Path, hook: dict[str, Any], epochs: int, saved: list[int]
) -> None:
    """The tutorial's numbers among them."""
    make(run={"epochs": epochs, "val": False}, **hook).train()
    assert numbers(tmp_path / "run") == saved


@pytest.mark.parametrize(
    ("hook", "saved"),
    [
        (dict(interval=5, by_epoch=False), [5, 10, 12]),
        (dict(interval=5, by_epoch=False, save_last=False), [5, 10]),
        (dict(interval=4, by_epoch=False, save_begin=3, save_last=False), [3, 7, 11]),
        (dict(interval=5, by_epoch=False, max_keep_ckpts=1), [12]),
    ],
)
@pytest.mark.parametrize("loop", [{"train_cfg": {"max_epochs": 3}, "count": 4}, {"train_cfg": {"max_iters": 12}}])
def test_iterations_are_saved_at_the_interval(
    make: Callable[..., Runner], tmp_path: Path, loop: dict[str, Any], hook: dict[str, Any], saved: list[int]
) -> None:
    """In a training by iterations as well as in one by epochs."""
    make(run={"val": False, **loop}, **hook).train()
    assert numbers(tmp_path / "run", "iter_") == saved


def test_a_training_by_iterations_is_saved_where_it_is_validated(make: Callable[..., Runner], tmp_path: Path) -> None:
    """Where no interval is given; the unit is the training's own."""
    make(run={"train_cfg": {"max_iters": 7, "val_interval": 3}}).train()
    assert numbers(tmp_path / "run", "iter_") == [3, 6, 7]


def test_the_end_is_saved_where_nobody_knows_its_number(make: Callable[..., Runner], tmp_path: Path) -> None:
    """By iterations, over epochs of a stream without a length."""

    class Stream:
        def __iter__(self) -> Iterable[Any]:
            return iter(batches(3))

    make(run={"train_dataloader": Stream(), "val": False}, interval=4, by_epoch=False).train()
    assert numbers(tmp_path / "run", "iter_") == [4, 6]


def test_a_save_holds_what_is_complete_and_every_state_of_its_site(make: Callable[..., Runner], tmp_path: Path) -> None:
    """Counters include the epoch under way, and a receiver that runs after the hook has its say in it."""

    class Late(Hook):
        priority = "LOWEST"

        def __init__(self) -> None:
            self.epochs = 0

        def after_train_epoch(self, runner: Runner) -> None:
            self.epochs += 1

        def state_dict(self) -> dict[str, Any]:
            return {"epochs": self.epochs}

        def load_state_dict(self, state: dict[str, Any]) -> None:
            self.epochs = state["epochs"]

    make(run={"custom_hooks": [Late()], "val": False, "count": 3}).train()
    saved = load_checkpoint(tmp_path / "run/epoch_1")
    assert (saved["meta"]["epoch"], saved["meta"]["iter"], saved["hooks"]["Late"]) == (1, 3, {"epochs": 1})
    manifest = read_manifest(tmp_path / "run/epoch_1")
    assert (manifest.epoch, manifest.step) == (1, 3)


def test_parts_can_be_left_out(make: Callable[..., Runner], tmp_path: Path) -> None:
    """The rest is there."""
    make(run={"epochs": 1}, save_optimizer=False, save_param_scheduler=False).train()
    saved = load_checkpoint(tmp_path / "run/epoch_1")
    assert not {"optimizer", "param_schedulers"} & saved.keys()
    assert {"state_dict", "meta", "message_hub", "loop", "rng", "hooks"} <= saved.keys()


@pytest.mark.parametrize("option", ["save_optimizer", "save_param_scheduler"])
def test_what_was_saved_without_a_part_cannot_be_gone_on_from(make: Callable[..., Runner], option: str) -> None:
    """The error says which option left it out, and what the checkpoint is still good for."""
    make(run={"epochs": 1}, **{option: False}).train()
    with pytest.raises(ResumeError) as caught:
        make(run={"resume": True, "bus": Bus()}, **{option: False}).train()
    expected = f"was saved with {option}=False and can't be resumed from; load_from= takes its weights."
    assert expected in str(caught.value)


# What stays


def test_the_new_one_is_durable_before_the_old_one_is_deleted(make: Callable[..., Runner], tmp_path: Path) -> None:
    """At each site one sees at least as many as are to be kept."""
    sites = Sites()
    make(run={"epochs": 3, "val": False, "custom_hooks": [sites]}, max_keep_ckpts=1, mode="sync").train()
    assert sites.seen == [
        ("before", []),
        ("epoch_1", ["epoch_1"]),
        ("before", ["epoch_1"]),
        ("epoch_2", ["epoch_1", "epoch_2"]),
        ("before", ["epoch_2"]),
        ("epoch_3", ["epoch_2", "epoch_3"]),
    ]
    assert names(tmp_path / "run") == ["epoch_3"]


def test_a_failing_save_deletes_nothing(make: Callable[..., Runner], tmp_path: Path) -> None:
    """The error propagates, what was there is still there, and the account says what is missing."""

    class Spoil(Hook):
        def before_save_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
            if runner.epoch == 2:
                checkpoint["spoilt"] = object()

    runner = make(run={"epochs": 3, "val": False, "custom_hooks": [Spoil()]}, max_keep_ckpts=2)
    with pytest.raises(CheckpointError, match="spoilt"):
        runner.train()
    assert names(tmp_path / "run") == ["epoch_1", "epoch_2"]
    saves = runner.message_hub.get_info("saves")
    assert (saves["committed"], saves["requested"]) == (2, 3)
    (hook,) = (hook for hook in runner.hooks if isinstance(hook, CheckpointHook))
    assert hook.state_dict()["kept"] == ["epoch_1", "epoch_2"]


def test_retention_goes_on_after_a_resume(make: Callable[..., Runner], tmp_path: Path) -> None:
    """What the killed run kept counts, and what it had already deleted is no error."""
    make(run={"epochs": 3, "val": False}, max_keep_ckpts=2).train()
    make(run={"epochs": 5, "val": False, "resume": True, "bus": Bus()}, max_keep_ckpts=2).train()
    assert names(tmp_path / "run") == ["epoch_4", "epoch_5"]


def test_retention_touches_nothing_that_it_did_not_save(make: Callable[..., Runner], tmp_path: Path) -> None:
    """Not a checkpoint that was copied in, nor a plain folder of such a name; one that was taken away is no error."""
    make(run={"epochs": 2, "val": False}, max_keep_ckpts=2).train()
    folder = tmp_path / "run"
    shutil.copytree(folder / "epoch_1", folder / "mine")
    shutil.rmtree(folder / "epoch_1")
    (folder / "epoch_1").mkdir()
    (folder / "epoch_1" / "notes.txt").write_text("mine")
    shutil.move(folder / "epoch_2", tmp_path / "elsewhere")
    shutil.copytree(tmp_path / "elsewhere", folder / "kept_by_hand")
    make(run={"epochs": 5, "val": False, "resume": True, "bus": Bus()}, max_keep_ckpts=1).train()
    assert sorted(names(folder)) == ["epoch_5", "kept_by_hand", "mine"]
    assert (folder / "epoch_1" / "notes.txt").read_text() == "mine"


def test_the_best_is_not_counted_among_those_that_are_kept(make: Callable[..., Runner], tmp_path: Path) -> None:
    """It outlives the regular one that it is a twin of."""
    make(run=scored(0.9, 0.1, 0.2, 0.3), save_best="accuracy", max_keep_ckpts=1).train()
    assert sorted(names(tmp_path / "run")) == ["best_accuracy_epoch_1", "epoch_4"]


def test_what_a_killed_run_left_unfinished_is_cleared_away(make: Callable[..., Runner], tmp_path: Path) -> None:
    """Before a checkpoint is looked for; a replaced one comes back if its successor never arrived."""
    make(run={"epochs": 2, "val": False}).train()
    folder = tmp_path / "run"
    (folder / ".tmp-epoch_3-999999999-01234567").mkdir()
    (folder / "epoch_2").rename(folder / ".old-epoch_2-999999999-01234567")
    runner = make(run={"epochs": 2, "val": False, "resume": True, "bus": Bus()})
    runner.train()
    assert json.loads((folder / "run.json").read_text())["resumes"][0]["checkpoint"] == str(folder / "epoch_2")
    assert names(folder) == ["epoch_1", "epoch_2"]
    assert not [path for path in folder.iterdir() if path.name.startswith((".tmp", ".old"))]


# The best


def test_the_best_is_kept_and_only_the_best(make: Callable[..., Runner], tmp_path: Path) -> None:
    """An equal score doesn't take its place."""
    runner = make(run=scored(0.5, 0.7, 0.7, 0.6), save_best="accuracy", interval=-1, save_last=False)
    runner.train()
    assert names(tmp_path / "run") == ["best_accuracy_epoch_2"]
    assert runner.message_hub.get_info("best_score") == 0.7
    assert runner.message_hub.get_info("best_ckpt") == str(tmp_path / "run/best_accuracy_epoch_2")
    assert read_manifest(tmp_path / "run/best_accuracy_epoch_2").meta == {"best": {"accuracy": 0.7}}


def test_the_best_is_a_twin_of_the_save_made_at_that_step(make: Callable[..., Runner], tmp_path: Path) -> None:
    """The same files on the disk, written once."""
    sites = Sites()
    make(run=scored(0.5, 0.7, custom_hooks=[sites]), save_best="accuracy", mode="sync").train()
    assert [name for name, _ in sites.seen] == [
        *("before", "epoch_1", "best_accuracy_epoch_1"),
        *("before", "epoch_2", "best_accuracy_epoch_2"),
    ]
    folder = tmp_path / "run"
    assert inodes(folder / "best_accuracy_epoch_2") == inodes(folder / "epoch_2")
    assert inodes(folder / "best_accuracy_epoch_2") != inodes(folder / "epoch_1")
    assert names(folder) == ["epoch_1", "best_accuracy_epoch_2", "epoch_2"]


def test_the_new_best_is_durable_before_the_old_one_is_deleted(make: Callable[..., Runner]) -> None:
    """As with regular ones."""
    sites = Sites()
    hook = dict(save_best="accuracy", interval=-1, save_last=False, mode="sync")
    make(run=scored(0.5, 0.7, custom_hooks=[sites]), **hook).train()
    assert sites.seen == [
        ("before", []),
        ("best_accuracy_epoch_1", ["best_accuracy_epoch_1"]),
        ("before", ["best_accuracy_epoch_1"]),
        ("best_accuracy_epoch_2", ["best_accuracy_epoch_1", "best_accuracy_epoch_2"]),
    ]


@pytest.mark.parametrize("interval", [1, -1], ids=["a twin", "a save of its own"])
def test_the_best_can_be_gone_on_from(make: Callable[..., Runner], tmp_path: Path, interval: int) -> None:
    """To the weights of the run that was never broken off, even where the one it is a twin of has been deleted."""
    scores = (0.5, 0.9, 0.6, 0.6)
    hook = dict(save_best="accuracy", interval=interval, max_keep_ckpts=1)
    straight = make(run=scored(*scores), **hook).train()
    best = tmp_path / "run/best_accuracy_epoch_2"
    again = (0.9, 0.6, 0.6) if interval == 1 else (0.6, 0.6)  # a twin was saved before its validation, which repeats
    run = scored(*again, epochs=4, work_dir=tmp_path / "again", resume=best, bus=Bus())
    resumed = make(run=run, **hook)
    resumed.train()
    assert same(weights(resumed.model), weights(straight))
    assert resumed.message_hub.get_info("best_score") == 0.9


def test_a_nan_is_never_the_best(make: Callable[..., Runner], tmp_path: Path) -> None:
    """Neither at first nor later."""
    nan = float("nan")
    make(run=scored(nan, 0.1, nan), save_best="accuracy", interval=-1, save_last=False).train()
    assert names(tmp_path / "run") == ["best_accuracy_epoch_2"]


@pytest.mark.parametrize(
    ("hook", "best"),
    [
        (dict(save_best="auto"), "best_accuracy_epoch_2"),
        (dict(save_best="accuracy"), "best_accuracy_epoch_2"),
        (dict(save_best="val/accuracy"), "best_accuracy_epoch_2"),
        (dict(save_best="accuracy", rule="less"), "best_accuracy_epoch_3"),
        (dict(save_best="auto", rule="less"), "best_accuracy_epoch_3"),
        (dict(save_best="accuracy", less_keys=["accuracy"]), "best_accuracy_epoch_3"),
        (dict(save_best="weight"), None),
        (dict(save_best="weight", rule="greater"), "best_weight_epoch_1"),
        (dict(save_best="weight", greater_keys=["weight"]), "best_weight_epoch_1"),
        (dict(save_best="weight", less_keys=["weight"]), "best_weight_epoch_3"),
    ],
)
def test_the_rule_is_given_or_told_from_the_name(
    make: Callable[..., Runner], tmp_path: Path, hook: dict[str, Any], best: str | None
) -> None:
    """Where neither tells, the Runner isn't made."""
    evaluator = {"accuracy": Given(0.5, 0.7, 0.3), "weight": Given(3, 2, 1)}
    options = {"epochs": 3, "val_evaluator": evaluator}
    if best is None:
        with pytest.raises(OptionError, match="whether more of 'weight' is better can't be told from its name"):
            make(run=options, **hook)
    else:
        make(run=options, interval=-1, save_last=False, **hook).train()
        assert names(tmp_path / "run") == [best]


def test_several_metrics_have_a_best_each(make: Callable[..., Runner], tmp_path: Path) -> None:
    """Each by its own rule, and each told in the message hub under its own name."""
    evaluator = {"accuracy": Given(0.5, 0.7, 0.3), "loss": Given(3, 2, 1)}
    runner = make(run={"epochs": 3, "val_evaluator": evaluator}, save_best=["accuracy", "loss"], interval=-1)
    runner.train()
    folder, hub = tmp_path / "run", runner.message_hub
    assert sorted(names(folder)) == ["best_accuracy_epoch_2", "best_loss_epoch_3", "epoch_3"]
    assert (hub.get_info("best_score_accuracy"), hub.get_info("best_score_loss")) == (0.7, 1)
    assert hub.get_info("best_ckpt_accuracy") == str(folder / "best_accuracy_epoch_2")
    assert hub.get_info("best_ckpt_loss") == str(folder / "best_loss_epoch_3")
    assert hub.get_info("last_ckpt") == str(folder / "epoch_3")


def test_several_bests_of_one_step_are_written_once(make: Callable[..., Runner], tmp_path: Path) -> None:
    """Where no regular save was made at it, the first is written and the others are its twins; each knows of all."""
    evaluator = {"accuracy": Given(0.5), "loss": Given(3)}
    runner = make(
        run={"epochs": 1, "val_evaluator": evaluator}, save_best=["accuracy", "loss"], interval=-1, save_last=False
    )
    runner.train()
    folder = tmp_path / "run"
    assert inodes(folder / "best_accuracy_epoch_1") == inodes(folder / "best_loss_epoch_1")
    assert runner.message_hub.get_info("saves")["requested"] == 1
    state = load_checkpoint(folder / "best_loss_epoch_1")["hooks"]["CheckpointHook"]["best"]["best"]
    assert {metric: score for metric, (score, _) in state.items()} == {"accuracy": 0.5, "loss": 3}
    assert read_manifest(folder / "best_loss_epoch_1").meta == {"best": {"loss": 3}}


def test_what_was_best_survives_a_resume(make: Callable[..., Runner], tmp_path: Path) -> None:
    """A later run compares with it, tells it, and keeps what 'auto' had become."""
    hook = dict(save_best="auto")
    make(run=scored(0.5, 0.9, 0.6), **hook).train()
    evaluator = {"loss": Given(1.0), "accuracy": Given(0.7, 0.8)}  # now in another order
    resumed = make(run=scored(epochs=5, resume=True, bus=Bus(), val_evaluator=evaluator), **hook)
    resumed.train()
    hub, folder = resumed.message_hub, tmp_path / "run"
    assert (hub.get_info("best_score"), hub.get_info("best_ckpt")) == (0.9, str(folder / "best_accuracy_epoch_2"))
    assert [name for name in names(folder) if name.startswith("best")] == ["best_accuracy_epoch_2"]


def test_a_best_that_was_taken_away_is_not_told(make: Callable[..., Runner], tmp_path: Path) -> None:
    """Every path that is told exists; its score is still the one to beat."""
    make(run=scored(0.9, 0.6), save_best="accuracy").train()
    shutil.rmtree(tmp_path / "run/best_accuracy_epoch_1")
    resumed = make(run=scored(0.7, epochs=3, resume=True, bus=Bus()), save_best="accuracy")
    resumed.train()
    assert resumed.message_hub.get_info("best") == {}
    assert not [name for name in names(tmp_path / "run") if name.startswith("best")]


def test_a_validation_before_training_counts(make: Callable[..., Runner], tmp_path: Path) -> None:
    """The untrained model may be the best there is."""
    run = scored(0.9, 0.6, train_cfg={"max_epochs": 1, "val_begin": 0})
    make(run=run, save_best="accuracy").train()
    assert names(tmp_path / "run") == ["best_accuracy_epoch_0", "epoch_1"]


def test_val_on_its_own_marks_nothing(make: Callable[..., Runner], tmp_path: Path) -> None:
    """It works with ``save_best`` all the same, before a training and after."""
    runner = make(run=scored(0.5, 0.6, 0.9, epochs=1), save_best=["accuracy"])
    runner.val()
    runner.train()
    runner.val()
    assert sorted(names(tmp_path / "run")) == ["best_accuracy_epoch_1", "epoch_1"]
    assert runner.message_hub.get_info("best_score") == 0.6


def test_a_metric_that_only_a_validation_shows_to_be_missing_is_an_error(make: Callable[..., Runner]) -> None:
    """A metric that computes a dict has keys that nobody knows before."""
    runner = make(run=scored({"top1": 0.5, "top5": 0.9}), save_best="accuracy/top2")
    with pytest.raises(OptionError) as caught:
        runner.train()
    assert str(caught.value) == (
        "CheckpointHook(save_best='accuracy/top2'): the validation gave accuracy/top1, accuracy/top5; did you mean "
        "'accuracy/top5'?"
    )


def test_a_validation_without_any_metric_is_reported(
    make: Callable[..., Runner], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It has no best."""
    make(run=scored({}, log_level="WARNING"), save_best="auto", interval=-1, save_last=False).train()
    assert 'level=warning event=save_best reason="the validation gave no metrics"' in capsys.readouterr().out
    assert names(tmp_path / "run") == []


def test_a_failing_save_of_the_best_changes_nothing(make: Callable[..., Runner], tmp_path: Path) -> None:
    """The old best is there and still counts."""

    class Spoil(Hook):
        def before_save_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
            if runner.epoch == 2:
                checkpoint["spoilt"] = object()

    runner = make(run=scored(0.5, 0.7, custom_hooks=[Spoil()]), save_best="accuracy", interval=-1, save_last=False)
    with pytest.raises(CheckpointError, match="spoilt"):
        runner.train()
    assert names(tmp_path / "run") == ["best_accuracy_epoch_1"]
    (hook,) = (hook for hook in runner.hooks if isinstance(hook, CheckpointHook))
    assert hook.best.best == {"accuracy": (0.5, "best_accuracy_epoch_1")}


# A run that ends early


class Ends(Hook):
    """Ends the run at a site, when so many iterations have been counted there."""

    priority = "LOWEST"

    def __init__(self, site: str, counted: int, error: BaseException | None = None) -> None:
        self.counted, self.error = counted, error
        setattr(self, site, self.end)

    def end(self, runner: Runner) -> None:
        if runner.iter == self.counted:
            if self.error is not None:
                raise self.error
            runner.stop("enough")


@pytest.mark.parametrize(
    ("site", "counted", "last"),
    [
        ("after_train_epoch", 6, "epoch_2"),
        ("after_val_epoch", 6, "epoch_2"),
        ("after_train_iter", 4, "iter_5"),
        ("after_train_iter", 5, "epoch_2"),
        ("before_train_iter", 4, "iter_5"),
    ],
    ids=["at an epoch's end", "after its validation", "midway", "in the last iteration", "before an iteration"],
)
def test_a_run_that_is_stopped_saves_its_last_state(
    make: Callable[..., Runner], tmp_path: Path, site: str, counted: int, last: str
) -> None:
    """Far from any interval, under a name that says what it is the state of."""
    runner = make(run={"epochs": 4, "count": 3, "custom_hooks": [Ends(site, counted)]}, interval=10)
    runner.train()
    assert names(tmp_path / "run") == [last]
    assert read_manifest(tmp_path / "run" / last).step == runner.iter
    assert same(load_weights(tmp_path / "run" / last), weights(runner.model))
    assert runner.message_hub.get_info("last_ckpt") == str(tmp_path / "run" / last)


def test_an_early_stop_saves_its_last_state(make: Callable[..., Runner], tmp_path: Path) -> None:
    """The hook that stops comes after this one."""
    stop = dict(type="EarlyStoppingHook", monitor="accuracy", patience=1)
    make(run=scored(0.5, 0.4, 0.3, custom_hooks=[stop]), interval=10).train()
    assert names(tmp_path / "run") == ["epoch_2"]


def test_a_training_by_iterations_that_is_stopped_saves_its_last_state(
    make: Callable[..., Runner], tmp_path: Path
) -> None:
    """By the template, as its other saves are."""
    run = {"train_cfg": {"max_iters": 9}, "val": False, "custom_hooks": [Ends("after_train_iter", 4)]}
    make(run=run, interval=3, filename_tmpl="step-{}").train()
    assert names(tmp_path / "run") == ["step-3", "step-5"]


def test_a_last_state_that_is_saved_already_is_not_saved_again(make: Callable[..., Runner]) -> None:
    """A stop where a save is due needs no second one; nor does a finished run that is trained once more."""
    sites = Sites()
    runner = make(run={"epochs": 2, "custom_hooks": [sites, Ends("after_train_epoch", 2)]})
    runner.train()
    assert [name for name, _ in sites.seen] == ["before", "epoch_1"]
    runner.train()
    runner.train()
    assert [name for name, _ in sites.seen] == ["before", "epoch_1", "before", "epoch_2"]


def test_without_save_last_an_early_end_is_not_saved(make: Callable[..., Runner], tmp_path: Path) -> None:
    """It is what was asked for."""
    make(run={"epochs": 4, "custom_hooks": [Ends("after_train_iter", 1)]}, save_last=False, interval=10).train()
    assert names(tmp_path / "run") == []


@pytest.mark.parametrize("error", [RuntimeError("broken"), KeyboardInterrupt()], ids=["failed", "interrupted"])
def test_a_run_that_breaks_off_does_not_save_a_torn_state(
    make: Callable[..., Runner], tmp_path: Path, error: BaseException
) -> None:
    """Nor does it publish."""
    hook = Ends("after_optimizer_step", 3, error)
    runner = make(run={"epochs": 4, "custom_hooks": [hook]}, published_keys="state_dict")
    with pytest.raises(type(error)):
        runner.train()
    assert names(tmp_path / "run") == ["epoch_1"]


@pytest.mark.parametrize("counted", [2, 5])
def test_a_stopped_run_is_gone_on_from_its_last_state(
    make: Callable[..., Runner], tmp_path: Path, counted: int
) -> None:
    """To the same weights as one that never stopped, midway in an epoch too."""
    straight = make(run={"epochs": 4, "count": 3, "work_dir": tmp_path / "straight", "bus": Bus()}).train()
    make(run={"epochs": 4, "count": 3, "custom_hooks": [Ends("after_train_iter", counted)]}, interval=10).train()
    resumed = make(run={"epochs": 4, "count": 3, "resume": True, "bus": Bus()}, interval=10).train()
    assert same(weights(resumed), weights(straight))


# Where, and under which name


def test_another_folder_gets_one_named_like_the_run(make: Callable[..., Runner], tmp_path: Path) -> None:
    """The same at a second run of the same Runner; the run's own folder has none; a resume looks there."""
    runner = make(run={"epochs": 1, "test_dataloader": batches(1)}, out_dir=tmp_path / "big")
    runner.train()
    runner.test()
    runner.train()
    assert runner.checkpoint_dir == tmp_path / "big/run"
    assert names(tmp_path / "big/run") == ["epoch_1"]
    assert names(tmp_path / "run") == []
    resumed = make(run={"epochs": 2, "resume": True, "bus": Bus()}, out_dir=str(tmp_path / "big"))
    resumed.train()
    assert names(tmp_path / "big/run") == ["epoch_1", "epoch_2"]
    assert [path.name for path in (tmp_path / "big").iterdir()] == ["run"]
    assert (tmp_path / "big/run/last_checkpoint").read_text() == "epoch_2"


def test_another_folder_is_not_shared_with_another_run(make: Callable[..., Runner], tmp_path: Path) -> None:
    """Two runs whose folders have one name would overwrite each other's checkpoints."""
    make(run={"epochs": 1}, out_dir=tmp_path / "big").train()
    other = make(run={"epochs": 1, "work_dir": tmp_path / "elsewhere/run", "bus": Bus()}, out_dir=tmp_path / "big")
    with pytest.raises(RunExistsError) as caught:
        other.train()
    big = tmp_path / "big"
    assert str(caught.value) == (
        f"CheckpointHook(out_dir={str(big)!r}): {big / 'run'} holds another run's checkpoints; choose another out_dir "
        "or work_dir."
    )
    other.val()  # it saves nothing, so it may


@pytest.mark.parametrize(
    ("hook", "expected"),
    [
        (dict(filename_tmpl="ckpt-{}.ep"), ["best_accuracy_ckpt-1.ep", "ckpt-1.ep"]),
        (dict(filename_tmpl="{}", by_epoch=False, interval=2), ["2", "best_accuracy_2"]),
    ],
)
def test_names_come_from_the_template(
    make: Callable[..., Runner], tmp_path: Path, hook: dict[str, Any], expected: list[str]
) -> None:
    """The best's too."""
    make(run=scored(0.5), save_best="accuracy", **hook).train()
    assert sorted(names(tmp_path / "run")) == expected


def test_the_slash_of_a_metric_is_no_folder(make: Callable[..., Runner], tmp_path: Path) -> None:
    """A metric that computes a dict reports name/key."""
    make(run=scored({"top1": 0.5}), save_best="accuracy/top1", interval=-1, save_last=False).train()
    assert names(tmp_path / "run") == ["best_accuracy_top1_epoch_1"]


# Publishing


def test_the_best_and_the_last_are_published_with_the_parts_asked_for(
    make: Callable[..., Runner], tmp_path: Path
) -> None:
    """Beside the original, under its name and the first digits of its weights' digest; marked as published."""
    make(run=scored(0.9, 0.5), save_best="accuracy", published_keys=["meta", "state_dict"]).train()
    folder = tmp_path / "run"
    published = {name for name in names(folder) if "-" in name}
    for name in ("best_accuracy_epoch_1", "epoch_2"):
        digest = read_manifest(folder / name).files["model.safetensors"].digest[:8]
        assert f"{name}-{digest}" in published
        copy = load_checkpoint(folder / f"{name}-{digest}")
        assert copy.keys() == {"meta", "state_dict"}
        assert same(copy["state_dict"], load_checkpoint(folder / name)["state_dict"])
        manifest = read_manifest(folder / f"{name}-{digest}")
        assert manifest.meta["published"] is True
        assert manifest.step == read_manifest(folder / name).step
    assert len(published) == 2


@pytest.mark.parametrize(
    ("hook", "published"),
    [
        (dict(save_last=False, save_best="accuracy"), ["best_accuracy_epoch_1"]),
        (dict(save_last=True), ["epoch_2"]),
        (dict(save_last=False, save_best="accuracy", interval=-1), ["best_accuracy_epoch_1"]),
    ],
)
def test_what_is_published_is_what_is_set(
    make: Callable[..., Runner], tmp_path: Path, hook: dict[str, Any], published: list[str]
) -> None:
    """``save_best`` the best, ``save_last`` the last."""
    make(run=scored(0.9, 0.5), published_keys="state_dict", **hook).train()
    assert [name.rpartition("-")[0] for name in names(tmp_path / "run") if "-" in name] == published


def test_a_published_copy_is_not_gone_on_from(make: Callable[..., Runner], tmp_path: Path) -> None:
    """It is the newest, but no run can be resumed from it; the hint names the original, too."""
    hook = dict(published_keys=["state_dict"])
    make(run={"epochs": 1}, **hook).train()
    folder = tmp_path / "run"
    assert names(folder)[-1].startswith("epoch_1-")
    assert find_newest(folder).path == folder / "epoch_1"
    assert (folder / "last_checkpoint").read_text() == "epoch_1"
    by_name = make(run={"resume": folder / names(folder)[-1], "bus": Bus()}, **hook)
    with pytest.raises(ResumeError, match="load_from= takes weights alone"):
        by_name.train()
    make(run={"epochs": 2, "resume": True, "bus": Bus()}, **hook).train()
    assert [name.partition("-")[0] for name in names(folder)] == ["epoch_1", "epoch_1", "epoch_2", "epoch_2"]


def test_a_published_copy_can_be_loaded_for_its_weights(make: Callable[..., Runner], tmp_path: Path) -> None:
    """That is what it is for."""
    trained = make(run={"epochs": 1}, published_keys="state_dict").train()
    (copy,) = (name for name in names(tmp_path / "run") if "-" in name)
    run = {"model": linear(seed=5), "work_dir": tmp_path / "b", "load_from": tmp_path / "run" / copy, "bus": Bus()}
    runner = make(run=run)
    runner.val()
    assert same(weights(runner.model), weights(trained))


def test_a_part_that_is_not_there_is_reported(
    make: Callable[..., Runner], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One that a receiver would have had to add."""
    make(run={"epochs": 1, "log_level": "INFO"}, published_keys=["state_dict", "curriculum"]).train()
    said = capsys.readouterr().out
    assert f'event=published_keys reason="{tmp_path / "run/epoch_1"} has no curriculum"' in said
    assert "event=published path=" in said


# What is refused


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(interval=0), "CheckpointHook(interval=0): give an int of 1 or more, or -1."),
        (dict(interval=2.0), "CheckpointHook(interval=2.0): give an int of 1 or more, or -1."),
        (dict(interval=True), "CheckpointHook(interval=True): give an int of 1 or more, or -1."),
        (dict(max_keep_ckpts=0), "CheckpointHook(max_keep_ckpts=0): give an int of 1 or more, or -1."),
        (dict(max_keep_ckpts=-2), "CheckpointHook(max_keep_ckpts=-2): give an int of 1 or more, or -1."),
        (dict(save_begin=-1), "CheckpointHook(save_begin=-1): give an int of 0 or more."),
        (dict(save_begin="1"), "CheckpointHook(save_begin='1'): give an int of 0 or more."),
        (dict(by_epoch="yes"), "CheckpointHook(by_epoch='yes'): give True or False."),
        (dict(save_last=None), "CheckpointHook(save_last=None): give True or False."),
        (dict(save_optimizer=0), "CheckpointHook(save_optimizer=0): give True or False."),
        (dict(out_dir=3), "CheckpointHook(out_dir=3): give a folder's path."),
        (dict(out_dir=""), "CheckpointHook(out_dir=''): give a folder's path."),
        (
            dict(filename_tmpl="epoch"),
            "CheckpointHook(filename_tmpl='epoch'): give a plain name with one {}, of at most 80 bytes.",
        ),
        (
            dict(filename_tmpl="{}{}"),
            "CheckpointHook(filename_tmpl='{}{}'): give a plain name with one {}, of at most 80 bytes.",
        ),
        (
            dict(filename_tmpl="{x}_{}"),
            "CheckpointHook(filename_tmpl='{x}_{}'): give a plain name with one {}, of at most 80 bytes.",
        ),
        (
            dict(filename_tmpl="a/{}"),
            "CheckpointHook(filename_tmpl='a/{}'): give a plain name with one {}, of at most 80 bytes.",
        ),
        (
            dict(filename_tmpl=".{}"),
            "CheckpointHook(filename_tmpl='.{}'): give a plain name with one {}, of at most 80 bytes.",
        ),
        (dict(filename_tmpl=3), "CheckpointHook(filename_tmpl=3): give a plain name with one {}, of at most 80 bytes."),
        (
            dict(filename_tmpl="é" * 40 + "{}"),
            f"CheckpointHook(filename_tmpl='{'é' * 40}{{}}'): give a plain name with one {{}}, of at most 80 bytes.",
        ),
        (
            dict(save_best=["a", "auto"]),
            "CheckpointHook(save_best=…): 'auto' stands alone, not in a list with other keys.",
        ),
        (dict(rule="less"), "CheckpointHook(rule=['less']) needs save_best."),
        (dict(published_keys=3), "CheckpointHook(published_keys=3): give a name, a list of names, or None."),
        (
            dict(published_keys="state_dict", save_last=False),
            "CheckpointHook(published_keys=…) publishes the best or the last: set save_best or save_last.",
        ),
        (
            dict(published_keys=["meta", "state_dicts"]),
            "CheckpointHook(published_keys='state_dicts'): a checkpoint has no such part; did you mean 'state_dict'?",
        ),
    ],
)
def test_a_value_that_cannot_be_is_refused_at_construction(options: dict[str, Any], message: str) -> None:
    """In one sentence that says what is allowed instead."""
    with pytest.raises(OptionError) as caught:
        CheckpointHook(**options)
    assert str(caught.value) == message


def test_a_misspelt_option_is_refused_with_the_nearest(make: Callable[..., Runner], tmp_path: Path) -> None:
    """By the dict form when the Runner is made, which then leaves no folder; directly by Python itself."""
    with pytest.raises(OptionError) as caught:
        make(max_keep_ckpt=2)
    assert str(caught.value) == "CheckpointHook has no option 'max_keep_ckpt'; did you mean 'max_keep_ckpts'?"
    assert not (tmp_path / "run").exists()
    with pytest.raises(TypeError, match="unexpected keyword argument 'max_keep_ckpt'"):
        CheckpointHook(max_keep_ckpt=2)  # type: ignore[call-arg]


@pytest.mark.parametrize(
    ("run", "hook", "message"),
    [
        (
            {"train_cfg": {"max_iters": 4}},
            dict(by_epoch=True),
            "CheckpointHook(by_epoch=True): the training goes by iterations; leave by_epoch out.",
        ),
        (
            {},
            dict(by_epoch=False),
            "CheckpointHook(by_epoch=False) in a training by epochs: say how many iterations with interval=.",
        ),
        (
            {"val": False},
            dict(save_best="auto"),
            "CheckpointHook(save_best='auto') needs a val_dataloader and a val_evaluator.",
        ),
        (
            {},
            dict(save_best="mes", rule="less"),
            "CheckpointHook(save_best='mes'): the evaluator reports 'mse'; did you mean 'mse'?",
        ),
    ],
)
def test_what_does_not_go_with_the_run_is_refused_when_it_is_made(
    make: Callable[..., Runner], tmp_path: Path, run: dict[str, Any], hook: dict[str, Any], message: str
) -> None:
    """Before anything is written."""
    with pytest.raises(OptionError) as caught:
        make(run=run, **hook)
    assert str(caught.value) == message
    assert not (tmp_path / "run").exists()


def test_a_runner_that_does_not_train_takes_any_options(make_runner: MakeRunner) -> None:
    """They have no meaning there."""
    changes = {"train_dataloader": None, "train_cfg": None, "optimizer": None, "val": True}
    runner = make_runner(**changes, default_hooks={"logger": None, "checkpoint": dict(by_epoch=True, save_best="auto")})
    assert runner.val().keys() == {"mse"}


class Unsaveable(Hook):
    """Has a state that no checkpoint can hold."""

    def state_dict(self) -> dict[str, Any]:
        return {"queue": print}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take nothing."""


def test_a_hook_whose_state_cant_be_saved_is_refused_before_the_first_batch(make: Callable[..., Runner]) -> None:
    """Not at the first save, which may be hours away."""
    runner = make(run={"custom_hooks": [Unsaveable()]})
    with pytest.raises(CheckpointError, match=r"^checkpoint\['hooks'\]\['Unsaveable'\]\['queue'\] is a "):
        runner.train()
    assert runner.iter == 0


# What it tells


def test_the_account_counts_what_was_asked_for_and_what_is_committed(
    make: Callable[..., Runner], tmp_path: Path
) -> None:
    """Bytes are those on the disk, twins cost none, and each training begins anew."""
    runner = make(run=scored(0.5, 0.6), save_best="accuracy")
    runner.train()
    saves = runner.message_hub.get_info("saves")
    on_disk = sum(path.stat().st_size for path in (tmp_path / "run").glob("epoch_*/*"))
    assert (saves["requested"], saves["committed"], saves["bytes"]) == (2, 2, on_disk)
    assert saves["took"] > 0
    resumed = make(run=scored(0.5, epochs=3, resume=True, bus=Bus()), save_best="accuracy")
    resumed.train()
    assert resumed.message_hub.get_info("saves")["requested"] == 1


def test_a_resumed_run_that_saves_nothing_still_tells_where_its_last_save_is(
    make: Callable[..., Runner], tmp_path: Path
) -> None:
    """The end of its log points there."""
    make(run={"epochs": 2}).train()
    resumed = make(run={"epochs": 2, "resume": True, "bus": Bus()})
    resumed.train()
    assert resumed.message_hub.get_info("last_ckpt") == str(tmp_path / "run/epoch_2")
    assert resumed.message_hub.get_info("saves") is None


@pytest.mark.parametrize(
    "metric",
    [
        pytest.param("a" * 220, id="long"),
        pytest.param("é→★" * 70, id="several bytes a sign"),
        pytest.param("group/" + "x" * 300 + "/mAP", id="long with separators"),
        pytest.param("accuracy\n\t\0", id="unprintable"),
    ],
)
@pytest.mark.parametrize("template", [None, "e" * 78 + "{}"])
@pytest.mark.slow
def test_a_metrics_name_that_no_folder_can_have_is_shortened(
    make: Callable[..., Runner], tmp_path: Path, metric: str, template: str | None
) -> None:
    """The same each time, unlike that of another which begins alike; published copies have room for theirs."""
    metrics = {metric: Given(0.1, 0.2), f"{metric}2": Given(0.4, 0.3)}
    run = {"epochs": 2, "val_evaluator": metrics}
    hook: dict[str, Any] = {"save_best": list(metrics), "rule": "greater", "filename_tmpl": template}
    make(run=run, **hook, published_keys="state_dict").train()
    assert sum(name.startswith("best_") for name in names(tmp_path / "run")) == 4
    resumed = make(run={**run, "epochs": 3, "resume": True, "bus": Bus()}, **hook)
    resumed.train()
    bests = resumed.message_hub.get_info("best")
    assert set(bests) == set(metrics)
    assert len({best["path"] for best in bests.values()}) == 2
    assert all(len(Path(best["path"]).name.encode()) <= 200 and Path(best["path"]).is_dir() for best in bests.values())
