"""Pickles that would do something, and files of torch.save that would take more than they have."""

from __future__ import annotations

import functools
import io
import pickle
import struct
import tarfile
import zipfile
from collections.abc import Callable

import torch
from archives import ended

CANARY = "ran-by-a-pickle"
"""A file that appears in the working directory if one is run."""


def called(module: str, name: str, arguments: bytes) -> bytes:
    """A pickle in the first protocol that calls a function with a tuple that is given in opcodes."""
    return f"c{module}\n{name}\n".encode() + arguments + b"R."


def text(value: str) -> bytes:
    """A string in opcodes."""
    data = value.encode()
    return b"X" + struct.pack("<I", len(data)) + data


SHELL = b"(" + text(f"touch {CANARY}") + b"t"
CODE = b"(" + text(f"open({CANARY!r}, 'w')") + b"t"
_EMPTY = b"(t"
PICKLES: dict[str, bytes] = {
    "os.system": called("os", "system", SHELL),
    "posix.system": b"\x80\x02" + called("posix", "system", SHELL),
    "nt.system": called("nt", "system", SHELL),
    "eval": b"\x80\x02" + called("builtins", "eval", CODE),
    "exec of Python 2": called("__builtin__", "eval", CODE),
    "subprocess": called("subprocess", "getoutput", SHELL),
    "a chain of getattr": b"cbuiltins\ngetattr\n(cos\nsystem\n" + text("__call__") + b"tR" + SHELL + b"R.",
    "getattr of torch": b"cbuiltins\ngetattr\n(ctorch\nload\n" + text("__globals__") + b"tR.",
    "the fourth protocol": b"\x80\x04\x8c\x05posix\x8c\x06system\x93\x8c\x10touch " + CANARY[:10].encode() + b"\x85R.",
    "an instance": b"(" + text(f"touch {CANARY}") + b"ios\nsystem\n.",
    "an object": b"(cos\nsystem\n" + text(f"touch {CANARY}") + b"o.",
    "an extension": b"\x80\x02\x82\x01.",
    "a state of a function": b"\x80\x02ctorch\nload\n}" + text("__code__") + b"Nsb.",
    "pip": called("pip", "main", SHELL),
    "torch.load": called("torch", "load", CODE),
    "torch.hub": called("torch.hub", "load", SHELL),
    "runpy": called("runpy", "_run_code", CODE),
    "a module": called("torch.nn.modules.linear", "Linear", b"(K\x02K\x02t"),
    "a persistent id": b"\x80\x02" + text("x") + b"Q.",
    "recursion": b"\x80\x02" + b"]" + b"]" * 5000 + b"a" * 5000 + b".",
    "recursion of tuples": b"\x80\x02)" + b"\x85" * 5000 + b".",
}
"""By name; none of torch's, or of a checkpoint's, needs any of them."""


def archive(pickled: bytes, entries: dict[str, bytes] | None = None, kind: int = zipfile.ZIP_STORED) -> bytes:
    """A file of torch.save with that pickle, and other entries."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", kind, compresslevel=9) as made:
        for name, data in {
            "a/data.pkl": pickled,
            "a/version": b"3\n",
            "a/byteorder": b"little",
            **(entries or {}),
        }.items():
            made.writestr(name, data)
    return ended(file.getvalue())


def tensor(numel: int = 4, size: bytes = b"(K\x04t", stride: bytes = b"(K\x01t", offset: bytes = b"K\x00") -> bytes:
    """A pickle of a dict with a tensor of floats."""
    number = b"\x8a\x09" + numel.to_bytes(9, "little", signed=True)
    key = b"(" + text("storage") + b"ctorch\nFloatStorage\n" + text("0") + text("cpu") + number + b"tQ"
    hooks = b"ccollections\nOrderedDict\n)R"
    rebuilt = b"ctorch._utils\n_rebuild_tensor_v2\n(" + key + offset + size + stride + b"\x89" + hooks + b"tR"
    return b"\x80\x02}" + text("x") + rebuilt + b"s."


def _dict(value: bytes) -> bytes:
    return b"\x80\x02}" + text("x") + value + b"s."


def _again(made: bytes, call: bytes, count: int) -> bytes:
    """A list of what *call* gives of one thing, so many times."""
    return _dict(made + b"q\x00]" + call * count)


def _saved(value: object) -> bytes:
    file = io.BytesIO()
    torch.save({"x": value}, file)
    return file.getvalue()


def _sparse(index: int, size: int, coalesced: bool) -> bytes:
    """A sparse tensor with an entry twice."""
    made = torch.sparse_coo_tensor([[index, index]], [1.0, 2.0], (size,), check_invariants=False)
    return _saved(made._coalesced_(coalesced))


def _twice(count: int) -> object:
    """A list that has another twice, and so on."""
    found: object = 1
    for _ in range(count):
        found = [found, found]
    return found


HARMLESS = (
    *(f"an archive of a dict of {name}" for name in ("recursion", "recursion of tuples")),
    *("a comment", "lists that have others twice", "numpy's of lists", "a dict under many tags"),
)
"""By name, files that may be loaded, as nothing comes of it."""

FLOATS = {"a/data/0": struct.pack("<4f", 1, 2, 3, 4)}
_MANY = dict.fromkeys(range(20000), 0)
_BOMB = bytes(100_000_000)
_LONG = b"\x8a\x08" + (2**40).to_bytes(8, "little")
_BIG = b"J" + (500_000_000).to_bytes(4, "little")


@functools.cache
def _bombs() -> dict[str, bytes]:
    deflated = zipfile.ZIP_DEFLATED
    return {
        "a deflated storage": archive(tensor(25_000_000, b"(J\x40\x78\x7d\x01t"), {"a/data/0": _BOMB}, deflated),
        "a deflated pickle": archive(_dict(text("x" * 100_000_000)), kind=deflated),
        "a deflated entry": archive(_dict(b"K\x01"), {"a/data/9": _BOMB}, deflated),
    }


def ARCHIVES() -> dict[str, bytes]:  # noqa: N802
    """By name; made when they are asked for, as some take a second."""
    whole = archive(tensor(), FLOATS)
    return {
        **{f"an archive of {name}": archive(data) for name, data in PICKLES.items()},
        **{
            f"an archive of a dict of {name}": archive(_dict(data[:-1].removeprefix(b"\x80\x02")))
            for name, data in PICKLES.items()
        },
        **_bombs(),
        "a sparse tensor whose index leads out": _sparse(2**40, 2, coalesced=False),
        "a sparse tensor that lies about its entries": _sparse(1, 2, coalesced=True),
        "lists that have others twice": _saved(_twice(60)),
        "numpy's of lists": _saved({"$": "numpy", "dtype": "<i8", "value": _twice(60)}),
        "numpy's of a number": _saved({"$": "numpy", "dtype": "V1", "value": 2**30}),
        "a dict under many tags": _saved([{"$": "dict", "items": _MANY} for _ in range(20_000)]),
        "a dict that is none": _saved({"$": "dict", "items": [1]}),
        "a storage of 2**40 numbers": archive(tensor(2**40), FLOATS),
        "a storage of -1 numbers": archive(tensor(-1), FLOATS),
        "a storage that is missing": archive(tensor()),
        "a size beyond the storage": archive(tensor(size=b"(J\x00\x00\x00\x10t"), FLOATS),
        "a stride beyond the storage": archive(tensor(stride=b"(J\x00\x00\x00\x10t"), FLOATS),
        "a negative stride": archive(tensor(stride=b"(J\xff\xff\xff\xfft"), FLOATS),
        "a negative size": archive(tensor(size=b"(J\xff\xff\xff\xfft"), FLOATS),
        "an offset beyond the storage": archive(tensor(offset=b"J\x00\x00\x00\x10"), FLOATS),
        "a negative offset": archive(tensor(offset=b"J\xff\xff\xff\xff"), FLOATS),
        "a bytearray of 500 MB": archive(_dict(b"cbuiltins\nbytearray\n(" + _BIG + b"tR")),
        "a tensor of 2**40 numbers": archive(_dict(b"ctorch\nTensor\n(" + _LONG + b"tR")),
        "a tensor of 500 million numbers": archive(_dict(b"ctorch\nTensor\n(" + _BIG + b"tR")),
        "a set of a string, often": archive(
            _again(text("".join(map(chr, range(32, 50_000)))), b"cbuiltins\nset\n(h\x00tRa", 400)
        ),
        "a string encoded, often": archive(
            _again(text("x" * 1_000_000), b"c_codecs\nencode\n(h\x00" + text("latin1") + b"tRa", 400)
        ),
        "a list counted, often": archive(
            _again(b"](" + b"K\x01" * 100_000 + b"e", b"cbuiltins\nset\n(h\x00tRa" * 9, 9)
        ),
        "a name that leads out": archive(
            tensor(), {**FLOATS, "../../../tmp/escaped": b"x", "/tmp/escaped": b"x"}
        ).replace(b"a/data/0", b"../ata/0"),
        "a name twice, by case": archive(tensor(), {**FLOATS, "a/DATA.PKL": PICKLES["os.system"]}),
        "many entries": archive(_dict(b"K\x01"), {f"b/{i}": b"" for i in range(20_000)}).replace(
            b"a/data.pkl", b"a/nota.pkl"
        ),
        "entries over each other": _overlapping(),
        "half of one": whole[: len(whole) // 2],
        "one without its end": whole[:-30],
        "a comment": whole[:-2] + struct.pack("<H", 4) + b"abcd"[:2],
        "no pickle": archive(b""),
        "code for the JIT": archive(b"\x80\x02K\x01.", {"a/constants.pkl": b"\x80\x02).", "a/code/x.py": b"import os"}),
        **{f"an older file: {name}": _older(data) for name, data in PICKLES.items()},
        "an older file before an archive": _older(_dict(b"cbuiltins\nbytearray\n(" + _BIG + b"tR")) + whole,
        "a second directory": _second_directory(
            archive(_dict(b"cbuiltins\nbytearray\n(" + _BIG + b"tR")), archive(_dict(b"K\x01"))
        ),
        "an older file of a storage of 2**40 numbers": _older(tensor(2**40)),
    }


def _older(pickled: bytes) -> bytes:
    """As torch.save wrote before it made archives."""
    head = b"".join(pickle.dumps(each, 2) for each in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}))
    return head + pickled + pickle.dumps(["0"], 2) + struct.pack("<q", 2**40)


def _overlapping() -> bytes:
    """A thousand entries that are all the same megabyte."""
    data = archive(_dict(b"K\x01"), {"a/data/0000": bytes(1_000_000)})
    end = data.rindex(b"PK\x06\x06")
    begin = struct.unpack_from("<Q", data, end + 48)[0]
    last = data.rindex(b"PK\x01\x02", begin, end)
    entry = data[last:end]
    more = b"".join(entry.replace(b"a/data/0000", b"a/data/%04d" % i) for i in range(1, 1000))
    count = struct.unpack_from("<Q", data, end + 24)[0] + 999
    size = end - begin + len(more)
    return ended(data[:end] + more + struct.pack("<IHHHHIIH", 0x06054B50, 0, 0, count, count, size, begin, 0))


def _second_directory(bad: bytes, good: bytes) -> bytes:
    """An archive whose end points to one directory, and has another in front of it."""
    at = bad.rindex(b"PK\x06\x06")
    begin = struct.unpack_from("<Q", good, good.rindex(b"PK\x06\x06") + 48)[0]
    directory, last = good[begin : good.rindex(b"PK\x06\x06")], good[good.rindex(b"PK\x06\x06") :]
    body = bad[: at + 56] + good[:begin]
    moved, place = bytearray(directory), 0
    while place < len(moved):
        name, extra, comment = struct.unpack_from("<HHH", moved, place + 28)
        offset = struct.unpack_from("<I", moved, place + 42)[0]
        struct.pack_into("<I", moved, place + 42, offset + at + 56)
        place += 46 + name + extra + comment
    end = bytearray(last)
    struct.pack_into("<Q", end, 48, len(body))
    struct.pack_into("<Q", end, 56 + 8, at)
    end[-22:] = struct.pack("<IHHHHIIH", 0x06054B50, 0, 0, 0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0)
    return body + bytes(moved) + bytes(end)


def legacy_tar() -> bytes:
    """As torch.save wrote at first."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as made:
        for name in ("storages", "tensors", "pickle", "../escaped"):
            info = tarfile.TarInfo(name)
            info.size = len(PICKLES["os.system"])
            made.addfile(info, io.BytesIO(PICKLES["os.system"]))
    return file.getvalue()


def foreign() -> dict[str, Callable[[], bytes]]:
    """Files that somebody else gives one as weights."""
    return {**{name: (lambda data=data: data) for name, data in ARCHIVES().items()}, "a tar": legacy_tar}


def plain() -> bytes:
    """A file of torch.save with nothing hostile about it."""
    file = io.BytesIO()
    torch.save({"x": torch.ones(4)}, file)
    return file.getvalue()
