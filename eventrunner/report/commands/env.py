"""``env``: what a bug report has to say of the machine. Imports torch when it is called, and does without it."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import platform
import re
import sys
from typing import Any

from eventrunner.report.commands.output import Output
from eventrunner.units import size
from eventrunner.version import __version__

__all__ = ["env"]

_SET = ("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "PYTORCH_CUDA_ALLOC_CONF", "RANK", "WORLD_SIZE")


def env(out: Output) -> int:
    """Print the versions, the devices and the threads."""
    facts = {
        "versions": {"eventrunner": __version__, "python": platform.python_version(), **_installed()},
        "platform": platform.platform(),
        "executable": sys.executable,
        "cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        **_of_torch(),
        "environment": {name: os.environ[name] for name in _SET if name in os.environ},
    }
    out.data(facts)
    out.fields({key: value for key, one in facts.items() for key, value in _spread(key, one)})
    return 0


def _installed() -> dict[str, str]:
    """Return the versions of what eventrunner depends on, extras included, as far as it is installed."""
    found = {}
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):  # run from its source folder
        for requirement in importlib.metadata.requires("eventrunner") or ():
            name = re.split(r"[^\w.-]", requirement, maxsplit=1)[0]
            with contextlib.suppress(importlib.metadata.PackageNotFoundError):
                found[name] = importlib.metadata.version(name)
    return {name: version for name, version in found.items() if name != "eventrunner"}


def _of_torch() -> dict[str, Any]:
    try:
        import torch
    except ImportError as error:
        return {"torch": f"can't be imported: {error}"}
    devices = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
    return {
        "torch": torch.__version__,
        "cuda": torch.version.cuda or torch.version.hip,
        "cudnn": torch.backends.cudnn.version(),  # type: ignore[no-untyped-call]
        "mps": torch.backends.mps.is_available(),
        "devices": [f"cuda:{index}: {one.name}, {size(one.total_memory)}" for index, one in enumerate(devices)],
        "threads": torch.get_num_threads(),
        "interop threads": torch.get_num_interop_threads(),
    }


def _spread(key: str, value: Any) -> list[tuple[str, str]]:
    if isinstance(value, dict):
        return [(f"{key[:-1]} {name}" if key == "versions" else name, str(one)) for name, one in value.items()]
    if isinstance(value, list):
        return [(key, ", ".join(value) or "cpu alone")]
    return [(key, "no" if value is None or value is False else "yes" if value is True else str(value))]
