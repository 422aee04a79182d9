"""A picture of a training loop that saves, with overlap and without: one character is so many milliseconds.

$ python benchmarks/picture.py

17 million parameters with AdamW (200 MB of state), steps of about a tenth of a second on one thread, a save after the
fourth and the eighth step.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import torch
from torch import nn

from eventrunner import Checkpointer

Spans = list[tuple[float, float]]


def run(mode: str, folder: Path, steps: int) -> tuple[Spans, Spans, Spans]:
    """Return the spans of the steps, of what held the loop up, and of the writing."""
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Linear(704, 704) for _ in range(34)))
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    batch = torch.randn(64, 704)

    def step() -> None:
        model(batch).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    took: Spans = []
    held: Spans = []
    with Checkpointer(folder / mode, model=model, optimizer=optimizer, mode=mode) as ckpt:
        for number in range(-2, 0):  # memory is allocated, and the machine warm, before it is looked at
            step()
            ckpt.save(number + 3)
            ckpt.wait()
        for number in range(1, steps + 1):
            began = time.perf_counter()
            step()
            took.append((began, time.perf_counter()))
            if number % 4 == 0 and number < steps:
                began = time.perf_counter()
                ckpt.save(number + 2)
                held.append((began, time.perf_counter()))
    written = [(save.began, save.ended) for save in ckpt.saves[2:]]
    return took, held, written


def drawn(spans: Spans, start: float, scale: float, sign: str, width: int) -> list[str]:
    """Return a row with *sign* where a span is, at least once for each."""
    row = [" "] * width
    for began, ended in spans:
        first, last = int((began - start) / scale), int((ended - start) / scale)
        row[first : max(last, first + 1)] = sign * max(last - first, 1)
    return row


def main() -> None:
    """Run both and draw them on one scale."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--scale", type=float, default=20.0, help="milliseconds per character")
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(dir=".") as folder:
        for mode, title in (("sync", "without overlap"), ("lazy", "with overlap")):
            took, held, written = run(mode, Path(folder), args.steps)
            start, end = took[0][0], took[-1][1]
            scale = args.scale / 1000
            width = int((max([end, *(ended for _, ended in written)]) - start) / scale) + 2
            loop = drawn(held, start, scale, "█", width)
            for index, (began, ended) in enumerate(took):
                steps = drawn([(began, ended)], start, scale, "─━"[index % 2], width)
                loop = [sign if sign != " " and old != "█" else old for sign, old in zip(steps, loop, strict=True)]
            blocked = sum(ended - began for began, ended in held) * 1000
            print(f"{title:<16} {(end - start) * 1000:.0f} ms, blocked {blocked:.1f} ms by {len(held)} saves")
            print(f"  loop    {''.join(loop).rstrip()}")
            print(f"  writing {''.join(drawn(written, start, scale, '░', width)).rstrip()}")


if __name__ == "__main__":
    main()
