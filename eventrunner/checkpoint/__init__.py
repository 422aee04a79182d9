"""Checkpoints: a folder per save, whole or absent, verified when read, and without a pickle in it.

:class:`Store` writes, links and deletes them; :func:`load_checkpoint` and :func:`load_weights` read them;
:func:`verify_checkpoint` and :func:`find_newest` need no torch. That is why a name is imported when it is asked for.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from eventrunner.checkpoint.load import load_checkpoint, load_weights
    from eventrunner.checkpoint.manifest import Manifest, read_manifest
    from eventrunner.checkpoint.store import Store
    from eventrunner.checkpoint.verify import Found, Listing, find_newest, listing, verify_checkpoint

__all__ = [
    "Found",
    "Listing",
    "Manifest",
    "Store",
    "find_newest",
    "listing",
    "load_checkpoint",
    "load_weights",
    "read_manifest",
    "verify_checkpoint",
]

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


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
