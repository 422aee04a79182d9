"""How much of a checkpoint is read to go on from it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import options
from torch import nn

from eventrunner.bus.bus import Bus
from eventrunner.checkpointer import Checkpointer
from eventrunner.runner import Runner

IO = Path("/proc/self/io")
pytestmark = pytest.mark.skipif(not IO.exists(), reason="the kernel doesn't tell what a process reads")


def read_by(work: Callable[[], object]) -> int:
    """The bytes that this process reads from files meanwhile."""

    def so_far() -> int:
        return int(next(line for line in IO.read_text().splitlines() if line.startswith("rchar:")).split()[1])

    before = so_far()
    work()
    return so_far() - before


def size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())


class Wide(nn.Module):
    """A model of four megabytes, nearly all of which does nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.rest = nn.Linear(2, 1), nn.Parameter(torch.ones(1_000_000))

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        return self.linear(batch) + 0 * self.rest[0]


def trained(folder: Path, epochs: int, **changes: Any) -> None:
    model = Wide()
    changed = options(model=model, optimizer=torch.optim.Adam(model.parameters()), epochs=epochs, **changes)
    Runner(work_dir=folder, bus=Bus(), **changed).train()


def test_a_run_is_resumed_with_one_read_of_each_byte(tmp_path: Path) -> None:
    """It is verified as it is loaded; the older one isn't looked at."""
    trained(tmp_path / "run", 1)
    trained(tmp_path / "run", 2, resume=True)  # whatever is imported for it has been now
    size = size_of(tmp_path / "run/epoch_2")
    read = read_by(lambda: trained(tmp_path / "run", 3, resume=True))
    assert size > 12_000_000
    assert size <= read < 1.1 * size


def test_a_loop_of_ones_own_is_resumed_with_one_read_of_each_byte(tmp_path: Path) -> None:
    """By Checkpointer."""

    def goes_on(resume: bool) -> None:
        model = Wide()
        optimizer = torch.optim.Adam(model.parameters())
        with Checkpointer(tmp_path / "saves", model=model, optimizer=optimizer, resume=resume) as ckpt:
            model(torch.ones(1, 2)).sum().backward()
            optimizer.step()
            ckpt.save(ckpt.step + 1)

    goes_on(False)
    goes_on(True)
    size = size_of(tmp_path / "saves/step_2")
    read = read_by(lambda: goes_on(True))
    assert size <= read < 1.1 * size


def test_a_damaged_newest_one_is_read_besides(tmp_path: Path) -> None:
    """And passed over."""
    trained(tmp_path / "run", 2)
    file = tmp_path / "run/epoch_2/model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    size = size_of(tmp_path / "run/epoch_1")
    read = read_by(lambda: trained(tmp_path / "run", 2, resume=True))
    assert 1.3 * size < read < 2.2 * size
