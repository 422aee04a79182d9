"""What reaches the disk and comes back from it: every byte, or an error that says what has become of the checkpoint."""

from __future__ import annotations

import dataclasses
import errno
import json
import mmap
import os
import pickle
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import xxhash
from safetensors.torch import save_file

from eventrunner.checkpoint.load import load_checkpoint, load_weights
from eventrunner.checkpoint.manifest import MANIFEST_NAME, FileEntry, read_manifest, write_manifest
from eventrunner.checkpoint.plan import encode
from eventrunner.checkpoint.staging import StagedCheckpoint, allocate, memory_of, stage
from eventrunner.checkpoint.store import Store
from eventrunner.errors import CheckpointError, CorruptCheckpointError, NoSpaceError
from eventrunner.files import disk
from eventrunner.files.reader import reading


def a_tree(value: float = 1.0) -> dict[str, Any]:
    """Something in each file, all of it saying *value*."""
    return {
        "state_dict": {"layer.weight": torch.full((4, 3), value), "layer.bias": torch.zeros(3)},
        "optimizer": {"state": {0: {"exp_avg": torch.full((2,), value)}}, "param_groups": [{"lr": value}]},
        "rng": torch.full((5,), int(value), dtype=torch.uint8),
        "value": value,
    }


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """A store in a folder that nothing has made yet."""
    return Store(tmp_path / "checkpoints")


@pytest.fixture
def saved(store: Store) -> Path:
    """One checkpoint, in which every file is."""
    return store.save("epoch_1", a_tree(), step=10, epoch=1)


def replace_file(folder: Path, name: str, data: bytes) -> None:
    """Put other bytes in a file's place, or add a file, and make the manifest agree."""
    (folder / name).write_bytes(data)
    manifest = read_manifest(folder)
    (folder / MANIFEST_NAME).unlink()
    entry = FileEntry(len(data), xxhash.xxh3_128_hexdigest(data))
    write_manifest(folder, dataclasses.replace(manifest, files={**manifest.files, name: entry}))


def can_mount() -> bool:
    """Whether a process may have a file system of its own."""
    tool = shutil.which("unshare")
    mount = ["-Urm", "mount", "-t", "tmpfs", "none", "/mnt"]
    return tool is not None and subprocess.run([tool, *mount], check=False, capture_output=True).returncode == 0


def can_fail_calls() -> bool:
    """Whether strace is there and may trace, so that it can make a system call fail."""
    tool = shutil.which("strace")
    return tool is not None and subprocess.run([tool, "-qq", "-o", "/dev/null", "true"], check=False).returncode == 0


SAVING = """
import os, sys
import torch
from eventrunner.checkpoint import Store, load_checkpoint
from eventrunner.errors import NoSpaceError

folder = sys.argv[1]
os.makedirs(folder, exist_ok=True)
store = Store(folder)
tree = {"state_dict": {"w": torch.ones(3)}, "optimizer": {"m": torch.ones(3)}}
attempts = {
    "safetensors": lambda: store.save("a", {**tree, "step": 2}, step=2),
    "pth": lambda: store.save("a", {**tree, "step": 3}, step=3, format="pth"),
    "link": lambda: store.link("c", "a"),
    "first": lambda: store.save("a", {**tree, "step": 1}, step=1),
    "delete": lambda: store.delete("a"),
}
for kind in sys.argv[2:]:
    try:
        attempts[kind]()
    except OSError as error:
        notes = " ".join(error.__notes__).replace(folder, "FOLDER")
        print(kind, type(error).__name__, error.errno, type(error.__cause__).__name__, notes)
    names = sorted(os.listdir(folder))
    print(*names, *(load_checkpoint(f"{folder}/a")["step"] for name in names if name == "a"))
"""


class TestFullDisk:
    def test_what_would_not_fit_is_refused_before_anything_is_written(self, store: Store, tmp_path: Path) -> None:
        """Four terabytes, of a file that has none; the error says how many there are and how many are free."""
        (tmp_path / "sparse").touch()
        os.truncate(tmp_path / "sparse", 2**42)
        with (tmp_path / "sparse").open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
            data = memoryview(mapped)
            with pytest.raises(NoSpaceError) as caught:
                store.commit("a", StagedCheckpoint({}, {"state.safetensors": data}, ()), step=1)
            data.release()

        error = caught.value
        assert (error.errno, error.needed) == (28, 2**42 + 2)
        assert 0 < error.free < error.needed
        assert str(error) == (
            f"no space for checkpoint 'a' in {store.folder}, which needs {2**42 + 2} bytes where {error.free} are free "
            "(No space left on device); make room there, or keep fewer checkpoints."
        )
        assert error.__notes__ == [f"The checkpoint 'a' in {store.folder} was not saved; older ones are as they were."]
        assert not store.folder.exists()

    def test_the_error_is_one_of_the_system_too(self) -> None:
        """Whoever looks for a full disk finds it, in another process too."""
        error = pickle.loads(pickle.dumps(NoSpaceError("full", 3, 2)))

        assert isinstance(error, OSError)
        assert isinstance(error, CheckpointError)
        assert (str(error), error.errno, error.needed, error.free) == ("full", errno.ENOSPC, 3, 2)

    @pytest.mark.skipif(not can_mount(), reason="needs leave to mount a file system of its own")
    @pytest.mark.slow
    def test_a_disk_that_fills_up_meanwhile_is_told_of_and_left_as_it_was(self, tmp_path: Path) -> None:
        """A file system for nine files: whatever is saved beside the first fails; and once that is gone, works."""
        mount = 'mount -t tmpfs -o size=4m,nr_inodes=9 none "$1" && exec "$2" -c "$3" "$1/x" $4'
        attempts = "first safetensors pth link delete safetensors"
        done = subprocess.run(
            ["unshare", "-Urm", "sh", "-c", mount, "sh", tmp_path, sys.executable, SAVING, attempts],
            capture_output=True,
            text=True,
            check=False,
        )
        note = "NoSpaceError 28 OSError The checkpoint '{}' in FOLDER was not saved; older ones are as they were."

        assert done.stderr == ""
        assert done.stdout.splitlines() == [
            *("a last_checkpoint 1", f"safetensors {note.format('a')}"),
            *("a last_checkpoint 1", f"pth {note.format('a')}"),
            *("a last_checkpoint 1", f"link {note.format('c')}"),
            *("a last_checkpoint 1", "last_checkpoint", "a last_checkpoint 2"),
        ]


@pytest.mark.skipif(not can_fail_calls(), reason="needs strace, and leave to use it")
class TestSync:
    @pytest.mark.slow
    def test_a_sync_that_failed_fails_the_save_and_is_not_tried_again(self, tmp_path: Path) -> None:
        """The kernel says it once, and after that that all is well. Of the folders above, then in the folder itself."""
        above = synced_above(tmp_path / "x")

        assert saving(tmp_path / "x", f"1+{above + 6}", "first", "safetensors") == [
            *("first OSError 5 NoneType The checkpoint 'a' in FOLDER was not saved; older ones are as they were.", ""),
            "safetensors OSError 5 NoneType The checkpoint 'a' in FOLDER is in its place, but may not survive a power "
            "cut.",
            "a 2",
        ]

    @pytest.mark.slow
    def test_a_sync_that_fails_behind_the_commit_is_told_of(self, tmp_path: Path) -> None:
        """The last is that of the folder for the hint's name."""
        above = synced_above(tmp_path / "x")

        assert saving(tmp_path / "x", f"{above + 8}", "first") == [
            "first OSError 5 NoneType The checkpoint 'a' in FOLDER is committed; what failed came after.",
            "a last_checkpoint 1",
        ]


def synced_above(folder: Path) -> int:
    """How many folders above this one are synced by a store's first save: those of the same file system."""
    device = folder.parent.stat().st_dev
    return sum(one.stat().st_dev == device for one in folder.parents)


def saving(folder: Path, when: str, *attempts: str) -> list[str]:
    """What :data:`SAVING` prints where the syncs fail that *when* says."""
    strace = ["strace", "-f", "-qq", "-o", "/dev/null", "--seccomp-bpf", "-e", "trace=fsync"]
    strace += ["-e", f"inject=fsync:error=EIO:when={when}"]
    command = [*strace, sys.executable, "-c", SAVING, folder, *attempts]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stderr == ""
    return done.stdout.splitlines()


class TestImage:
    @pytest.mark.parametrize("folder", [None, "/dev/shm"], ids=["disk", "memory"])
    @pytest.mark.parametrize("size", [0, 1, 4095, 4096, 2**20 - 1, 2**20, 2**20 + 1, 2**25, 2**25 + 4096 + 7])
    @pytest.mark.parametrize("offset", [0, 1, 512], ids=["at a page", "odd", "at a sector"])
    @pytest.mark.slow
    def test_every_byte_arrives_and_is_in_the_digest(
        self, tmp_path: Path, folder: str | None, size: int, offset: int
    ) -> None:
        """Of whatever size, wherever it begins in memory, on file systems that take writes past the cache or don't."""
        if folder is not None and not os.path.isdir(folder):
            pytest.skip(f"there is no {folder}")
        memory = memory_of(allocate(size + offset).random_(0, 256, generator=torch.Generator().manual_seed(size)))
        data = memory[offset : offset + size]
        path = Path(folder or tmp_path) / f"eventrunner-test-{os.getpid()}"
        try:
            written = disk.write_image(path, data)
            read = path.read_bytes()
        finally:
            path.unlink()

        assert read == data
        assert written == (size, xxhash.xxh3_128_hexdigest(data))

    def test_memory_that_can_not_be_written_to_will_do(self, tmp_path: Path) -> None:
        """As bytes of Python's."""
        data = bytes(range(256)) * 8192

        assert disk.write_image(tmp_path / "x", memoryview(data)) == (2**21, xxhash.xxh3_128_hexdigest(data))
        assert (tmp_path / "x").read_bytes() == data

    def test_where_there_is_no_way_past_the_cache_writes_go_through_it(self) -> None:
        """It is asked of the file, which may be on any file system; /proc has none."""
        descriptor = os.open("/proc/self/status", os.O_RDONLY)
        try:
            assert disk._past_cache(descriptor, True) is False
        finally:
            os.close(descriptor)
        with pytest.raises(OSError, match="Bad file descriptor"):
            disk._past_cache(10**6, True)

    def test_an_image_is_committed_as_it_is(self, store: Store) -> None:
        """Saving a tree is committing its image."""
        image = stage(encode(a_tree()))

        path = store.commit("a", image, step=3, epoch=1, meta={"x": 1})

        assert str(load_checkpoint(path)) == str(a_tree())
        assert (path / "model.safetensors").read_bytes() == image.files["model.safetensors"]
        assert {*read_manifest(path).files} == {*image.files, "state.json"}
        assert read_manifest(path).tensors == image.tensors


class TestReading:
    def test_a_large_tensor_has_memory_of_its_own(self, store: Store) -> None:
        """What is alive of a checkpoint is what is held of it; and nobody else writes to it, a child neither."""
        large, small = torch.arange(2**20, dtype=torch.float32), torch.arange(3)
        path = store.save("a", {"large": large, "small": small, "empty": torch.zeros(0, 2)}, step=1)

        loaded = load_checkpoint(path)
        child = os.fork()
        if child == 0:
            loaded["large"].zero_()
            os._exit(0)
        os.waitpid(child, 0)

        assert loaded["large"].untyped_storage().nbytes() == 2**22
        assert loaded["large"].data_ptr() % 64 == 0
        assert torch.equal(loaded["large"], large)
        assert torch.equal(loaded["small"], small)
        assert loaded["empty"].shape == (0, 2)

    def test_more_tensors_than_one_call_takes_are_read(self, store: Store) -> None:
        """Each goes where it belongs, in the order of the file."""
        tree = {"x": [torch.full((1 + index % 3,), index) for index in range(2500)]}
        loaded = load_checkpoint(store.save("a", tree, step=1))

        assert all(torch.equal(ours, theirs) for ours, theirs in zip(loaded["x"], tree["x"], strict=True))

    def test_a_file_of_another_writer_is_read(self, tmp_path: Path) -> None:
        """Its tensors begin anywhere."""
        weights = {"odd": torch.arange(5, dtype=torch.uint8), "w": torch.randn(600, 1000), "h": torch.randn(3).half()}
        save_file(weights, tmp_path / "w.safetensors")

        loaded = load_weights(tmp_path / "w.safetensors")

        assert loaded.keys() == weights.keys()
        assert all(torch.equal(loaded[name], weights[name]) for name in weights)

    def test_a_file_that_shrinks_while_it_is_read_is_damaged(self, tmp_path: Path) -> None:
        """Whatever was there before."""
        (tmp_path / "x").write_bytes(b"abc")

        with reading(tmp_path / "x") as reader:
            os.truncate(tmp_path / "x", 2)
            with pytest.raises(CorruptCheckpointError, match=r"^.*/x ended while it was read\.$"):
                reader.take(3)

    @pytest.mark.parametrize(
        ("change", "problem"),
        [
            (lambda header: header["layer.weight"].update(data_offsets=[0, 44]), "invalid shape"),
            (lambda header: header["layer.bias"].update(data_offsets=[44, 56]), "invalid offset"),
            (lambda header: header["layer.bias"].update(data_offsets=[52, 64]), "invalid offset"),
            (lambda header: header["layer.weight"].update(shape=[2**62, 2**62]), "overflow"),
            (lambda header: header["layer.weight"].update(shape=[-4, -3]), "invalid"),
            (lambda header: header["layer.weight"].update(dtype="F99"), "F99"),
            (lambda header: header.pop("layer.bias"), "not fully covered"),
        ],
        ids=["size", "overlap", "hole", "overflow", "negative", "dtype", "rest"],
    )
    def test_a_header_that_does_not_describe_the_file_is_refused(self, saved: Path, change: Any, problem: str) -> None:
        """Though the manifest vouches for it."""
        data = (saved / "model.safetensors").read_bytes()
        length = 8 + int.from_bytes(data[:8], "little")
        header = json.loads(data[8:length])
        change(header)
        text = json.dumps(header).encode().ljust(length - 8)
        replace_file(saved, "model.safetensors", data[:8] + text + data[length:])

        for read in (load_checkpoint, load_weights):
            with pytest.raises(
                CorruptCheckpointError, match=r"model\.safetensors is not a safetensors file.*: "
            ) as caught:
                read(saved)
            assert re.search(problem, str(caught.value))

    def test_a_file_beside_the_known_ones_is_digested_too(self, saved: Path) -> None:
        """Though nothing reads it, the checkpoint isn't what was committed."""
        replace_file(saved, "notes.txt", b"one")
        load_checkpoint(saved)
        (saved / "notes.txt").write_bytes(b"two")

        with pytest.raises(CorruptCheckpointError, match=r"notes\.txt has other bytes"):
            load_checkpoint(saved)
