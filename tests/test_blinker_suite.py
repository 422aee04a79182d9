"""blinker's own tests, run with ``Site`` in the place of ``Signal``.

They aren't copied into this repository: the source distribution of the installed version is fetched as pip fetches
it, compared with the digest below, and unpacked beside a plugin that makes the exchange.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import subprocess
import sys
import tarfile
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

import eventrunner

VERSION = importlib.metadata.version("blinker")
DIGESTS = {"1.9.0": "b4ce2265a7abece45e7cc896e98dbebe6cead56bcf805a3d23136d145f5445bf"}
"""SHA-256 of the source distributions whose tests are known."""

FILES = ("test_signals.py", "test_context.py")
PASSING = 20
EXCEPTED = {
    "test_instancemethod_receiver": "connects by default and expects the receiver to go with its object; a Site holds "
    "strongly by default",
    "test_has_receivers": "connects by default and expects the receiver to be gone once its name is deleted; a Site "
    "holds strongly by default",
    "test_filtered_receiver_weakref": "expects the index to keep a receiver whose only sender is gone; a Site lets it "
    "go, as it would otherwise hold it for ever",
}
"""Tests that must fail, and why."""

PLUGIN = '''
"""Puts Site in the place of Signal, and runs tests that are coroutines."""

import asyncio
import inspect

import blinker
import blinker.base
import pytest

from eventrunner.bus.bus import Site

blinker.Signal = blinker.base.Signal = Site


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem):
    if inspect.iscoroutinefunction(pyfuncitem.obj):
        asyncio.run(pyfuncitem.obj())
        return True
    return None
'''


def fetched(folder: Path) -> Path:
    """Blinker's source distribution, as pip downloads it; skips where it can't be had."""
    if VERSION not in DIGESTS:
        pytest.skip(f"blinker {VERSION} is installed; digests are known for {', '.join(DIGESTS)}")
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-input", "--disable-pip-version-check"]
    # Only blinker itself comes as source: what its build needs may come as wheels.
    what = ["--no-deps", "--no-binary", "blinker", "--dest", str(folder), f"blinker=={VERSION}"]
    try:
        done = subprocess.run(
            [*pip, "--retries", "1", "--timeout", "10", *what], capture_output=True, text=True, timeout=60, check=False
        )
    except subprocess.TimeoutExpired:
        pytest.skip("blinker's source distribution: pip took more than a minute")
    if done.returncode:
        pytest.skip("blinker's source distribution can't be had: " + done.stderr.strip().rpartition("\n")[2])
    (archive,) = folder.glob("blinker-*.tar.gz")
    return archive


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What became of each of blinker's tests: the first line of its failure, or nothing."""
    folder = tmp_path_factory.mktemp("blinker")
    archive = fetched(folder)
    assert hashlib.sha256(archive.read_bytes()).hexdigest() == DIGESTS[VERSION]
    with tarfile.open(archive) as opened:
        for name in FILES:
            member = opened.extractfile(f"blinker-{VERSION}/tests/{name}")
            assert member is not None
            (folder / name).write_bytes(member.read())
    (folder / "sites_for_signals.py").write_text(PLUGIN, encoding="utf-8")
    package = Path(eventrunner.__file__).parent.parent
    pytest_ = [sys.executable, "-m", "pytest", "-c", os.devnull, "--rootdir", str(folder)]
    alone = ["--disable-plugin-autoload", "-p", "no:cacheprovider", "-p", "sites_for_signals"]
    done = subprocess.run(
        [*pytest_, *alone, "-W", "error", "--junitxml", "report.xml", *FILES],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), str(package)])},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode in (0, 1), done.stdout + done.stderr
    cases = ElementTree.parse(folder / "report.xml").iter("testcase")
    return {case.attrib["name"]: " ".join(child.attrib.get("message", "?") for child in case) for case in cases}


def test_every_test_of_blinkers_passes_but_for_those_excepted(outcomes: dict[str, str]) -> None:
    """And these fail, so that the list has no more in it than it must."""
    assert {name: message for name, message in outcomes.items() if message and name not in EXCEPTED} == {}
    assert [name for name in EXCEPTED if not outcomes[name]] == []


def test_as_many_of_blinkers_tests_pass_as_there_should(outcomes: dict[str, str]) -> None:
    """None was left out on the way."""
    assert sum(not message for message in outcomes.values()) == PASSING
    assert len(outcomes) == PASSING + len(EXCEPTED)
