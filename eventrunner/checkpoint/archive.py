"""What is looked at in a ``checkpoint.pth`` before torch reads it: how much it unpacks to, and what its pickle does.

torch.load with ``weights_only=True`` executes nothing, but makes whatever it is told to, of any size. A Store's own
files need little of what it knows, so everything else is refused.
"""

from __future__ import annotations

import contextlib
import errno
import io
import pickle
import pickletools
import reprlib
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import torch

__all__ = ["check_archive", "check_pickle"]

_PLAIN, _LARGE, _AGAIN, _MARK = "small", "maybe large", "maybe large, and used before", "a mark"
_SHORT = 1000
_ENDING = struct.Struct("<4s36xQQ4s4xQ4x4s16xH")
"""The last 98 bytes: a record with the directory's length and start, its own place, and an end without a comment."""

_REBUILDS = frozenset(f"torch._utils _rebuild_{what}" for what in ("tensor_v2", "tensor_v3", "sparse_tensor"))
_COPIES = frozenset(
    {
        *("collections OrderedDict", "collections Counter", "torch Size", "torch device", "_codecs encode"),
        *("__builtin__ set", "__builtin__ complex", "torch.serialization _get_layout"),
    }
)
"""What makes something of the size of its arguments."""

_STORAGES = frozenset(
    {"torch.storage UntypedStorage", *(f"torch {name}" for name in vars(torch) if name.endswith("Storage"))}
)
_MEMOIZES, _RECALLS = frozenset({"BINPUT", "LONG_BINPUT"}), frozenset({"BINGET", "LONG_BINGET"})
_MAKES = {
    **dict.fromkeys(("NONE", "NEWTRUE", "NEWFALSE", "BININT", "BININT1", "BININT2", "BINFLOAT", "BINUNICODE"), _PLAIN),
    **dict.fromkeys(("EMPTY_LIST", "EMPTY_DICT", "EMPTY_SET", "SHORT_BINSTRING", "LONG1"), _LARGE),
    "EMPTY_TUPLE": (),
}


def check_archive(file: Path | IO[bytes]) -> bytes:
    """Return the pickle in an archive of torch.save, which unpacks to no more bytes than it has itself.

    Raises:
        zipfile.BadZipFile: it does, has a name twice, or none of a pickle, or isn't laid out as torch.save does.
        OSError: it can't be read; and any of ``pth.UNREADABLE`` if it is damaged.
    """
    try:
        with contextlib.ExitStack() as stack:
            opened = stack.enter_context(file.open("rb")) if isinstance(file, Path) else file
            directory = _start_of_directory(opened)
            archive = stack.enter_context(zipfile.ZipFile(opened))
            return archive.read(_pickle_in(archive, directory))
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        raise zipfile.BadZipFile("it points to before its beginning") from error


def _pickle_in(archive: zipfile.ZipFile, directory: int) -> zipfile.ZipInfo:
    entries = archive.infolist()
    names = {entry.orig_filename.lower(): entry for entry in entries}  # torch's reader takes either case
    if archive.start_dir != directory or len(names) < len(entries):
        raise zipfile.BadZipFile("it has a second directory, or a name twice")
    if any(entry.compress_type or entry.flag_bits & 1 for entry in entries):
        raise zipfile.BadZipFile("it has a compressed entry")
    if sum(entry.file_size for entry in entries) > directory:
        raise zipfile.BadZipFile(f"it unpacks to more than the {directory} bytes that it has")
    pickles = [entry for name, entry in names.items() if name.partition("/")[2] == "data.pkl"]
    if len(pickles) != 1:
        raise zipfile.BadZipFile("it has no pickle where torch.save puts one")
    return pickles[0]


def _start_of_directory(file: IO[bytes]) -> int:
    """Where the archive's directory begins, in whichever way a reader looks for it.

    Readers differ in where they look, so of a file with two directories one would be checked and the other read.
    """
    size = file.seek(0, io.SEEK_END)
    file.seek(max(0, size - _ENDING.size))
    ending = file.read()
    file.seek(0)
    if file.read(4) != b"PK\3\4" or len(ending) < _ENDING.size:
        raise zipfile.BadZipFile("it doesn't begin or end as an archive of torch.save does")
    record, length, start, locator, place, end, comment = _ENDING.unpack(ending)
    whole = start + length + _ENDING.size == size and place == size - _ENDING.size
    if (record, locator, end, comment) != (b"PK\6\6", b"PK\6\7", b"PK\5\6", 0) or not whole:
        raise zipfile.BadZipFile("it doesn't end as an archive of torch.save does")
    return int(start)


def check_pickle(data: bytes) -> None:
    """Refuse a pickle that does more than put together what :func:`eventrunner.checkpoint.pth.plain_tree` gives.

    What may be large is never copied once it has been used, so that what the pickle makes is in proportion to it.

    Raises:
        pickle.UnpicklingError: it does; or any of ``pth.UNREADABLE``.
    """
    stack: list[Any] = []
    memo: dict[int, Any] = {}
    argument: Any
    for code, argument, _ in pickletools.genops(data):
        if code.name in _MEMOIZES:
            memo[argument] = stack[-1]
        elif code.name in _RECALLS:
            large = memo[argument] is _LARGE or (memo[argument] and isinstance(memo[argument], tuple))
            stack.append(_AGAIN if large else memo[argument])
        elif code.name == "GLOBAL":
            stack.append(_known(argument))
        elif code.name in _MAKES:
            stack.append(_LARGE if isinstance(argument, str) and len(argument) > _SHORT else _MAKES[code.name])
        else:
            _STEPS[code.name](stack)


def _known(name: str) -> str:
    if name in _REBUILDS or name in _COPIES:
        return name
    module, _, attribute = name.partition(" ")
    if name in _STORAGES or (module == "torch" and isinstance(vars(torch).get(attribute), torch.dtype | torch.qscheme)):
        return _PLAIN
    raise pickle.UnpicklingError(f"it asks for {reprlib.repr(name)}")


def _mark(stack: list[Any]) -> None:
    stack.append(_MARK)


def _since_mark(stack: list[Any]) -> list[Any]:
    taken = []
    while (value := stack.pop()) is not _MARK:
        taken.append(value)
    return taken


def _tuple(stack: list[Any]) -> None:
    stack.append(tuple(_since_mark(stack)))


def _tuple_of(count: int) -> Callable[[list[Any]], None]:
    def take(stack: list[Any]) -> None:
        stack[len(stack) - count :] = [tuple(stack[-count:])]

    return take


def _drop(count: int) -> Callable[[list[Any]], None]:
    def drop(stack: list[Any]) -> None:
        del stack[-count:]

    return drop


def _call(stack: list[Any]) -> None:
    arguments, called = stack.pop(), stack.pop()
    copies = called in _COPIES
    if not isinstance(arguments, tuple) or not (copies or called in _REBUILDS):
        raise pickle.UnpicklingError("it calls what makes no part of a tree")
    if copies and _AGAIN in arguments:
        raise pickle.UnpicklingError("it copies one thing again and again")
    stack.append(_PLAIN if copies and all(each is _PLAIN for each in arguments) else _LARGE)


def _persistent(stack: list[Any]) -> None:
    stack[-1] = _PLAIN


_STEPS: dict[str, Callable[[list[Any]], object]] = {
    "PROTO": len,
    "STOP": len,
    "MARK": _mark,
    "TUPLE": _tuple,
    "TUPLE1": _tuple_of(1),
    "TUPLE2": _tuple_of(2),
    "TUPLE3": _tuple_of(3),
    "APPEND": _drop(1),
    "APPENDS": _since_mark,
    "SETITEM": _drop(2),
    "SETITEMS": _since_mark,
    "BUILD": _drop(1),
    "REDUCE": _call,
    "NEWOBJ": _call,
    "BINPERSID": _persistent,
}
"""What torch.save's pickles consist of beside values, as steps on a stack of what is known of each value."""
