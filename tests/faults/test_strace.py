"""The kernel kills a save at any of its system calls, or fails the call; and what a save calls, it calls in order."""

from __future__ import annotations

import re
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from ordered import ORDERED, Saves
from scenario import SCENARIOS, check, recover
from tally import LONG, MakeRow, Row
from tracing import CHANGING, Call, Traced, can_trace, clear, names, run, traced
from training import Kind, notes_of, plant, train

_MOVING = ("mkdir", "rename", "link", "unlink", "unlinkat", "rmdir")
_FAILING = ("openat", "write", "fsync", "mkdir", "rename", "link", "unlinkat", "rmdir", "fcntl")


@pytest.fixture(autouse=True, scope="module")
def _strace(tmp_path_factory: pytest.TempPathFactory) -> None:
    if reason := can_trace(tmp_path_factory.mktemp("strace")):
        pytest.skip(reason)


def points(name: str, folder: Path, calls: Sequence[str]) -> list[Call]:
    """All calls of these names by which the scenario does something in its folder."""
    folder.mkdir()
    plain = run(SCENARIOS[name], folder, f"trace={names(calls)}")
    assert plain.code == 0, plain.told
    found = [call for call in plain.calls() if str(folder) in call.args and call.name in calls]
    clear(folder)
    return list({(call.name, call.nth): call for call in found}.values())


def judge(row: Row, name: str, folder: Path, done: Traced, what: str) -> None:
    """Recover as a resumed run does, and see what is wrong."""
    place = folder / "run"
    try:
        recover(place)
        wrong = check(place, [line for line in done.told if not line.startswith("raised ")], SCENARIOS[name].keep)
    except Exception as error:  # noqa: BLE001  # one more thing that is wrong
        wrong = [repr(error)]
    row.found += [f"{name}, {what}: {each}" for each in wrong]
    if not wrong:
        clear(folder)


@pytest.mark.parametrize(
    ("chosen", "calls"),
    [(("first", "delete", "replaced twin"), _MOVING), pytest.param(tuple(SCENARIOS), CHANGING, marks=LONG)],
    ids=["some", "all"],
)
def test_a_save_that_is_killed_at_a_system_call_loses_nothing_it_told_of(
    tmp_path: Path, row: MakeRow, chosen: tuple[str, ...], calls: tuple[str, ...]
) -> None:
    """Killed as it enters each of the calls by which it changes the folder."""
    kills = row("kill points (strace)", "violations")
    for name in chosen:
        for point in points(name, tmp_path / "plain", calls):
            folder = tmp_path / f"{name} {point.name} {point.nth}"
            folder.mkdir()
            inject = f"inject={point.name}:signal=KILL:when={point.nth}"
            done = run(SCENARIOS[name], folder, f"trace={point.name}", inject)
            kills.tried += done.code == -signal.SIGKILL
            judge(kills, name, folder, done, f"killed at {point.name} {point.nth}: {point.args}")
    kills.check()


def is_retried(done: Traced) -> bool:
    """Whether Python repeats what has failed, where a signal came in between; it doesn't list a folder again."""
    failed = [line for line in done.trace.read_text(errors="replace").splitlines() if "(INJECTED)" in line]
    calls = [line for line in failed if re.search(r" (openat|write|fsync)\(", line) and "O_DIRECTORY" not in line]
    return len(calls) == len(failed)


def failures(
    chosen: Sequence[str], calls: Sequence[str], errors: Sequence[str], folder: Path
) -> Iterator[tuple[str, Call, str]]:
    """Each call of each scenario, with each error that is to come from it."""
    for name in chosen:
        for point in points(name, folder, calls):
            yield from ((name, point, error) for error in errors)


@pytest.mark.parametrize(
    ("chosen", "errors"),
    [(("second",), ("EIO",)), pytest.param(tuple(SCENARIOS), ("EIO", "EINTR"), marks=LONG)],
    ids=["some", "all"],
)
def test_a_save_whose_system_call_fails_is_never_told_of_as_a_success_unless_it_is_one(
    tmp_path: Path, row: MakeRow, chosen: tuple[str, ...], errors: tuple[str, ...]
) -> None:
    """The older ones stay as they are; and a call that was merely interrupted is no failure."""
    failed = row("failed calls (strace)", "false successes, or older ones lost")
    for name, point, error in failures(chosen, _FAILING, errors, tmp_path / "plain"):
        folder = tmp_path / f"{name} {point.name} {point.nth} {error}"
        folder.mkdir()
        done = run(
            SCENARIOS[name], folder, f"trace={point.name}", f"inject={point.name}:error={error}:when={point.nth}"
        )
        what = f"{error} from {point.name} {point.nth}: {point.args}"
        failed.tried += 1
        if done.code not in (0, 1) or (done.code == 1 and error == "EINTR" and is_retried(done)):
            failed.found.append(f"{name}, {what}: it ended with {done.code}, {done.told[-1:]}")
        judge(failed, name, folder, done, what)
    failed.check()


@pytest.mark.parametrize(
    "kinds",
    [
        [Kind(3, "lazy"), Kind(1, "sync")],
        pytest.param(
            [
                Kind(keep, mode, tree_format)
                for keep in (1, 3)
                for mode in ("lazy", "eager", "sync", "auto")
                for tree_format in ("safetensors", "pth")
            ],
            marks=LONG,
        ),
    ],
    ids=["some", "all"],
)
def test_a_training_s_saves_are_on_the_disk_in_order(tmp_path: Path, row: MakeRow, kinds: list[Kind]) -> None:
    """Files, then the manifest, then their folder; then its name, and the folder of that; then it is told of.

    Only then does the hint name it, and only then is an older one deleted.
    """
    saves = row("saves traced", "out of order")
    for number, kind in enumerate(kinds):
        folder = tmp_path / f"{number}" / "run"
        plant(folder)
        expressions = f"trace={names(ORDERED)}"
        done = traced(lambda tell: train(folder, kind), folder.parent, expressions)  # noqa: B023  # done at once
        assert done.code == 0, done.told
        seen = Saves(folder, notes_of(folder), kind.keep, done.calls())
        saves.tried += len(seen.committed)
        saves.found += [f"{kind}: {wrong}" for wrong in seen.wrong()]
    saves.check()
