"""A process whose last save failed says so, though nothing is left to train."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

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


@pytest.mark.slow
def test_a_process_whose_last_save_failed_doesnt_exit_with_0(tmp_path: Path) -> None:
    """Keras' Orbax callback swallowed it; here the last save of a run fails in its lane, with nothing left to train."""
    code = FAILING.format(tests=str(Path(__file__).parent))
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode != 0
    assert "went on" not in done.stdout
    assert "can't save checkpoint 'epoch_1'" in done.stderr
