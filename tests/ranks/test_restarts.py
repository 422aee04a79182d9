"""Real launches by torchrun: a script as it is, a rank that is killed, and the attempt that goes on."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from eventrunner import load_checkpoint

SCRIPT = """
import os, signal, sys
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from eventrunner import Runner

folder, killed = sys.argv[1], sys.argv[2]
torch.manual_seed(0)
model = nn.Sequential(nn.Linear(3, 8), nn.Dropout(0.5), nn.Linear(8, 1)).double()
inputs = torch.arange(150, dtype=torch.float64).reshape(50, 3).sin()
runner = Runner(
    model=model, work_dir=folder, resume=True, randomness=dict(seed=3), device="cpu", progress=False,
    train_dataloader=DataLoader(TensorDataset(inputs, inputs.sum(1, keepdim=True)), 10, shuffle=True),
    train_step=lambda model, batch: {"loss": (model(batch[0]) - batch[1]).square().mean()},
    optimizer=torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9), train_cfg=dict(max_epochs=3),
    default_hooks=dict(checkpoint=dict(by_epoch=False, interval=1)),
)

@runner.on("after_train_iter")
def die(runner):
    marker = f"{folder}-killed"
    if str(runner.rank) == killed and runner.iter == 7 and not os.path.exists(marker):
        open(marker, "w").close()
        os.kill(os.getpid(), signal.SIGKILL)

runner.train()
"""


def launched(folder: Path, killed: str, restarts: int = 0) -> subprocess.CompletedProcess[str]:
    """Train two ranks; that of the number *killed* ends itself once, at the eighth iteration."""
    (folder.parent / "train.py").write_text(SCRIPT)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*launcher, "--max-restarts", str(restarts), "--monitor-interval", "0.2", "train.py", str(folder), killed]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=folder.parent, env=env, capture_output=True, text=True, timeout=100, check=False)


@pytest.mark.parametrize("killed", ["1", pytest.param("0", marks=pytest.mark.long)])
def test_a_rank_that_is_killed_costs_nothing(tmp_path: Path, killed: str) -> None:
    """The launcher starts all again, they meet on a store of their own, and go on where the last save was."""
    whole = launched(tmp_path / "whole", "none")
    assert whole.returncode == 0, whole.stderr
    cut = launched(tmp_path / "cut", killed, restarts=1)
    assert cut.returncode == 0, cut.stderr
    assert (tmp_path / "cut-killed").exists()
    first, second = (load_checkpoint(tmp_path / name / "iter_15")["state_dict"] for name in ("whole", "cut"))
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.long
def test_an_example_is_one_run_under_a_launcher_too(tmp_path: Path) -> None:
    """Unchanged: one folder, one log, each line once, and it learns."""
    script = Path(__file__).parents[2] / "examples" / "train_digits.py"
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [*launcher, str(script), "--epochs", "3"]
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in (tmp_path / "runs" / "train_digits").iterdir()) == ["001", "latest"]
    assert [line.count(" event=completed ") for line in done.stdout.splitlines()].count(1) == 1
    (test,) = [line for line in done.stdout.splitlines() if " event=test " in line]
    assert float(test.partition("test/accuracy=")[2].split()[0]) > 0.9
