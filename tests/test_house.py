"""The rules of the house, kept over syntax trees and in fresh interpreters."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import eventrunner

PACKAGE = Path(eventrunner.__file__).parent
LAYERS = (
    (
        "errors",
        "version",
        "priority",
        "foreign",
        "sites",
        "units",
        "atomic",
        "soon",
        "preempt",
        "importable",
        "task",
        "lane",
        "eventloop",
        "lanes",
    ),
    ("signature", "filters", "connection", "offload", "ledger", "plan", "dispatch", "bus"),
    ("hook", "registry", "modules", "history", "state", "view", "dist", "log", "rules", "steps"),
    (
        "optim",
        "averaging",
        "evaluator",
        "device",
        "order",
        "weights",
        "data",
        "workers",
        "schedule",
        "stepping",
        "settings",
        "rundir",
        "best",
        "kept",
        "checkpoint",
    ),
    ("loops", "resume", "checkpointer", "session", "terminal", "account"),
    ("hooks", "roster", "runner"),
)
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}
ONLY_IMPORTER = {
    "torch.distributed": {"dist"},
    "structlog": {"log"},
    "rich": {"terminal"},
    "blinker": {"dispatch"},
    "anyio": {"eventloop"},
}


def modules() -> list[Path]:
    return sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


def home(path: Path) -> str:
    """The module or family that a file belongs to."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(path: Path) -> set[str]:
    """Every module that a file imports at run time, deferred imports included; not those for type checkers."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    typing_only = {
        id(node)
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and ast.unparse(block.test) == "TYPE_CHECKING"
        for statement in block.body
        for node in ast.walk(statement)
    }
    found: set[str] = set()
    for node in ast.walk(tree):
        if id(node) in typing_only:
            continue
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
    return found


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_module_imports_only_from_its_own_layer_or_lower(path: Path) -> None:
    """The layers of CONTRIBUTING.md hold, and every module has a place in them."""
    own = LEVEL[home(path)]
    for name in imported(path):
        parts = name.split(".")
        if parts[0] == "eventrunner" and len(parts) > 1 and parts[1] in LEVEL:
            assert LEVEL[parts[1]] <= own, f"{home(path)} imports {name}"


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_nobody_imports_the_package_root(path: Path) -> None:
    """A name is imported from the module that defines it."""
    root_names = {f"eventrunner.{name}" for name in eventrunner.__all__} - {f"eventrunner.{name}" for name in LEVEL}
    assert not imported(path) & (root_names - {"eventrunner.on"})


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_dependency_has_one_importer(path: Path) -> None:
    """What wraps a library is the only module to import it."""
    for library, importers in ONLY_IMPORTER.items():
        if any(name == library or name.startswith(library + ".") for name in imported(path)):
            assert home(path) in importers


@pytest.mark.parametrize("family", ["hooks", "checkpoint"])
def test_a_family_keeps_its_distance(family: str) -> None:
    """Hooks never import the runner, and checkpoints know neither runner nor bus."""
    barred = {"hooks": {"runner", "session"}, "checkpoint": {"runner", "bus", "hook", "loops", "session", "resume"}}
    for path in (PACKAGE / family).glob("*.py"):
        names = {name.split(".")[1] for name in imported(path) if name.startswith("eventrunner.")}
        assert not names & barred[family], path


def test_the_modules_form_no_cycle() -> None:
    """Following run-time imports from any module never leads back to it."""
    edges = {
        ".".join(path.relative_to(PACKAGE).with_suffix("").parts): {
            name.removeprefix("eventrunner.") for name in imported(path) if name.startswith("eventrunner.")
        }
        for path in modules()
    }
    edges = {name.removesuffix(".__init__"): targets for name, targets in edges.items()}

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


def test_every_module_says_what_it_exports() -> None:
    """Each ``__all__`` names only what its module defines."""
    for path in modules():
        name = ".".join(("eventrunner", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__")
        module = importlib.import_module(name)
        if name != "eventrunner.version":
            assert module.__all__, name
            assert [public for public in module.__all__ if not hasattr(module, public)] == [], name


def test_the_public_names_are_all_there() -> None:
    """Each name of the package can be imported, and unknown ones are an AttributeError."""
    for name in eventrunner.__all__:
        assert getattr(eventrunner, name) is not None
    assert set(eventrunner.__all__) <= set(dir(eventrunner))
    with pytest.raises(AttributeError, match="has no attribute 'Trainer'"):
        eventrunner.Trainer  # noqa: B018


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
