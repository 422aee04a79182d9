"""A disk that fails: each operation of a save, one after another, in every way; one that is slow, full, or hangs."""

from __future__ import annotations

import json
import random
import re
import resource
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from disk import Disk, Killed
from memory import in_memory
from operations import Fault, Op, faults_for
from scenario import SCENARIOS, check, leftovers, recover, save, values
from tally import LONG, MakeRow
from test_checkpoint_disk import can_fail_calls, can_mount
from tiny import options
from trial import COMMITTED, RUN, Trial, operations, prepare

from eventrunner.bus.bus import Bus
from eventrunner.checkpoint import Store, find_newest, verify_checkpoint
from eventrunner.checkpoint.store import HINT_NAME
from eventrunner.checkpoint.verify import listing
from eventrunner.errors import CheckpointError, LaneTimeoutError
from eventrunner.runner import Runner


@pytest.fixture
def root(tmp_path: Path) -> Iterator[Path]:
    """Where the disk is to be; nothing is there."""
    with in_memory(tmp_path) as folder:
        yield folder / "disk"


def faults(ops: list[Op], rng: random.Random, share: float) -> Iterator[Fault]:
    """All that can go wrong, once or from then on; or for each operation, with the chance *share*, one of that."""
    for op in ops:
        # A call that is interrupted for ever is tried again for ever, by Python's own files.
        kinds = [Fault(kind, op.number, lasting=True) for kind in faults_for(op) if kind != "EINTR"]
        kinds += [Fault(kind, op.number) for kind in faults_for(op)]
        if share == 1:
            yield from kinds
        elif rng.random() < share:
            yield rng.choice(kinds)


@pytest.mark.parametrize("share", [0.2, pytest.param(1, marks=LONG)])
def test_a_failing_disk_costs_nothing_that_was_told_of(root: Path, row: MakeRow, seed: int, share: float) -> None:
    """The failed save is told of, older ones load, and the next save works; what went well is as durable as ever."""
    tried = row("failing operations", "false successes and losses")
    for name, scenario in SCENARIOS.items():
        for fault in faults(operations(scenario, root), random.Random(f"{seed} {name}"), share):
            trial = Trial(scenario, fault, root)
            tried.tried += trial.fired
            tried.found += [f"{name!r}, {fault}: {wrong}" for wrong in trial.wrong]
    tried.check()


@pytest.mark.parametrize("limit", [0, 1, 511, 4096, 4097, 6000])
def test_a_file_that_may_not_grow_costs_nothing_that_was_told_of(root: Path, limit: int) -> None:
    """The limit of the process, which is no full disk: the write that crosses it is cut short, and the next fails."""
    told = prepare(SCENARIOS["second"], root)
    store = Store(root / RUN)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        with pytest.raises(OSError, match="File too large") as caught:
            save(store, "b", 2, told.append)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    assert caught.value.__notes__ == [f"The checkpoint 'b' in {root / RUN} was not saved; older ones are as they were."]
    assert values(root / RUN) == {"a": 1}
    assert leftovers(root / RUN) == []
    save(store, "b", 3, told.append)
    assert check(root / RUN, told) == []


FILLING = """
import json, os, sys
from pathlib import Path
sys.path[:0] = sys.argv[2:]
from eventrunner.checkpoint import Store
from scenario import a_tree, leftovers, values

def saved(pages):
    (folder / "filler").write_bytes(bytes(4096 * (free - pages)))
    try:
        Store(folder).save(name, a_tree(2), step=2, format=kind)
    except OSError as error:
        return [type(error).__name__, *error.__notes__]
    finally:
        (folder / "filler").unlink()
    return []

folder = Path(sys.argv[1])
for kind, name in (("safetensors", "b"), ("pth", "b"), ("safetensors", "a"), ("pth", "a")):
    Store(folder).save("a", a_tree(1), step=1)
    pages, free = 0, os.statvfs(folder).f_bavail
    while values(folder).get(name) != 2:
        said = saved(pages)
        print(json.dumps([kind, name, pages, said, values(folder), leftovers(folder)]))
        pages += 1
    Store(folder).delete(name)
"""


@pytest.mark.skipif(not can_mount(), reason="needs leave to mount a file system of its own")
def test_a_disk_that_fills_up_costs_nothing_that_was_told_of(tmp_path: Path, row: MakeRow) -> None:
    """A small file system on which one page more is free each time, until the save fits."""
    tried = row("saves to a full disk", "losses")
    mount = 'mount -t tmpfs -o size=256k none "$1" && shift && exec "$@"'
    command = ["unshare", "-Urm", "sh", "-c", mount, "sh", tmp_path, sys.executable, "-c", FILLING, tmp_path / "x"]
    done = subprocess.run([*command, *sys.path], capture_output=True, text=True, check=False)
    lines = [json.loads(line) for line in done.stdout.splitlines()]

    assert done.stderr == ""
    for kind, name, pages, said, there, left in lines:
        tried.tried += bool(said)
        saved = not said or f" {COMMITTED}" in said[-1]
        expected = {"a": 1, name: 2} if saved else {"a": 1}
        if left or there != expected or said[:1] not in ([], ["NoSpaceError"]):
            tried.found.append(f"{kind} {name!r} with {pages} pages free: {said}, {there}, {left}")
    assert len({(kind, name) for kind, name, *_ in lines}) == 4
    tried.check()


def make_runner(folder: Path, **changes: Any) -> Runner:
    """A tiny run that saves each iteration, keeps all, and gives a disk half a second at its end."""
    saving = {"by_epoch": False, "interval": 1, "mode": "eager"}
    chosen = {"count": 6, "epochs": 1, "default_hooks": {"logger": None, "checkpoint": saving}, **changes}
    return Runner(work_dir=folder, bus=Bus(), **options(**chosen))


def test_a_run_goes_on_beside_a_slow_disk_and_ends_well(root: Path) -> None:
    """The first write of a save takes until the next save is asked for: there it is waited for, and not before."""
    root.mkdir()
    runner = make_runner(root / "run")
    passed: list[int] = []
    with Disk(root, Fault("hang", 1, where="write run/.tmp-iter_1")) as disk:

        @runner.on("after_train_iter", mutates=())
        def pass_by(runner: Runner) -> None:
            passed.append(runner.iter)
            if len(passed) == 2:
                assert disk.reached.wait(60)
                assert Store(root / "run").names() == []
                disk.awake.set()

        runner.train()

    assert runner.stop_reason == "completed"
    assert [path.name for path, _ in listing(root / "run").complete] == [f"iter_{step}" for step in range(1, 7)]
    assert find_newest(root / "run").path == root / "run" / "iter_6"


HANGS = ["create", "fsync", "rename"]


@pytest.mark.parametrize("where", [f"{kind} run/.tmp-iter_3" for kind in HANGS])
def test_a_disk_that_hangs_ends_the_run_with_an_error_and_commits_nothing_later(root: Path, where: str) -> None:
    """Not silence: the deadline's error. What was committed before is there, and when the disk wakes up, no more is.

    But for what the disk had in hand: a rename that has begun can't be called back.
    """
    root.mkdir()
    runner = make_runner(root / "run", offload={"deadline": 0.3})
    before = threading.enumerate()
    with Disk(root, Fault("hang", 1, where=where)) as disk:
        with pytest.raises(LaneTimeoutError, match=r"^a save waited 0\.3 s .* find what blocks the disk"):
            runner.train()
        assert disk.reached.is_set()
        there = Store(root / "run").names()
        assert there == ["iter_1", "iter_2"]
        hint = (root / "run" / HINT_NAME).read_text()
        disk.awake.set()
        for thread in set(threading.enumerate()) - set(before):
            thread.join(60)

    late = ["iter_3"] if where.startswith("rename") else []
    assert Store(root / "run").names() == there + late
    assert all(verify_checkpoint(root / "run" / name) for name in there)
    assert (root / "run" / HINT_NAME).read_text() == (late or [hint])[0]
    assert leftovers(root / "run") == []


def test_of_two_that_were_being_replaced_the_newer_is_put_back(root: Path) -> None:
    """The older couldn't be removed once it had been replaced, and then the process died replacing its successor."""
    store = Store(root / RUN)
    for _ in range(8):  # they are told apart by a random name
        told = prepare(SCENARIOS["second"], root)
        with Disk(root, Fault("EIO", 1, where=f"unlink {RUN}/.old-a")), pytest.raises(OSError, match="error") as caught:
            save(store, "a", 2, told.append)
        assert any(COMMITTED in note for note in caught.value.__notes__)
        with Disk(root, Fault("die", 1, where=f"rename {RUN}/.tmp-a")), pytest.raises(Killed):
            save(store, "a", 3, told.append)

        recover(root / RUN)

        assert values(root / RUN) == {"a": 2}


def test_a_store_that_was_given_up_neither_replaces_nor_deletes(root: Path) -> None:
    """Though it has begun to: another process may have the folder by then."""
    told, failed = prepare(SCENARIOS["second"], root), []
    store = Store(root / RUN)

    def replace() -> None:
        with pytest.raises(CheckpointError, match=r"^checkpoint 'a' was given up while the disk was waited for; ") as e:
            save(store, "a", 2, told.append)
        failed.append(e.value)

    with Disk(root, Fault("hang", 1, where=f"rename {RUN}/a")) as disk:
        thread = threading.Thread(target=replace)
        thread.start()
        assert disk.reached.wait(60)
        store.abandoned = True
        disk.awake.set()
        thread.join(60)
    with pytest.raises(CheckpointError, match="given up"):
        store.delete("a")

    assert len(failed) == 1
    assert values(root / RUN) == {"a": 1}
    assert leftovers(root / RUN) == []


TRACED = """
import json, sys
from collections import Counter
from pathlib import Path
root = Path(sys.argv[1])
sys.path[:0] = sys.argv[2:]
from disk import Disk
from scenario import SCENARIOS

seen = Counter()
for number, scenario in enumerate(SCENARIOS.values()):
    (root / str(number)).mkdir()
    with Disk(root / str(number)) as disk:
        scenario(root / str(number) / "runs/one", disk.tell)
    seen.update(op.kind for op in disk.ops)
print(json.dumps(seen))
"""
CALLS = {
    "write": r"p?write(v|64)?",
    "fsync": r"f(data)?sync",
    "rename": r"rename(at2?)?",
    "mkdir": r"mkdir(at)?",
    "link": r"link(at)?",
    "symlink": r"symlink(at)?",
    "unlink": r"unlink|unlinkat(?!.*AT_REMOVEDIR)",
    "rmdir": r"rmdir|unlinkat(?=.*AT_REMOVEDIR)",
    "create": r"open(at)?(?=.*O_CREAT)|creat",
}


@pytest.mark.skipif(not can_fail_calls(), reason="needs strace, and leave to use it")
def test_nothing_goes_past_the_disk_that_the_tests_fail(root: Path) -> None:
    """What the kernel is asked for below its folder is what it has noted."""
    root = root.with_name("traced")
    (root / "disk").mkdir(parents=True)
    strace = ["strace", "-f", "-y", "-qq", "--seccomp-bpf", "-o", root / "trace", "-e", "trace=%file,%desc"]
    command = [*strace, sys.executable, "-c", TRACED, root / "disk", *sys.path]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    below = re.compile(rf"{root}/disk/\d+[/>]")
    lines = list(filter(below.search, (root / "trace").read_text().splitlines()))

    assert done.stderr == ""
    noted = json.loads(done.stdout)
    for kind, pattern in CALLS.items():
        call = re.compile(rf"^\d+ +(?:{pattern})\(")
        assert len([*filter(call.match, lines)]) == noted[kind] > 0, kind
