"""Asked to end by a signal to every process of the run, workers included, as schedulers and launchers send it."""

from __future__ import annotations

import itertools
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from tally import LONG, MakeRow

from eventrunner.checkpoint import find_newest, verify_checkpoint
from eventrunner.lanes.signals import EXIT_CODE, SIGNALS

TRAINING = '''
import signal
import sys
import time

import torch
from torch.utils.data import DataLoader, Dataset

from eventrunner import Bus, Runner


class Slow(Dataset):
    """Its workers are always at work."""

    def __len__(self):
        return 400

    def __getitem__(self, index):
        time.sleep(0.002)
        return torch.full((1,), float(index % 3))


class Mean:
    """A metric."""

    def update(self, output, target):
        self.errors.append(float((output - target).abs().mean()))

    def compute(self):
        return sum(self.errors) / len(self.errors)

    def reset(self):
        self.errors = []


def loader(method, workers):
    if workers in ("none", "process"):
        return DataLoader(Slow(), 4)
    method = {"multiprocessing_context": method, "persistent_workers": workers == "persistent"}
    return DataLoader(Slow(), 4, num_workers=2, **method)


def train_step(model, batch):
    return {"loss": (model(batch) - 2 * batch).square().mean()}


def val_step(model, batch):
    return model(batch), 2 * batch


def compute(batch_idx):
    time.sleep(0.02)


def main(method, workers, moment):
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it, and nohup the other
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    torch.set_num_threads(1)
    model = torch.nn.Linear(1, 1)
    runner = Runner(
        model=model,
        train_step=train_step,
        val_step=val_step,
        optimizer=torch.optim.Adam(model.parameters()),
        train_dataloader=loader(method, workers),
        val_dataloader=loader(method, workers),
        val_evaluator={"error": Mean()},
        train_cfg={"max_iters": 10**6, "val_interval": 20},
        default_hooks={"logger": None, "checkpoint": {"interval": 7, "max_keep_ckpts": 2}},
        work_dir="run",
        device="cpu",
        bus=Bus(),
    )
    say = lambda *what: print(*what, flush=True)
    site = {
        "first batch": "before_train",
        "training": "after_train_iter",
        "validation": "after_val_iter",
        "save": "before_save_checkpoint",
    }
    start = {"training": 3, "validation": 2}.get(moment, 1)
    if workers == "process":
        runner.on("after_train_iter", offload=True, worker="process", max_pending=2)(compute)
    runner.on(site[moment], start=start, once=True, mutates=())(lambda: say("now"))
    runner.on("after_train_iter", mutates=(), priority="LOWEST")(lambda runner: say("done", runner.iter + 1))
    runner.train()


if __name__ == "__main__":
    main(*sys.argv[1:])
'''


@dataclass(frozen=True)
class Kind:
    """What a run is signalled in: how its workers start, which there are, and what it is at."""

    method: str
    workers: str
    moment: str
    number: signal.Signals


def kinds(methods: tuple[str, ...]) -> Iterator[Kind]:
    """All there are, but that without workers it doesn't matter how they start."""
    moments = ("training", "validation", "first batch", "save")
    starts = [("fork", "none"), ("fork", "process"), *itertools.product(methods, ("two", "persistent"))]
    for (method, workers), moment, number in itertools.product(starts, moments, (*SIGNALS, signal.SIGINT)):
        yield Kind(method, workers, moment, number)


def signalled(folder: Path, kind: Kind, delay: float) -> list[str]:
    """Have a training signalled, with all of its processes; what is wrong with how it ends."""
    folder.mkdir()
    (folder / "fit.py").write_text(TRAINING)
    command = [sys.executable, "-W", "ignore", "fit.py", kind.method, kind.workers, kind.moment]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    with (
        open(folder / "errors", "w") as errors,
        subprocess.Popen(
            command,
            cwd=folder,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            start_new_session=True,
        ) as process,
    ):
        assert process.stdout is not None
        said = list(itertools.takewhile(lambda line: line != "now\n", process.stdout))
        time.sleep(delay)
        os.killpg(process.pid, kind.number)
        said += process.stdout.read().splitlines()
        code = process.wait()
    done = max((int(line.split()[1]) for line in said if line.startswith("done")), default=0)
    return [*wrong_ending(folder, kind.number, code, done), *outliving(process.pid)]


def wrong_ending(folder: Path, number: signal.Signals, code: int, done: int) -> Iterator[str]:
    """What is wrong with the exit code, stderr and the newest checkpoint of a run that has trained so many steps."""
    errors, interrupted = (folder / "errors").read_text(), number == signal.SIGINT
    if code != (-number if interrupted else EXIT_CODE) or errors.count("Traceback") != interrupted:
        yield f"it ended with {code}: {errors[-600:]}"
    newest = find_newest(folder / "run").path
    saved = 0 if newest is None else verify_checkpoint(newest).step
    if saved != done:
        yield f"it had come to step {done}, and saved step {saved}"


def outliving(group: int) -> Iterator[str]:
    """The processes of the run that are left, once those that watch over its resources had time to notice its end."""
    until = time.monotonic() + 20
    while (left := members(group)) and time.monotonic() < until:
        time.sleep(0.05)
    if left:
        os.killpg(group, signal.SIGKILL)
        yield f"processes outlive it: {left}"


def members(group: int) -> list[str]:
    """The commands of a process group; dead ones that nobody has asked after don't count."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, its_group = stat.read_text(errors="replace").rpartition(")")[2].split()[:3]
            command = stat.with_name("cmdline").read_bytes()
        except OSError:  # gone meanwhile
            continue
        if int(its_group) == group and state != "Z":
            found.append(command.replace(b"\0", b" ").decode(errors="replace"))
    return found


_SMALL = (
    Kind("fork", "two", "training", signal.SIGTERM),
    Kind("spawn", "persistent", "save", signal.SIGUSR1),
    Kind("fork", "two", "validation", signal.SIGINT),
)


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("tried", "times"),
    [
        pytest.param(_SMALL, 1, id="small"),
        pytest.param([*kinds(("fork", "spawn"))], 20, id="20 of each", marks=LONG),
        pytest.param([*kinds(("forkserver",))], 2, id="forkserver", marks=LONG),
    ],
)
def test_a_signal_to_all_processes_of_a_run_ends_it_with_its_last_step_saved(
    tmp_path: Path, row: MakeRow, seed: int, tried: tuple[Kind, ...], times: int
) -> None:
    """With code 75, whatever it is at and however its workers start, and none of them outlives it."""
    signals = row("signals to all processes of a training", "not saved, or left over")
    for kind, number in itertools.product(tried, range(times)):
        delay = random.Random(f"{seed} {kind} {number}").uniform(0, 0.3)
        wrong = signalled(tmp_path / f"{signals.tried}", kind, delay)
        signals.tried += 1
        signals.found += [f"{kind}, after {delay:.3f} s: {each}" for each in wrong]
    signals.check()
