"""From values to nodes of the document, by type; tensors are set aside under the names that they get in the files."""

from __future__ import annotations

import base64
import itertools
import json
import math
import struct
import sys
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from eventrunner.checkpoint.decoder import TAG, Node
from eventrunner.errors import CheckpointError

__all__ = ["MAX_DEPTH", "SECTIONS", "Encoder"]

MAX_DEPTH = 100
"""How deep a tree may be nested: enough for any state, and well within Python's own limit on recursion."""

SECTIONS = {"state_dict": "model.safetensors", "optimizer": "optimizer.safetensors"}
_REST = "state.safetensors"
_HEADER_KEY = "__metadata__"  # safetensors' own entry in a file's header
_EXACT_INT = 2**53  # other readers of JSON hold a larger one as a float
_TAKES = "it takes tensors, numbers, strings, bytes, None and dicts, lists, tuples and sets of them"
_NUMPY_KINDS = frozenset("biufcUS")

_NATIVE = frozenset(
    getattr(torch, name)
    for name in (
        *("bool", "uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64"),
        *("float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz"),
        *("float16", "bfloat16", "float32", "float64", "complex64"),
    )
)
"""What safetensors stores as it is; any other dtype is stored as its bytes."""

Trail = tuple[object, ...]


def _path(trail: Trail) -> str:
    return "checkpoint" + "".join(f"[{key!r}]" for key in trail)


def _refusal(trail: Trail, what: str) -> CheckpointError:
    return CheckpointError(f"{_path(trail)} is {what}, which a checkpoint can't hold; {_TAKES}.")


def _kind_of(value: object) -> str:
    name = type(value).__name__
    return f"{'an' if name[0] in 'aeiouAEIOU' else 'a'} {name}"


@dataclass(slots=True)
class Encoder:
    """One pass over one tree, which must stay alive meanwhile, as tensors and containers are told apart by address."""

    copy: bool
    plain_keys: frozenset[str]
    tensors: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    _known: dict[object, Node] = field(default_factory=dict)
    _open: set[int] = field(default_factory=set)

    def node(self, value: Any, trail: Trail) -> Node:
        """The node for *value*, to which the keys and indices of *trail* lead."""
        encode_it = _ENCODERS.get(type(value)) or _numpy_encoder(value)
        if encode_it is None:
            raise _refusal(trail, _kind_of(value))
        return encode_it(self, value, trail)

    def below(self, container: Any, items: Iterable[tuple[object, Any]], trail: Trail) -> list[Node]:
        """The nodes of what lies in *container*, each given with the key or index that leads to it."""
        if id(container) in self._open:
            raise CheckpointError(f"{_path(trail)} leads back to a container that it lies in; a checkpoint is a tree.")
        if len(trail) >= MAX_DEPTH:
            raise CheckpointError(
                f"{_path(trail[:3])}… is nested more than {MAX_DEPTH} deep, the most that a checkpoint holds."
            )
        self._open.add(id(container))
        nodes = []
        for key, value in items:
            nodes.append(self.node(value, (*trail, key)))
        self._open.remove(id(container))
        return nodes

    def tensor(self, value: Tensor, trail: Trail) -> Node:
        """The node for a tensor; the same one wherever it occurs."""
        if problem := _no_bytes(value):
            raise _refusal(trail, problem)
        identity = _identity(value)
        if identity not in self._known:
            self._known[identity] = self._stored(value, trail)
        return self._known[identity]

    def array(self, value: Any, trail: Trail) -> Node:
        """The node for a numpy array, which is stored as a tensor."""
        if id(value) not in self._known:
            try:
                # A copy, as torch takes neither read-only arrays nor negative strides.
                taken = torch.from_numpy(value.copy(order="K"))
            except (TypeError, ValueError) as error:
                raise _refusal(trail, f"a numpy array of dtype {value.dtype}") from error
            self._known[id(value)] = {TAG: "ndarray", "tensor": self._stored(taken, trail)}
        return self._known[id(value)]

    def _stored(self, value: Tensor, trail: Trail) -> Node:
        data = value.detach().resolve_conj().resolve_neg()
        node: dict[str, Node] = {TAG: "tensor"}
        if order := _memory_order(data):
            node["order"] = order
        data = data.cpu().contiguous()
        if data.dtype not in _NATIVE:
            node |= {"dtype": str(data.dtype), "shape": list(data.shape)}
            data = data.reshape(-1).view(torch.uint8)
        if self.copy and data.data_ptr() == value.data_ptr():
            data = data.clone()
        file, name = self._place(trail)
        self.tensors.setdefault(file, {})[name] = data
        return {**node, "file": file, "name": name}

    def _place(self, trail: Trail) -> tuple[str, str]:
        """The file and the name for a tensor: a plain key of the model stays as it is, whatever else is there."""
        file = SECTIONS.get(str(trail[0]), _REST)
        inner = trail[1:] if file != _REST and len(trail) > 1 else trail
        # safetensors' header is UTF-8, in which Python's lone surrogates have no place.
        base = ".".join(map(str, inner)).encode("utf-8", "backslashreplace").decode()
        reserved = self.plain_keys if trail[0] == "state_dict" and inner != (base,) else ()
        taken = self.tensors.get(file, {})
        names = itertools.chain([base], (f"{base}#{count}" for count in itertools.count(2)))
        free = (name for name in names if name not in taken and name not in reserved and name != _HEADER_KEY)
        return file, next(free)


def _no_bytes(value: Tensor) -> str:
    if value.is_nested or value.layout is not torch.strided:
        return f"a tensor of layout {str(value.layout).removeprefix('torch.')}"
    if value.is_quantized:
        return "a quantized tensor"
    return "a tensor on the meta device, without data" if value.is_meta else ""


def _identity(value: Tensor) -> object:
    if not value.numel():
        return id(value)
    place = (value.device, value.untyped_storage().data_ptr(), value.storage_offset(), value.shape, value.stride())
    return (*place, value.dtype, value.is_conj(), value.is_neg())


def _memory_order(data: Tensor) -> list[int] | None:
    """The dimensions from the outermost in memory to the innermost, where that is not simply their order."""
    if data.is_contiguous():
        return None
    strides = torch.empty_like(data, device="meta").stride()  # those that a copy would have
    order = sorted(range(data.dim()), key=lambda dim: -strides[dim])
    return order if order != list(range(data.dim())) else None


def _as_is(encoder: Encoder, value: Any, trail: Trail) -> Node:
    return value


def _int(encoder: Encoder, value: int, trail: Trail) -> Node:
    return value if abs(value) <= _EXACT_INT else {TAG: "int", "hex": hex(value)}


def _float(encoder: Encoder, value: float, trail: Trail) -> Node:
    return value if math.isfinite(value) else {TAG: "float", "bits": struct.pack(">d", value).hex()}


def _complex(encoder: Encoder, value: complex, trail: Trail) -> Node:
    return {TAG: "complex", "parts": [encoder.node(value.real, trail), encoder.node(value.imag, trail)]}


def _bytes(encoder: Encoder, value: bytes, trail: Trail) -> Node:
    return {TAG: "bytes", "base64": base64.b64encode(value).decode()}


def _named(encoder: Encoder, value: torch.dtype | torch.device, trail: Trail) -> Node:
    return {TAG: type(value).__name__, "name": str(value)}


def _numpy_scalar(encoder: Encoder, value: Any, trail: Trail) -> Node:
    return {TAG: "numpy", "dtype": value.dtype.str, "value": encoder.node(value.item(), trail)}


def _list(encoder: Encoder, value: list[Any], trail: Trail) -> Node:
    return encoder.below(value, enumerate(value), trail)


def _tuple(encoder: Encoder, value: tuple[Any, ...], trail: Trail) -> Node:
    return {TAG: type(value).__name__.lower(), "items": encoder.below(value, enumerate(value), trail)}


def _set(encoder: Encoder, value: set[Any] | frozenset[Any], trail: Trail) -> Node:
    items = [_hashable(encoder, item, trail) for item in value]
    return {TAG: type(value).__name__, "items": sorted(items, key=json.dumps)}  # one order from run to run


def _dict(encoder: Encoder, value: dict[Any, Any], trail: Trail) -> Node:
    if TAG in value or any(type(key) is not str for key in value):
        return {TAG: "dict", "items": _pairs(encoder, value, trail)}
    return dict(zip(value, encoder.below(value, value.items(), trail), strict=True))


def _ordered_dict(encoder: Encoder, value: OrderedDict[Any, Any], trail: Trail) -> Node:
    content = _dict(encoder, value, trail)
    versions = getattr(value, "_metadata", None)  # nn.Module.state_dict() puts it there
    if not versions:
        return content
    return {TAG: "state_dict", "content": content, "metadata": encoder.node(versions, (*trail, "_metadata"))}


def _counter(encoder: Encoder, value: Counter[Any], trail: Trail) -> Node:
    return {TAG: "counter", "items": _pairs(encoder, value, trail)}


def _pairs(encoder: Encoder, value: dict[Any, Any], trail: Trail) -> list[Node]:
    keys = [_hashable(encoder, key, trail) for key in value]
    return [list(pair) for pair in zip(keys, encoder.below(value, value.items(), trail), strict=True)]


def _hashable(encoder: Encoder, value: Any, trail: Trail) -> Node:
    if not _is_hashable(value):
        raise CheckpointError(
            f"{_path(trail)} has {_kind_of(value)} as a key or member, which a checkpoint can't hold; it "
            "takes strings, numbers, bytes, None and tuples of them there."
        )
    return encoder.node(value, trail)


def _is_hashable(value: Any) -> bool:
    if type(value) in (tuple, frozenset, torch.Size):
        return all(map(_is_hashable, value))
    return type(value) in _SCALARS or _numpy_encoder(value) is _numpy_scalar


def _numpy_encoder(value: Any) -> _Encode | None:
    numpy = sys.modules.get("numpy")  # whoever has a numpy value has imported it
    if numpy is None:
        return None
    if type(value) is numpy.ndarray:
        return Encoder.array
    known = isinstance(value, numpy.generic) and value.dtype.kind in _NUMPY_KINDS
    return _numpy_scalar if known and not isinstance(value.item(), numpy.generic) else None


_Encode = Callable[[Encoder, Any, Trail], Node]

_SCALARS: dict[type, _Encode] = {
    type(None): _as_is,
    bool: _as_is,
    str: _as_is,
    int: _int,
    float: _float,
    complex: _complex,
    bytes: _bytes,
    torch.dtype: _named,
    torch.device: _named,
}

_ENCODERS: dict[type, _Encode] = {
    **_SCALARS,
    list: _list,
    tuple: _tuple,
    torch.Size: _tuple,
    set: _set,
    frozenset: _set,
    dict: _dict,
    OrderedDict: _ordered_dict,
    Counter: _counter,
    Tensor: Encoder.tensor,
    torch.nn.Parameter: Encoder.tensor,
}
"""By exact type: a subclass would come back as something else than it was."""
