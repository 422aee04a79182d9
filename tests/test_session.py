"""One train(), val() or test(): the folder it runs in, what run.json says of it, and how it is left."""

from __future__ import annotations

import json
import multiprocessing
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import MakeRunner
from tiny import QUIET, batches, forked, options

from eventrunner.bus.bus import Bus
from eventrunner.errors import RunExistsError
from eventrunner.hook import Hook
from eventrunner.runner import Runner


@pytest.fixture(autouse=True)
def _script(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["/somewhere/digits.py", "--fast"])


def run_json(folder: Path) -> dict[str, Any]:
    """What run.json says."""
    return dict(json.loads((folder / "run.json").read_text(encoding="utf-8")))


def unnamed(**more: Any) -> Runner:
    """A run without a folder of its own."""
    return Runner(**options(bus=Bus(), **more))


def test_a_rerun_has_the_next_number_and_leaves_the_first_alone(tmp_path: Path) -> None:
    """runs/<script>/001, then 002; no file of the first changes."""
    first = unnamed()
    first.train()
    before = {path: path.read_bytes() for path in first.work_dir.rglob("*") if path.is_file()}
    second = unnamed()
    second.train()
    assert [first.work_dir, second.work_dir] == [tmp_path / "runs/digits/001", tmp_path / "runs/digits/002"]
    assert {path: path.read_bytes() for path in first.work_dir.rglob("*") if path.is_file()} == before
    assert (tmp_path / "runs/digits/latest").resolve() == tmp_path / "runs/digits/002"


def test_resume_without_a_folder_goes_on_with_the_latest(tmp_path: Path) -> None:
    """In the newest of the script's runs, or in a new one where there is none."""
    fresh = unnamed(epochs=1, resume=True)
    fresh.train()
    assert (fresh.work_dir, fresh.iter) == (tmp_path / "runs/digits/001", 2)
    again = unnamed(epochs=3, resume=True)
    again.train()
    assert (again.work_dir, again.iter) == (tmp_path / "runs/digits/001", 6)
    assert [entry["step"] for entry in run_json(again.work_dir)["resumes"]] == [2]


def test_a_runner_that_never_runs_leaves_no_run(make_runner: MakeRunner) -> None:
    """Its folder can be used by the next, so a mistake after construction costs nothing."""
    make_runner()
    assert list(Path("run").iterdir()) == []
    make_runner().train()


def test_a_folder_with_a_run_is_refused_at_once(make_runner: MakeRunner) -> None:
    """When the Runner is made, before anything else is looked at; the run stays as it was."""
    make_runner().train()
    before = run_json(Path("run"))
    with pytest.raises(
        RunExistsError, match=r"already holds a run \(completed after epoch 2, step 4\); pass resume=True"
    ):
        make_runner(train_cfg=None)
    assert run_json(Path("run")) == before


def test_of_two_runs_made_for_one_folder_only_the_first_begins(make_runner: MakeRunner) -> None:
    """The folder was free when both were made; the second finds the first's run and touches nothing."""
    one, two = make_runner(), make_runner()
    one.train()
    before = {path: path.read_bytes() for path in Path("run").rglob("*") if path.is_file()}
    heard: list[str] = []
    two.on("before_run")(lambda: heard.append("before_run"))
    for _ in range(2):
        with pytest.raises(RunExistsError):
            two.train()
    assert heard == []
    assert {path: path.read_bytes() for path in Path("run").rglob("*") if path.is_file()} == before
    one.train()


def test_run_json_says_what_ran(make_runner: MakeRunner) -> None:
    """The command, versions, revision, seed, name, and how it ended."""
    runner = make_runner(experiment_name="mine", randomness={"seed": 42})
    runner.train()
    said = run_json(runner.work_dir)
    assert said.pop("started").endswith("+00:00")
    assert sorted(said.pop("versions")) == ["eventrunner", "python", "torch"]
    assert said == {
        "argv": ["/somewhere/digits.py", "--fast"],
        "git": None,
        "experiment_name": "mine",
        "seed": 42,
        "ended": "completed after epoch 2, step 4",
    }


def test_run_json_says_of_every_resume_what_ran(make_runner: MakeRunner, monkeypatch: pytest.MonkeyPatch) -> None:
    """From which checkpoint, when, and with which command and versions; the first start stays on record."""
    make_runner(epochs=1, experiment_name="mine").train()
    first = run_json(Path("run"))
    for epochs in (2, 3):
        monkeypatch.setattr(sys, "argv", ["digits.py", str(epochs)])
        make_runner(epochs=epochs, resume=True).train()
    said = run_json(Path("run"))
    resumes = said.pop("resumes")
    assert [(entry["step"], entry["argv"]) for entry in resumes] == [(2, ["digits.py", "2"]), (4, ["digits.py", "3"])]
    assert [Path(entry["checkpoint"]).name for entry in resumes] == ["epoch_1", "epoch_2"]
    assert all(entry["versions"] == first["versions"] and entry["at"] >= first["started"] for entry in resumes)
    assert said == {**first, "ended": "completed after epoch 3, step 6"}


def test_a_resumed_run_keeps_its_seed(make_runner: MakeRunner) -> None:
    """Where none is given it is known from the start, and where another is given the run's own counts."""
    first = make_runner(epochs=1, randomness=None)
    first.train()
    again = make_runner(epochs=2, randomness=None, resume=True)
    assert again.seed == first.seed
    again.train()
    other = make_runner(epochs=3, randomness={"seed": first.seed + 1}, resume=True)
    other.train()
    assert other.seed == first.seed == run_json(Path("run"))["seed"]


@pytest.mark.parametrize(
    ("error", "ended"),
    [(ZeroDivisionError, "exception after epoch 0, step 1"), (KeyboardInterrupt, "interrupted after epoch 0, step 1")],
)
def test_run_json_says_how_it_failed(make_runner: MakeRunner, error: type[BaseException], ended: str) -> None:
    """And how far it was."""
    runner = make_runner(default_hooks=QUIET)

    @runner.on("after_train_iter")
    def fail() -> None:
        raise error

    with pytest.raises(error):
        runner.train()
    assert run_json(runner.work_dir)["ended"] == ended


def test_run_json_says_who_stopped_it(make_runner: MakeRunner) -> None:
    """By the reason that was given."""
    runner = make_runner(default_hooks=QUIET)
    runner.on("after_train_epoch")(lambda runner: runner.stop("good enough"))
    runner.train()
    assert run_json(runner.work_dir)["ended"] == "good enough after epoch 1, step 2"


def test_a_test_after_the_training_leaves_its_ending(make_runner: MakeRunner) -> None:
    """How the training ended is what the folder is asked for."""
    runner = make_runner(test_dataloader=batches(1), val=True)
    runner.on("after_train_epoch")(lambda runner: runner.stop("good enough"))
    runner.train()
    runner.test()
    runner.val()
    assert run_json(runner.work_dir)["ended"] == "good enough after epoch 1, step 2"


def test_an_evaluation_alone_has_an_ending_too(make_runner: MakeRunner) -> None:
    """So a later run is refused its folder with a reason."""
    make_runner(val=True).val()
    assert run_json(Path("run"))["ended"] == "val completed"
    with pytest.raises(RunExistsError, match=r"already holds a run \(val completed\);"):
        make_runner()


def test_the_receivers_are_listed_in_log_txt_and_not_on_the_terminal(
    make_runner: MakeRunner, capsys: pytest.CaptureFixture[str]
) -> None:
    """At the start of each session."""
    runner = make_runner(log_level="INFO")
    runner.train()
    assert runner.get_hooks_info() in (runner.work_dir / "log.txt").read_text(encoding="utf-8")
    assert "param_scheduler.py" not in capsys.readouterr().out


def test_a_folder_that_is_gone_when_the_run_ends_masks_nothing(make_runner: MakeRunner) -> None:
    """run.json can't be written; the error that the run failed of comes out, with a note of it."""
    runner = make_runner(default_hooks=QUIET)

    @runner.on("after_train_iter")
    def lose_the_disk(runner: Runner) -> None:
        for path in runner.work_dir.iterdir():
            path.unlink()
        runner.work_dir.rmdir()
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError) as caught:
        runner.train()
    assert any(note.startswith("run.json doesn't say how the run ended: ") for note in caught.value.__notes__)
    assert runner.mode is None


def test_a_run_whose_ending_can_not_be_written_fails(make_runner: MakeRunner) -> None:
    """All went well but for that: nothing that was asked for is left undone in silence."""
    runner = make_runner(default_hooks=QUIET)

    @runner.on("after_run")
    def lose_the_disk(runner: Runner) -> None:
        for path in runner.work_dir.iterdir():
            path.unlink()
        runner.work_dir.rmdir()

    with pytest.raises(FileNotFoundError):
        runner.train()
    assert runner.mode is None


def test_what_was_deferred_when_a_run_failed_is_not_done_in_the_next(make_runner: MakeRunner) -> None:
    """Nor what was deferred at the very last site."""
    runner = make_runner(default_hooks=QUIET)
    done: list[str] = []

    @runner.on("after_train_iter", once=True)
    def ask_and_fail(runner: Runner) -> None:
        runner.defer(lambda: done.append("failed"))
        raise ZeroDivisionError

    runner.on("after_run")(lambda runner: runner.defer(lambda: done.append("too late")))
    with pytest.raises(ZeroDivisionError):
        runner.train()
    runner.train()
    runner.train()
    assert done == []


def test_a_deferred_action_that_fails_fails_the_run(make_runner: MakeRunner) -> None:
    """As its site would."""
    runner = make_runner(default_hooks=QUIET)
    runner.on("after_train")(lambda runner: runner.defer(lambda: 1 / 0))
    heard: list[str] = []
    for site in ("on_exception", "after_run"):
        runner.on(site)(lambda site=site: heard.append(site))
    with pytest.raises(ZeroDivisionError):
        runner.train()
    assert heard == ["on_exception", "after_run"]
    assert runner.stop_reason == "exception"


class InStep(Hook):
    """Waits at each epoch until the other run has come as far."""

    def __init__(self, barrier: Any) -> None:
        self.barrier = barrier

    def after_train_epoch(self, runner: Runner) -> None:
        self.barrier.wait(30)


def train_in_step(barrier: Any) -> None:
    """What each of two processes does."""
    runner = unnamed(custom_hooks=[InStep(barrier)])
    runner.train()
    Path(f"{runner.work_dir.name}.done").write_text(str(runner.work_dir))


def test_two_runs_at_once_have_a_folder_each(tmp_path: Path) -> None:
    """Two processes train at the same time, step by step; both come to their end, in different folders."""
    barrier = multiprocessing.get_context("fork").Barrier(2)
    processes = [forked(train_in_step, barrier) for _ in range(2)]
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0]
    for number in ("001", "002"):
        assert (tmp_path / f"{number}.done").read_text() == f"{tmp_path}/runs/digits/{number}"
        assert (tmp_path / f"runs/digits/{number}/epoch_2").is_dir()
