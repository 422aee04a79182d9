"""Killed without warning amid overlapped saves, and resumed: one history, and no save that was told of is lost."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import TIMES, MeanSquaredError, batches, forked, options, same, val_step, weights
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from eventrunner.bus import Bus
from eventrunner.checkpoint import find_newest, load_checkpoint
from eventrunner.runner import Runner

STEPS = 60


def make(folder: Path, **changes: Any) -> Runner:
    """A run with dropout, shuffling and validations, which saves every third iteration and logs each."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 300), nn.Dropout(0.2), nn.Linear(300, 1))
    x, y = map(torch.cat, zip(*batches(10), strict=True))
    hooks = {
        "logger": {"interval": 1, "tensorboard": True},
        "checkpoint": {"by_epoch": False, "interval": 3, "max_keep_ckpts": 2, "save_best": "mse", "rule": "less"},
    }
    evaluation = {"val_dataloader": batches(2), "val_evaluator": {"mse": MeanSquaredError()}, "val_step": val_step}
    chosen = {"model": model, "train_dataloader": DataLoader(TensorDataset(x, y), 4, shuffle=True), **evaluation}
    chosen["optimizer"] = torch.optim.AdamW(model.parameters(), lr=0.01)
    chosen |= {"train_cfg": {"max_iters": STEPS, "val_interval": 10}, "default_hooks": hooks, "bus": Bus()}
    return Runner(**options(work_dir=folder, resume=True, **chosen, **changes))


def train(folder: Path, told: Path) -> None:
    """Train on, and note each save that is told of as committed."""
    torch.set_num_threads(1)
    runner = make(folder)

    @runner.on("after_commit_checkpoint", mutates=())
    def note(step: int) -> None:
        with open(told, "a", encoding="utf-8") as file:
            file.write(f"{step}\n")

    runner.train()
    os._exit(0)  # a fork doesn't tear down what the tests' own process has


def lines(folder: Path) -> list[str]:
    """The log without what the clock says, as text."""
    found = (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()
    kept = ({key: value for key, value in json.loads(line).items() if key not in TIMES} for line in found)
    return [json.dumps(row) for row in kept]


def written(folder: Path) -> int:
    with contextlib.suppress(OSError):
        return (folder / "log.jsonl").read_bytes().count(b"\n")
    return 0


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """The folder and the weights of the run that nobody killed."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    runner = make(folder)
    runner.train()
    return folder, weights(runner.model)


@pytest.mark.parametrize("seed", range(6))
def test_a_run_that_is_killed_twice_leaves_the_history_of_one_that_was_not(
    tmp_path: Path, whole: tuple[Path, dict[str, Any]], seed: int
) -> None:
    """log.jsonl without its clock is byte-equal, TensorBoard has one value per step, the weights are the same."""
    chance = random.Random(seed)
    run, told = tmp_path / "run", tmp_path / "told"
    for _ in range(2):
        rows = written(run) + chance.randrange(1, 25)
        delay = chance.random() * 0.01
        process = forked(train, run, told)
        while written(run) < rows and process.is_alive():
            time.sleep(0.0005)  # not for order: any moment will do
        time.sleep(delay)
        os.kill(process.pid, signal.SIGKILL)
        process.join(60)
        steps = [int(line) for line in told.read_text().split()] if told.exists() else []
        if steps:
            newest = find_newest(run).path
            assert newest is not None
            assert load_checkpoint(newest)["meta"]["iter"] >= max(steps), f"seed {seed}"
    resumed = make(run)
    resumed.train()
    assert lines(run) == lines(whole[0]), f"seed {seed}"
    assert same(weights(resumed.model), whole[1])
    assert values(run) == values(whole[0])


def values(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """What TensorBoard shows of the losses and metrics."""
    with contextlib.redirect_stderr(None):
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        events = EventAccumulator(str(folder / "tensorboard"), size_guidance={"scalars": 0})
        events.Reload()
    tags = [tag for tag in events.Tags()["scalars"] if tag not in TIMES]
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in tags}


FAILING = """
import sys
sys.path.insert(0, {tests!r})
from pathlib import Path
from tiny import *
from eventrunner import Runner

runner = Runner(**options(work_dir="run", epochs=1))
Path("run").mkdir(exist_ok=True)
Path("run/epoch_1").write_text("in the way")
runner.train()
print("went on")
"""


def test_a_process_whose_last_save_failed_doesnt_exit_with_0(tmp_path: Path) -> None:
    """Keras' Orbax callback swallowed it; here the last save of a run fails in its lane, with nothing left to train."""
    code = FAILING.format(tests=str(Path(__file__).parent))
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode != 0
    assert "went on" not in done.stdout
    assert "can't save checkpoint 'epoch_1'" in done.stderr
