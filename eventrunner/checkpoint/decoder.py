"""From nodes of the document back to values. A node that is no one's raises whatever its reading raises."""

from __future__ import annotations

import base64
import importlib
import re
import reprlib
import struct
from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

__all__ = ["TAG", "Decoder", "Node", "array_of"]

TAG = "$"
"""The key that sets a node that stands for something else apart from a dict."""

Node = Any
"""What JSON holds, and what ``json.loads`` is typed to return."""

_DTYPES = {str(dtype): dtype for dtype in vars(torch).values() if isinstance(dtype, torch.dtype)}
_NUMPY_NAME = re.compile(r"[<>|=]([biufcUS])\d{1,10}")
_NUMPY_ITEMS = {"b": bool, "i": int, "u": int, "f": float, "c": complex, "U": str, "S": bytes}


@dataclass(slots=True)
class Decoder:
    """One pass over one document."""

    tensors: Mapping[str, Mapping[str, Tensor]]
    _known: dict[tuple[str, str], Tensor] = field(default_factory=dict)

    def node(self, node: Node) -> Any:
        """The value that a node stands for."""
        if type(node) is list:
            return self.items(node)
        if type(node) is not dict:
            return node
        if TAG in node:
            return _DECODERS[node[TAG]](self, node)
        return {key: self.node(value) for key, value in node.items()}

    def items(self, nodes: list[Node]) -> list[Any]:
        """The values of a list of nodes."""
        if type(nodes) is not list:
            raise TypeError(f"{reprlib.repr(nodes)} is no list")
        return [self.node(node) for node in nodes]

    def pairs(self, nodes: list[Node]) -> dict[Any, Any]:
        """The dict of a list of pairs of nodes: how one is written whose keys JSON doesn't have."""
        return {self.node(key): self.node(value) for key, value in nodes}

    def tensor(self, node: Mapping[str, Node]) -> Tensor:
        """The tensor that a node names: one object, however many nodes name it."""
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


def _state_dict(decoder: Decoder, node: Mapping[str, Node]) -> OrderedDict[Any, Any]:
    state = OrderedDict(decoder.node(node["content"]))
    vars(state)["_metadata"] = decoder.node(node["metadata"])
    return state


def _sparse(decoder: Decoder, node: Mapping[str, Node]) -> Tensor:
    indices, values = decoder.tensor(node["indices"]), decoder.tensor(node["values"])
    # Whatever computes with it goes to the places that its indices name.
    known = {"is_coalesced": node["coalesced"], "check_invariants": True}
    return torch.sparse_coo_tensor(indices, values, node["size"], **known)


def _ndarray(decoder: Decoder, node: Mapping[str, Node]) -> Any:
    return array_of(decoder.tensor(node["tensor"]))


def array_of(tensor: Tensor) -> Any:
    """The array of a tensor's memory; the tensor itself where there is no numpy."""
    return tensor.numpy(force=True) if _numpy() else tensor


def _numpy_value(decoder: Decoder, node: Mapping[str, Node]) -> Any:
    value, name, numpy = decoder.node(node["value"]), node["dtype"], _numpy()
    kind = _NUMPY_NAME.fullmatch(name)
    # Of a number, others of numpy's types make that many bytes.
    if kind is None or type(value) is not _NUMPY_ITEMS[kind[1]]:
        raise TypeError(f"{reprlib.repr(value)} is no scalar of {reprlib.repr(name)}")
    return numpy.dtype(name).type(value) if numpy else value


def _numpy() -> Any:
    try:
        return importlib.import_module("numpy")
    except ImportError:
        return None


_DECODERS: dict[str, Callable[[Decoder, Mapping[str, Node]], Any]] = {
    "int": lambda decoder, node: int(node["hex"], 16),
    "float": lambda decoder, node: struct.unpack(">d", bytes.fromhex(node["bits"]))[0],
    "complex": lambda decoder, node: complex(*decoder.items(node["parts"])),
    "bytes": lambda decoder, node: base64.b64decode(node["base64"], validate=True),
    "dtype": lambda decoder, node: _dtype(node["name"]),
    "device": lambda decoder, node: torch.device(node["name"]),
    "numpy": _numpy_value,
    "tuple": lambda decoder, node: tuple(decoder.items(node["items"])),
    "size": lambda decoder, node: torch.Size(decoder.items(node["items"])),
    "set": lambda decoder, node: set(decoder.items(node["items"])),
    "frozenset": lambda decoder, node: frozenset(decoder.items(node["items"])),
    "dict": lambda decoder, node: decoder.pairs(node["items"]),
    "counter": lambda decoder, node: Counter(decoder.pairs(node["items"])),
    "state_dict": _state_dict,
    "tensor": Decoder.tensor,
    "ndarray": _ndarray,
    "sparse": _sparse,
}
