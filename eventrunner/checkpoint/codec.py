"""A tree of state as JSON and tensors, and back, bit for bit. Nothing is ever pickled.

A value that JSON has is itself in the document. Any other is an object with a key ``"$"``, its tag:
``{"$": "tuple", "items": […]}``. A dict that has a key ``"$"`` of its own, or a key that isn't a string, is tagged
too, so that no tree can be mistaken for a tag. A tensor is ``{"$": "tensor", "file": …, "name": …}``; its bytes are
in that file under that name.

One table has it by type: how a value is copied, how the document has the copy, and how it is read from there.
"""

from __future__ import annotations

import base64
import importlib
import itertools
import json
import math
import re
import reprlib
import struct
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from eventrunner.checkpoint.tree import (
    FILES,
    NUMPY_ITEMS,
    REST,
    TAG,
    Branch,
    Modules,
    Node,
    Placeholder,
    Sparse,
    Trail,
    copy_array,
    copy_counter,
    copy_dict,
    copy_list,
    copy_ordered_dict,
    copy_set,
    copy_tensor,
    copy_tuple,
    kind_name,
    numpy_kind,
    refusal,
    same,
)
from eventrunner.errors import CheckpointError, CorruptCheckpointError

__all__ = [
    "Decoder",
    "array_of",
    "decode",
    "document_of",
    "filling_of",
    "walk",
]

_SHOWN = 300

_EXACT_INT = 2**53  # other readers of JSON hold a larger one as a float
_DTYPES = {str(dtype): dtype for dtype in vars(torch).values() if isinstance(dtype, torch.dtype)}
_NUMPY_NAME = re.compile(r"[<>|=]([biufcUS])\d{1,10}")


def walk(tree: Mapping[str, Any]) -> list[Branch]:
    """Walk over *tree*: first what goes to the model's file, so that it has the tensors that others share with it.

    Raises:
        CheckpointError: there is something in the tree that a checkpoint can't hold; the message has the path to it.
    """
    if not isinstance(tree, Mapping):
        raise CheckpointError(f"a checkpoint is a dict of state by name, not a {type(tree).__name__}.")
    if odd := [key for key in tree if type(key) is not str]:
        raise CheckpointError(f"the checkpoint has the key {odd[0]!r} at its top, where keys are strings.")
    errors = []
    for careful in (False, True):
        try:
            branches = _walk(tree, careful)
        except CheckpointError:
            raise
        except RuntimeError as error:  # from a tensor without memory of its own, or from a dict that grew
            errors.append(error)
        else:
            if not errors or any(branch.has_sparse for branch in branches):
                return branches
    raise CheckpointError(
        "the state changed while a checkpoint of it was being taken; let no other thread write to it meanwhile."
    ) from errors[0]


def _walk(tree: Mapping[str, Any], careful: bool) -> list[Branch]:
    branches = {file: Branch(file, _copy, careful) for file in (*FILES.values(), REST)}
    for key, value in tree.items():
        branch = branches[FILES.get(key, REST)]
        branch.skeleton[key] = branch.copy(value, (key,))
    for branch in branches.values():
        branch.pointers = list(map(Tensor.data_ptr, branch.leaves))
    return list(branches.values())


def _copy(branch: Branch, value: Any, trail: Trail) -> Any:
    kind = _TYPES.get(type(value)) or _NUMPYS.get(numpy_kind(value))
    if kind is None:
        raise refusal(trail, kind_name(value))
    return kind.copy(branch, value, trail)


Encode = Callable[[Any], Node]


def document_of(skeleton: Mapping[str, Any], fillings: Iterable[Node]) -> dict[str, Node]:
    """Return the document for a skeleton, given the nodes of its placeholders in their order."""
    following = iter(fillings)

    def encode(value: Any) -> Node:
        if type(value) is Placeholder:
            return next(following)
        return _ENCODERS.get(type(value), _encode_numpy)(value, encode)

    return {key: encode(value) for key, value in skeleton.items()}


def filling_of(placeholder: Placeholder, leaves: Iterator[Node]) -> Node:
    """Return the node of what *placeholder* stands for, given those of its tensors."""

    def take(keys: tuple[Any, ...]) -> list[Node]:
        return list(itertools.islice(leaves, len(keys)))

    match placeholder.kind:
        case "tensor":
            return next(leaves)
        case "ndarray":
            return {TAG: "ndarray", "tensor": next(leaves)}
        case "list":
            return take(placeholder.keys)
        case "dict":
            return _mapping(placeholder.keys, take(placeholder.keys), _encode_key)
    inner = [_mapping(keys, take(keys), _encode_key) for keys in placeholder.inner]
    return _mapping(placeholder.keys, inner, _encode_key)


def _encode_key(key: str | int) -> Node:
    return _encode_int(key, _encode_key) if type(key) is int else key


def _as_is(value: Any, encode: Encode) -> Node:
    return value


def _encode_int(value: int, encode: Encode) -> Node:
    return value if abs(value) <= _EXACT_INT else {TAG: "int", "hex": hex(value)}


def _encode_float(value: float, encode: Encode) -> Node:
    return value if math.isfinite(value) else {TAG: "float", "bits": struct.pack(">d", value).hex()}


def _encode_complex(value: complex, encode: Encode) -> Node:
    return {TAG: "complex", "parts": [encode(value.real), encode(value.imag)]}


def _encode_bytes(value: bytes, encode: Encode) -> Node:
    return {TAG: "bytes", "base64": base64.b64encode(value).decode()}


def _encode_named(value: torch.dtype | torch.device, encode: Encode) -> Node:
    return {TAG: type(value).__name__, "name": str(value)}


def _encode_numpy(value: Any, encode: Encode) -> Node:
    return {TAG: "numpy", "dtype": value.dtype.str, "value": encode(value.item())}


def _encode_list(value: list[Any], encode: Encode) -> Node:
    return list(map(encode, value))


def _encode_tuple(value: tuple[Any, ...], encode: Encode) -> Node:
    return {TAG: type(value).__name__.lower(), "items": list(map(encode, value))}


def _encode_set(value: set[Any] | frozenset[Any], encode: Encode) -> Node:
    return {TAG: type(value).__name__, "items": sorted(map(encode, value), key=json.dumps)}  # one order in all runs


def _encode_dict(value: dict[Any, Any], encode: Encode) -> Node:
    return _mapping(value, list(map(encode, value.values())), encode)


def _encode_counter(value: Counter[Any], encode: Encode) -> Node:
    return {TAG: "counter", "items": _pairs(value, map(encode, value.values()), encode)}


def _encode_modules(value: Modules, encode: Encode) -> Node:
    return {TAG: "state_dict", "content": encode(value.content), "metadata": encode(value.versions)}


def _encode_sparse(value: Sparse, encode: Encode) -> Node:
    parts = {"indices": encode(value.indices), "values": encode(value.values)}
    return {TAG: "sparse", "size": list(value.size), "coalesced": value.coalesced, **parts}


def _mapping(keys: Iterable[Any], values: list[Node], encode: Encode) -> Node:
    if TAG in (keys := list(keys)) or any(type(key) is not str for key in keys):
        return {TAG: "dict", "items": _pairs(keys, values, encode)}
    return dict(zip(keys, values, strict=True))


def _pairs(keys: Iterable[Any], values: Iterable[Node], encode: Encode) -> list[Node]:
    return [[encode(key), value] for key, value in zip(keys, values, strict=True)]


def decode(
    document: Mapping[str, Any], tensors: Mapping[str, Mapping[str, Tensor]], *, where: str = "the document"
) -> dict[str, Any]:
    """Put a tree together again; the opposite of :func:`eventrunner.checkpoint.plan.encode`.

    Args:
        document: As ``encode`` made it.
        tensors: By file and name; they become part of the tree without being copied.
        where: What the document is called in an error.

    Raises:
        CorruptCheckpointError: *document* is not what ``encode`` makes, or doesn't fit *tensors*.
    """
    decoder = Decoder(tensors)
    try:
        return {key: decoder.node(node) for key, node in document.items()}
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError, struct.error) as error:
        problem = f"{type(error).__name__}: {str(error)[:_SHOWN]}"
        raise CorruptCheckpointError(f"{where} is not a document that can be decoded ({problem}).") from error


Decode = Callable[["Decoder", Mapping[str, Node]], Any]


@dataclass(slots=True)
class Decoder:
    """One pass over one document. A node that no encoder makes raises whatever its reading raises."""

    tensors: Mapping[str, Mapping[str, Tensor]]
    _known: dict[tuple[str, str], Tensor] = field(default_factory=dict)

    def node(self, node: Node) -> Any:
        """Return the value that a node stands for."""
        if type(node) is list:
            return self.items(node)
        if type(node) is not dict:
            return node
        if TAG in node:
            return _DECODERS[node[TAG]](self, node)
        return {key: self.node(value) for key, value in node.items()}

    def items(self, nodes: list[Node]) -> list[Any]:
        """Return the values of a list of nodes."""
        if type(nodes) is not list:
            raise TypeError(f"{reprlib.repr(nodes)} is no list")
        return [self.node(node) for node in nodes]

    def tensor(self, node: Mapping[str, Node]) -> Tensor:
        """Return the tensor that a node names: one object, however many nodes name it."""
        place = (node["file"], node["name"])
        if place not in self._known:
            self._known[place] = _shaped(self.tensors[place[0]][place[1]], node)
        return self._known[place]


def _shaped(tensor: Tensor, node: Mapping[str, Node]) -> Tensor:
    if "dtype" in node:
        tensor = tensor.view(_dtype(node["dtype"])).reshape(node["shape"])
    if "order" in node:
        order = node["order"]
        if sorted(order) != list(range(tensor.dim())):
            raise ValueError(f"{reprlib.repr(order)} is no order of {tensor.dim()} dimensions")
        back = sorted(range(len(order)), key=order.__getitem__)
        tensor = tensor.permute(order).contiguous().permute(back)
    return tensor


def _dtype(name: str) -> torch.dtype:
    return _DTYPES[name]  # never looked up in torch, which imports some of what it is asked for


def _decode_int(decoder: Decoder, node: Mapping[str, Node]) -> int:
    return int(node["hex"], 16)


def _decode_float(decoder: Decoder, node: Mapping[str, Node]) -> Any:
    return struct.unpack(">d", bytes.fromhex(node["bits"]))[0]


def _decode_complex(decoder: Decoder, node: Mapping[str, Node]) -> complex:
    return complex(*decoder.items(node["parts"]))


def _decode_bytes(decoder: Decoder, node: Mapping[str, Node]) -> bytes:
    return base64.b64decode(node["base64"], validate=True)


def _decode_dtype(decoder: Decoder, node: Mapping[str, Node]) -> torch.dtype:
    return _dtype(node["name"])


def _decode_device(decoder: Decoder, node: Mapping[str, Node]) -> torch.device:
    return torch.device(node["name"])


def _decode_numpy(decoder: Decoder, node: Mapping[str, Node]) -> Any:
    value, name, numpy = decoder.node(node["value"]), node["dtype"], _numpy()
    kind = _NUMPY_NAME.fullmatch(name)
    # Of a number, others of numpy's types make that many bytes.
    if kind is None or type(value) is not NUMPY_ITEMS[kind[1]]:
        raise TypeError(f"{reprlib.repr(value)} is no scalar of {reprlib.repr(name)}")
    return numpy.dtype(name).type(value) if numpy else value


def _decode_items(make: Callable[[list[Any]], Any]) -> Decode:
    return lambda decoder, node: make(decoder.items(node["items"]))


def _decode_dict(decoder: Decoder, node: Mapping[str, Node]) -> dict[Any, Any]:
    return {decoder.node(key): decoder.node(value) for key, value in node["items"]}


def _decode_counter(decoder: Decoder, node: Mapping[str, Node]) -> Counter[Any]:
    return Counter(_decode_dict(decoder, node))


def _decode_modules(decoder: Decoder, node: Mapping[str, Node]) -> OrderedDict[Any, Any]:
    state = OrderedDict(decoder.node(node["content"]))
    vars(state)["_metadata"] = decoder.node(node["metadata"])
    return state


def _decode_sparse(decoder: Decoder, node: Mapping[str, Node]) -> Tensor:
    indices, values = decoder.tensor(node["indices"]), decoder.tensor(node["values"])
    # Whatever computes with it goes to the places that its indices name.
    known = {"is_coalesced": node["coalesced"], "check_invariants": True}
    return torch.sparse_coo_tensor(indices, values, node["size"], **known)


def _decode_array(decoder: Decoder, node: Mapping[str, Node]) -> Any:
    return array_of(decoder.tensor(node["tensor"]))


def array_of(tensor: Tensor) -> Any:
    """Return the array of a tensor's memory; the tensor itself where there is no numpy."""
    return tensor.numpy(force=True) if _numpy() else tensor


def _numpy() -> Any:
    try:
        return importlib.import_module("numpy")
    except ImportError:
        return None


@dataclass(frozen=True, slots=True)
class _Kind:
    """A type that a tree may have in it.

    Attributes:
        copy: Makes the part of a skeleton from a value; the values themselves stay as they are.
        encode: Makes the document's node from that part.
        tag: What tells such nodes apart; empty where JSON has the type itself.
        decode: Makes a value from such a node.
    """

    copy: Callable[[Branch, Any, Trail], Any]
    encode: Callable[[Any, Encode], Node]
    tag: str = ""
    decode: Decode | None = None


_NUMPYS = {
    "numpy": _Kind(same, _encode_numpy, "numpy", _decode_numpy),
    "ndarray": _Kind(copy_array, _as_is, "ndarray", _decode_array),
}
_TENSOR = _Kind(copy_tensor, _as_is, "tensor", Decoder.tensor)
_TYPES: dict[type, _Kind] = {
    type(None): _Kind(same, _as_is),
    bool: _Kind(same, _as_is),
    str: _Kind(same, _as_is),
    int: _Kind(same, _encode_int, "int", _decode_int),
    float: _Kind(same, _encode_float, "float", _decode_float),
    complex: _Kind(same, _encode_complex, "complex", _decode_complex),
    bytes: _Kind(same, _encode_bytes, "bytes", _decode_bytes),
    torch.dtype: _Kind(same, _encode_named, "dtype", _decode_dtype),
    torch.device: _Kind(same, _encode_named, "device", _decode_device),
    list: _Kind(copy_list, _encode_list),
    tuple: _Kind(copy_tuple, _encode_tuple, "tuple", _decode_items(tuple)),
    torch.Size: _Kind(copy_tuple, _encode_tuple, "size", _decode_items(torch.Size)),
    set: _Kind(copy_set, _encode_set, "set", _decode_items(set)),
    frozenset: _Kind(copy_set, _encode_set, "frozenset", _decode_items(frozenset)),
    dict: _Kind(copy_dict, _encode_dict, "dict", _decode_dict),
    Counter: _Kind(copy_counter, _encode_counter, "counter", _decode_counter),
    OrderedDict: _Kind(copy_ordered_dict, _encode_dict),
    Tensor: _TENSOR,
    torch.nn.Parameter: _TENSOR,
}
"""By exact type: a subclass would come back as something else than it was."""

_ENCODERS = {kind: row.encode for kind, row in _TYPES.items()} | {Modules: _encode_modules, Sparse: _encode_sparse}
_DECODERS = {row.tag: row.decode for row in (*_TYPES.values(), *_NUMPYS.values()) if row.decode} | {
    "state_dict": _decode_modules,
    "sparse": _decode_sparse,
}
