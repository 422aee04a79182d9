"""One run, one folder: numbers and the latest link, what counts as taken, and run.json."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import forked

import eventrunner
from eventrunner.checkpoint import Store
from eventrunner.errors import CheckpointNotFoundError, OptionError, RunExistsError
from eventrunner.session.rundir import (
    check_free,
    check_sources,
    choose_folder,
    claim,
    environment,
    git_revision,
    known_seed,
    read_run,
    script_name,
    write_run,
)


@pytest.fixture(autouse=True)
def _script(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["/somewhere/digits.py", "--fast"])


@pytest.mark.parametrize(
    ("argv", "name"),
    [
        (["/a/digits.py"], "digits"),
        (["digits"], "digits"),
        (["/a/mypackage/__main__.py"], "mypackage"),
        (["-c"], "session"),
        ([""], "session"),
        ([], "session"),
        (["/a/ipykernel_launcher.py"], "session"),
    ],
)
def test_the_script_names_the_runs(monkeypatch: pytest.MonkeyPatch, argv: list[str], name: str) -> None:
    """A script, a package run by -m, and sessions without one."""
    monkeypatch.setattr(sys, "argv", argv)
    assert script_name() == name


def test_runs_are_numbered_and_latest_points_to_the_newest(tmp_path: Path) -> None:
    """The link is a relative one, so the folder can be moved."""
    assert [claim(None), claim(None)] == [tmp_path / "runs/digits/001", tmp_path / "runs/digits/002"]
    link = Path("runs/digits/latest")
    assert link.is_symlink()
    assert link.readlink() == Path("002")


def test_a_number_is_never_given_twice() -> None:
    """Whatever else lies there; after the highest comes the next, however many digits it has."""
    home = Path("runs/digits").absolute()
    for name in ("007", "x", "²", "-3"):
        (home / name).mkdir(parents=True)
    assert claim(None) == home / "008"
    (home / "1500").mkdir()
    assert claim(None) == home / "1501"


def claim_many(name: str) -> None:
    """What each of several processes does."""
    Path(name).write_text(" ".join(str(claim(None)) for _ in range(30)))


def test_processes_that_claim_at_once_get_different_numbers(tmp_path: Path) -> None:
    """Three processes, thirty folders each: ninety numbers."""
    processes = [forked(claim_many, f"claimed_{index}") for index in range(3)]
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    claimed = [path for index in range(3) for path in (tmp_path / f"claimed_{index}").read_text().split()]
    assert sorted(claimed) == [f"{tmp_path}/runs/digits/{number:03d}" for number in range(1, 91)]
    assert (tmp_path / "runs/digits/latest").is_dir()


def test_a_file_system_without_links_still_has_the_numbers(tmp_path: Path) -> None:
    """Where latest can't be made (here something is in its way), the newest is the highest number."""
    (tmp_path / "runs/digits").mkdir(parents=True)
    (tmp_path / f"runs/digits/.latest.{os.getpid()}").mkdir()
    assert [claim(None), claim(None)] == [tmp_path / "runs/digits/001", tmp_path / "runs/digits/002"]
    assert not Path("runs/digits/latest").exists()
    assert choose_folder(None, True) == tmp_path / "runs/digits/002"


def test_resume_goes_on_in_the_newest_run(tmp_path: Path) -> None:
    """By the latest link; with no run yet, or a link that dangles and nothing else, in none."""
    assert choose_folder(None, True) is None
    first, second = claim(None), claim(None)
    assert choose_folder(None, True) == second == tmp_path / "runs/digits/002"
    second.rmdir()
    assert choose_folder(None, True) == first
    first.rmdir()
    assert choose_folder(None, True) is None


def test_a_folder_that_was_given_is_taken(tmp_path: Path) -> None:
    """As it is, resumed or not."""
    for resume in (False, True, "x/epoch_1"):
        assert choose_folder("my/run", resume) == tmp_path / "my/run"
    assert claim(tmp_path / "my/run") == tmp_path / "my/run"
    assert Path("my/run").is_dir()
    assert not Path("runs").exists()


def test_resume_of_a_path_goes_on_in_its_run(tmp_path: Path) -> None:
    """If it lies in one; a checkpoint that was moved away begins a new folder."""
    write_run_in(tmp_path / "old")
    assert choose_folder(None, tmp_path / "old" / "epoch_1") == tmp_path / "old"
    assert choose_folder(None, tmp_path / "elsewhere" / "epoch_1") is None
    assert choose_folder(None, False) is None


def write_run_in(folder: Path, **facts: Any) -> Path:
    """A folder with a run in it."""
    folder.mkdir(exist_ok=True)
    write_run(folder, facts)
    return folder


@pytest.mark.parametrize(
    ("ended", "how"), [("good enough after epoch 10, step 220", " (good enough after epoch 10, step 220)"), ("", "")]
)
def test_a_folder_with_another_run_is_refused(tmp_path: Path, ended: str, how: str) -> None:
    """The message says how that one ended, if it did."""
    folder = write_run_in(tmp_path / "a", ended=ended)
    with pytest.raises(RunExistsError) as caught:
        check_free(folder, resume=False)
    assert str(caught.value) == (
        f"work_dir {str(folder)!r} already holds a run{how}; pass resume=True to go on with it, or choose another "
        "folder."
    )
    check_free(folder, resume=True)


@pytest.mark.parametrize("content", [b"{ torn", b"[1]", b"1", b"\xff", b"[" * 100_000])
def test_a_folder_with_other_things_is_free(tmp_path: Path, content: bytes) -> None:
    """Only a run.json makes it a run's; one that can't be read counts."""
    (tmp_path / "notes.txt").write_text("mine")
    check_free(tmp_path, resume=False)
    check_free(tmp_path / "new", resume=False)
    (tmp_path / "run.json").write_bytes(content)
    with pytest.raises(RunExistsError):
        check_free(tmp_path, resume=False)


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    """Neither resumed nor begun."""
    (tmp_path / "file").write_text("")
    for resume in (True, False):
        with pytest.raises(OptionError) as caught:
            check_free(tmp_path / "file", resume)
        assert str(caught.value) == f"work_dir={str(tmp_path / 'file')!r} is a file; give a folder."


def test_sources_that_are_there_pass(tmp_path: Path) -> None:
    """A checkpoint's folder for both, a file for weights, and nothing at all."""
    path = Store(tmp_path).save("epoch_1", {}, step=1)
    (tmp_path / "weights.pth").write_bytes(b"")
    check_sources(False, None)
    check_sources(True, str(tmp_path / "weights.pth"))
    check_sources(path, path)


def test_the_folder_of_a_run_is_no_checkpoint(tmp_path: Path) -> None:
    """A common slip: the message names the checkpoints in it."""
    Store(tmp_path).save("epoch_1", {}, step=1)
    with pytest.raises(CheckpointNotFoundError, match=r"is no checkpoint, .*; the checkpoints in .* are epoch_1"):
        check_sources(tmp_path, None)


def test_run_json_is_added_to(tmp_path: Path) -> None:
    """What it said of other keys stays, and what json doesn't know is written as text."""
    write_run(tmp_path, {"a": 1, "b": 2})
    write_run(tmp_path, {"b": Path("x"), "c": [1]})
    assert read_run(tmp_path) == {"a": 1, "b": "x", "c": [1]}
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]


def test_run_json_stays_whole_where_writing_fails(tmp_path: Path) -> None:
    """What can't be written leaves the old contents, and no other file beside it."""
    write_run(tmp_path, {"a": 1})
    (tmp_path / f".run.json.{os.getpid()}").mkdir()
    with pytest.raises(IsADirectoryError):
        write_run(tmp_path, {"b": 2})
    assert read_run(tmp_path) == {"a": 1}


def test_a_disk_that_is_full_leaves_no_half_written_file(tmp_path: Path) -> None:
    """Cut in the middle of writing, run.json is the old one and nothing else is there."""
    write_run(tmp_path, {"a": 1})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(OSError, match="File too large"):
            write_run(tmp_path, {"b": "x" * 100_000})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert read_run(tmp_path) == {"a": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]


def test_there_is_no_run_where_there_is_no_file(tmp_path: Path) -> None:
    """Neither in an empty folder nor in none."""
    assert read_run(tmp_path) is None
    assert read_run(tmp_path / "nowhere") is None


def test_the_known_seed_is_the_runs(tmp_path: Path) -> None:
    """None where there is no run, or one that doesn't say."""
    assert [known_seed(None), known_seed(tmp_path)] == [None, None]
    write_run(tmp_path, {"seed": 7})
    assert known_seed(tmp_path) == 7
    write_run(tmp_path, {"seed": "x"})
    assert known_seed(tmp_path) is None


def test_the_environment_says_what_ran() -> None:
    """The command, the versions, the time with its zone, and the revision."""
    facts = environment()
    assert facts["argv"] == ["/somewhere/digits.py", "--fast"]
    assert facts["versions"] == {
        "eventrunner": eventrunner.__version__,
        "torch": torch.__version__,
        "python": ".".join(map(str, sys.version_info[:3])),
    }
    assert facts["started"].endswith("+00:00")
    assert json.loads(json.dumps(facts)) == facts


def git(*arguments: str) -> None:
    """A git command by an author of its own."""
    who = ["-c", "user.name=x", "-c", "user.email=x@example.org"]
    subprocess.run(["git", *who, *arguments], check=True, capture_output=True)


def test_the_revision_is_the_working_directorys(tmp_path: Path) -> None:
    """Its commit, and whether tracked files have changed since."""
    assert git_revision() is None
    git("init", "-q")
    assert git_revision() is None
    (tmp_path / "file").write_text("one")
    git("add", "file")
    git("commit", "-qm", "first")
    first = git_revision()
    assert first is not None
    assert len(first["commit"]) == 40
    assert first["dirty"] is False
    (tmp_path / "file").write_text("two")
    assert git_revision() == {**first, "dirty": True}


def test_a_branch_may_have_any_name() -> None:
    """Git keeps names as bytes, in no encoding that it knows of; to a run they are nothing."""
    git("init", "-q")
    git("commit", "-qm", "first", "--allow-empty")
    for name in (b"\xe8\xae\xad", b"\xff\xfe"):
        git("checkout", "-qb", os.fsdecode(name))
        revision = git_revision()
        assert revision is not None
        assert revision["dirty"] is False


def test_without_git_there_is_no_revision(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is no requirement."""
    monkeypatch.setenv("PATH", "")
    assert git_revision() is None


def test_resume_passes_over_runs_without_a_checkpoint() -> None:
    """A script that only tested, or died early, has a newer folder with nothing to go on from."""
    first, second = claim(None), claim(None)
    Store(first).save("epoch_1", {"state_dict": {"weight": torch.ones(1)}}, step=1)
    assert choose_folder(None, True) == first
    Store(second).save("epoch_1", {"state_dict": {"weight": torch.ones(1)}}, step=1)
    assert choose_folder(None, True) == second


def test_a_checkpoint_of_another_run_gives_no_right_to_a_folder(tmp_path: Path) -> None:
    """Only a run's own checkpoint goes on in its folder, also from an out_dir's folder of that name."""
    mine, other = write_run_in(tmp_path / "mine"), tmp_path / "other" / "epoch_1"
    check_free(mine, mine / "epoch_1")
    check_free(mine, tmp_path / "elsewhere" / "mine" / "epoch_1")
    with pytest.raises(RunExistsError, match="already holds a run"):
        check_free(mine, other)
