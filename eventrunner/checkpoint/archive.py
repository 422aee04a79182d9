"""What is looked at in a file of torch.save before torch reads it: how much it unpacks to, and what its pickle does.

torch.load with ``weights_only=True`` executes nothing, but makes whatever it is told to, of any size.
"""

from __future__ import annotations

import errno
import mmap
import pickle
import pickletools
import reprlib
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import torch

__all__ = ["check_archive", "check_older", "check_pickle"]

_PLAIN, _LARGE, _AGAIN, _MARK = "small", "maybe large", "maybe large, and used before", "a mark"
_SHORT = 1000
_REBUILDS = frozenset({"torch._utils _rebuild_tensor_v2", "torch._utils _rebuild_tensor_v3"})
_OTHERS = frozenset(
    {
        *("torch._utils _rebuild_tensor", "torch._utils _rebuild_parameter", "torch._tensor _rebuild_from_type_v2"),
        *(
            "torch._utils _rebuild_parameter_with_state",
            "torch.nn.parameter Parameter",
            "torch._utils _rebuild_qtensor",
        ),
        *("torch._utils _rebuild_sparse_tensor", "torch.serialization _get_layout"),
    }
)
"""What makes tensors in files that no Store wrote; all of these look at memory that is there."""

_COPIES = frozenset(
    {
        *("collections OrderedDict", "collections Counter", "torch Size", "torch device", "_codecs encode"),
        *("__builtin__ set", "__builtin__ complex"),
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
    """The pickle in an archive of torch.save, which unpacks to no more bytes than it has itself.

    Raises:
        zipfile.BadZipFile: it does, has a name twice, or none of a pickle.
        OSError: it can't be read; and any of ``pth.UNREADABLE`` if it is damaged.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            return archive.read(_pickle_in(archive))
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        raise zipfile.BadZipFile("it points to before its beginning") from error


def check_older(file: Path) -> None:
    """Look at the pickles that a file of torch.save began with before it wrote archives, as :func:`check_pickle` does.

    Raises:
        OSError: it can't be read; and what :func:`check_pickle` raises.
    """
    # A file makes room for as many bytes as it is asked for; what is mapped gives those that there are.
    with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        for _ in range(5):
            check_pickle(mapped, foreign=True)


def check_pickle(data: Any, foreign: bool = False) -> None:
    """Refuse a pickle that does more than put together what :func:`eventrunner.checkpoint.pth.plain_tree` gives.

    What may be large is never copied once it has been used, so that what the pickle makes is in proportion to it.

    Args:
        data: Its bytes; or a mapped file, and then the next one in it.
        foreign: Whether it may make other tensors than a Store writes.

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
            stack.append(_known(argument, foreign))
        elif code.name in _MAKES:
            stack.append(_LARGE if isinstance(argument, str) and len(argument) > _SHORT else _MAKES[code.name])
        else:
            _STEPS[code.name](stack)


def _pickle_in(archive: zipfile.ZipFile) -> zipfile.ZipInfo:
    entries, size = archive.infolist(), archive.start_dir
    names = {entry.orig_filename.lower(): entry for entry in entries}  # torch's reader takes either case
    if len(names) < len(entries) or any(entry.compress_type or entry.flag_bits & 1 for entry in entries):
        raise zipfile.BadZipFile("it has a name twice, or a compressed entry")
    if sum(entry.file_size for entry in entries) > size:
        raise zipfile.BadZipFile(f"it unpacks to more than the {size} bytes that it has")
    pickles = [entry for name, entry in names.items() if name.partition("/")[2] == "data.pkl"]
    if len(pickles) != 1:
        raise zipfile.BadZipFile("it has no pickle where torch.save puts one")
    return pickles[0]


def _known(name: str, foreign: bool) -> str:
    if name in _REBUILDS or name in _COPIES or (foreign and name in _OTHERS):
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
    if not isinstance(arguments, tuple) or not (copies or called in _REBUILDS or called in _OTHERS):
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
