"""The command line: what is seen of real run folders, whole and damaged, by people, pipes and programs."""

from __future__ import annotations

import dataclasses
import importlib
import json
import os
import pty
import resource
import shutil
import subprocess
import sys
import tomllib
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from eventrunner.__main__ import main
from eventrunner.checkpoint.load import load_weights
from eventrunner.checkpoint.manifest import read_manifest, write_manifest
from eventrunner.report.commands.output import ago, table
from eventrunner.runner import Runner
from eventrunner.session.rundir import read_run, write_run
from eventrunner.units import size

ROOT = Path(__file__).parent.parent
RUN = "runs/tiny/001"
EPOCHS = ("epoch_1", "best_mse_epoch_2", "epoch_2")
VERSIONS = {"eventrunner": "0.1.0", "torch": "2.13.0", "python": "3.12.1"}
COMMAND = ["train.py", "--lr", "0.1"]


def make_run(folder: Path, day: int, **changes: Any) -> Path:
    """A run of two epochs, which is said to be of a day long ago, by versions that no test depends on."""
    hooks = {"checkpoint": {"type": "CheckpointHook", "save_best": "mse"}}
    Runner(**tiny.options(val=True, default_hooks=hooks, work_dir=folder, **changes)).train()
    began = datetime(2024, 1, day, 8, tzinfo=UTC)
    facts = {"started": began.isoformat(), "argv": COMMAND, "versions": VERSIONS, "experiment_name": "tiny"}
    write_run(folder, {**facts, "git": {"commit": "0123abc", "dirty": True}})
    for minute, name in ((1, "epoch_1"), (2, "epoch_2"), (2, "best_mse_epoch_2")):
        redate(folder / name, began + timedelta(minutes=minute))
    return folder


def redate(checkpoint: Path, created: datetime) -> None:
    manifest = read_manifest(checkpoint)
    meta = {"best": {"mse": 0.1864}} if "best" in manifest.meta else {}
    (checkpoint / "MANIFEST.json").unlink()
    write_manifest(checkpoint, dataclasses.replace(manifest, created=created.isoformat(), versions=VERSIONS, meta=meta))


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working directory with two runs, that no test writes to; the newer one has the smaller number."""
    home = tmp_path_factory.mktemp("home")
    model = tiny.linear()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    make_run(home / "runs/tiny/002", day=5, randomness={"seed": 2}, model=model, optimizer=optimizer)
    make_run(home / RUN, day=6)
    return home


@pytest.fixture
def copy(home: Path, tmp_path: Path) -> Path:
    """A copy of the home whose run may be damaged."""
    return Path(shutil.copytree(home / RUN, tmp_path / RUN).parent.parent.parent)


def call(home: Path, *arguments: str, columns: int | None = None, **changes: str) -> subprocess.CompletedProcess[str]:
    """What a process of its own answers; nothing that it prints to standard error may be a traceback."""
    environment = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "NO_COLOR")}
    environment |= {"PYTHONPATH": str(ROOT), **({"COLUMNS": str(columns)} if columns else {}), **changes}
    command = [sys.executable, "-W", "error", "-m", "eventrunner", *arguments]
    done = subprocess.run(command, cwd=home, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert "Traceback" not in done.stderr, done.stderr
    return done


def answer(home: Path, *arguments: str, code: int = 0, columns: int | None = None) -> str:
    done = call(home, *arguments, columns=columns)
    assert (done.returncode, done.stderr) == (code, ""), done
    return done.stdout


def nbytes(*folders: Path) -> int:
    """The bytes of all files below, each once though it may have two names."""
    found = [path.stat() for folder in folders for path in folder.iterdir()]
    return sum({(one.st_dev, one.st_ino): one.st_size for one in found}.values())


def in_column(*sizes: int) -> list[str]:
    shown = [size(one) for one in sizes]
    return [text.rjust(max(map(len, ("SIZE", *shown)))) for text in ("SIZE", *shown)]


def flip(file: Path) -> None:
    """Change one byte; a save may have given the file a second name."""
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)


def test_ls_lists_runs_newest_last(home: Path) -> None:
    """By when they began, not by name; at 80 columns each is a line but for how it ended."""
    runs = ("runs/tiny/002", RUN)
    head, *sizes = in_column(*(nbytes(*(home / run / name for name in EPOCHS)) for run in runs))
    assert answer(home, "ls", columns=120) == (
        f"RUN            STARTED     SAVES  {head}  BEST        ENDED\n"
        f"runs/tiny/002  2024-01-05      3  {sizes[0]}  mse 0.1864  completed after epoch 2, step 4\n"
        f"runs/tiny/001  2024-01-06      3  {sizes[1]}  mse 0.1864  completed after epoch 2, step 4\n"
    )


def test_ls_reads_well_in_a_narrow_terminal(home: Path) -> None:
    """What doesn't fit goes below its row, and names stay whole."""
    runs = ("runs/tiny/002", RUN)
    head, *sizes = in_column(*(nbytes(*(home / run / name for name in EPOCHS)) for run in runs))
    assert answer(home, "ls", "runs", columns=60) == (
        f"RUN            STARTED     SAVES  {head}  BEST        ENDED\n"
        f"runs/tiny/002  2024-01-05      3  {sizes[0]}  mse 0.1864\n    completed after epoch 2, step 4\n"
        f"runs/tiny/001  2024-01-06      3  {sizes[1]}  mse 0.1864\n    completed after epoch 2, step 4\n"
    )


def test_ls_of_a_run_lists_its_checkpoints(home: Path) -> None:
    """Each with its step, epoch, size and age, and which was the best; as wide in a pipe as at 200 columns."""
    head, *sizes = in_column(*(nbytes(home / RUN / name) for name in EPOCHS))
    said = answer(home, "ls", RUN, columns=200)
    assert said == (
        "runs/tiny/001: completed after epoch 2, step 4\n"
        f"CHECKPOINT        STEP  EPOCH  {head}  CREATED\n"
        f"epoch_1              2      1  {sizes[0]}  2024-01-06\n"
        f"best_mse_epoch_2     4      2  {sizes[1]}  2024-01-06  best mse 0.1864\n"
        f"epoch_2              4      2  {sizes[2]}  2024-01-06\n"
    )
    assert answer(home, "ls", RUN) == said


def test_show_tells_what_ran(home: Path) -> None:
    """The command, the seed, the versions, the revision, the end."""
    count = size(nbytes(*(home / RUN / name for name in EPOCHS)))
    assert answer(home, "show", RUN, columns=80) == (
        "runs/tiny/001\n"
        "  command      train.py --lr 0.1\n"
        "  experiment   tiny\n"
        "  started      2024-01-06 08:00:00 UTC (2024-01-06)\n"
        "  ended        completed after epoch 2, step 4\n"
        "  seed         1\n"
        "  versions     eventrunner 0.1.0, torch 2.13.0, python 3.12.1\n"
        "  git          0123abc, with changes\n"
        f"  checkpoints  3, {count}, newest epoch_2\n"
        "  best         mse 0.1864\n"
    )


def test_show_tells_what_is_in_a_checkpoint(home: Path) -> None:
    """Its manifest, and on request its tensors."""
    path = home / RUN / "best_mse_epoch_2"
    files = read_manifest(path).files
    head, *sizes = in_column(*(entry.size for entry in files.values()))
    said = answer(home, "show", f"{RUN}/best_mse_epoch_2", columns=80)
    assert said == (
        "runs/tiny/001/best_mse_epoch_2\n"
        "  step      4\n"
        "  epoch     2\n"
        "  created   2024-01-06 08:02:00 UTC (2024-01-06)\n"
        "  versions  eventrunner 0.1.0, python 3.12.1, torch 2.13.0\n"
        "  best      mse 0.1864\n"
        f"  tensors   {len(read_manifest(path).tensors)}; --tensors lists them\n"
        "\n"
        f"FILE               {head}  XXH3-128\n"
        + "".join(f"{name:<17}  {count}  {files[name].digest}\n" for name, count in zip(files, sizes, strict=True))
    )
    listed = answer(home, "show", f"{RUN}/best_mse_epoch_2", "--tensors").splitlines()
    assert ["weight", "float32", "1×2", "model.safetensors"] in [line.split() for line in listed]


@pytest.mark.parametrize("arguments", [["ls"], ["ls", RUN], ["show", RUN], ["show", f"{RUN}/epoch_1"], ["verify", RUN]])
def test_looking_needs_no_torch(home: Path, arguments: list[str]) -> None:
    """What needs none doesn't wait for it, nor for what the log and the screen are made with."""
    code = f"""
import sys
from eventrunner.__main__ import main
code = main({arguments})
print(code, sorted({{"torch", "structlog", "rich", "blinker", "anyio", "numpy"}} & set(sys.modules)))"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=home, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stdout.splitlines()[-1] == "0 []", done.stderr


def test_json_has_the_same_facts(home: Path) -> None:
    """One document each, with numbers as numbers."""
    runs = json.loads(answer(home, "ls", "--json"))["runs"]
    assert [run["path"] for run in runs] == ["runs/tiny/002", RUN]
    assert [(one["step"], one["state"], one["best"]) for one in runs[1]["checkpoints"]] == [
        (2, "whole", {}),
        (4, "whole", {"mse": 0.1864}),
        (4, "whole", {}),
    ]
    shown = json.loads(answer(home, "show", RUN, "--json"))
    assert (shown["run"], shown["resumes"]) == (read_run(home / RUN), [])
    checkpoint = json.loads(answer(home, "show", f"{RUN}/epoch_1", "--tensors", "--json"))
    weight = {"name": "weight", "dtype": "float32", "shape": [1, 2], "files": ["model.safetensors"]}
    assert weight in checkpoint["tensors"]
    verified = json.loads(answer(home, "verify", RUN, "--json"))["checkpoints"]
    assert [(one["path"], one["whole"]) for one in verified] == [(f"{RUN}/{name}", True) for name in EPOCHS]


def test_verify_reads_every_byte(copy: Path) -> None:
    """One flipped byte is found, its file is named, and the others are read all the same."""
    flip(copy / RUN / "epoch_1/model.safetensors")
    said = answer(copy, "verify", "runs", code=1).splitlines()
    assert said[0].startswith(f"damaged  {RUN}/epoch_1: {RUN}/epoch_1/model.safetensors has other bytes")
    assert [line.split()[0] for line in said] == ["damaged", "whole", "whole"]
    assert "damaged" not in answer(copy, "ls")  # which reads no weights


def test_a_missing_file_is_seen_by_all(copy: Path) -> None:
    """``ls`` compares names and sizes, so that it is seen there at once."""
    (copy / RUN / "epoch_1/model.safetensors").unlink()
    assert f"{RUN}/epoch_1/model.safetensors is missing." in answer(copy, "verify", f"{RUN}/epoch_1", code=1)
    assert "damaged: model.safetensors is missing\n" in answer(copy, "ls", RUN)
    assert answer(copy, "ls").endswith("; 1 damaged\n")
    assert "damaged" in answer(copy, "show", f"{RUN}/epoch_1")
    assert not json.loads(answer(copy, "verify", RUN, "--json", code=1))["checkpoints"][0]["whole"]


def test_half_a_folder_is_incomplete(copy: Path) -> None:
    """What has no manifest was never committed, or has lost it."""
    (copy / RUN / "epoch_2/MANIFEST.json").unlink()
    assert "incomplete: MANIFEST.json is missing\n" in answer(copy, "ls", RUN)
    assert f"damaged  {RUN}/epoch_2: {RUN}/epoch_2/MANIFEST.json is missing." in answer(copy, "verify", RUN, code=1)
    done = call(copy, "show", f"{RUN}/epoch_2")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"eventrunner: {RUN}/epoch_2/MANIFEST.json is missing.\n"


def test_a_run_that_goes_on_has_no_end(copy: Path) -> None:
    """Nor has one that was killed; what run.json says in vain is said too."""
    write_run(copy / RUN, {"ended": "", "resumes": [{"step": 2, "newest": "2024-01-06T08:01:30+00:00"}]})
    assert "running or killed" in answer(copy, "ls")
    assert "  resumes      at step 2\n" in answer(copy, "show", RUN)
    (copy / RUN / "run.json").write_text("{")
    assert "run.json can't be read" in answer(copy, "ls")
    (copy / RUN / "run.json").unlink()  # as a Checkpointer's folder has none
    assert "no run.json" in answer(copy, "ls")


def test_a_run_that_is_not_to_be_read_hides_no_other(copy: Path) -> None:
    """It may be somebody else's; here its run.json leads in a circle."""
    other = shutil.copytree(copy / RUN, copy / "runs/tiny/002")
    (other / "run.json").unlink()
    (other / "run.json").symlink_to("run.json")
    said = answer(copy, "ls").splitlines()
    assert [line.split()[0] for line in said] == ["RUN", RUN, "unreadable:"]
    assert "runs/tiny/002/run.json" in said[-1]
    assert list(json.loads(answer(copy, "ls", "--json"))["unreadable"]) == ["runs/tiny/002"]


def test_what_a_resume_left_behind_is_marked(copy: Path) -> None:
    """A run that was taken back to an earlier step doesn't go on from its later checkpoints."""
    write_run(copy / RUN, {"resumes": [{"step": 2, "newest": "2024-01-07T00:00:00+00:00"}]})
    said = answer(copy, "ls", RUN).splitlines()
    assert [line.endswith("left behind by a resume") for line in said[2:]] == [False, True, True]


def test_nothing_to_list_is_no_error(tmp_path: Path) -> None:
    """As an empty folder is none; one that isn't there is."""
    assert answer(tmp_path, "ls") == "no run is below .\n"
    assert json.loads(answer(tmp_path, "ls", "--json")) == {"runs": [], "unreadable": {}}
    done = call(tmp_path, "ls", "gone")
    assert (done.returncode, done.stderr) == (1, "eventrunner: can't list gone, as no folder is there.\n")


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        ([], 2, "required: COMMAND"),
        (["lss"], 2, "invalid choice: 'lss'"),
        (["ls", "--frob"], 2, "unrecognized arguments: --frob"),
        (["ls", f"{RUN}/epoch_1"], 2, "which is a checkpoint; 'eventrunner show'"),
        (["show", f"{RUN}/epoch_3"], 1, "did you mean 'epoch_2'?"),
        (["verify", RUN, "gone"], 1, "nothing is at gone"),
        (["diff", RUN, f"{RUN}/epoch_1"], 2, "give two runs or two checkpoints"),
    ],
)
def test_what_cannot_be_is_one_sentence(home: Path, arguments: list[str], code: int, says: str) -> None:
    """On standard error, with the code for what is asked wrongly, or for what isn't there."""
    done = call(home, *arguments)
    assert (done.returncode, done.stdout) == (code, "")
    assert says in done.stderr
    assert done.stderr.startswith("eventrunner: ")
    assert done.stderr.count("\n") == 1


def list_into(output: Any, home: Path) -> subprocess.CompletedProcess[bytes]:
    """What ``ls`` comes to where its output fails, which Python would try once more at exit."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    command = [sys.executable, "-m", "eventrunner", "ls"]
    return subprocess.run(
        command, cwd=home, env=environment, stdout=output, stderr=subprocess.PIPE, timeout=60, check=False
    )


def test_a_closed_pipe_ends_it_quietly(home: Path) -> None:
    """As any tool's end in ``| head``."""
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "wb") as pipe:
        done = list_into(pipe, home)
    assert (done.returncode, done.stderr) == (141, b"")


def test_a_full_disk_is_said(home: Path) -> None:
    """Once, and it isn't success."""
    with open("/dev/full", "wb") as full:
        done = list_into(full, home)
    assert done.returncode == 1
    assert done.stderr.count(b"\n") == 1


@pytest.mark.parametrize(("variables", "coloured"), [({}, True), ({"NO_COLOR": "1"}, False), ({"TERM": "dumb"}, False)])
def test_colours_are_for_terminals_that_want_them(home: Path, variables: dict[str, str], coloured: bool) -> None:
    """A pipe never gets any, as the golden outputs above show."""
    ours, its = pty.openpty()
    environment = {**{k: v for k, v in os.environ.items() if k != "NO_COLOR"}, "TERM": "xterm", **variables}
    command = [sys.executable, "-m", "eventrunner", "ls", "runs"]
    subprocess.run(command, cwd=home, env=environment, stdout=its, timeout=60, check=True)
    os.close(its)
    with os.fdopen(ours, "rb") as screen:
        assert (b"\x1b[1m" in screen.read1(100_000)) == coloured


def test_names_do_not_write_to_the_terminal(tmp_path: Path) -> None:
    """Escapes in what others have named are shown, not obeyed; bytes that are no text don't end it."""
    run = tmp_path / os.fsdecode(b"runs/\xff\x1b[2J")
    run.mkdir(parents=True)
    write_run(run, {"argv": ["\x1b]0;title\x07\n"], "started": "2024-01-06T08:00:00+00:00", "ended": "\x1b[31m"})
    for arguments in (["ls"], ["show", str(run)]):
        said = answer(tmp_path, *arguments)
        assert "\\x1b" in said
        assert "\x1b" not in said
    assert len(json.loads(answer(tmp_path, "ls", "--json"))["runs"]) == 1


def test_diff_says_which_weights_differ_and_by_how_much(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The largest difference and the relative one; shapes, types and names that are in one alone."""
    same, nan = torch.ones(3), torch.tensor([float("nan"), float("inf")])
    one = {"same": same, "nan": nan, "w": torch.tensor([3.0, 4.0]), "shape": torch.ones(2, 3), "old": nan + 1}
    two = {"same": same, "nan": nan, "w": torch.tensor([3.0, 4.5]), "shape": torch.ones(3), "new": nan + 1}
    big = torch.tensor([2**60])
    save_file({**one, "big": big}, tmp_path / "a.safetensors")
    save_file({**two, "big": big + 1}, tmp_path / "b.safetensors")
    paths = [str(tmp_path / "a.safetensors"), str(tmp_path / "b.safetensors")]
    assert main(["diff", *paths, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {
        "differ": {
            "big": {"max": 0.0, "relative": 0.0},  # as far as a float tells
            "shape": {"what": "float32 2×3 → float32 3"},
            "w": {"max": 0.5, "relative": 0.1},
        },
        "only_in_a": ["old"],
        "only_in_b": ["new"],
        "equal": 2,
    }
    assert main(["diff", *paths]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[-3:] == [f"only in {paths[0]}: old", f"only in {paths[1]}: new", "3 differ, 2 are equal"]


def test_diff_compares_checkpoints(home: Path) -> None:
    """By their weights; a checkpoint and its twin have the same."""
    assert answer(home, "diff", f"{RUN}/epoch_2", f"{RUN}/best_mse_epoch_2") == "0 differ, 2 are equal\n"
    assert answer(home, "diff", f"{RUN}/epoch_1", f"{RUN}/epoch_2").endswith("2 differ, 0 are equal\n")


def test_diff_of_runs_compares_settings(home: Path) -> None:
    """By dotted names, with both values side by side; those of optimizers and data are in a checkpoint."""
    said = answer(home, "diff", "runs/tiny/002", RUN).splitlines()
    assert said[0].split() == ["SETTING", "runs/tiny/002", RUN]
    assert ["seed", "2", "1"] in [line.split() for line in said]
    assert ["optimizer.0.lr", "0.01", "0.1"] in [line.split() for line in said]
    assert not [line for line in said if line.startswith("versions")]
    assert answer(home, "diff", RUN, RUN) == "the two runs have the same settings\n"


@pytest.mark.parametrize(("name", "more"), [("w.safetensors", ()), ("w.pth", ()), ("w", ("--to", "safetensors"))])
def test_export_writes_one_file_of_weights(
    home: Path, tmp_path: Path, name: str, more: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    """To the bit, in the format of its name or of --to, and nothing else is left there."""
    checkpoint, target = home / RUN / "epoch_2", tmp_path / name
    assert main(["export", str(checkpoint), str(target), *more]) == 0
    weights = torch.load(target, weights_only=True) if target.suffix == ".pth" else load_file(target)
    assert tiny.same(dict(weights), dict(load_weights(checkpoint)))
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert capsys.readouterr().out == f"{target}: 2 weights, {size(target.stat().st_size)}\n"


def test_export_writes_tied_weights_out(tmp_path: Path) -> None:
    """Safetensors has no two names for one memory, so each gets its own."""
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model[1].weight = model[0].weight
    torch.save(model.state_dict(), tmp_path / "a.pth")
    assert main(["export", str(tmp_path / "a.pth"), str(tmp_path / "a.safetensors")]) == 0
    assert tiny.same(load_file(tmp_path / "a.safetensors"), dict(model.state_dict()))


def test_export_writes_over_nothing(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Nor half of anything: what can't be written leaves no file."""
    (tmp_path / "w.pth").write_text("mine")
    checkpoint = str(home / RUN / "epoch_2")
    codes = [main(["export", checkpoint, str(tmp_path / name)]) for name in ("w.pth", "gone/w.pth", "w.onnx")]
    said = capsys.readouterr().err.splitlines()
    assert (codes, (tmp_path / "w.pth").read_text()) == ([2, 2, 2], "mine")
    assert ["is there already" in said[0], "no folder" in said[1], "give --to" in said[2]] == [True] * 3
    torch.save({"sparse": torch.eye(2).to_sparse()}, tmp_path / "sparse.pth")
    assert main(["export", str(tmp_path / "sparse.pth"), str(tmp_path / "s.safetensors")]) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["sparse.pth", "w.pth"]


def test_an_export_that_fails_leaves_nothing(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Where a disk, or here the limit of a file's size, ends in the middle of it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
    try:
        codes = [
            main(["export", str(home / RUN / "epoch_2"), str(tmp_path / f"w.{end}")]) for end in ("pth", "safetensors")
        ]
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert (codes, list(tmp_path.iterdir())) == ([1, 1], [])
    assert capsys.readouterr().err.count("File too large") == 2


def test_env_is_what_a_bug_report_needs(tmp_path: Path) -> None:
    """The versions of all that takes part, the devices, the threads."""
    facts = json.loads(answer(tmp_path, "env", "--json"))
    assert {"eventrunner", "python", "torch", "blinker"} <= facts["versions"].keys()
    assert facts["torch"] == torch.__version__
    assert {"platform", "cpus", "cuda", "devices", "threads"} <= facts.keys()


def test_the_command_is_installed() -> None:
    """``eventrunner`` is what ``python -m eventrunner`` is."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    module, _, name = project["scripts"]["eventrunner"].partition(":")
    assert getattr(importlib.import_module(module), name) is main


@pytest.mark.parametrize(
    ("before", "text"),
    [
        (timedelta(seconds=-5), "just now"),  # another machine's clock
        (timedelta(seconds=59), "just now"),
        (timedelta(minutes=5, seconds=59), "5 min ago"),
        (timedelta(hours=23, minutes=59), "23 h ago"),
        (timedelta(days=1, hours=23), "1 day ago"),
        (timedelta(days=30), "30 days ago"),
        (timedelta(days=31), "2024-01-30"),
    ],
)
def test_ages_are_short(before: timedelta, text: str) -> None:
    """Whole units, rounded down; a date once nobody counts days any more."""
    now = datetime(2024, 3, 1, 12, tzinfo=UTC)
    assert ago(now - before, now) == text


def test_a_table_keeps_names_whole() -> None:
    """The last column alone is wrapped, below its row where there is no room next to it; empty columns are left out."""
    head, rows = ("A", "B", "C", "D"), [("name", "", "1", "some words that need two lines")]
    lines = {width: [text for _, text in table(head, rows, ("C",), width)] for width in (None, 30, 20)}
    assert lines[None] == ["A     C  D", "name  1  some words that need two lines"]
    assert lines[30] == ["A     C  D", "name  1  some words that need", "         two lines"]
    assert lines[20] == ["A     C  D", "name  1", "    some words that", "    need two lines"]
