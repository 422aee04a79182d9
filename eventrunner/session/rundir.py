"""One run, one folder: where it is, whether it is free, and ``run.json``, which says what ran."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

from eventrunner.checkpoint.manifest import MANIFEST_NAME, Manifest
from eventrunner.checkpoint.verify import is_checkpoint, missing_checkpoint
from eventrunner.errors import OptionError, RunExistsError
from eventrunner.files.disk import replace_text
from eventrunner.version import __version__

__all__ = [
    "RUN_FILE",
    "abandoned_in",
    "absolute",
    "check_free",
    "check_sources",
    "choose_folder",
    "claim",
    "environment",
    "git_revision",
    "known_seed",
    "read_run",
    "resumes_in",
    "script_name",
    "write_run",
]

RUN_FILE = "run.json"

T = TypeVar("T")

_STATUS = ("git", "status", "--porcelain=v2", "--branch", "--no-ahead-behind", "--untracked-files=no")
_COMMIT = "# branch.oid "


def absolute(path: T) -> T | Path:
    """Return a path as it is now to be understood, whatever becomes of the working directory; all else as it is."""
    return Path(path).absolute() if isinstance(path, str | os.PathLike) else path


def script_name() -> str:
    """Return the name of the running script or package, or ``session`` where there is none (a prompt, a notebook)."""
    path = Path(sys.argv[0] if sys.argv else "")
    name = path.parent.name if path.stem == "__main__" else path.stem
    return name if name and not name.startswith("-") and name != "ipykernel_launcher" else "session"


def choose_folder(work_dir: str | os.PathLike[str] | None, resume: bool | str | os.PathLike[str]) -> Path | None:
    """Return the folder that a run is to use, or None where a new numbered one is to be made.

    An explicit folder is taken as it is. Without one, ``resume=PATH`` goes on in the run that the checkpoint belongs
    to, and ``resume=True`` in the newest of this script's runs, if there is one.

    Raises:
        OptionError: one of the two is no path.
    """
    if not isinstance(resume, bool | str | os.PathLike) or resume == "":
        raise OptionError(f"resume={resume!r} must be True, False or a checkpoint's path.")
    if work_dir is not None:
        if not isinstance(work_dir, str | os.PathLike) or not str(work_dir):
            raise OptionError(f"work_dir={work_dir!r} is not a folder's path; leave it out for runs/<script>/<number>.")
        return Path(work_dir).absolute()
    if resume is True:
        return _newest(_home())
    if resume and (Path(resume).parent / RUN_FILE).is_file():
        return Path(resume).absolute().parent
    return None


def folder_of(
    work_dir: str | os.PathLike[str] | None,
    resume: bool | str | os.PathLike[str],
    load_from: str | os.PathLike[str] | None,
) -> Path | None:
    """Return the folder that a run is to use, checked as :func:`choose_folder`, :func:`check_free` and others do."""
    folder = choose_folder(work_dir, resume)
    if folder is not None:
        check_free(folder, resume)
    check_sources(resume, load_from)
    return folder


def check_sources(resume: bool | str | os.PathLike[str], load_from: str | os.PathLike[str] | None) -> None:
    """Refuse paths with nothing there, before a folder is made for a run that couldn't begin.

    Raises:
        OptionError: one is no path, or a file where only a folder can be.
        CheckpointNotFoundError: nothing is there; the message names the checkpoints near it.
    """
    if load_from is not None and (not isinstance(load_from, str | os.PathLike) or not str(load_from)):
        raise OptionError(f"load_from={load_from!r} is not the path of a checkpoint or of a file with weights.")
    if not isinstance(resume, bool) and os.path.isfile(resume):
        raise OptionError(f"resume={str(resume)!r} is a file; load_from= takes its weights, if it has any.")
    for path in (None if isinstance(resume, bool) else resume, load_from):
        if path is not None and not os.path.isfile(path) and not is_checkpoint(Path(path)):
            raise missing_checkpoint(Path(path))


def known_seed(folder: Path | None) -> int | None:
    """Return the seed of the run in *folder*, if there is one."""
    seed = ((read_run(folder) if folder else None) or {}).get("seed")
    return seed if isinstance(seed, int) else None


def check_free(folder: Path, resume: bool | str | os.PathLike[str]) -> None:
    """Refuse a folder that holds another run than the one that *resume* goes on with.

    Raises:
        RunExistsError: it holds one, and nothing was said of resuming it.
        OptionError: it is no folder.
    """
    if folder.exists() and not folder.is_dir():
        raise OptionError(f"work_dir={str(folder)!r} is a file; give a folder.")
    # Where CheckpointHook has an out_dir, checkpoints lie in a folder there that is named like the run's.
    own = resume if isinstance(resume, bool) else Path(resume).absolute().parent.name == folder.absolute().name
    run = None if own else read_run(folder)
    if run is not None:
        how = f" ({run['ended']})" if run.get("ended") else ""
        raise RunExistsError(
            f"work_dir {str(folder)!r} already holds a run{how}; pass resume=True to go on with it, or choose another "
            "folder."
        )


def claim(folder: Path | None) -> Path:
    """Make *folder*, or a new one named by the next free number, and a ``latest`` link next to it."""
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        return folder
    home = _home()
    home.mkdir(parents=True, exist_ok=True)
    number = max(_numbers(home), default=0) + 1
    while True:
        folder = home / f"{number:03d}"
        try:
            folder.mkdir()  # fails where another process took the number a moment ago
        except FileExistsError:
            number += 1
            continue
        _link_latest(home, folder.name)
        return folder


def read_run(folder: Path) -> dict[str, Any] | None:
    """Return the contents of ``run.json``, or None where there is none; one that can't be read counts as a run."""
    try:
        run = json.loads((folder / RUN_FILE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (ValueError, RecursionError):
        return {}
    return run if isinstance(run, dict) else {}


def write_run(folder: Path, facts: Mapping[str, Any]) -> None:
    """Add *facts* to ``run.json``, whole or not at all; what it said before of other keys stays."""
    content = json.dumps({**(read_run(folder) or {}), **facts}, indent=2, default=str) + "\n"
    replace_text(folder / RUN_FILE, content)


def environment() -> dict[str, Any]:
    """Return what a reader needs to run it again: the command, the versions, the revision."""
    import torch  # here alone: what only reads a run's folder needs none

    return {
        "argv": list(sys.argv),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": {"eventrunner": __version__, "torch": torch.__version__, "python": platform.python_version()},
        "git": git_revision(),
    }


def git_revision() -> dict[str, Any] | None:
    """Return the working directory's revision and whether it has changes; None outside a repository or without git."""
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        done = subprocess.run(_STATUS, capture_output=True, timeout=5, check=True)
        lines = (
            done.stdout.decode(errors="replace").splitlines()
        )  # names are in no sure encoding; those with a # are of the branch, the others of a file with changes each
        commit = next((line.removeprefix(_COMMIT) for line in lines if line.startswith(_COMMIT)), "")
        if commit.isalnum():  # else it is "(initial)": nothing is committed yet
            return {"commit": commit, "dirty": not all(line.startswith("#") for line in lines)}
    return None


def _home() -> Path:
    return Path("runs").absolute() / script_name()


def _numbers(home: Path) -> list[int]:
    return [int(entry.name) for entry in home.iterdir() if entry.name.isascii() and entry.name.isdigit()]


def _newest(home: Path) -> Path | None:
    """Return the newest run with a checkpoint in it, for one that only tested, or died early, is nothing to go on from.

    Where none has one, the run that ``latest`` points to, or else the one with the highest number.
    """
    for number in sorted(_numbers(home), reverse=True) if home.is_dir() else ():
        if any((home / f"{number:03d}").glob(f"*/{MANIFEST_NAME}")):
            return home / f"{number:03d}"
    latest = home / "latest"
    if latest.is_dir():
        return home / latest.resolve().name
    numbers = _numbers(home) if home.is_dir() else []
    return home / f"{max(numbers):03d}" if numbers else None


def _link_latest(home: Path, target: str) -> None:
    temporary = home / f".latest.{os.getpid()}"
    with contextlib.suppress(OSError):  # a file system without links still has the numbers
        temporary.symlink_to(target, target_is_directory=True)
        os.replace(temporary, home / "latest")


def resumes_in(work_dir: Path) -> list[dict[str, Any]]:
    """Return what run.json, which anybody may have edited, says of earlier resumes, as far as it can be understood."""
    said = (read_run(work_dir) or {}).get("resumes")
    entries = [each for each in said if isinstance(each, dict)] if isinstance(said, list) else []
    kinds = {"step": int, "newest": str}
    return [each for each in entries if all(isinstance(each.get(key), kind) for key, kind in kinds.items())]


def abandoned_in(work_dir: Path) -> Callable[[Manifest], bool]:
    """Tells whether the run has since gone on from before a checkpoint: it is of a history that was cut off."""
    resumes = resumes_in(work_dir)
    return lambda saved: any(saved.step > entry["step"] and saved.created <= entry["newest"] for entry in resumes)
