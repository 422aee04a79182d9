"""The tests themselves, in an environment that isn't theirs alone."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.slow
def test_a_plugin_that_is_installed_beside_disturbs_no_test(tmp_path: Path) -> None:
    """One that warns as it is loaded, as pytest-asyncio does, where a warning is an error."""
    (tmp_path / "loud.py").write_text("import warnings\n\ndef pytest_configure():\n    warnings.warn('loud')\n")
    (tmp_path / "loud-1.dist-info").mkdir()
    (tmp_path / "loud-1.dist-info/METADATA").write_text("Metadata-Version: 2.1\nName: loud\nVersion: 1\n")
    (tmp_path / "loud-1.dist-info/entry_points.txt").write_text("[pytest11]\nloud = loud\n")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/test_priority.py"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
