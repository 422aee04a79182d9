"""What a worker process finds by name: what its modules have, and what the script has when it is run once more.

A new process imports modules by their names. The script it runs from its first line, with ``__name__`` set to
``"__mp_main__"``, so that what stands under ``if __name__ == "__main__":`` is left out.
"""

from __future__ import annotations

import ast
import inspect
import io
import os
import pickle
import sys
from collections.abc import Callable, Iterable, Iterator
from types import FunctionType
from typing import Any

__all__ = ["check_sendable", "line_run_again"]

_GUARDS = ("__name__ == '__main__'", "'__main__' == __name__")


def check_sendable(call: Callable[..., Any]) -> None:
    """Return if *call* can be pickled, and a new process would find by name each function and class in it.

    Raises:
        Exception: it can't be, or wouldn't.
    """
    if _script() and _imports_relatively():
        raise ImportError(f"{os.path.basename(_script())} has relative imports, which fail where it is run by itself")
    if inspect.isfunction(call) and "<" not in call.__qualname__:
        _check_found(call)  # not pickled: while a decorator is being called, its name isn't bound yet
    else:
        _Pickler(io.BytesIO()).dump(call)


def line_run_again() -> str:
    """Return the script's line under way, as ``name:line``, if a worker process would come to it too, else ``""``."""
    main, frame = sys.modules.get("__main__"), sys._getframe()  # noqa: SLF001
    while frame.f_code.co_name != "<module>" or main is None or frame.f_globals is not vars(main):
        if frame.f_back is None:
            return ""
        frame = frame.f_back
    guarded = any(block[0].lineno <= frame.f_lineno <= (block[-1].end_lineno or 0) for block in _guarded(_tree()))
    return "" if guarded or not _script() else f"{os.path.basename(_script())}:{frame.f_lineno}"


class _Pickler(pickle.Pickler):
    """Checks what is sent by name."""

    def reducer_override(self, thing: Any) -> Any:
        if isinstance(thing, FunctionType | type):
            _check_found(thing)
        return NotImplemented


def _check_found(thing: FunctionType | type) -> None:
    module, name = thing.__module__, thing.__qualname__
    if module != "__main__":
        if module != "__mp_main__" and not _is_importable(module):  # that is the script, in a worker process
            raise pickle.PicklingError(f"{name} is in {module!r}, a module that can't be imported by that name")
    elif not _script():
        raise pickle.PicklingError(f"{name} was defined at a prompt, in a notebook or by python -c, not in a file")
    elif name.partition(".")[0] in _bound_under_guard():
        raise pickle.PicklingError(f"{name} is defined under if __name__ == '__main__':, which is left out there")


def _is_importable(module: str) -> bool:
    parent = module.rpartition(".")[0]
    path = getattr(sys.modules.get(parent), "__path__", None)
    return any(finder.find_spec(module, path) is not None for finder in sys.meta_path)


def _script() -> str:
    """Return the file that a new process runs; empty where there is none, as at a prompt."""
    file = getattr(sys.modules.get("__main__"), "__file__", None) or ""
    return file if os.path.isfile(file) else ""


def _tree() -> ast.Module:
    """Return the script's syntax tree; an empty one where its source can't be read."""
    try:
        return ast.parse(inspect.getsource(sys.modules["__main__"]))
    except (OSError, TypeError, SyntaxError):
        return ast.Module([], [])


def _guarded(tree: ast.Module) -> Iterator[list[ast.stmt]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and _is_guard(node.test):
            yield node.body


def _is_guard(test: ast.expr) -> bool:
    parts = test.values if isinstance(test, ast.BoolOp) and isinstance(test.op, ast.And) else [test]
    return any(ast.unparse(part) in _GUARDS for part in parts)


def _bound_under_guard() -> set[str]:
    """Return the names that the script binds there, and nowhere else."""
    tree = _tree()
    blocks = list(_guarded(tree))
    inside = _bound(statement for block in blocks for statement in block)
    for block in blocks:
        block.clear()
    return inside - _bound(tree.body)


def _bound(statements: Iterable[ast.stmt]) -> set[str]:
    nodes = [node for statement in statements for node in ast.walk(statement)]
    return {
        *(node.name for node in nodes if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)),
        *(node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)),
    }


def _imports_relatively() -> bool:
    imports = [node for node in ast.walk(_tree()) if isinstance(node, ast.ImportFrom)]
    return any(node.level for node in imports)
