"""``diff`` and ``export``: what needs the weights themselves, and so torch."""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from eventrunner.checkpoint.layout import DTYPES
from eventrunner.checkpoint.load import load_weights
from eventrunner.errors import CheckpointError, OptionError, listed
from eventrunner.files import disk
from eventrunner.report.commands.output import Output
from eventrunner.units import shown, size

__all__ = ["diff_weights", "export"]

_SUFFIXES = {"safetensors": (".safetensors",), "pth": (".pth", ".pt", ".bin")}


def diff_weights(first: Path, second: Path, out: Output) -> int:
    """Compare the weights of two checkpoints or files: which differ, by how much, and which are in one alone."""
    ours, theirs = load_weights(first), load_weights(second)
    compared = {name: _difference(ours[name], theirs[name]) for name in ours if name in theirs}
    differ = {name: found for name, found in compared.items() if found is not None}
    only = [[name for name in one if name not in other] for one, other in ((ours, theirs), (theirs, ours))]
    equal = len(compared) - len(differ)
    out.data({"differ": differ, "only_in_a": only[0], "only_in_b": only[1], "equal": equal})
    if differ:
        rows = [
            (name, *(_shown(found.get(key)) for key in ("max", "relative", "what"))) for name, found in differ.items()
        ]
        out.table(("WEIGHT", "LARGEST", "RELATIVE", ""), rows)
    for path, names in zip((first, second), only, strict=True):
        for name in names:
            out.line(f"only in {path}: {name}")
    out.line(f"{len(differ)} differ, {equal} are equal")
    return 0


def _shown(value: Any) -> str:
    return "" if value is None else shown(value)


def _difference(ours: Any, theirs: Any) -> dict[str, Any] | None:
    """Return by how much two weights differ, None where they are equal.

    ``max`` is the largest difference of two numbers, ``relative`` the norm of all by that of the first. Where both have
    a nan, or the same infinity, they are equal.
    """
    if not (isinstance(ours, Tensor) and isinstance(theirs, Tensor)):
        return None if type(ours) is type(theirs) and ours == theirs else {"what": "not a tensor"}
    if (ours.dtype, ours.shape) != (theirs.dtype, theirs.shape):
        return {"what": f"{_kind(ours)} → {_kind(theirs)}"}
    a, b = _numbers(ours), _numbers(theirs)
    gap = (a - b).abs().masked_fill((a == b) | (a.isnan() & b.isnan()), 0)
    exact = not (ours.is_floating_point() or ours.is_complex())  # a float holds no large integer
    if torch.equal(ours, theirs) if exact else not gap.any():
        return None
    norm = float(a.norm())
    return {"max": float(gap.max()), "relative": float(gap.norm()) / norm if norm else math.inf}


def _numbers(tensor: Tensor) -> Tensor:
    dense = tensor.to_dense() if tensor.layout is not torch.strided else tensor
    return (torch.view_as_real(dense) if dense.is_complex() else dense).to(torch.float64)


def _kind(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {'×'.join(map(str, tensor.shape)) or 'scalar'}"


def export(path: Path, target: Path, form: str | None, out: Output) -> int:
    """Write the weights of a checkpoint into one new file, whole or not at all."""
    form = form or next((one for one, suffixes in _SUFFIXES.items() if target.suffix in suffixes), None)
    if form is None:
        ends = listed(suffix for suffixes in _SUFFIXES.values() for suffix in suffixes)
        raise OptionError(f"can't tell the format from {target}; give --to, or a name that ends in one of {ends}.")
    if not target.parent.is_dir():
        raise OptionError(f"can't export to {target}, as there is no folder {target.parent}.")
    if os.path.lexists(target):
        raise OptionError(f"can't export to {target}, which is there already; remove it, or choose another name.")
    weights = load_weights(path)
    _write(target, weights, form)
    count = target.stat().st_size
    out.data({"path": str(target), "format": form, "tensors": len(weights), "size": count})
    out.line(f"{target}: {len(weights)} weights, {size(count)}")
    return 0


def _write(target: Path, weights: Mapping[str, Any], form: str) -> None:
    part = target.with_name(f".{target.name}-{os.getpid()}")
    try:
        if form == "safetensors":
            disk.write_image(part, memoryview(save(_apart(weights), {"format": "pt"})))
        else:
            disk.write_stream(part, functools.partial(torch.save, dict(weights)))
        disk.rename(part, target)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    disk.fsync_folder(target.parent)


def _apart(weights: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return the weights as safetensors takes them: dense, contiguous, and those that share memory each of its own."""
    seen: set[int] = set()
    apart = {}
    for name, weight in weights.items():
        if not isinstance(weight, Tensor) or weight.layout is not torch.strided or weight.dtype not in DTYPES:
            raise CheckpointError(
                f"can't export {name!r} to safetensors, which holds dense tensors of common types alone; use --to pth."
            )
        memory = weight.untyped_storage().data_ptr()
        apart[name] = weight.clone().contiguous() if memory in seen else weight.contiguous()
        seen.add(memory)
    return apart
