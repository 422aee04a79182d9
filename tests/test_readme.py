"""The README tells the truth: its code runs, its tables are those of the code, its links lead somewhere."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from eventrunner import hooks
from eventrunner.bus.priority import get_priority
from eventrunner.bus.sites import CATALOGUE

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def fences(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


def without_network() -> list[str]:
    """The start of a command line that runs a program in a network namespace of its own, where that is allowed."""
    unshare = shutil.which("unshare")
    works = unshare and subprocess.run([unshare, "-rn", "true"], capture_output=True, check=False).returncode == 0
    return [str(unshare), "-rn"] if works else []


def test_the_first_screen_runs_as_written(tmp_path: Path) -> None:
    """The first code block trains real data without network, in under a minute, and each path it prints exists."""
    (tmp_path / "digits.py").write_text(fences("python")[0], encoding="utf-8")
    command = [*without_network(), sys.executable, "-W", "error", "digits.py"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert "epoch" in lines[2]
    for path in re.findall(r"runs/[\w/.]*\w", done.stdout):
        assert (tmp_path / path).exists(), path


def test_the_first_screen_is_about_25_lines() -> None:
    """Short enough to be read before it is believed."""
    assert len([line for line in fences("python")[0].splitlines() if line.strip()]) <= 27


def test_the_receivers_block_runs_as_written() -> None:
    """The second code block connects and registers without an error, and leaves nothing connected behind."""
    code = "from eventrunner.bus.bus import default_bus\n" + fences("python")[1] + "\ndefault_bus.plan()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "every 2 epochs" in done.stdout


def test_the_block_about_worker_processes_runs_as_written(tmp_path: Path) -> None:
    """The function that stands outside of the guard is found in another process, once for each validation batch."""
    block = next(fence for fence in fences("python") if 'worker="process"' in fence)
    head, guard, rest = block.partition('if __name__ == "__main__":')
    head = head.replace("def score(outputs): ...", "def score(outputs): open('scored', 'a').write(f'{os.getpid()} ')")
    start = "\n    runner = Runner(**options(epochs=1, val=True))"
    end = "    runner.train()\n    print(os.getpid())"
    code = f"import os\nfrom tiny import Runner, options\n{head}{guard}{start}{rest}{end}"
    (tmp_path / "script.py").write_text(code, encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])}
    command = [sys.executable, "-W", "error", "script.py"]
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    (worker,) = (tmp_path / "scored").read_text().split()
    assert worker != done.stdout.strip()


def test_the_two_commands_stand_alone() -> None:
    """The first two shell fences are one line each: run the example, run the tests."""
    first, second = fences("sh")[:2]
    assert first.count("\n") == second.count("\n") == 1
    assert "examples/train_digits.py" in first
    assert "pytest" in second


def test_the_tables_of_sites_are_the_catalogue() -> None:
    """Name, payload and description of every site, in order, those inside the model last."""
    rows = re.findall(r"^\| `(\w+)` \| (.*?) \| (.*) \|$", README.split("## Sites")[1].split("## Built-in")[0], re.M)
    expected = [(spec.name, ", ".join(f"`{name}`" for name in spec.payload), spec.doc) for spec in CATALOGUE]
    assert rows == expected


def test_the_table_of_hooks_is_that_of_the_package() -> None:
    """Every built-in hook with its priority."""
    table = README.split("## Built-in hooks")[1].split("## ")[0]
    rows = {name: int(number) for name, number in re.findall(r"^\| `(\w+)`[^|]*\| (\d+) \|", table, re.MULTILINE)}
    built_in = [name for name in hooks.__all__ if name.endswith("Hook") and name != "Hook"]
    assert rows == {name: get_priority(getattr(hooks, name).priority) for name in built_in}


@pytest.mark.parametrize("section", ["MMEngine", "Ignite", "Lightning"])
def test_what_the_migration_tables_name_exists(section: str) -> None:
    """Every site on a right-hand side is in the catalogue."""
    table = README.split(f"## Coming from {section}")[1].split("\n## ")[0]
    right = " ".join(row.rsplit("|", 2)[1] for row in table.splitlines() if row.startswith("| "))
    named = set(re.findall(r"`((?:before|after|on)_\w+)", right))
    assert named <= {spec.name for spec in CATALOGUE}


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md"])
def test_relative_links_lead_somewhere(name: str) -> None:
    """Each linked file is in the repository."""
    text = (ROOT / name).read_text(encoding="utf-8")
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", text):
        assert (ROOT / target).exists(), target
