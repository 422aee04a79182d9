"""Output that fails: a stream of the process doesn't end a training; a log's file does, once everything is saved."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from eventrunner.checkpoint import find_newest

SCRIPT = '''
import io, os, sys
import torch
from eventrunner.runner import Runner

def lose(name):
    """Have writes to the open file of that name fail as on a full disk."""
    for number in os.listdir("/proc/self/fd"):
        try:
            found = os.readlink(f"/proc/self/fd/{number}")
        except OSError:
            continue
        if os.path.basename(found) == name:
            os.dup2(os.open("/dev/full", os.O_WRONLY), int(number))

def main():
    torch.manual_seed(0)
    model = torch.nn.Linear(2, 1)
    batches = [(torch.randn(4, 2), torch.randn(4, 1)) for _ in range(4)]
    runner = Runner(
        model=model,
        work_dir="run",
        train_dataloader=batches,
        train_cfg=dict(max_epochs=3),
        train_step=lambda model, batch: {"loss": torch.nn.functional.mse_loss(model(batch[0]), batch[1])},
        optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
        default_hooks=dict(checkpoint=CHECKPOINT, logger=LOGGER),
        device="cpu",
    )

    @runner.on("after_train_iter")
    def act(runner):
        if runner.iter == 5:
            ACT

    runner.train()

if __name__ == "__main__":
    main()
'''


def write_script(folder: Path, act: str, *, logger: str = "dict(interval=1)", checkpoint: str = "dict()") -> Path:
    """A training of three epochs of four iterations, whose sixth does *act*."""
    path = folder / "train.py"
    text = SCRIPT.replace("CHECKPOINT", checkpoint).replace("LOGGER", logger).replace("ACT", act)
    path.write_text(text, encoding="utf-8")
    return path


def run(script: Path, **options: Any) -> subprocess.CompletedProcess[bytes]:
    """Run it to its end."""
    return subprocess.run([sys.executable, str(script)], cwd=script.parent, timeout=120, **options)


def said(folder: Path, stream: str) -> list[str]:
    """The lines of the log's file that say that a stream fails."""
    lines = (folder / "run/log.txt").read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line.startswith(f"warning   {stream} ")]


def check_complete(folder: Path, *streams: str) -> None:
    """The run has come to its end, all of it is saved and logged, and each stream's failure is told once."""
    assert json.loads((folder / "run/run.json").read_text())["ended"] == "completed after epoch 3, step 12"
    assert find_newest(folder / "run").path == folder / "run/epoch_3"
    assert "completed" in (folder / "run/log.txt").read_text(encoding="utf-8")
    for stream in streams:
        assert len(said(folder, stream)) == 1


@pytest.mark.slow
def test_a_training_goes_on_when_nobody_reads_its_output_any_more(tmp_path: Path) -> None:
    """As behind ``| head -1``; also where the script prints, after a line of the run has failed."""
    script = write_script(tmp_path, "sys.stdin.read()")
    script.write_text(script.read_text().replace("    runner.train()", "    runner.train()\n    print('done')"))
    with subprocess.Popen(
        [sys.executable, str(script)],
        cwd=tmp_path,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        process.stdin.close()
        assert (process.stderr.read(), process.wait(timeout=120)) == (b"", 0)
    check_complete(tmp_path, "stdout")


@pytest.mark.slow
def test_a_training_goes_on_when_the_disk_below_its_output_is_full(tmp_path: Path) -> None:
    """And ends with 0, with nothing left for Python to write at exit."""
    with open("/dev/full", "wb") as full:
        ended = run(write_script(tmp_path, "pass"), stdout=full, stderr=subprocess.PIPE)
    assert (ended.returncode, ended.stderr) == (0, b"")
    check_complete(tmp_path, "stdout")


@pytest.mark.slow
def test_a_training_goes_on_when_its_terminal_is_closed(tmp_path: Path) -> None:
    """Its lines and its bar go quiet, the latter as it is on no terminal any more."""
    master, slave = pty.openpty()
    script = write_script(tmp_path, "sys.stdin.read()")
    environment = {**os.environ, "TERM": "xterm"}
    with subprocess.Popen(
        [sys.executable, str(script)],
        cwd=tmp_path,
        env=environment,
        start_new_session=True,  # no SIGHUP, as under nohup
        stdin=subprocess.PIPE,
        stdout=slave,
        stderr=slave,
    ) as process:
        os.close(slave)
        os.read(master, 1)
        os.close(master)
        assert process.stdin is not None
        process.stdin.close()
        assert process.wait(timeout=120) == 0
    check_complete(tmp_path, "stdout")


@pytest.mark.parametrize(
    ("act", "streams"),
    [
        ("sys.stdout.close(); sys.stderr.close()", ("stdout",)),
        ("sys.stdout = type('Broken', (io.StringIO,), {'write': lambda self, text: 1 / 0})()", ("stdout",)),
        (
            "sys.stdout = type('Tee', (), {'write': lambda self, text: 0, 'flush': lambda self: None})(); "
            "sys.stderr = None",
            (),
        ),
    ],
    ids=["closed", "an error of its own", "hardly a stream"],
)
@pytest.mark.slow
def test_a_training_goes_on_with_a_stream_that_nothing_can_be_written_to(
    tmp_path: Path, act: str, streams: tuple[str, ...]
) -> None:
    """Whatever has been put in its place amid the run."""
    ended = run(write_script(tmp_path, act), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    assert (ended.returncode, ended.stderr) == (0, b"")
    check_complete(tmp_path, *streams)


BROKEN_TERMINAL = """
    class Broken(io.StringIO):
        def isatty(self):
            return True
        def write(self, text):
            raise OSError(5, "gone")
    sys.stderr = Broken()
"""


@pytest.mark.slow
def test_a_bar_whose_terminal_fails_goes_quiet(tmp_path: Path) -> None:
    """The log's file says so, once."""
    script = write_script(tmp_path, "pass")
    script.write_text(script.read_text().replace("def main():", f"def main():{BROKEN_TERMINAL}"))
    assert run(script, stdout=subprocess.DEVNULL, env={**os.environ, "TERM": "xterm"}).returncode == 0
    check_complete(tmp_path, "stderr")


@pytest.mark.slow
def test_a_training_begins_with_closed_streams(tmp_path: Path) -> None:
    """No bar is drawn on them."""
    script = write_script(tmp_path, "pass")
    script.write_text(
        script.read_text().replace("def main():", "def main():\n    sys.stdout.close(); sys.stderr.close()")
    )
    assert run(script).returncode == 0
    check_complete(tmp_path, "stdout")


LONG = pytest.mark.long
LINKED = "(path := next(runner.work_dir.glob('tensorboard/*'))).unlink(); path.symlink_to('/dev/full')"


@pytest.mark.parametrize(
    ("act", "logger", "checkpoint"),
    [
        ("lose('log.txt')", "dict(interval=1)", "dict()"),
        ("lose('log.jsonl')", "dict(interval=1)", "dict(interval=-1, save_last=False)"),
        pytest.param(
            "lose('log.jsonl')", "dict(interval=1, offload=False)", "dict(mode='sync')", marks=pytest.mark.long
        ),
        pytest.param(LINKED, "dict(interval=1, tensorboard=True)", "dict()", marks=pytest.mark.long),
    ],
    ids=["log.txt", "log.jsonl", "log.jsonl at once", "tensorboard"],
)
@pytest.mark.slow
def test_a_log_that_fails_ends_the_run_once_it_is_saved(tmp_path: Path, act: str, logger: str, checkpoint: str) -> None:
    """With all that was done until then, whatever is saved else; the error is raised."""
    ended = run(write_script(tmp_path, act, logger=logger, checkpoint=checkpoint), capture_output=True)
    assert ended.returncode == 1
    assert b"OSError: [Errno 28]" in ended.stderr
    step = int(json.loads((tmp_path / "run/run.json").read_text())["ended"].rpartition(" ")[2])
    newest = find_newest(tmp_path / "run").path
    assert newest is not None
    assert json.loads((newest / "MANIFEST.json").read_text())["step"] == step >= 6
