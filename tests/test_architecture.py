"""The architecture: what may import what, kept over syntax trees and in fresh interpreters."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import eventrunner
import eventrunner.hooks

PACKAGE = Path(eventrunner.__file__).parent
LAYERS = (
    ("errors", "checks", "version", "units", "foreign"),
    ("files",),
    ("lanes",),
    ("bus",),
    ("registry", "ranks", "report.history", "report.hub", "report.log", "report.rows"),
    ("checkpoint",),
    ("training",),
    ("session.session", "session.settings", "session.best", "session.retention", "session.rundir"),
    ("run",),
    ("hook", "report.account"),
    ("session",),
    ("report.terminal", "report.commands"),
    ("hooks",),
    ("runner", "checkpointer", "__main__"),
)
RUNS = ("runner", "run")
"""What a run is called where it is an argument or an attribute."""
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}
ONLY_IMPORTER = {
    "torch.distributed": {"ranks.control", "ranks.guard", "ranks.world"},
    "structlog": {"report.log"},
    "rich": {"report.terminal"},
    "blinker": {"bus.site"},
    "anyio": {"lanes.loop"},
}


def modules() -> list[Path]:
    return sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


def dotted(path: Path) -> str:
    """A file's module, without the package's name."""
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")


def level(module: str) -> int | None:
    """The layer of a module: its own, or that of its folder."""
    while module and module not in LEVEL:
        module = module.rpartition(".")[0]
    return LEVEL.get(module)


def imported(path: Path) -> set[str]:
    """Every module that a file imports: deferred imports and those for type checkers included."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
    return found


@pytest.mark.parametrize("path", modules(), ids=dotted)
def test_a_module_imports_only_from_its_own_layer_or_lower(path: Path) -> None:
    """The layers of CONTRIBUTING.md hold, and every module has a place in them."""
    own = level(dotted(path))
    assert own is not None or path.name == "__init__.py"  # a folder's own layers may differ
    for name in imported(path):
        target = level(name.removeprefix("eventrunner.")) if name.startswith("eventrunner.") else None
        assert target is None or (own is not None and target <= own), f"{dotted(path)} imports {name}"


@pytest.mark.parametrize("path", modules(), ids=dotted)
def test_nobody_imports_the_package_root(path: Path) -> None:
    """A name is imported from the module that defines it."""
    root_names = {f"eventrunner.{name}" for name in eventrunner.__all__}
    assert not imported(path) & (root_names - {"eventrunner.on"})


@pytest.mark.parametrize("path", modules(), ids=dotted)
def test_a_dependency_has_one_importer(path: Path) -> None:
    """What wraps a library is the only module to import it."""
    for library, importers in ONLY_IMPORTER.items():
        if any(name == library or name.startswith(library + ".") for name in imported(path)):
            assert dotted(path) in importers


def test_the_package_has_few_entries() -> None:
    """Who opens it sees its folders, and not a module for every idea."""
    entries = [path.name for path in PACKAGE.iterdir() if path.name != "__pycache__"]
    assert len(entries) <= 22, sorted(entries)


@pytest.mark.parametrize("family", ["hooks", "checkpoint"])
def test_a_family_keeps_its_distance(family: str) -> None:
    """Hooks never import the runner, and checkpoints know neither runner nor bus."""
    barred = {"hooks": {"runner", "session.lifecycle"}, "checkpoint": {"runner", "bus", "hook", "session"}}
    for path in (PACKAGE / family).glob("*.py"):
        names = {name.removeprefix("eventrunner.") for name in imported(path) if name.startswith("eventrunner.")}
        for name in barred[family]:
            assert not [each for each in names if f"{each}.".startswith(f"{name}.")], path


def test_the_modules_form_no_cycle() -> None:
    """Following imports from any module, those for annotations included, never leads back to it."""
    edges = {
        dotted(path): {name.removeprefix("eventrunner.") for name in imported(path) if name.startswith("eventrunner.")}
        for path in modules()
    }

    def reach(start: str) -> set[str]:
        seen: set[str] = set()
        stack = [start]
        while stack:
            for target in edges.get(stack.pop(), set()) & edges.keys():
                if target not in seen:
                    seen.add(target)
                    stack.append(target)
        return seen

    assert [name for name in edges if name in reach(name)] == []


def test_nobody_but_the_runner_writes_to_its_attributes() -> None:
    """What changes while it runs is in its session, its loops and its parts."""
    assert [
        f"{dotted(path)}: {ast.unparse(node)}"
        for path in modules()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute)
        and isinstance(node.ctx, ast.Store)
        and ast.unparse(node.value).split(".")[-1].lstrip("_") in RUNS
    ] == []


def test_every_module_says_what_it_exports() -> None:
    """Each ``__all__`` names only what its module defines."""
    for path in modules():
        name = f"eventrunner.{dotted(path)}"
        module = importlib.import_module(name)
        if path.name == "__init__.py":
            assert module.__doc__, name
        elif name != "eventrunner.version":
            assert module.__all__, name
            assert [public for public in module.__all__ if not hasattr(module, public)] == [], name


def test_the_public_names_are_all_there() -> None:
    """Each name of the package can be imported, and unknown ones are an AttributeError."""
    for name in eventrunner.__all__:
        assert getattr(eventrunner, name) is not None
    assert set(eventrunner.__all__) <= set(dir(eventrunner))
    with pytest.raises(AttributeError, match="has no attribute 'Trainer'"):
        eventrunner.Trainer  # noqa: B018


def test_every_built_in_hook_is_a_public_name() -> None:
    """``from eventrunner import CheckpointHook`` finds it as ``dict(type="CheckpointHook")`` does."""
    classes = {name: found for name, found in vars(eventrunner.hooks).items() if name in eventrunner.hooks.__all__}
    classes = {name: found for name, found in classes.items() if isinstance(found, type)}
    assert classes.keys() <= set(eventrunner.__all__)
    assert {name: getattr(eventrunner, name) for name in classes} == classes


def run(code: str) -> str:
    """What a fresh interpreter prints."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize(
    "what",
    ["import eventrunner", "from eventrunner import Bus, Hook, HOOKS, Priority, Site, connect_hook, on, options"],
)
def test_the_bus_needs_no_torch(what: str) -> None:
    """Sites, hooks and the registry work where torch isn't installed."""
    assert run(f"{what}\nimport sys; print('torch' in sys.modules)") == "False"


def test_the_runner_brings_nothing_that_only_some_need() -> None:
    """Beyond what torch imports by itself, no metrics, event files, arrays or plots."""
    heavy = "{'torchmetrics', 'tensorboard', 'numpy', 'matplotlib', 'sklearn', 'pandas'}"
    code = f"""
import sys, torch
before = set(sys.modules)
from eventrunner import Runner
print(sorted({heavy} & (set(sys.modules) - before)))"""
    assert run(code) == "[]"


@pytest.mark.parametrize("enabled", [True, False])
def test_importing_looks_for_garbage_once_at_most(enabled: bool) -> None:
    """There is none, and torch alone has 160,000 objects to look at; afterwards the collector is as it was."""
    code = f"""
import gc
began = []
gc.callbacks.append(lambda phase, info: began.append(info["generation"]) if phase == "start" else None)
{"" if enabled else "gc.disable()"}
import eventrunner
began.clear()
eventrunner.Runner
print(began == [0] * len(began), len(began) <= {int(enabled)}, gc.isenabled())"""
    assert run(code) == f"True True {enabled}"
