"""Receivers in a worker process work, or are refused where they are connected; an error is the worker's own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

DAY = """
import functools, sys
from eventrunner.bus.bus import Bus
from eventrunner.hook import Hook, connect_hook, options

bus = Bus(())
bus.site("lunch", ("dish",))
way = dict(offload=True, worker="process")
"""
EAT = """
def eat(dish, note="eaten"):
    with open(dish, "w") as file:
        file.write(note)
"""
EATER = """
class Eater:
    def __call__(self, dish): eat(dish)
    @options(offload=True, worker="process")
    def lunch(self, dish): eat(dish)
"""
EMIT = """
with bus.open_lanes():
    bus.lunch.emit(None, dish="dish")
print("ended")
"""


def indented(head: str, *parts: str) -> str:
    body = "".join(parts).replace("\n", "\n    ")
    return f"\n{head}\n    {body}\n"


def guarded(*parts: str) -> str:
    return indented("if __name__ == '__main__':", *parts)


def run(folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    """A Python program in a process of its own, in *folder*."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, *command],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


def run_script(folder: Path, code: str) -> subprocess.CompletedProcess[str]:
    (folder / "script.py").write_text(code)
    return run(folder, "script.py")


@pytest.mark.parametrize(
    "code",
    [
        DAY + EAT + guarded("bus.lunch.connect(eat, **way)", EMIT),
        DAY + EAT.replace("def", "@bus.on('lunch', **way)\ndef", 1) + guarded(EMIT),
        DAY + EAT + guarded("bus.lunch.connect(functools.partial(eat, note='early'), **way)", EMIT),
        DAY + EAT + EATER + guarded("bus.lunch.connect(Eater(), **way)", EMIT),
        DAY + EAT + EATER + guarded("connect_hook(bus, Eater(), None)", EMIT),
        DAY + EAT + indented("def main():", "bus.lunch.connect(eat, None, **way)", EMIT) + guarded("main()"),
        DAY + EAT + indented("if '__main__' == __name__:", "bus.lunch.connect(eat, None, **way)", EMIT),
        DAY + EAT + indented("if sys.argv and __name__ == '__main__':", "bus.lunch.connect(eat, None, **way)", EMIT),
        DAY + EAT + indented("try:", guarded("bus.lunch.connect(eat, None, **way)", EMIT)) + "finally: pass",
    ],
    ids=["function", "decorator", "partial", "object", "hook", "main()", "other way round", "and", "try"],
)
def test_what_stands_at_the_top_of_a_guarded_script_runs_in_a_process(tmp_path: Path, code: str) -> None:
    """The process runs the script without what is guarded, and has it then."""
    done = run_script(tmp_path, code)
    assert (done.returncode, done.stdout) == (0, "ended\n"), done.stderr
    assert (tmp_path / "dish").read_text() in ("eaten", "early")


@pytest.mark.parametrize(
    ("code", "why"),
    [
        (DAY + guarded(EAT, "bus.lunch.connect(eat, **way)"), "eat is defined under if __name__ == '__main__':"),
        (DAY + EAT + guarded(EATER, "bus.lunch.connect(Eater(), **way)"), "Eater is defined under if __name__"),
        (DAY + EAT + guarded(EATER, "connect_hook(bus, Eater(), None)"), "Eater is defined under if __name__"),
        (DAY + guarded(EAT, "bus.lunch.connect(functools.partial(eat), **way)"), "eat is defined under if __name__"),
        (DAY + EAT + "bus.lunch.connect(eat, sender=bus, **way)", "and would come to script.py:"),
        (DAY + EAT + EATER + "connect_hook(bus, Eater(), bus)", "and would come to script.py:"),
        (DAY + EAT + "bus.lunch.connect(eat, **way)" + EMIT, "and would come to script.py:"),
        (
            DAY + EAT + "def main():\n    bus.lunch.connect(eat, sender=1, **way)\nmain()",
            "and would come to script.py:",
        ),
    ],
    ids=["function", "class", "hook", "partial", "sender", "hook's sender", "lanes", "main()"],
)
def test_what_a_process_would_not_find_or_do_once_more_is_refused(tmp_path: Path, code: str, why: str) -> None:
    """The error is one of connecting, or of opening lanes where nobody was connected to a sender of the script's."""
    done = run_script(tmp_path, code)
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("eventrunner.errors.OptionError: ")
    assert why in last
    assert not (tmp_path / "dish").exists()


def test_a_function_of_no_file_is_refused(tmp_path: Path) -> None:
    """At a prompt, in a notebook and by python -c there is no script that a process could run."""
    done = run(tmp_path, "-c", DAY + EAT + "bus.lunch.connect(eat, **way)")
    assert "was defined at a prompt, in a notebook or by python -c, not in a file" in done.stderr


def test_a_function_of_a_module_that_cannot_be_imported_is_refused(tmp_path: Path) -> None:
    """One that was made by hand, for instance, or found outside of sys.path."""
    made = "import types\nmade = types.ModuleType('made')\nexec('def eat(dish): pass', vars(made))\n"
    done = run_script(tmp_path, DAY + made + guarded("bus.lunch.connect(made.eat, **way)"))
    assert "eat is in 'made', a module that can't be imported by that name" in done.stderr


@pytest.mark.parametrize("relative", [True, False])
def test_a_script_of_a_package_is_refused_where_it_imports_relatively(tmp_path: Path, relative: bool) -> None:
    """A process runs the file by itself, whoever was started by python -m."""
    package = tmp_path / "package"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "food.py").write_text(EAT)
    line = "from .food import eat" if relative else "from package.food import eat"
    (package / "train.py").write_text(f"{DAY}\n{line}\n" + guarded("bus.lunch.connect(eat, **way)", EMIT))
    done = run(tmp_path, "-m", "package.train")
    assert (tmp_path / "dish").exists() is not relative
    assert ("train.py has relative imports, which fail where it is run by itself" in done.stderr) is relative


@pytest.mark.parametrize(
    ("top", "receiver", "shown"),
    [
        ("class Sated(Exception): pass\n", "raise Sated('enough')", ["Sated: enough", "in the worker process:"]),
        ("", "raise KeyError(dish)", ["KeyError: 'dish'", "in the worker process:", "in eat"]),
        ("if __name__ == '__mp_main__': del eat\n", "pass", ["AttributeError", "'eat'", "in the worker process:"]),
        ("if __name__ == '__mp_main__': open('missing')\n", "pass", ["FileNotFoundError: ", "'missing'"]),
        ("if __name__ == '__mp_main__': sys.exit('usage')\n", "pass", ["SystemExit: usage", "it runs the script"]),
        (
            "def make():\n    from eventrunner import Runner\n    Runner()\nif __name__ == '__mp_main__': make()\n",
            "pass",
            ["Runner() was called while a worker process imports the script", "if __name__ == '__main__':"],
        ),
    ],
    ids=["the script's own", "built-in", "not found", "import fails", "import exits", "import trains"],
)
@pytest.mark.slow
def test_the_error_is_the_workers_own(tmp_path: Path, top: str, receiver: str, shown: list[str]) -> None:
    """Of the call, of finding it, or of running the script, each with its type and text."""
    eat = f"def eat(dish):\n    {receiver}\n{top}"
    done = run_script(tmp_path, DAY + eat + guarded("bus.lunch.connect(eat, **way)", EMIT))
    assert done.returncode == 1
    for text in shown:
        assert text in done.stderr


def test_a_call_that_is_not_found_leaves_the_next_one_alone(tmp_path: Path) -> None:
    """What couldn't be unpickled was read to its end."""
    code = DAY + EAT + "def gone(dish): pass\nif __name__ == '__mp_main__': del gone\n"
    connect = "for each in (gone, eat): bus.lunch.connect(each, lane='one', on_error='warn', **way)"
    done = run_script(tmp_path, code + guarded(connect, EMIT))
    assert done.stdout == "ended\n", done.stderr
    assert (tmp_path / "dish").read_text() == "eaten"


@pytest.mark.slow
def test_a_receiver_in_a_process_has_the_view_of_its_run(tmp_path: Path) -> None:
    """As in a thread: numbers and names, as they were."""
    code = """
from tiny import Runner, options

def score(runner, metrics):
    with open("scored", "a") as file:
        print(runner.epoch, runner.iter, runner.experiment_name, sorted(metrics), file=file)
"""
    train = """
runner = Runner(**options(val=True, experiment_name="mine"))
runner.on("after_val_epoch", offload=True, worker="process")(score)
runner.train()
"""
    (tmp_path / "script.py").write_text(code + guarded(train))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])}
    command = [sys.executable, "script.py"]
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "scored").read_text() == "1 2 mine ['mse']\n2 4 mine ['mse']\n"
