"""Checkpoints on a real disk: what is visible is whole, what is damaged is found, and nothing else is touched."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import json
import os
import pickle
import random
import re
import resource
import shutil
import socket
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import xxhash
from safetensors import safe_open
from torch import nn

import eventrunner.checkpoint
from eventrunner.checkpoint.load import load_checkpoint, load_weights
from eventrunner.checkpoint.manifest import MANIFEST_NAME, Chunk, Manifest, read_manifest, write_manifest
from eventrunner.checkpoint.store import Store
from eventrunner.checkpoint.verify import find_newest, verify_checkpoint
from eventrunner.errors import CheckpointError, CheckpointNotFoundError, CorruptCheckpointError, OptionError
from eventrunner.files import disk
from eventrunner.files.reader import check_digest

FILES = ["MANIFEST.json", "model.safetensors", "optimizer.safetensors", "state.json", "state.safetensors"]


def a_tree(value: float = 1.0) -> dict[str, Any]:
    """Something in each file, all of it saying *value*."""
    return {
        "state_dict": {"layer.weight": torch.full((4, 3), value), "layer.bias": torch.zeros(3)},
        "optimizer": {"state": {0: {"exp_avg": torch.full((2,), value)}}, "param_groups": [{"lr": value}]},
        "rng": torch.full((5,), int(value), dtype=torch.uint8),
        "value": value,
    }


def change_time(checkpoint: Path, created: str) -> None:
    """Have its manifest say that it was made then."""
    changed = dataclasses.replace(read_manifest(checkpoint), created=created)
    (checkpoint / MANIFEST_NAME).unlink()
    write_manifest(checkpoint, changed)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """A store in a folder that nothing has made yet."""
    return Store(tmp_path / "run" / "checkpoints")


@pytest.fixture
def saved(store: Store) -> Path:
    """One checkpoint, in which every file is."""
    return store.save("epoch_1", a_tree(), step=10, epoch=1, meta={"reasons": ["interval"]})


def hidden(folder: Path) -> list[str]:
    """What is in a folder that no listing shows."""
    return sorted(path.name for path in folder.iterdir() if path.name.startswith("."))


def signed(text: str) -> str:
    """A JSON object with one more member at its end: the digest of the bytes that it had before."""
    return f'{text[:-1]},"digest":"{xxhash.xxh3_128_hexdigest(text.encode())}"}}'


def resign(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Edit a manifest as somebody would who knows how its own digest is made."""
    body = json.loads((folder / MANIFEST_NAME).read_text())
    del body["digest"]
    change(body)
    (folder / MANIFEST_NAME).write_text(signed(json.dumps(body)))


def replace_file(folder: Path, name: str, data: bytes) -> None:
    """Put other bytes in a file's place and make the manifest agree."""
    (folder / name).write_bytes(data)
    entry = {"size": len(data), "digest": xxhash.xxh3_128_hexdigest(data)}
    resign(folder, lambda body: body["files"].__setitem__(name, entry))


@contextlib.contextmanager
def largest_file(size: int) -> Iterator[None]:
    """A disk on which no file can grow beyond *size* bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def can_fail_calls() -> bool:
    """Whether strace is there and may trace, so that it can make a system call fail."""
    tracer = shutil.which("strace")
    return (
        tracer is not None and subprocess.run([tracer, "-qq", "-o", "/dev/null", "true"], check=False).returncode == 0
    )


class TestSave:
    def test_what_was_saved_is_loaded(self, saved: Path) -> None:
        """Tensors and the rest, in the tree that they came from."""
        loaded = load_checkpoint(saved)

        assert str(loaded) == str(a_tree())

    def test_the_folder_has_these_files_and_the_store_nothing_hidden(self, saved: Path) -> None:
        """One per kind of content, the manifest, and the hint beside."""
        assert sorted(path.name for path in saved.iterdir()) == FILES
        assert sorted(path.name for path in saved.parent.iterdir()) == ["epoch_1", "last_checkpoint"]
        assert (saved.parent / "last_checkpoint").read_text() == "epoch_1"

    def test_a_file_without_tensors_is_not_written(self, store: Store) -> None:
        """State without tensors is one JSON file."""
        path = store.save("a", {"epoch": 3}, step=1)

        assert sorted(entry.name for entry in path.iterdir()) == ["MANIFEST.json", "state.json"]
        assert load_checkpoint(path) == {"epoch": 3}

    def test_the_models_file_opens_anywhere_by_its_plain_keys(self, saved: Path) -> None:
        """The package safetensors alone reads the weights."""
        with safe_open(saved / "model.safetensors", framework="pt") as opened:
            assert sorted(opened.keys()) == ["layer.bias", "layer.weight"]
            assert torch.equal(opened.get_tensor("layer.weight"), torch.ones(4, 3))

    def test_a_view_takes_the_space_of_its_own_elements(self, store: Store) -> None:
        """Ten numbers of four megabytes are forty bytes and a header, which is a page long."""
        path = store.save("a", {"x": torch.zeros(1_000_000)[:10]}, step=1)

        assert (path / "state.safetensors").stat().st_size == 4096 + 40

    def test_files_have_the_permissions_that_the_umask_leaves(self, store: Store) -> None:
        """Whoever may read the run's folder may read the weights in it."""
        before = os.umask(0o027)
        try:
            path = store.save("a", a_tree(), step=1)
        finally:
            os.umask(before)

        assert {stat.S_IMODE(entry.stat().st_mode) for entry in path.iterdir()} == {0o640}

    def test_the_manifest_says_what_is_there(self, saved: Path) -> None:
        """Sizes and digests of all files; dtype, shape and pieces of all tensors; who wrote it, and when."""
        manifest = verify_checkpoint(saved)
        weight = next(tensor for tensor in manifest.tensors if tensor.name == "layer.weight")
        data = (saved / "state.json").read_bytes()

        assert (manifest.format, manifest.step, manifest.epoch) == (1, 10, 1)
        assert manifest.meta == {"reasons": ["interval"]}
        assert sorted(manifest.files) == FILES[1:]
        assert manifest.files["state.json"].size == len(data)
        assert manifest.files["state.json"].digest == xxhash.xxh3_128_hexdigest(data)
        assert (weight.dtype, weight.shape) == ("float32", (4, 3))
        assert weight.chunks == (Chunk("model.safetensors", (0, 0), (4, 3)),)
        assert manifest.versions["torch"] == torch.__version__
        assert sorted(manifest.versions) == ["eventrunner", "python", "torch"]
        assert datetime.datetime.fromisoformat(manifest.created).utcoffset() == datetime.timedelta(0)

    def test_a_save_under_the_same_name_replaces_the_old_one(self, store: Store, saved: Path) -> None:
        """As when a resumed run comes to the same step again."""
        store.save("epoch_1", a_tree(2.0), step=10)

        assert load_checkpoint(saved)["value"] == 2.0
        assert hidden(store.folder) == []

    def test_a_damaged_checkpoint_can_be_replaced(self, store: Store, saved: Path) -> None:
        """It is still one of the store's own."""
        (saved / MANIFEST_NAME).unlink()

        assert load_checkpoint(store.save("epoch_1", a_tree(2.0), step=10))["value"] == 2.0

    @pytest.mark.parametrize(
        "name", ["", ".", "..", ".hidden", "a/b", "a\\b", "/a", "a\nb", "last_checkpoint", "x" * 201]
    )
    def test_a_name_that_is_no_plain_one_is_refused(self, store: Store, name: str) -> None:
        """Before anything is written."""
        message = (
            f"{name!r} can't name a checkpoint; a name is a plain file name of at most 200 bytes, without separators "
            "or a dot in front, and not 'last_checkpoint'."
        )
        with pytest.raises(OptionError, match=f"^{re.escape(message)}$"):
            store.save(name, a_tree(), step=1)
        assert not store.folder.exists()

    @pytest.mark.parametrize("step", [-1, True, 1.0, "1"])
    def test_a_step_that_is_no_count_is_refused(self, store: Store, step: Any) -> None:
        """Before anything is written."""
        message = f"step={step!r} is not a number of completed iterations or epochs: an int of at least 0."
        with pytest.raises(OptionError, match=f"^{re.escape(message)}$"):
            store.save("a", a_tree(), step=step)
        assert not store.folder.exists()

    @pytest.mark.parametrize("meta", [{"x": {1}}, {"x": float("nan")}, {"x": torch.ones(1)}])
    def test_a_meta_that_is_no_json_is_refused(self, store: Store, meta: Any) -> None:
        """Before anything is written."""
        with pytest.raises(OptionError, match="can't be put in a manifest, which is JSON: "):
            store.save("a", a_tree(), step=1, meta=meta)
        assert not store.folder.exists()

    def test_a_tree_that_can_not_be_held_leaves_no_trace(self, store: Store) -> None:
        """The path of what it can't hold is named, and nothing was written."""
        with pytest.raises(CheckpointError, match=re.escape("checkpoint['fn'] is a builtin_function_or_method, which")):
            store.save("a", {"fn": print}, step=1)
        assert not store.folder.exists()


class TestInTheWay:
    @pytest.mark.parametrize(
        "put",
        [
            pytest.param(lambda path: path.write_text("mine"), id="a file"),
            pytest.param(lambda path: path.mkdir(), id="an empty folder"),
            pytest.param(lambda path: path.symlink_to("elsewhere"), id="a dangling link"),
            pytest.param(lambda path: path.symlink_to("epoch_1"), id="a link to a checkpoint"),
        ],
    )
    def test_what_is_no_checkpoint_is_never_replaced(self, store: Store, saved: Path, put: Any) -> None:
        """Neither by a save nor by a twin."""
        put(saved.parent / "a")
        message = f"can't save checkpoint 'a', as {saved.parent / 'a'} is there and is no checkpoint; move it."

        with pytest.raises(CheckpointError, match=f"^{re.escape(message)}$"):
            store.save("a", a_tree(), step=11)
        with pytest.raises(CheckpointError, match=f"^{re.escape(message)}$"):
            store.link("a", "epoch_1")
        assert hidden(saved.parent) == []
        assert os.path.lexists(saved.parent / "a")

    def test_a_file_in_place_of_the_folder_is_the_systems_error_with_a_note(self, tmp_path: Path) -> None:
        """The type and the number are the system's own."""
        (tmp_path / "file").write_text("mine")

        with pytest.raises(NotADirectoryError) as caught:
            Store(tmp_path / "file" / "checkpoints").save("a", a_tree(), step=1)
        assert caught.value.__notes__ == [
            f"The checkpoint 'a' in {tmp_path}/file/checkpoints was not saved; older ones are as they were."
        ]


class TestFailingDisk:
    @pytest.mark.parametrize("size", [10, 100, 300], ids=lambda size: f"{size} bytes")
    def test_a_save_that_does_not_fit_leaves_all_as_it_was(self, store: Store, saved: Path, size: int) -> None:
        """Whichever file it fails at: the error is the system's, with a note, and the next save works."""
        before = {path: path.read_bytes() for path in saved.iterdir()}

        with pytest.raises(OSError, match="File too large") as caught, largest_file(size):
            store.save("epoch_1", a_tree(2.0), step=10)

        assert caught.value.errno == 27
        assert caught.value.__notes__ == [
            f"The checkpoint 'epoch_1' in {store.folder} was not saved; older ones are as they were."
        ]
        assert hidden(store.folder) == []
        assert {path: path.read_bytes() for path in saved.iterdir()} == before
        assert load_checkpoint(store.save("epoch_1", a_tree(2.0), step=10))["value"] == 2.0

    def test_a_hint_that_can_not_be_written_does_not_unsave(self, store: Store) -> None:
        """The error says that the checkpoint is committed."""
        (store.folder / "last_checkpoint").mkdir(parents=True)

        with pytest.raises(IsADirectoryError) as caught:
            store.save("a", a_tree(), step=1)
        assert caught.value.__notes__ == [f"The checkpoint 'a' in {store.folder} is committed; what failed came after."]
        assert store.names() == ["a"]
        assert hidden(store.folder) == []
        verify_checkpoint(store.folder / "a")

    @pytest.mark.skipif(not can_fail_calls(), reason="needs strace, and leave to use it")
    @pytest.mark.slow
    def test_where_the_new_one_can_not_be_renamed_the_old_one_is_put_back(self, store: Store, saved: Path) -> None:
        """The second rename of a replacement fails; the first is undone."""
        script = (
            "import sys, torch; from eventrunner.checkpoint import Store;"
            "Store(sys.argv[1]).save('epoch_1', {'value': 2.0}, step=10)"
        )
        strace = ["strace", "-f", "-qq", "-o", "/dev/null", "--seccomp-bpf", "-e", "trace=rename"]
        strace += ["-e", "inject=rename:error=EIO:when=2"]
        done = subprocess.run(
            [*strace, sys.executable, "-B", "-c", script, store.folder], capture_output=True, text=True, check=False
        )

        assert done.returncode == 1
        assert re.search(
            r"OSError: \[Errno 5\] .* -> '.*/epoch_1'\nThe checkpoint 'epoch_1' in .* was not saved", done.stderr
        )
        assert hidden(store.folder) == []
        assert load_checkpoint(saved)["value"] == 1.0

    def test_a_file_is_never_written_over(self, tmp_path: Path) -> None:
        """Old bytes are never truncated, whoever comes."""
        (tmp_path / "x").write_bytes(b"old")

        with pytest.raises(FileExistsError):
            disk.write_bytes(tmp_path / "x", b"new")
        with pytest.raises(FileExistsError):
            disk.write_image(tmp_path / "x", memoryview(b"new"))
        with pytest.raises(FileExistsError):
            disk.write_stream(tmp_path / "x", lambda sink: sink.write(b"new"))
        assert (tmp_path / "x").read_bytes() == b"old"

    def test_a_failure_to_read_is_not_called_damage(self, tmp_path: Path) -> None:
        """Whatever the system says about a file that isn't about its absence or kind is passed on."""
        (tmp_path / "file").touch()

        with pytest.raises(NotADirectoryError):
            check_digest(tmp_path / "file" / "x", "")

    def test_a_folder_that_can_not_be_synced_is_let_pass(self) -> None:
        """Some file systems have no such call; /proc is one."""
        disk.fsync_folder(Path("/proc"))

    def test_a_folder_that_is_not_there_can_not_be_synced(self, tmp_path: Path) -> None:
        """Only the lack of the call is let pass."""
        with pytest.raises(FileNotFoundError):
            disk.fsync_folder(tmp_path / "x")


class TestLink:
    def test_a_twin_outlives_its_source(self, store: Store, saved: Path) -> None:
        """It is the same files under another name, with a manifest of its own."""
        path = store.link("best", "epoch_1", meta={"score": 0.5})

        assert (path / "model.safetensors").samefile(saved / "model.safetensors")
        assert not (path / MANIFEST_NAME).samefile(saved / MANIFEST_NAME)
        store.delete("epoch_1")
        assert verify_checkpoint(path).meta == {"reasons": ["interval"], "score": 0.5}
        assert load_checkpoint(path)["value"] == 1.0

    def test_a_twin_is_not_the_last_checkpoint(self, store: Store, saved: Path) -> None:
        """The hint stays, and so does the order: the source is still the newest."""
        store.link("best", "epoch_1")

        assert (store.folder / "last_checkpoint").read_text() == "epoch_1"
        assert store.names() == ["best", "epoch_1"]

    def test_a_twin_replaces_the_one_that_had_its_name(self, store: Store, saved: Path) -> None:
        """The best of before is gone, the new one is whole."""
        store.link("best", "epoch_1")
        store.save("epoch_2", a_tree(2.0), step=20)

        assert load_checkpoint(store.link("best", "epoch_2"))["value"] == 2.0
        assert load_checkpoint(saved)["value"] == 1.0
        assert hidden(store.folder) == []

    def test_nothing_is_its_own_twin(self, store: Store, saved: Path) -> None:
        """It would replace itself by itself."""
        with pytest.raises(OptionError, match=r"^can't link 'epoch_1' to itself; a link has a name of its own\.$"):
            store.link("epoch_1", "epoch_1")

    def test_there_is_no_twin_of_nothing(self, store: Store, saved: Path) -> None:
        """The error names what is there."""
        with pytest.raises(CheckpointNotFoundError, match=r"did you mean 'epoch_1'\?$"):
            store.link("best", "epoch_2")

    def test_there_is_no_twin_of_a_checkpoint_that_lacks_a_file(self, store: Store, saved: Path) -> None:
        """A damage that costs nothing to find isn't doubled."""
        (saved / "state.json").unlink()

        with pytest.raises(CorruptCheckpointError, match=r"state\.json is missing\.$"):
            store.link("best", "epoch_1")
        assert store.names() == ["epoch_1"]

    @pytest.mark.skipif(
        not os.path.isdir("/dev/shm") or os.stat("/dev/shm").st_dev == os.stat("/tmp").st_dev,
        reason="needs two file systems",
    )
    def test_where_a_link_is_impossible_the_file_is_copied(self, tmp_path: Path) -> None:
        """Between two file systems, for one."""
        source = Path("/dev/shm") / f"eventrunner-test-{os.getpid()}"
        source.write_bytes(b"bytes")
        try:
            disk.link(source, tmp_path / "copy")
        finally:
            source.unlink()

        assert (tmp_path / "copy").read_bytes() == b"bytes"

    def test_any_other_failure_to_link_is_reported(self, tmp_path: Path) -> None:
        """A copy wouldn't help."""
        with pytest.raises(FileNotFoundError):
            disk.link(tmp_path / "none", tmp_path / "copy")


class TestDelete:
    def test_a_deleted_checkpoint_is_gone(self, store: Store, saved: Path) -> None:
        """With all that was hidden meanwhile."""
        store.delete("epoch_1")

        assert sorted(path.name for path in store.folder.iterdir()) == ["last_checkpoint"]

    @pytest.mark.parametrize(
        "put",
        [
            pytest.param(lambda path: path.write_text("mine"), id="a file"),
            pytest.param(lambda path: path.mkdir(), id="a folder"),
            pytest.param(lambda path: path.symlink_to("epoch_1"), id="a link to a checkpoint"),
            pytest.param(lambda path: None, id="nothing"),
        ],
    )
    def test_only_a_checkpoint_is_deleted(self, store: Store, saved: Path, put: Any) -> None:
        """Whatever else has the name stays."""
        put(store.folder / "a")
        before = sorted(store.folder.iterdir())

        with pytest.raises(CheckpointError, match="the checkpoints in"):
            store.delete("a")
        assert sorted(store.folder.iterdir()) == before

    def test_a_name_with_a_path_in_it_is_refused(self, store: Store, saved: Path) -> None:
        """Nothing outside the folder can be named."""
        with pytest.raises(OptionError, match=re.escape("'../checkpoints/epoch_1' can't name a checkpoint")):
            store.delete("../checkpoints/epoch_1")


class TestListing:
    def test_checkpoints_are_ordered_by_step_and_not_by_name(self, store: Store) -> None:
        """The newest last; of one step, the later one."""
        store.save("b", {}, step=9)
        store.save("z", {}, step=100)
        store.save("a", {}, step=100)

        assert store.names() == ["b", "z", "a"]
        assert store.newest_valid() == store.folder / "a"
        assert store.path("z") == store.folder / "z"

    def test_what_is_saved_later_is_newer_even_if_the_clock_was_put_back(self, store: Store, saved: Path) -> None:
        """As after a power cut, with a clock that had been ahead by years; also for another Store."""
        change_time(saved, "2999-01-01T00:00:00+00:00")

        again = Store(store.folder)
        for name in ("b", "a"):
            again.save(name, a_tree(), step=1)

        assert again.names() == ["epoch_1", "b", "a"]
        assert Store(store.folder).save("c", a_tree(), step=0) == store.newest_valid()

    def test_the_end_of_time_is_no_obstacle_to_a_save(self, store: Store, saved: Path) -> None:
        """Nothing is later."""
        change_time(saved, "9999-12-31T23:59:59.999999+00:00")

        again = Store(store.folder)
        for step in (11, 12, 13):
            assert again.save(f"b{step}", a_tree(), step=step) == store.newest_valid()

    def test_a_folder_that_is_not_there_has_none(self, store: Store) -> None:
        """Asking makes nothing."""
        assert store.names() == []
        assert store.newest_valid() is None
        assert store.clean() == []
        assert not store.folder.exists()

    def test_only_whole_checkpoints_are_listed(self, store: Store, saved: Path) -> None:
        """No files, links, foreign or hidden folders, and none whose manifest can't be read."""
        (store.folder / "note.txt").write_text("mine")
        (store.folder / "tensorboard").mkdir()
        (store.folder / "latest").symlink_to("epoch_1")
        shutil.copytree(saved, store.folder / ".tmp-epoch_2-1-00000000")
        shutil.copytree(saved, store.folder / "broken")
        (store.folder / "broken" / MANIFEST_NAME).write_text("{")

        assert store.names() == ["epoch_1"]
        with pytest.raises(CorruptCheckpointError, match="is not a manifest"):
            store.path("broken")

    @pytest.mark.parametrize("name", ["epoch_2", "../checkpoints", ""])
    def test_a_name_that_is_not_there_has_no_path(self, store: Store, saved: Path, name: str) -> None:
        """Nor has one that leads elsewhere."""
        with pytest.raises(CheckpointNotFoundError):
            store.path(name)


class TestNewest:
    def test_a_damaged_newest_is_passed_over_with_a_reason(self, store: Store) -> None:
        """The next older sound one is found, and nothing is hidden."""
        for step in (1, 2, 3):
            store.save(f"iter_{step}", a_tree(step), step=step)
        (store.folder / "iter_3" / "state.json").unlink()
        (store.folder / "iter_2" / "model.safetensors").write_bytes(
            (store.folder / "iter_2" / "model.safetensors").read_bytes()[:-1] + b"\x01"
        )
        shutil.copytree(store.folder / "iter_1", store.folder / "lost")
        (store.folder / "lost" / MANIFEST_NAME).unlink()

        found = find_newest(store.folder)

        assert found.path == store.folder / "iter_1"
        assert found.rejected == (
            (store.folder / "lost", f"{store.folder}/lost/MANIFEST.json is missing."),
            (store.folder / "iter_3", f"{store.folder}/iter_3/state.json is missing."),
            (
                store.folder / "iter_2",
                f"{store.folder}/iter_2/model.safetensors has other bytes than were committed, by their xxh3 digest.",
            ),
        )

    def test_where_all_are_damaged_there_is_none(self, store: Store, saved: Path) -> None:
        """And the reason is still told."""
        (saved / "state.json").unlink()

        found = find_newest(store.folder)

        assert found.path is None
        assert [path for path, _ in found.rejected] == [saved]


class TestClean:
    def test_only_leftovers_are_removed(self, store: Store, saved: Path) -> None:
        """Foreign names and links' targets stay; a process that has the number of the dead one makes no difference."""
        gone = [".tmp-epoch_2-12345-0123abcd", ".trash-a-b-12345-0123abcd", f".tmp-x-{os.getppid()}-0123abcd"]
        kept = [
            ".tmp-epoch_2-12345",
            ".tmp-mine",
            ".git",
            "tmp-a-1-0123abcd",
        ]
        for name in [*gone, *kept]:
            shutil.copytree(saved, store.folder / name)
        (store.folder / ".tmp-last_checkpoint-12345-0123abcd").write_text("epoch_1")
        (store.folder / ".trash-link-12345-0123abcd").symlink_to("epoch_1")

        removed = store.clean()

        assert sorted(path.name for path in removed) == sorted(
            [*gone, ".tmp-last_checkpoint-12345-0123abcd", ".trash-link-12345-0123abcd"]
        )
        assert sorted(path.name for path in store.folder.iterdir()) == sorted([*kept, "epoch_1", "last_checkpoint"])
        verify_checkpoint(saved)

    def test_what_this_process_is_writing_stays(self, store: Store) -> None:
        """Even if another store on the folder, written otherwise, is asked to clean."""
        store.save("a", {}, step=1)
        (store.folder / f".tmp-b-{os.getpid()}-0123abcd").mkdir()
        with store._hidden("tmp", "b") as temp:
            temp.mkdir()
            removed = Store(os.path.relpath(store.folder)).clean()

            assert [path.name for path in removed] == [f".tmp-b-{os.getpid()}-0123abcd"]
            assert temp.exists()

    def test_a_checkpoint_that_was_being_replaced_is_put_back(self, store: Store, saved: Path) -> None:
        """The process died after the old one was moved aside and before the new one had its name."""
        saved.rename(store.folder / ".old-epoch_1-12345-0123abcd")

        assert store.clean() == []
        assert store.names() == ["epoch_1"]
        verify_checkpoint(saved)

    def test_a_replaced_checkpoint_is_not_put_back(self, store: Store, saved: Path) -> None:
        """Neither beside the one that replaced it nor when its removal had begun."""
        whole, half = (store.folder / f".old-{name}-12345-0123abcd" for name in ("epoch_1", "epoch_2"))
        shutil.copytree(saved, whole)
        shutil.copytree(saved, half)
        (half / "state.json").unlink()

        assert store.clean() == [whole, half]
        assert store.names() == ["epoch_1"]


class TestDamage:
    @pytest.mark.parametrize("name", FILES)
    def test_a_flipped_bit_is_found_and_the_file_named(self, saved: Path, name: str) -> None:
        """Any bit of any file."""
        whole = (saved / name).read_bytes()
        draw = random.Random(name)
        for bit in draw.sample(range(8 * len(whole)), 40):
            data = bytearray(whole)
            data[bit // 8] ^= 1 << bit % 8
            (saved / name).write_bytes(data)

            with pytest.raises(CheckpointError, match=re.escape(str(saved / name))):
                load_checkpoint(saved)
        (saved / name).write_bytes(whole)
        verify_checkpoint(saved)

    @pytest.mark.parametrize("name", FILES)
    def test_a_truncated_or_longer_file_is_found_and_named(self, saved: Path, name: str) -> None:
        """Even without comparing digests."""
        whole = (saved / name).read_bytes()
        for data in (b"", whole[:8], whole[: len(whole) // 2], whole[:-1], whole + b"x"):
            (saved / name).write_bytes(data)

            with pytest.raises(CorruptCheckpointError, match=re.escape(str(saved / name))):
                load_checkpoint(saved, verify=False)

    @pytest.mark.parametrize("name", FILES)
    def test_a_missing_file_is_found_and_named(self, saved: Path, name: str) -> None:
        """The manifest too: without it nothing says that the rest is whole."""
        (saved / name).unlink()

        with pytest.raises(CorruptCheckpointError, match=f"^{re.escape(str(saved / name))} is missing.$"):
            verify_checkpoint(saved)

    @pytest.mark.parametrize("put", [Path.touch, Path.mkdir], ids=["file", "folder"])
    def test_an_extra_entry_is_found_and_named(self, saved: Path, put: Any) -> None:
        """What wasn't committed has no business there."""
        put(saved / "extra")
        message = f"{saved / 'extra'} is not part of the checkpoint, by its MANIFEST.json."

        with pytest.raises(CorruptCheckpointError, match=f"^{re.escape(message)}$"):
            verify_checkpoint(saved)

    @pytest.mark.parametrize("name", FILES)
    def test_a_symbolic_link_is_refused_even_to_the_right_bytes(self, saved: Path, tmp_path: Path, name: str) -> None:
        """It leads out of the folder, and what is there may change."""
        (saved / name).rename(tmp_path / name)
        (saved / name).symlink_to(tmp_path / name)

        with pytest.raises(CorruptCheckpointError, match=re.escape(str(saved / name))):
            load_checkpoint(saved)

    @pytest.mark.parametrize("name", FILES)
    def test_a_named_pipe_is_refused_and_not_waited_for(self, saved: Path, name: str) -> None:
        """Opening it would block for ever."""
        (saved / name).unlink()
        os.mkfifo(saved / name)

        with pytest.raises(CorruptCheckpointError, match=f"^{re.escape(str(saved / name))} is not a plain file.$"):
            load_checkpoint(saved)

    def test_a_socket_is_refused(self, saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """The system has an error of its own for opening one."""
        (saved / MANIFEST_NAME).unlink()
        monkeypatch.chdir(saved)  # a socket's path is short
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(MANIFEST_NAME)

        with pytest.raises(
            CorruptCheckpointError, match=rf"^{re.escape(str(saved))}/MANIFEST\.json is not a plain file\.$"
        ):
            verify_checkpoint(saved)

    def test_files_exchanged_between_checkpoints_are_found(self, store: Store, saved: Path) -> None:
        """Equal in name and size, and from another step."""
        other = store.save("epoch_2", a_tree(2.0), step=20)
        shutil.copy(other / "model.safetensors", saved / "model.safetensors")

        with pytest.raises(CorruptCheckpointError, match=r"epoch_1/model\.safetensors has other bytes"):
            load_checkpoint(saved)

    def test_without_verification_only_digests_go_unseen(self, saved: Path) -> None:
        """It is asked for, and then a flipped bit in a tensor is loaded."""
        data = (saved / "model.safetensors").read_bytes()
        (saved / "model.safetensors").write_bytes(data[:-1] + b"\x40")

        assert str(load_checkpoint(saved, verify=False)) != str(a_tree())


class Payload:
    """What runs if anything unpickles it."""

    def __reduce__(self) -> Any:
        """Write a file that shows it."""
        return (Path.touch, (Path(os.environ["PAYLOAD"]),))


def lists(name: str, entry: object = None) -> Callable[[dict[str, Any]], object]:
    """A change to a manifest: one more file."""
    return lambda body: body["files"].update({name: entry or {"size": 0, "digest": ""}})


def says(**fields: object) -> Callable[[dict[str, Any]], object]:
    """A change to a manifest: other fields."""
    return lambda body: body.update(fields)


def piece_says(**fields: object) -> Callable[[dict[str, Any]], object]:
    """A change to a manifest: other fields of the first piece of the first tensor."""
    return lambda body: body["tensors"][0]["pieces"][0].update(fields)


class TestHostile:
    @pytest.mark.parametrize(
        ("change", "problem"),
        [
            (lists("../x"), "it lists '../x', which is not a plain file name."),
            (lists("/x"), "it lists '/x', which is not a plain file name."),
            (lists(".."), "it lists '..', which is not a plain file name."),
            (lists(""), "it lists '', which is not a plain file name."),
            (lists("MANIFEST.json"), "it lists 'MANIFEST.json', which is not a plain file name."),
            (lists("x", 3), "3 is where an object with 'size' belongs."),
            (lists("x", {"size": -1, "digest": ""}), "'size' is -1, less than 0."),
            (lists("x", {"size": 1.5, "digest": ""}), "'size' is 1.5, not of type int."),
            (
                lists("x", {"size": 2**63, "digest": ""}),
                f"'size' is {2**63}, and no file has more than {2**63 - 1} bytes.",
            ),
            (says(files=[]), "'files' is [], not of type dict."),
            (says(step=True), "'step' is True, not of type int."),
            (says(step="1" * 999), "'step' is '111111111111...1111111111111', not of type int."),
            (lambda body: body.pop("epoch"), "'epoch' is missing."),
            (says(created="yesterday"), "'created' is 'yesterday', not a time in UTC."),
            (says(created="2026-01-01T00:00:00Z"), "'created' is '2026-01-01T00:00:00Z', not a time in UTC."),
            (says(created="2026-01-01T00:00:00"), "'created' is '2026-01-01T00:00:00', not a time in UTC."),
            (says(versions={"torch": 2}), "'torch' is 2, not of type str."),
            (says(meta=None), "'meta' is None, not of type dict."),
            (says(format=None), "'format' is None, not of type int."),
            (says(tensors={}), "'tensors' is {}, not of type list."),
            (lambda body: body["tensors"][0].update(shape=[-1]), "'shape' is -1, less than 0."),
            (piece_says(file="x"), "a tensor lies in 'x', which it doesn't list."),
            (piece_says(offsets=[]), "a chunk of shape [4, 3] is no part of a tensor of shape [4, 3]."),
            (piece_says(offsets=[1, 0]), "a chunk of shape [4, 3] reaches out of a tensor of shape [4, 3]."),
        ],
    )
    def test_a_manifest_that_was_never_written_is_refused(self, saved: Path, change: Any, problem: str) -> None:
        """Though its own digest is right, every field is checked before it is used."""
        resign(saved, change)

        message = f"{saved / MANIFEST_NAME} is not a manifest: {problem}"
        with pytest.raises(CorruptCheckpointError, match=f"^{re.escape(message)}$"):
            load_checkpoint(saved)

    @pytest.mark.parametrize("text", ["", "\udcff", "[]", "{}", '{"digest":"0"}', "[" * 100_000, "}" * 46])
    def test_a_manifest_that_does_not_end_in_its_own_digest_is_refused(self, saved: Path, text: str) -> None:
        """Before it is parsed."""
        (saved / MANIFEST_NAME).write_bytes(text.encode(errors="surrogateescape"))
        problem = "is not a manifest: it doesn't end in the digest of all that it holds before."

        with pytest.raises(CorruptCheckpointError, match=f"^{re.escape(f'{saved / MANIFEST_NAME} {problem}')}$"):
            verify_checkpoint(saved)

    @pytest.mark.parametrize(
        "change",
        [
            pytest.param(lambda text: text.replace(": ", ":  ", 1), id="space"),
            pytest.param(lambda text: text.replace("1e-05", "1E-05"), id="number"),
            pytest.param(lambda text: text.replace("\\u00e9", "\\u00E9"), id="letter"),
            pytest.param(lambda text: text[:-34] + text[-34:].upper(), id="digest"),
            pytest.param(lambda text: text + "\n", id="end"),
        ],
    )
    def test_a_manifest_that_says_the_same_in_other_bytes_is_refused(self, saved: Path, change: Any) -> None:
        """Some flipped bits leave its meaning as it was; they are damage all the same."""
        resign(saved, says(meta={"lr": 1e-05, "who": "\xe9"}))
        text = (saved / MANIFEST_NAME).read_text()
        verify_checkpoint(saved)
        (saved / MANIFEST_NAME).write_text(change(text))
        assert change(text) != text

        with pytest.raises(CorruptCheckpointError, match="it doesn't end in the digest of all that it holds before"):
            verify_checkpoint(saved)

    def test_a_manifest_of_an_earlier_version_is_read(self, tmp_path: Path) -> None:
        """Byte for byte as the first release wrote it."""
        (tmp_path / MANIFEST_NAME).write_text(
            '{"created":"2026-01-01T00:00:00+00:00","epoch":1,"files":{},"format":1,"meta":{"a":[1.5,"\\u00e9"]},"step":2,'
            '"tensors":[],"versions":{},"digest":"3d66b1c11a187a2826a04ba88ec25919"}'
        )
        manifest = Manifest(2, 1, "2026-01-01T00:00:00+00:00", {}, {}, (), {"a": [1.5, "\xe9"]})

        assert read_manifest(tmp_path) == manifest
        (tmp_path / "again").mkdir()
        write_manifest(tmp_path / "again", manifest)
        assert (tmp_path / "again" / MANIFEST_NAME).read_bytes() == (tmp_path / MANIFEST_NAME).read_bytes()

    @pytest.mark.parametrize(
        ("text", "problem"),
        [
            ('{"step": NaN}', "is not JSON: NaN is no JSON number."),
            ('{"x": 1e999}', "is not JSON: '1e999' is more than a float holds."),
            ('{"x": 1, "x": 1}', "is not JSON: an object has a key twice."),
            ('{"x": \udcff}', "is not JSON: 'utf-8' codec can't decode"),
            ('{"x":' * 100_000 + "}" * 100_000, "is not JSON: maximum recursion depth exceeded"),
            ("[1]", "is not JSON: "),
            ("{}", "is not a manifest: 'format' is missing."),
            ('{"step":1}', "is not a manifest: 'format' is missing."),
        ],
    )
    def test_a_manifest_that_is_none_is_refused(self, saved: Path, text: str, problem: str) -> None:
        """Neither bytes nor nesting end in anything but this error, though its own digest is right."""
        data = text.encode(errors="surrogateescape")
        end = f',"digest":"{xxhash.xxh3_128_hexdigest(data[:-1] + b"}")}"}}'.encode()
        (saved / MANIFEST_NAME).write_bytes(data[:-1] + end)

        with pytest.raises(CorruptCheckpointError, match=re.escape(f"{saved / MANIFEST_NAME} {problem}")):
            verify_checkpoint(saved)

    @pytest.mark.parametrize(("name", "limit"), [(MANIFEST_NAME, 64 * 2**20), ("state.json", 256 * 2**20)])
    def test_a_huge_file_is_refused_before_it_is_read(self, saved: Path, name: str, limit: int) -> None:
        """A sparse file of no size on disk and gigabytes when read."""
        os.truncate(saved / name, 2**34)
        if name != MANIFEST_NAME:
            resign(saved, lambda body: body["files"][name].update(size=2**34))

        with pytest.raises(CorruptCheckpointError, match=f"has {2**34} bytes, more than the {limit} that are read"):
            load_checkpoint(saved, verify=False)

    def test_another_format_is_not_called_damage(self, saved: Path) -> None:
        """A newer version may have written it."""
        resign(saved, lambda body: body.update(format=2))
        message = f"{saved / MANIFEST_NAME} has format 2, and this version of eventrunner reads format 1."

        with pytest.raises(CheckpointError, match=f"^{re.escape(message)}$") as caught:
            verify_checkpoint(saved)
        assert not isinstance(caught.value, CorruptCheckpointError)

    @pytest.mark.parametrize("name", FILES)
    def test_a_pickle_in_any_files_place_is_never_run(
        self, saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
    ) -> None:
        """Though the manifest vouches for it."""
        monkeypatch.setenv("PAYLOAD", str(tmp_path / "ran"))
        if name == MANIFEST_NAME:
            (saved / name).write_bytes(pickle.dumps(Payload()))
        else:
            replace_file(saved, name, pickle.dumps(Payload()))

        with pytest.raises(CorruptCheckpointError, match=re.escape(str(saved / name))):
            load_checkpoint(saved)
        assert not (tmp_path / "ran").exists()

    @pytest.mark.parametrize(
        ("text", "problem"),
        [
            ("[1]", "is no JSON object."),
            ('{"x": Infinity}', "is not JSON: Infinity is no JSON number."),
            ('{"x": {"$": "pickle"}}', "is not a document that can be decoded (KeyError: 'pickle')."),
            (
                '{"x": {"$": "tensor", "file": "../other/model.safetensors", "name": "w"}}',
                "is not a document that can be decoded (KeyError: '../other/model.safetensors').",
            ),
        ],
    )
    def test_a_document_that_was_never_written_is_refused(self, saved: Path, text: str, problem: str) -> None:
        """Though the manifest vouches for it."""
        replace_file(saved, "state.json", text.encode())

        with pytest.raises(CorruptCheckpointError, match=f"^{re.escape(f'{saved}/state.json {problem}')}$"):
            load_checkpoint(saved)

    def test_a_manifest_too_large_to_be_read_is_not_written(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A checkpoint that nobody could load would not be one."""
        monkeypatch.setattr("eventrunner.checkpoint.manifest._LIMIT", 100)
        manifest = Manifest(0, 0, "2026-01-01T00:00:00+00:00", {}, {}, (), {})

        with pytest.raises(
            CheckpointError, match=r"^the manifest would have \d+ bytes, more than the 100 that are read\.$"
        ):
            write_manifest(tmp_path, manifest)
        assert list(tmp_path.iterdir()) == []

    def test_a_state_too_large_to_be_read_is_not_written(self, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
        """The error says what to do instead."""
        monkeypatch.setattr("eventrunner.checkpoint.contents.STATE_LIMIT", 100)
        message = (
            "state.json would have 109 bytes, more than the 100 that are read again; put large lists of numbers into "
            "tensors."
        )

        with pytest.raises(CheckpointError, match=f"^{re.escape(message)}$"):
            store.save("a", {"x": "x" * 100}, step=1)
        assert not store.folder.exists()


class TestNotFound:
    def test_the_error_names_the_checkpoints_nearby(self, store: Store, saved: Path) -> None:
        """And the nearest spelling."""
        message = (
            f"nothing is at {store.folder}/epoch_11; the checkpoints in {store.folder} are epoch_1; did you mean "
            "'epoch_1'?"
        )
        for read in (load_checkpoint, load_weights, verify_checkpoint):
            with pytest.raises(CheckpointNotFoundError, match=f"^{re.escape(message)}$"):
                read(store.folder / "epoch_11")

    def test_the_folder_of_checkpoints_is_not_one_of_them(self, store: Store) -> None:
        """Those in it are named, the newest of many."""
        for step in range(10):
            store.save(f"iter_{step}", {}, step=step)
        message = (
            f"{store.folder} is no checkpoint, as it has no MANIFEST.json; the checkpoints in {store.folder} are "
            f"{', '.join(f'iter_{step}' for step in range(2, 10))} and 2 older."
        )

        for read in (load_checkpoint, load_weights, verify_checkpoint):
            with pytest.raises(CheckpointNotFoundError, match=f"^{re.escape(message)}$"):
                read(store.folder)

    def test_where_there_is_none_the_error_says_so(self, tmp_path: Path) -> None:
        """It is a FileNotFoundError too."""
        message = f"nothing is at {tmp_path}/x, and there is no checkpoint in {tmp_path}."

        with pytest.raises(FileNotFoundError, match=f"^{re.escape(message)}$"):
            load_checkpoint(tmp_path / "x")


class TestLoad:
    def test_what_was_loaded_needs_the_folder_no_more(self, store: Store, saved: Path) -> None:
        """Its tensors own their memory, each its own."""
        loaded = load_checkpoint(saved)
        other = load_checkpoint(saved)
        store.delete("epoch_1")
        loaded["state_dict"]["layer.weight"].zero_()

        assert loaded["rng"].tolist() == [1] * 5
        assert loaded["state_dict"]["layer.weight"].untyped_storage().nbytes() == 48
        assert torch.equal(other["state_dict"]["layer.weight"], torch.ones(4, 3))

    def test_tensors_go_to_the_device_that_is_asked_for(self, saved: Path) -> None:
        """All of them; the meta device stands for any other."""
        loaded = load_checkpoint(saved, map_location=torch.device("meta"))

        assert loaded["state_dict"]["layer.weight"].is_meta
        assert loaded["rng"].is_meta

    @pytest.mark.parametrize("device", ["moon", None])
    def test_a_device_that_is_none_is_refused(self, saved: Path, device: Any) -> None:
        """Before anything is read."""
        message = f"map_location={device!r} is not a device such as 'cpu' or 'cuda:0'."
        with pytest.raises(OptionError, match=f"^{re.escape(message)}$"):
            load_checkpoint(saved, map_location=device)

    def test_a_file_with_a_dtype_that_torch_lacks_is_refused(self, saved: Path) -> None:
        """Half a byte per element, and an odd number of them."""
        header = json.dumps({"x": {"dtype": "F4", "shape": [2, 3], "data_offsets": [0, 3]}}).encode()
        replace_file(saved, "state.safetensors", len(header).to_bytes(8, "little") + header + b"abc")

        with pytest.raises(
            CorruptCheckpointError, match=r"state\.safetensors is not a safetensors file that can be read"
        ):
            load_checkpoint(saved)


class TestWeights:
    def test_they_come_from_a_checkpoints_folder(self, store: Store) -> None:
        """With ties, the modules' versions and the names that they were saved with."""
        model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
        state = model.state_dict()
        state["tied"] = state["0.weight"]
        path = store.save("a", {"state_dict": state, "optimizer": {"x": torch.ones(1)}}, step=1)

        weights = load_weights(path)

        assert list(weights) == list(state)
        assert weights["tied"] is weights["0.weight"]
        assert weights._metadata == state._metadata  # type: ignore[attr-defined]

    def test_a_damage_in_the_optimizers_state_does_not_matter_to_them(self, saved: Path) -> None:
        """Its file isn't read; the model's is, and is verified."""
        data = (saved / "optimizer.safetensors").read_bytes()
        (saved / "optimizer.safetensors").write_bytes(data[:-1] + b"\x01")
        assert torch.equal(load_weights(saved)["layer.weight"], torch.ones(4, 3))

        data = (saved / "model.safetensors").read_bytes()
        (saved / "model.safetensors").write_bytes(data[:-1] + b"\x01")
        with pytest.raises(CorruptCheckpointError, match=r"model\.safetensors has other bytes"):
            load_weights(saved)

    def test_a_checkpoint_without_any_is_an_error(self, store: Store) -> None:
        """The sentence says why."""
        path = store.save("a", {"epoch": 1}, step=1)

        with pytest.raises(CheckpointError, match=r"a has no weights, as it was saved without a 'state_dict'\.$"):
            load_weights(path)

    def test_a_checkpoint_with_something_else_in_their_place_is_an_error(self, store: Store) -> None:
        """The sentence says what."""
        path = store.save("a", {"state_dict": [1]}, step=1)

        with pytest.raises(CheckpointError, match=r"a has a list as 'state_dict', where weights are a dict\.$"):
            load_weights(path)

    def test_what_is_no_file_is_not_waited_for(self, tmp_path: Path) -> None:
        """Opening a pipe would block for ever."""
        os.mkfifo(tmp_path / "w.pth")

        with pytest.raises(CheckpointError, match=r"^can't load weights from .*w\.pth, as it is not a plain file\.$"):
            load_weights(tmp_path / "w.pth")

    def test_they_come_from_a_safetensors_file_wherever_it_came_from(self, saved: Path, tmp_path: Path) -> None:
        """A link to it will do."""
        (tmp_path / "w.safetensors").symlink_to(saved / "model.safetensors")

        assert sorted(load_weights(tmp_path / "w.safetensors")) == ["layer.bias", "layer.weight"]

    @pytest.mark.parametrize("suffix", [".pth", ".pt", ".bin"])
    @pytest.mark.parametrize("nested", [True, False])
    def test_they_come_from_a_file_of_torch_save(self, tmp_path: Path, suffix: str, nested: bool) -> None:
        """From its state_dict if it has one; no prefix is taken off."""
        weights = {"module.w": torch.ones(2)}
        torch.save({"state_dict": weights, "meta": {"epoch": 1}} if nested else weights, tmp_path / f"w{suffix}")

        loaded = load_weights(tmp_path / f"w{suffix}")

        assert list(loaded) == ["module.w"]
        assert torch.equal(loaded["module.w"], torch.ones(2))

    def test_a_pickle_with_more_than_tensors_is_refused_and_not_run(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The sentence says what to do."""
        monkeypatch.setenv("PAYLOAD", str(tmp_path / "ran"))
        torch.save({"w": torch.ones(1), "x": Payload()}, tmp_path / "w.pth")
        message = (
            f"can't load weights from {tmp_path}/w.pth, as it is damaged or holds more than tensors and plain "
            "containers; save its state_dict alone with torch.save, or as a .safetensors file."
        )

        with pytest.raises(CheckpointError, match=f"^{re.escape(message)}$"):
            load_weights(tmp_path / "w.pth")
        assert not (tmp_path / "ran").exists()

    @pytest.mark.parametrize("data", [b"", b"garbage", b"PK\x03\x04"])
    def test_a_damaged_file_is_an_error_of_the_checkpoint(self, tmp_path: Path, data: bytes) -> None:
        """Not any of those that torch has for it."""
        (tmp_path / "w.pth").write_bytes(data)
        (tmp_path / "w.safetensors").write_bytes(data)

        with pytest.raises(CheckpointError, match="as it is damaged or holds more"):
            load_weights(tmp_path / "w.pth")
        with pytest.raises(CorruptCheckpointError, match="is not a safetensors file"):
            load_weights(tmp_path / "w.safetensors")

    def test_a_file_that_holds_no_dict_is_an_error(self, tmp_path: Path) -> None:
        """One tensor has no name."""
        torch.save(torch.ones(1), tmp_path / "w.pth")

        with pytest.raises(CheckpointError, match=r"w\.pth holds a Tensor, where weights are a dict by name\.$"):
            load_weights(tmp_path / "w.pth")

    def test_a_file_with_more_than_weights_is_an_error(self, tmp_path: Path) -> None:
        """The first that is no tensor is named."""
        torch.save({"w": torch.ones(1), "epoch": 3}, tmp_path / "w.pth")
        message = (
            f"{tmp_path}/w.pth holds a int under 'epoch', where weights are tensors by name, or such a dict under "
            "'state_dict'."
        )

        with pytest.raises(CheckpointError, match=f"^{re.escape(message)}$"):
            load_weights(tmp_path / "w.pth")

    def test_a_file_with_another_suffix_is_refused(self, tmp_path: Path) -> None:
        """The sentence lists those that are read."""
        (tmp_path / "w.onnx").touch()
        message = (
            f"can't load weights from {tmp_path}/w.onnx, as it is neither a checkpoint's folder nor a file that ends "
            "in .safetensors, .pth, .pt, .bin."
        )

        with pytest.raises(OptionError, match=f"^{re.escape(message)}$"):
            load_weights(tmp_path / "w.onnx")


class TestPackage:
    def test_every_public_name_is_there(self) -> None:
        """Each is imported when it is asked for."""
        for name in eventrunner.checkpoint.__all__:
            assert getattr(eventrunner.checkpoint, name).__name__ == name

    def test_a_name_that_is_not_there_is_an_attribute_error(self) -> None:
        """As of any module."""
        with pytest.raises(AttributeError, match=r"^module 'eventrunner\.checkpoint' has no attribute 'Stor'$"):
            eventrunner.checkpoint.Stor  # noqa: B018

    def test_verifying_needs_no_torch(self, saved: Path) -> None:
        """So that a command line can list and verify at once."""
        script = (
            "import sys; from eventrunner.checkpoint import find_newest; print(find_newest(sys.argv[1]).path.name);"
            "assert not {'torch', 'numpy'} & set(sys.modules)"
        )
        done = subprocess.run([sys.executable, "-c", script, saved.parent], capture_output=True, text=True, check=True)

        assert done.stdout == "epoch_1\n"

    @pytest.mark.slow
    def test_saving_and_loading_need_no_numpy(self, tmp_path: Path) -> None:
        """With numpy out of reach, which torch itself would import if it could."""
        script = (
            "import sys, warnings; sys.modules['numpy'] = None; warnings.simplefilter('ignore');"
            "import torch; from eventrunner.checkpoint import Store, load_checkpoint;"
            "path = Store(sys.argv[1]).save('a', {'state_dict': {'w': torch.arange(3.0)}}, step=1);"
            "print(load_checkpoint(path));"
            "assert not [name for name in sys.modules if name.startswith(('numpy.', 'safetensors.numpy'))]"
        )
        done = subprocess.run([sys.executable, "-c", script, tmp_path], capture_output=True, text=True, check=True)

        assert done.stdout == "{'state_dict': {'w': tensor([0., 1., 2.])}}\n"


KILLS = """
import os, random, signal, sys, time
import torch
from eventrunner.checkpoint.store import Store

torch.set_num_threads(1)


def save_without_end(folder, acknowledged):
    store = Store(folder)
    for step in range(1, 10**6):
        tree = {"state_dict": {"w": torch.full((3000,), float(step))}, "optimizer": {"m": torch.ones(9)}, "step": step}
        store.save(f"iter_{step}", tree, step=step)
        store.save("last", tree, step=step)
        store.link("best", f"iter_{step}")
        if step > 2:
            store.delete(f"iter_{step - 2}")
        os.write(acknowledged, step.to_bytes(4, "big"))


for seed in range(12):
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        save_without_end(f"{sys.argv[1]}/{seed}", writer)
    os.close(writer)
    seen = os.read(reader, 4)
    time.sleep(random.Random(seed).uniform(0, 0.05))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    while more := os.read(reader, 4):
        seen = more
    print(int.from_bytes(seen, "big"))
"""


class TestKilled:
    @pytest.mark.slow
    def test_whenever_a_process_is_killed_all_that_is_visible_is_whole(self, tmp_path: Path) -> None:
        """Twelve seeded moments in a loop of saves, replacements, twins and deletes; what was acknowledged is there."""
        done = subprocess.run([sys.executable, "-c", KILLS, tmp_path], capture_output=True, text=True, check=True)
        acknowledged = [int(line) for line in done.stdout.split()]

        assert len(acknowledged) == 12
        for seed, step in enumerate(acknowledged):
            store = Store(tmp_path / str(seed))
            steps = {name: read_manifest(store.path(name)).step for name in store.names()}
            assert max(steps.values()) >= step, f"seed {seed}"
            for name, saved_step in steps.items():
                loaded = load_checkpoint(store.path(name))
                assert loaded["step"] == saved_step, f"seed {seed}"
                assert loaded["state_dict"]["w"].unique().tolist() == [saved_step], f"seed {seed}"
            assert find_newest(store.folder).rejected == (), f"seed {seed}"

            store.clean()
            assert hidden(store.folder) == [], f"seed {seed}"
            assert {"last", "best"} <= set(store.names()), f"seed {seed}"
            assert (store.folder / "last_checkpoint").exists(), f"seed {seed}"
            verify_checkpoint(store.path("last"))
            verify_checkpoint(store.path("best"))
