"""What a run owes to what it has offloaded: nothing is lost, nothing outlives it, and failures surface at once."""

from __future__ import annotations

import functools
import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import MakeRunner
from tiny import MeanSquaredError, batches, rows, same, val_step, weights
from torch.utils.data import DataLoader, TensorDataset

from eventrunner.checkpoint import Store, load_checkpoint, verify_checkpoint
from eventrunner.errors import LaneTimeoutError, OptionError, Preempted
from eventrunner.hook import Hook, options
from eventrunner.lanes.lanes import Account, Task
from eventrunner.report.account import Row, _add
from eventrunner.run import RunView
from eventrunner.runner import Runner

QUIET = {"logger": None, "checkpoint": None}


def test_an_offloaded_receiver_sees_the_run_as_it_was(make_runner: MakeRunner, tmp_path: Path) -> None:
    """A RunView in place of the runner, taken at its turn; what it doesn't have is an error that says what it has."""
    views: list[RunView] = []
    gate = threading.Event()
    runner = make_runner(count=3, epochs=2, default_hooks={"logger": {"interval": 1}, "checkpoint": None})

    @runner.on("after_train_iter", offload=True, lane="one")
    def look(runner: RunView) -> None:
        assert gate.wait(60)
        views.append(runner)

    runner.on("after_train")(lambda runner: None)
    runner.on("after_train_epoch", when=lambda runner: runner.epoch == 1)(lambda runner: gate.set())
    runner.train()

    assert [(view.epoch, view.iter) for view in views] == [(e, 3 * e + i) for e in range(2) for i in range(3)]
    view = views[-1]
    assert (view.mode, view.max_epochs, view.max_iters, view.rank) == ("train", 2, 6, 0)
    assert view.work_dir == tmp_path / "run"
    assert view.scalars["train/loss"] > 0
    with pytest.raises(AttributeError, match=r"^an offloaded receiver sees no 'model' of the run, only epoch, iter, "):
        view.model  # noqa: B018
    with pytest.raises(AttributeError, match=r"did you mean 'max_epochs'\?$"):
        view.max_epoch  # noqa: B018


@pytest.mark.parametrize("where", ["train", "val", "test"])
def test_a_failure_is_raised_at_the_next_iteration(make_runner: MakeRunner, where: str) -> None:
    """In training, validation and test alike: not at the next save, and not at the end."""
    evaluation = {"val_dataloader": batches(5), "val_evaluator": {"mse": MeanSquaredError()}, "val_step": val_step}
    runner = make_runner(count=5, epochs=1, default_hooks=QUIET, test_dataloader=batches(5), **evaluation)
    seen: list[int] = []
    site = f"after_{where}_iter"

    @runner.on(site, offload=True, lane="one", once=True)
    def burn() -> None:
        raise RuntimeError("burnt")

    @runner.on(site, priority="LOWEST")
    def count(runner: Runner, batch_idx: int) -> None:
        seen.append(batch_idx)
        runner.session.lanes.wait("one")

    with pytest.raises(RuntimeError, match="burnt") as caught:
        getattr(runner, where)()
    assert seen == [0]
    assert any("raised by receiver burn" in note and "in lane 'one'" in note for note in caught.value.__notes__)
    assert runner.stop_reason == "exception"


def test_a_failure_of_the_last_job_is_raised_at_the_end(make_runner: MakeRunner) -> None:
    """A run whose last job failed hasn't succeeded."""
    runner = make_runner(default_hooks=QUIET)

    @runner.on("after_run", offload=True)
    def burn() -> None:
        raise RuntimeError("burnt")

    with pytest.raises(RuntimeError, match="burnt"):
        runner.train()
    assert runner.stop_reason == "exception"


def test_an_error_of_a_job_doesnt_mask_that_of_the_training(make_runner: MakeRunner) -> None:
    """The first failure propagates; the other is told to ``on_receiver_error``."""
    runner = make_runner(default_hooks=QUIET)
    told: list[BaseException] = []
    runner.on("on_receiver_error")(lambda error: told.append(error))

    @runner.on("on_exception", offload=True)
    def burn() -> None:
        raise RuntimeError("burnt")

    @runner.on("after_train_iter")
    def fail() -> None:
        raise ValueError("first")

    with pytest.raises(ValueError, match="first"):
        runner.train()
    assert [str(error) for error in told] == ["burnt"]


@pytest.mark.parametrize(
    ("policy", "calls"), [("warn", 6), ("disable_after=2", 2)], ids=["warn", "disable after two in a row"]
)
def test_what_is_of_no_importance_may_fail(
    make_runner: MakeRunner, capsys: pytest.CaptureFixture[str], policy: str, calls: int
) -> None:
    """The training goes on, and the log says what failed."""
    runner = make_runner(count=3, default_hooks=QUIET, log_level="WARNING")
    made: list[int] = []

    @runner.on("after_train_iter", offload=True, on_error=policy)
    def track(runner: RunView) -> None:
        made.append(runner.iter)
        raise ConnectionError("tracker is down")

    runner.train()
    assert runner.stop_reason == "completed"
    assert len(made) == calls
    assert "tracker is down" in capsys.readouterr().out


@pytest.mark.parametrize("ending", ["return", "exception", "hook", "interrupt"])
def test_everything_offloaded_is_done_however_a_run_ends(make_runner: MakeRunner, ending: str) -> None:
    """A raw event loop cancels what is queued when it is left by an exception."""
    runner = make_runner(count=4, epochs=1, default_hooks=QUIET)
    done: list[int] = []
    gate = threading.Event()
    errors: dict[str, BaseException] = {"exception": ValueError("x"), "hook": OSError("y")}
    error = errors.get(ending, KeyboardInterrupt())

    @runner.on("after_train_iter", offload=True, lane="slow")
    def work(runner: RunView) -> None:
        assert gate.wait(60)
        done.append(runner.iter)

    @runner.on("after_train_iter", priority="LOWEST", when=lambda runner: runner.iter == 3)
    def end() -> None:
        threading.Timer(0.05, gate.set).start()
        if ending != "return":
            raise error

    if ending == "return":
        runner.train()
    else:
        with pytest.raises(type(error)):
            runner.train()
    assert done == [0, 1, 2, 3]


def test_nothing_outlives_a_run_and_a_second_one_works(make_runner: MakeRunner) -> None:
    """No thread is left, and train() may be called again; Lightning's asynchronous saves worked in one fit only."""
    runner = make_runner(train_cfg={"max_epochs": 4})
    before = set(threading.enumerate())
    runner.on("after_train_iter", offload=True)(lambda: None)
    runner.on("after_train_epoch", when=lambda runner: runner.epoch == 1)(lambda runner: runner.stop("enough"))
    runner.train()
    assert set(threading.enumerate()) == before
    runner.train()
    assert set(threading.enumerate()) == before
    assert runner.epoch == 4


def test_flush_waits_for_what_was_offloaded_so_far(make_runner: MakeRunner) -> None:
    """By hand, for one lane or all of them."""
    runner = make_runner(count=4, epochs=1, default_hooks=QUIET)
    done: list[int] = []
    runner.on("before_train_iter", offload=True, lane="one")(lambda batch_idx: done.append(batch_idx))
    seen: list[list[int]] = []

    @runner.on("after_train_iter")
    def look(runner: Runner, batch_idx: int) -> None:
        runner.flush("one" if batch_idx % 2 else None)
        seen.append(list(done))

    runner.train()
    assert seen == [[0], [0, 1], [0, 1, 2], [0, 1, 2, 3]]


def test_a_job_that_hangs_ends_the_run_with_its_name(make_runner: MakeRunner) -> None:
    """After the deadline, instead of a process that never ends."""
    gate = threading.Event()
    runner = make_runner(default_hooks=QUIET, offload={"deadline": 0.2})
    runner.on("before_train", offload=True, lane="stuck", label="uploader")(lambda: gate.wait(60))
    try:
        with pytest.raises(LaneTimeoutError, match="uploader"):
            runner.train()
    finally:
        gate.set()


def test_a_hooks_method_can_be_offloaded(make_runner: MakeRunner) -> None:
    """It gets what it names, frozen."""
    got: list[tuple[int, torch.Tensor]] = []

    class Watch(Hook):
        @options(offload=True, lane="watch")
        def after_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
            got.append((runner.iter, outputs["loss"]))

    make_runner(count=3, epochs=1, default_hooks=QUIET, custom_hooks=[Watch()]).train()
    assert [step for step, _ in got] == [0, 1, 2]
    assert not any(loss.requires_grad for _, loss in got)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"backend": "tiro"}, "offload['backend']='tiro' must be one of asyncio, trio; did you mean 'trio'?"),
        ({"deadlin": 1}, "offload has no key 'deadlin'; it takes backend, deadline, grace; did you mean 'deadline'?"),
        ({"grace": 0}, "offload['grace']=0 must be a number of seconds above 0."),
        (3, "offload=3 is not a dict; it takes backend, deadline, grace."),
    ],
)
def test_options_of_offloading_are_checked(make_runner: MakeRunner, given: Any, message: str) -> None:
    """Before anything is written."""
    with pytest.raises(OptionError) as caught:
        make_runner(offload=given)
    assert str(caught.value) == message


def test_a_run_on_trio_trains_the_same(make_runner: MakeRunner) -> None:
    """The event loop is a matter of taste."""
    trained = [make_runner(work_dir=name, offload={"backend": name}).train() for name in ("asyncio", "trio")]
    assert same(weights(trained[0]), weights(trained[1]))


# Saves beside the training


def test_a_save_is_told_of_when_it_is_committed_and_not_before(make_runner: MakeRunner) -> None:
    """Files are complete then and verify; Lightning's asynchronous saves and torchtnt's are told of before that."""
    runner = make_runner(epochs=3)
    seen: list[tuple[str, int]] = []

    @runner.on("after_commit_checkpoint")
    def check(path: Path, step: int) -> None:
        assert verify_checkpoint(path).step == step
        seen.append((path.name, step))

    runner.train()
    assert seen == [("epoch_1", 2), ("epoch_2", 4), ("epoch_3", 6)]


def test_training_goes_on_while_a_save_is_written(make_runner: MakeRunner) -> None:
    """The writer is held up until three iterations later."""
    runner = make_runner(count=6, epochs=1, default_hooks={"checkpoint": {"by_epoch": False, "interval": 2}})
    gate = threading.Event()
    committed: list[tuple[int, int]] = []

    @runner.on("before_save_checkpoint", once=True, mutates=())
    def hold(runner: Runner) -> None:
        runner.session.lanes.submit(Task(gate.wait, "checkpoint"), (60,))

    runner.on("after_train_iter", when=lambda batch_idx: batch_idx == 4)(lambda runner: gate.set())
    runner.on("after_commit_checkpoint")(lambda runner, step: committed.append((step, runner.progress.step)))
    runner.train()
    assert [step for step, _ in committed] == [2, 4, 6]
    assert committed[0][1] > 4


def test_a_failing_write_is_raised_at_the_next_iteration_and_deletes_nothing(
    make_runner: MakeRunner, tmp_path: Path
) -> None:
    """Lightning's say so at the next save, an interval later; what was committed stays, though one is to be kept."""
    keep = {"max_keep_ckpts": 1, "by_epoch": False, "interval": 2, "save_last": False}
    runner = make_runner(count=8, epochs=1, default_hooks={"logger": None, "checkpoint": keep})
    steps: list[int] = []

    @runner.on("before_save_checkpoint", when=lambda runner: runner.progress.step == 4)
    def obstruct(runner: Runner) -> None:
        (tmp_path / "run" / "iter_4").write_text("no checkpoint")

    @runner.on("after_train_iter", priority="LOWEST")
    def settle(runner: Runner) -> None:
        steps.append(runner.progress.step)
        runner.session.lanes.wait("checkpoint")

    with pytest.raises(RuntimeError, match=r"can't save checkpoint 'iter_4'") as caught:
        runner.train()
    assert steps in ([1, 2, 3, 4], [1, 2, 3, 4, 5])  # at the end of the iteration that saved, or of the next
    assert any("step 4" in note for note in caught.value.__notes__)
    assert Store(tmp_path / "run").names() == ["iter_2"]
    saves = runner.message_hub.get_info("saves")
    assert (saves["requested"], saves["committed"], saves["failed"]) == (2, 1, 1)


def test_retention_waits_for_an_upload_that_was_offloaded(make_runner: MakeRunner, tmp_path: Path) -> None:
    """A checkpoint isn't deleted under the receiver that was told of it."""
    keep = {"max_keep_ckpts": 1, "by_epoch": False, "interval": 1}
    runner = make_runner(count=6, epochs=1, default_hooks={"logger": None, "checkpoint": keep})
    uploaded: list[str] = []

    @runner.on("after_commit_checkpoint", offload=True, lane="upload")
    def upload(path: Path) -> None:
        verify_checkpoint(path)
        uploaded.append(path.name)

    runner.train()
    assert uploaded == [f"iter_{step}" for step in range(1, 7)]
    assert Store(tmp_path / "run").names() == ["iter_6"]


def test_log_rows_are_on_the_disk_before_the_save_of_their_step_is(make_runner: MakeRunner, tmp_path: Path) -> None:
    """Else a run that was killed in between would go on with a gap in its log."""
    hooks = {"logger": {"interval": 1}, "checkpoint": {"by_epoch": False, "interval": 1}}
    runner = make_runner(count=5, epochs=1, default_hooks=hooks)
    gate = threading.Event()
    early: list[Path] = []
    told: list[int] = []

    @runner.on("before_train_iter", once=True)
    def hold(runner: Runner) -> None:
        runner.session.lanes.submit(Task(gate.wait, "log"), (60,))

    @runner.on("after_commit_checkpoint")
    def committed(step: int) -> None:
        told.append(step)
        assert rows(tmp_path / "run")[step - 1]["step"] == step

    @runner.on("after_train_iter", when=lambda batch_idx: batch_idx == 1)
    def let_go() -> None:
        until = time.monotonic() + 0.5  # in which a save that didn't wait would be there
        while not early and time.monotonic() < until:
            early.extend((tmp_path / "run").glob("iter_*"))
            time.sleep(0.005)
        gate.set()

    runner.train()
    assert early == []
    assert told == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("ending", ["return", "exception", "interrupt"])
def test_a_save_that_is_pending_when_the_run_ends_is_committed(
    make_runner: MakeRunner, tmp_path: Path, ending: str
) -> None:
    """However it ends."""
    hook = {"by_epoch": False, "interval": 3, "save_last": False}
    runner = make_runner(count=4, epochs=1, default_hooks={"logger": None, "checkpoint": hook})
    gate = threading.Event()

    @runner.on("before_save_checkpoint", mutates=())
    def hold(runner: Runner) -> None:
        runner.session.lanes.submit(Task(gate.wait, "checkpoint"), (60,))

    @runner.on("after_train_iter", priority="LOWEST", when=lambda batch_idx: batch_idx == 3)
    def end() -> None:
        threading.Timer(0.05, gate.set).start()
        if ending != "return":
            raise KeyboardInterrupt if ending == "interrupt" else ValueError("x")

    if ending == "return":
        runner.train()
    else:
        with pytest.raises(KeyboardInterrupt if ending == "interrupt" else ValueError):
            runner.train()
    assert load_checkpoint(tmp_path / "run" / "iter_3")["meta"]["iter"] == 3


def test_a_checkpoint_by_hand_is_committed_when_the_call_returns(make_runner: MakeRunner) -> None:
    """Within a run that saves beside itself, and outside of any."""
    runner = make_runner(epochs=1)
    seen: list[bool] = []

    @runner.on("after_train_iter", once=True)
    def save(runner: Runner) -> None:
        path = runner.save_checkpoint("mine")
        seen.append(path is not None and verify_checkpoint(path).step == 1)

    runner.train()
    path = runner.save_checkpoint("after")
    assert seen == [True]
    assert path is not None
    assert verify_checkpoint(path).step == 2


def test_a_second_run_in_the_same_folder_is_refused(make_runner: MakeRunner, tmp_path: Path) -> None:
    """Two writers would delete each other's checkpoints."""
    runner = make_runner()
    errors: list[BaseException] = []

    @runner.on("before_train_iter", once=True)
    def again(runner: Runner) -> None:
        other = make_runner(resume=True, bus=type(runner.bus)())
        try:
            other.train()
        except BaseException as error:  # noqa: BLE001  # looked at below
            errors.append(error)

    runner.train()
    assert [type(error).__name__ for error in errors] == ["LockedError"]
    make_runner(resume=True).train()


@pytest.mark.parametrize("format", ["pth", "safetensors"])
def test_a_run_can_be_resumed_from_either_format(make_runner: MakeRunner, format: str) -> None:  # noqa: A002
    """``format="pth"`` is read with ``weights_only=True``."""
    hooks = {"checkpoint": {"format": format}}
    whole = make_runner(work_dir="whole", epochs=4, default_hooks=hooks).train()
    runner = make_runner(epochs=4, default_hooks=hooks)
    runner.on("after_train_epoch", when=lambda runner: runner.epoch == 1)(lambda runner: runner.stop("halfway"))
    runner.train()
    resumed = make_runner(epochs=4, default_hooks=hooks, resume=True).train()
    assert same(weights(resumed), weights(whole))


def test_a_slow_upload_holds_up_no_save(make_runner: MakeRunner, tmp_path: Path) -> None:
    """What is retired waits for it in a lane of its own; commits go on."""
    keep = {"max_keep_ckpts": 1, "by_epoch": False, "interval": 1}
    runner = make_runner(count=6, epochs=1, default_hooks={"logger": None, "checkpoint": keep})
    gate = threading.Event()
    runner.on("after_commit_checkpoint", offload=True, lane="upload")(lambda: gate.wait(60))
    committed: list[int] = []

    @runner.on("after_commit_checkpoint")
    def note(step: int) -> None:
        committed.append(step)
        if step == 6:
            assert Store(tmp_path / "run").names() == [f"iter_{number}" for number in range(1, 7)]
            gate.set()

    runner.train()
    assert committed == [1, 2, 3, 4, 5, 6]
    assert Store(tmp_path / "run").names() == ["iter_6"]


def test_what_was_to_be_deleted_when_a_run_was_killed_is_deleted_by_the_next(
    make_runner: MakeRunner, tmp_path: Path
) -> None:
    """A save knows what it makes superfluous, and so does the run that goes on from it."""
    keep = {"max_keep_ckpts": 1, "by_epoch": False, "interval": 1}
    runner = make_runner(count=6, epochs=1, default_hooks={"logger": None, "checkpoint": keep})
    gate = threading.Event()
    runner.on("after_commit_checkpoint", offload=True, lane="upload")(lambda: gate.wait(60))

    @runner.on("after_commit_checkpoint", when=lambda step: step == 3)
    def copy_the_folder() -> None:
        leave_out = shutil.ignore_patterns(".tmp*")  # as it would be, had the run been killed here
        shutil.copytree(tmp_path / "run", tmp_path / "killed", ignore=leave_out)
        gate.set()

    runner.train()
    assert len(Store(tmp_path / "killed").names()) >= 3
    again = make_runner(
        work_dir="killed", count=6, epochs=1, resume=True, default_hooks={"logger": None, "checkpoint": keep}
    )
    again.train()
    assert Store(tmp_path / "killed").names() == ["iter_6"]


def test_a_published_copy_of_a_pth_has_its_digest_in_its_name(make_runner: MakeRunner, tmp_path: Path) -> None:
    """As one of safetensors has."""
    hook = {"format": "pth", "published_keys": ["state_dict"]}
    make_runner(epochs=1, default_hooks={"logger": None, "checkpoint": hook}).train()
    digest = verify_checkpoint(tmp_path / "run/epoch_1").files["checkpoint.pth"].digest
    assert load_checkpoint(tmp_path / f"run/epoch_1-{digest[:8]}").keys() == {"state_dict"}


# The end


@pytest.mark.slow
def test_one_deadline_holds_for_all_of_the_end(make_runner: MakeRunner) -> None:
    """However many things wait, a run with a job that hangs ends after it, with the job's name and all its sites."""
    gate = threading.Event()
    runner = make_runner(default_hooks=QUIET, offload={"deadline": 1.0})
    runner.on("before_train", offload=True, lane="stuck", label="uploader")(lambda: gate.wait(60))
    passed: list[str] = []
    for site in ("on_exception", "after_train", "after_run"):
        runner.on(site, mutates=())(functools.partial(passed.append, site))
    began = time.monotonic()
    try:
        with pytest.raises(LaneTimeoutError, match="uploader"):
            runner.train()
        assert time.monotonic() - began < 30  # of the 60 that the job takes
    finally:
        gate.set()
    assert passed == ["on_exception", "after_train", "after_run"]


def test_ctrl_c_while_waiting_gives_up_the_waiting_and_not_the_sites(make_runner: MakeRunner) -> None:
    """The first error stays the one that propagates."""
    gate = threading.Event()
    runner = make_runner(default_hooks=QUIET, offload={"deadline": 50})
    runner.on("before_train", offload=True, lane="stuck")(lambda: gate.wait(60))
    passed: list[str] = []
    for site in ("after_train", "after_run"):
        runner.on(site, mutates=())(functools.partial(passed.append, site))

    @runner.on("after_train_iter")
    def fail() -> None:
        threading.Timer(0.3, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
        raise ValueError("first")

    try:
        with pytest.raises(ValueError, match="first") as caught:
            runner.train()
    finally:
        gate.set()
    assert passed == ["after_train", "after_run"]
    assert any("interrupted while waiting" in note for note in caught.value.__notes__)


@pytest.mark.slow
def test_a_writer_that_hangs_commits_nothing_once_the_folder_is_free(make_runner: MakeRunner, tmp_path: Path) -> None:
    """Another run may have begun in it by then."""
    gate, began = threading.Event(), threading.Event()
    runner = make_runner(count=2, epochs=1, offload={"deadline": 0.5}, default_hooks={"logger": None})

    @runner.on("before_save_checkpoint", mutates=())
    def hold(runner: Runner) -> None:
        def wait() -> None:
            began.set()
            gate.wait(60)

        runner.session.lanes.submit(Task(wait, "log"))  # a save waits for the log

    with pytest.raises(LaneTimeoutError):
        runner.train()
    threads = [thread for thread in threading.enumerate() if thread is not threading.current_thread()]
    assert began.is_set()
    gate.set()
    for thread in threads:
        thread.join(20)
    assert Store(tmp_path / "run").names() == []


# The account


def test_the_account_says_what_each_receiver_took_of_whom(make_runner: MakeRunner) -> None:
    """Calls inline and beside the training, the waits by where, and the saves."""
    runner = make_runner(count=5, epochs=2)
    runner.on("after_train_iter", label="plain")(lambda: None)
    runner.on("after_train_iter", label="beside", offload=True, barrier="before_train_iter")(lambda: None)
    runner.train()
    account = runner.account()
    by_name = {row.name: row for row in account.rows}
    assert (by_name["plain"].calls, by_name["plain"].background) == (10, 0.0)
    assert by_name["plain"].inline > 0
    assert by_name["beside"].calls == 10
    assert by_name["beside"].background > 0
    assert set(by_name["beside"].waits) <= {"before_train_iter", "flush"}
    assert account.saves is not None
    assert (account.saves.saves, account.saves.failed) == (2, 0)
    assert 0 <= account.saves.hidden <= 1
    assert str(account).splitlines()[0].split() == ["receiver", "calls", "inline", "background", "training", "waited"]
    assert "saves, " in str(account)


def test_a_job_that_computes_in_python_is_told_of_processes(make_runner: MakeRunner) -> None:
    """Such a thread takes the interpreter's lock from the training."""
    busy = Account("lane", "grind", "x.py:1", "after_train_iter", 3, 0, 0, 0, 0, 0.0, 4.0, 3.9, {})
    row = Row("grind")
    _add(row, busy, set())
    assert row.hint.startswith("grind (x.py:1) computes in Python for 3.90 s in a thread, ")
    assert row.hint.endswith("connect it with worker='process'.")


@pytest.mark.parametrize("before", [True, False], ids=["asked for before", "asked for afterwards"])
def test_a_trace_opens_in_a_browsers_viewer(make_runner: MakeRunner, tmp_path: Path, before: bool) -> None:
    """Complete events on named rows: the training's receivers, each lane, and the saves."""
    runner = make_runner(count=3, epochs=2)
    path = tmp_path / "trace.json"
    if before:
        runner.trace(path)
    runner.train()
    if not before:
        runner.trace(path)
    trace = json.loads(path.read_text())["traceEvents"]
    rows_by_number = {event["tid"]: event["args"]["name"] for event in trace if event["ph"] == "M"}
    assert {"lane checkpoint", "lane log"} <= set(rows_by_number.values())
    spans = [event for event in trace if event["ph"] == "X"]
    assert all(event["dur"] >= 0 for event in spans)
    assert {event["name"] for event in spans if event["tid"] == 2} == {"epoch_1", "epoch_2"}
    inline = {event["name"] for event in spans if rows_by_number[event["tid"]] == "training: receivers"}
    assert ("RuntimeInfoHook" in inline) == before


def test_a_trace_into_no_folder_is_refused_at_once(make_runner: MakeRunner) -> None:
    """Not after hours of training."""
    with pytest.raises(
        OptionError, match=r"^trace\('nowhere/t.json'\): there is no folder .*nowhere; make it first\.$"
    ):
        make_runner().trace("nowhere/t.json")


# Preemption


SCRIPT = """
import os, signal, sys, time
sys.path.insert(0, {tests!r})
import torch
from tiny import *
from eventrunner import Runner

where, number, times = sys.argv[1], getattr(signal, sys.argv[2]), int(sys.argv[3])
signal.signal(number, signal.SIG_DFL)  # nohup has it ignored
hooks = dict(logger=dict(interval=1), checkpoint=dict(by_epoch=True))
evaluation = dict(val_dataloader=batches(3), val_evaluator=dict(mse=MeanSquaredError()), val_step=val_step)
runner = Runner(**options(count=6, epochs=3, work_dir="run", default_hooks=hooks, resume=True,
    test_dataloader=batches(3), **evaluation))

@runner.on(where, once=True, start=2 if times == 1 else 8)
def ask(runner):
    runner.flush()
    for _ in range(times):
        os.kill(os.getpid(), number)
        time.sleep(float(sys.argv[4]))

(runner.test if "test" in where else runner.train)()
print("went on")
"""


def preempted(
    folder: Path, where: str, name: str = "SIGTERM", times: int = 1, apart: float = 0.0
) -> subprocess.CompletedProcess[str]:
    """A training in a process of its own that sends itself a signal, or several, so many seconds apart."""
    code = SCRIPT.format(tests=str(Path(__file__).parent))
    command = [sys.executable, "-c", textwrap.dedent(code), where, name, str(times), str(apart)]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=100, check=False)


@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1", "SIGHUP"])
@pytest.mark.parametrize("where", ["before_train_iter", "after_val_iter"])
@pytest.mark.slow
def test_a_signal_ends_the_run_with_everything_saved(tmp_path: Path, where: str, name: str) -> None:
    """In a validation too, where others don't look for it; the exit code is 75, and nothing after train() is run."""
    done = preempted(tmp_path, where, name)
    assert (done.returncode, "went on" in done.stdout) == (75, False), done.stderr
    assert json.loads((tmp_path / "run/run.json").read_text())["ended"].startswith("preempted after epoch ")
    (newest,) = [Store(tmp_path / "run").names()[-1]]
    step = verify_checkpoint(tmp_path / "run" / newest).step
    assert step == (2 if where == "before_train_iter" else 6)


@pytest.mark.slow
def test_a_run_that_was_preempted_goes_on_as_if_nothing_had_happened(make_runner: MakeRunner, tmp_path: Path) -> None:
    """The log of both parts is that of one."""
    preempted(tmp_path, "before_train_iter")
    evaluation: dict[str, Any] = dict(val_dataloader=batches(3), val_step=val_step)
    hooks = dict(logger=dict(interval=1))

    def run(**changes: Any) -> Runner:
        metric = dict(mse=MeanSquaredError())
        return make_runner(count=6, epochs=3, default_hooks=hooks, val_evaluator=metric, **evaluation, **changes)

    resumed = run(resume=True).train()
    whole = run(work_dir="whole").train()
    assert same(weights(resumed), weights(whole))
    assert rows(tmp_path / "run") == rows(Path("whole"))


def test_a_run_that_was_preempted_within_a_validation_goes_on_exactly(make_runner: MakeRunner, tmp_path: Path) -> None:
    """The validation is run again, from the generators that it began with."""

    def run(**changes: Any) -> Runner:
        torch.manual_seed(0)
        x, y = map(torch.cat, zip(*batches(6), strict=True))
        model = torch.nn.Sequential(torch.nn.Linear(2, 8), torch.nn.Dropout(0.5), torch.nn.Linear(8, 1))
        loader = DataLoader(TensorDataset(x, y), 2, shuffle=True)
        evaluation = {"val_dataloader": DataLoader(TensorDataset(x, y), 3, shuffle=True), "val_step": val_step}
        return make_runner(
            model=model,
            train_dataloader=loader,
            epochs=3,
            val_evaluator={"mse": MeanSquaredError()},
            default_hooks={"logger": {"interval": 1}},
            **evaluation,
            **changes,
        )

    whole = run(work_dir="whole").train()
    runner = run()
    runner.on("after_val_iter", once=True, start=2)(lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(Preempted):
        runner.train()
    assert runner.stop_reason == "preempted"
    resumed = run(resume=True).train()
    assert same(weights(resumed), weights(whole))
    assert rows(tmp_path / "run") == rows(Path("whole"))


@pytest.mark.parametrize("site", ["after_train", "after_run"])
def test_a_signal_at_the_very_end_isnt_lost(make_runner: MakeRunner, site: str) -> None:
    """What was asked to end does, though everything is done and saved."""
    runner = make_runner(epochs=1)
    runner.on(site)(lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(Preempted) as caught:
        runner.train()
    assert caught.value.code == 75
    assert runner.progress.step == 2


@pytest.mark.slow
def test_a_run_that_hangs_on_its_disk_ends_within_the_grace(make_runner: MakeRunner) -> None:
    """With an error, as what was asked for isn't saved."""
    gate = threading.Event()
    hook = {"by_epoch": False, "interval": 1, "mode": "eager"}
    runner = make_runner(count=9, epochs=1, offload={"grace": 1.0}, default_hooks={"logger": None, "checkpoint": hook})

    @runner.on("before_save_checkpoint", once=True, mutates=())
    def hold(runner: Runner) -> None:
        runner.session.lanes.submit(Task(gate.wait, "checkpoint"), (60,))

    runner.on("after_train_iter", when=lambda batch_idx: batch_idx == 1)(lambda: os.kill(os.getpid(), signal.SIGTERM))
    began = time.monotonic()
    try:
        with pytest.raises(LaneTimeoutError):
            runner.train()
        assert time.monotonic() - began < 30
    finally:
        gate.set()


UNGUARDED = """
from eventrunner import Bus, Runner

bus = Bus(())
bus.site("lunch", ("dish",))

@bus.on("lunch", offload=True, worker="process")
def eat(dish):
    pass

with bus.open_lanes():
    bus.lunch.emit(None, dish=1)
Runner()
"""


@pytest.mark.slow
def test_a_script_without_a_main_guard_doesnt_train_in_its_workers_too(tmp_path: Path) -> None:
    """The error names the guard; where the script is imported by a worker there is no second run."""
    code = UNGUARDED.replace("with bus", "import sys\nif __name__ == '__mp_main__':\n    Runner()\nwith bus")
    (tmp_path / "script.py").write_text(code)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}
    done = subprocess.run(
        [sys.executable, "script.py"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode != 0
    assert "if __name__ == '__main__':" in done.stderr


@pytest.mark.slow
def test_a_test_is_preempted_too(tmp_path: Path) -> None:
    """There is nothing to save; the code is the same."""
    done = preempted(tmp_path, "before_test_iter")
    assert (done.returncode, "went on" in done.stdout) == (75, False), done.stderr


@pytest.mark.slow
def test_the_same_signal_twice_within_a_second_is_one_request(tmp_path: Path) -> None:
    """A scheduler and a launcher both send it."""
    done = preempted(tmp_path, "before_train_iter", times=2)
    assert done.returncode == 75, done.stderr
    assert verify_checkpoint(tmp_path / "run" / Store(tmp_path / "run").names()[-1]).step == 8


@pytest.mark.slow
def test_a_signal_a_second_after_the_first_ends_the_process_at_once(tmp_path: Path) -> None:
    """The last committed checkpoint is what there is, and it verifies."""
    done = preempted(tmp_path, "before_train_iter", times=2, apart=1.1)
    assert done.returncode == 128 + signal.SIGTERM
    assert [verify_checkpoint(tmp_path / "run" / name).step for name in Store(tmp_path / "run").names()] == [6]


def test_a_signal_that_the_program_handles_itself_is_left_to_it(make_runner: MakeRunner) -> None:
    """And what was there before is there again afterwards."""
    came: list[int] = []
    before = signal.signal(signal.SIGUSR1, lambda number, frame: came.append(number))
    try:
        runner = make_runner(epochs=1)
        runner.on("before_train_iter", once=True)(lambda: os.kill(os.getpid(), signal.SIGUSR1))
        runner.train()
        assert came == [signal.SIGUSR1]
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_a_run_in_another_thread_leaves_signals_alone(make_runner: MakeRunner) -> None:
    """Python lets only the main thread have them."""
    runner = make_runner(epochs=1)
    thread = threading.Thread(target=runner.train)
    thread.start()
    thread.join(60)
    assert runner.stop_reason == "completed"
