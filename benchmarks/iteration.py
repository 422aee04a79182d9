"""What an iteration costs above a loop written by hand that does the same.

$ python benchmarks/iteration.py

A tiny model (Linear 8×8, batches of 8, SGD), so that the loop and not the arithmetic is what is measured. The bare loop
steps a scheduler, takes the time, and writes a line each 50 iterations, as the Runner's default hooks do.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from eventrunner import Bus, Runner

Data = list[tuple[torch.Tensor, torch.Tensor]]


def make() -> tuple[nn.Module, torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    torch.manual_seed(0)
    model = nn.Linear(8, 8)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    return model, optimizer, torch.optim.lr_scheduler.StepLR(optimizer, 10_000)


def loss_of(model: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {"loss": nn.functional.mse_loss(model(batch[0]), batch[1])}


def bare(data: Data, folder: Path) -> float:
    model, optimizer, scheduler = make()
    began = mark = time.perf_counter()
    with open(folder / "log.jsonl", "w", encoding="utf-8") as file:
        for step, batch in enumerate(data, 1):
            waited = time.perf_counter() - mark
            loss = loss_of(model, batch)["loss"]
            loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            scheduler.step()
            now = time.perf_counter()
            if step % 50 == 0:
                row = {"step": step, "loss": loss.item(), "lr": scheduler.get_last_lr()[0], "time": now - mark}
                file.write(json.dumps({**row, "data_time": waited}) + "\n")
            mark = now
    return (time.perf_counter() - began) / len(data)


def runner(data: Data, folder: Path, **hooks: object) -> float:
    model, optimizer, scheduler = make()
    run = Runner(
        model=model,
        work_dir=folder / "run",
        train_step=loss_of,
        optimizer=optimizer,
        param_scheduler=dict(scheduler=scheduler, by_epoch=False),
        train_dataloader=data,
        train_cfg=dict(max_iters=len(data)),
        default_hooks={"logger": dict(interval=50), "checkpoint": dict(interval=-1, save_last=False), **hooks},
        bus=Bus(),
        device="cpu",
        progress=False,
    )
    times: list[float] = []
    run.on("before_train", priority=100)(lambda: times.append(time.perf_counter()))
    run.on("after_train", priority=0)(lambda: times.append(time.perf_counter()))
    with contextlib.redirect_stdout(io.StringIO()):
        run.train()
    return (times[1] - times[0]) / len(data)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--iters", type=int, default=2000)
    parser.add_argument("--repeats", type=int, default=9)
    args = parser.parse_args()
    torch.set_num_threads(1)
    data: Data = [(torch.randn(8, 8), torch.randn(8, 8)) for _ in range(args.iters)]
    none = dict.fromkeys(("runtime_info", "timer", "sampler_seed", "logger", "param_scheduler", "checkpoint"))
    variants: dict[str, Callable[[Path], float]] = {
        "bare loop": lambda folder: bare(data, folder),
        "Runner, no hooks": lambda folder: runner(data, folder, **none),
        "Runner, six default hooks": lambda folder: runner(data, folder),
    }
    times: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(args.repeats):
        for name, variant in variants.items():
            with tempfile.TemporaryDirectory() as folder:
                times[name].append(variant(Path(folder)))
    base = statistics.median(times["bare loop"])
    print(f"{args.iters} iterations, {args.repeats} interleaved repeats, medians; 1 thread of {os.cpu_count()} cores, ")
    print(f"Python {platform.python_version()}, torch {torch.__version__}\n")
    print("| loop | µs per iteration | above the bare loop | ratio |")
    print("|---|---:|---:|---:|")
    for name, values in times.items():
        each = statistics.median(values)
        print(f"| {name} | {each * 1e6:.1f} | {(each - base) * 1e6:+.1f} | {each / base:.2f} |")


if __name__ == "__main__":
    main()
