"""Checkpoints: a folder per save, whole or absent, verified when read, and without a pickle in it.

:class:`Store` writes, links and deletes them; :func:`load_checkpoint` and :func:`load_weights` read them;
:func:`verify_checkpoint` and :func:`find_newest` need no torch. That is why a name is imported when it is asked for.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from eventrunner.checkpoint.load import load_checkpoint as load_checkpoint
    from eventrunner.checkpoint.load import load_weights as load_weights
    from eventrunner.checkpoint.manifest import Manifest as Manifest
    from eventrunner.checkpoint.manifest import read_manifest as read_manifest
    from eventrunner.checkpoint.store import Store as Store
    from eventrunner.checkpoint.verify import Found as Found
    from eventrunner.checkpoint.verify import Listing as Listing
    from eventrunner.checkpoint.verify import find_newest as find_newest
    from eventrunner.checkpoint.verify import listing as listing
    from eventrunner.checkpoint.verify import verify_checkpoint as verify_checkpoint

_HOMES = {
    "Found": "verify",
    "Listing": "verify",
    "Manifest": "manifest",
    "Store": "store",
    "find_newest": "verify",
    "listing": "verify",
    "load_checkpoint": "load",
    "load_weights": "load",
    "read_manifest": "manifest",
    "verify_checkpoint": "verify",
}

__all__ = [*_HOMES]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
