"""Where to make thousands of folders, each of which is synced."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

__all__ = ["in_memory"]

_SHM = Path("/dev/shm")


@contextlib.contextmanager
def in_memory(otherwise: Path) -> Iterator[Path]:
    """An empty folder in memory, if there is a file system there, and else below *otherwise*; removed afterwards."""
    folder = Path(tempfile.mkdtemp(prefix="eventrunner-", dir=_SHM if _SHM.is_dir() else otherwise))
    try:
        yield folder
    finally:
        shutil.rmtree(folder)
