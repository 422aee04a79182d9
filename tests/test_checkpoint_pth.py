"""Checkpoints of one file of torch.save: the same promises, for programs that read nothing else."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import pickle
import random
import re
import resource
import zipfile
from collections import Counter, OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from archives import ended
from conftest import MakeRunner
from tiny import same
from torch import nn

from eventrunner.checkpoint.load import load_checkpoint, load_weights
from eventrunner.checkpoint.manifest import MANIFEST_NAME, FileEntry, read_manifest, write_manifest
from eventrunner.checkpoint.plan import encode
from eventrunner.checkpoint.staging import stage
from eventrunner.checkpoint.store import Store
from eventrunner.checkpoint.verify import find_newest, is_checkpoint, listing, verify_checkpoint
from eventrunner.errors import CheckpointError, CheckpointNotFoundError, CorruptCheckpointError, OptionError
from eventrunner.files import disk
from eventrunner.hooks import EMAHook
from eventrunner.session.saves import gather

FILES = ["MANIFEST.json", "checkpoint.pth"]


def a_tree(value: float = 1.0) -> dict[str, Any]:
    """Tensors and the rest, all of it saying *value*."""
    return {
        "state_dict": {"weight": torch.full((4, 3), value), "bias": torch.zeros(3)},
        "optimizer": {"state": {0: {"exp_avg": torch.full((2,), value)}}, "param_groups": [{"lr": value}]},
        "value": value,
    }


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """A store in a folder that nothing has made yet."""
    return Store(tmp_path / "checkpoints")


@pytest.fixture
def saved(store: Store) -> Path:
    """One checkpoint."""
    return store.save("epoch_1", a_tree(), step=10, epoch=1, meta={"reasons": ["interval"]}, format="pth")


def vouch(folder: Path, data: bytes) -> None:
    """Put other bytes in the file's place and make the manifest agree."""
    (folder / "checkpoint.pth").unlink()
    size, digest = disk.write_image(folder / "checkpoint.pth", memoryview(data))
    manifest = read_manifest(folder)
    (folder / MANIFEST_NAME).unlink()
    write_manifest(folder, dataclasses.replace(manifest, files={"checkpoint.pth": FileEntry(size, digest)}))


def pickled(value: object) -> bytes:
    """What torch.save makes of it."""
    file = io.BytesIO()
    torch.save(value, file)
    return file.getvalue()


class TestSave:
    def test_what_was_saved_is_loaded(self, saved: Path) -> None:
        """In the tree that it came from."""
        assert str(load_checkpoint(saved)) == str(a_tree())

    def test_it_is_one_file_that_any_program_with_torch_reads(self, saved: Path) -> None:
        """Beside the manifest; weights_only is enough."""
        assert sorted(path.name for path in saved.iterdir()) == FILES
        assert str(torch.load(saved / "checkpoint.pth", weights_only=True)) == str(a_tree())

    def test_the_manifest_vouches_for_the_file(self, saved: Path) -> None:
        """By size and digest; a list of tensors is in the file itself."""
        manifest = verify_checkpoint(saved)

        assert list(manifest.files) == ["checkpoint.pth"]
        assert manifest.files["checkpoint.pth"].size == (saved / "checkpoint.pth").stat().st_size
        assert (manifest.step, manifest.epoch, manifest.meta) == (10, 1, {"reasons": ["interval"]})
        assert manifest.tensors == ()

    @pytest.mark.slow
    def test_a_runs_whole_state_is_taken(self, make_runner: MakeRunner, store: Store) -> None:
        """With everything that has a state, after some training."""
        model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Linear(3, 1))
        runner = make_runner(model=model, val=True, custom_hooks=[EMAHook(momentum=0.1)])
        runner.train()
        tree = gather(runner)

        loaded = load_checkpoint(store.save("a", tree, step=4, format="pth"))

        assert same(loaded, tree)
        assert {"numpy", "python", "torch"} <= loaded["rng"].keys()
        assert loaded["state_dict"]._metadata == tree["state_dict"]._metadata

    @pytest.mark.parametrize(
        "value",
        [
            *(None, True, -(2**63), 2**2000, -0.0, float("inf"), "text", "\ud800", b"\x00\xff", 1 + 2j, (1, (2,)), []),
            *({"$": 1}, {(1, "a"): {None: 2}}, Counter({30: 2}), {1, 2}, torch.Size([2]), torch.bfloat16),
            *(torch.device("cuda:1"), OrderedDict(b=1, a=2)),
        ],
        ids=repr,
    )
    def test_plain_values_come_back_as_they_were(self, store: Store, value: Any) -> None:
        """In type and content, as from the other format; and an OrderedDict as a dict."""
        path, other = (store.save(kind, {"x": value}, step=1, format=kind) for kind in ("pth", "safetensors"))

        found, expected = load_checkpoint(path)["x"], load_checkpoint(other)["x"]
        assert type(found) is type(expected)
        assert repr(found) == repr(expected)

    @pytest.mark.parametrize(
        "tensor",
        [
            pytest.param(torch.zeros(0, 3), id="empty"),
            pytest.param(torch.tensor(3.5), id="no dimensions"),
            pytest.param(torch.randn(2, 3, dtype=torch.complex128), id="complex128"),
            pytest.param(torch.randn(2, 3).to(torch.float8_e4m3fn), id="float8"),
            pytest.param(torch.tensor([1, 2**16 - 1], dtype=torch.uint16), id="uint16"),
            pytest.param(torch.tensor([True, False]), id="bool"),
            pytest.param(torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last), id="channels_last"),
        ],
    )
    def test_tensors_come_back_as_they_were(self, store: Store, tensor: torch.Tensor) -> None:
        """Dtype, shape, order in memory and every bit."""
        loaded = load_checkpoint(store.save("a", {"x": tensor, "y": torch.ones(3)}, step=1, format="pth"))["x"]

        assert (loaded.dtype, loaded.shape, loaded.stride()) == (tensor.dtype, tensor.shape, tensor.stride())
        assert pickled(loaded.contiguous().reshape(-1).view(torch.uint8).tolist()) == pickled(
            tensor.contiguous().reshape(-1).view(torch.uint8).tolist()
        )

    @pytest.mark.parametrize(
        "value",
        [
            *(np.float32(1.5), np.uint64(2**64 - 1), np.float64("inf"), np.complex64(1 + 2j), np.bool_(True)),
            *(np.str_("a"), np.bytes_(b"\x00a"), np.array(3), np.arange(6).reshape(2, 3), np.zeros(0, dtype=np.int8)),
        ],
        ids=repr,
    )
    def test_what_is_numpys_comes_back_as_it_was(self, store: Store, value: Any) -> None:
        """Wherever it lies; torch alone reads the file, and finds there what the other format has for it."""
        tree = {"x": value, "y": {"$": "numpy", "z": [(value, {"$": value})]}, "z": OrderedDict(a={1: value})}
        path = store.save("a", tree, step=1, format="pth")

        loaded = load_checkpoint(path)
        assert repr(loaded) == repr({**tree, "z": {"a": {1: value}}})
        assert {type(each) for each in (loaded["x"], loaded["y"]["z"][0][0], loaded["z"]["a"][1])} == {type(value)}
        assert loaded["x"].dtype == value.dtype
        assert torch.load(path / "checkpoint.pth", weights_only=True)["x"]["$"] in ("numpy", "ndarray")

    @pytest.mark.parametrize("coalesced", [False, True])
    def test_a_sparse_tensor_comes_back_with_its_entries(self, store: Store, coalesced: bool) -> None:
        """As torch's own, for any program with torch."""
        indices = [[0, 2], [1, 0]] if coalesced else [[0, 0], [1, 1]]
        tensor = torch.sparse_coo_tensor(indices, [1.0, 2.0], (3, 3), is_coalesced=coalesced, check_invariants=True)
        path = store.save("a", {"state_dict": {"graph": tensor, "w": torch.ones(2)}}, step=1, format="pth")

        for loaded in (load_checkpoint(path), torch.load(path / "checkpoint.pth", weights_only=True)):
            found = loaded["state_dict"]["graph"]
            assert (found.shape, found.is_coalesced()) == (tensor.shape, coalesced)
            assert torch.equal(found._indices(), tensor._indices())
            assert torch.equal(found._values(), tensor._values())

    def test_two_names_of_one_tensor_stay_two_names_of_one(self, store: Store) -> None:
        """It is in the file once, and one object when it is loaded."""
        shared = torch.ones(10_000)
        path = store.save("a", {"state_dict": {"a": shared, "b": shared}, "c": [shared]}, step=1, format="pth")

        loaded = load_checkpoint(path)

        assert loaded["state_dict"]["a"] is loaded["state_dict"]["b"]
        assert loaded["state_dict"]["a"] is loaded["c"][0]
        assert (path / "checkpoint.pth").stat().st_size < 50_000

    def test_a_view_takes_the_space_of_its_own_elements(self, store: Store) -> None:
        """Ten numbers of four megabytes are forty bytes and what torch puts around them."""
        path = store.save("a", {"x": torch.zeros(1_000_000)[:10]}, step=1, format="pth")

        assert (path / "checkpoint.pth").stat().st_size < 3000

    def test_another_format_is_refused(self, store: Store) -> None:
        """Before anything is written."""
        message = "a checkpoint's format is 'safetensors' or 'pth', not 'pt'; did you mean 'pth'?"
        with pytest.raises(OptionError, match=f"^{re.escape(message)}$"):
            store.save("a", a_tree(), step=1, format="pt")
        with pytest.raises(OptionError, match=r"^a checkpoint's format is 'safetensors' or 'pth', not 'onnx'\.$"):
            store.commit("a", stage(encode({})), step=1, tree_format="onnx")
        assert not store.folder.exists()

    @pytest.mark.parametrize("size", [10, 1000, 100_000], ids=lambda size: f"{size} bytes")
    def test_a_save_that_does_not_fit_leaves_all_as_it_was(self, store: Store, saved: Path, size: int) -> None:
        """Wherever it fails, the error is the system's and not torch's, with a note; and the next save works."""
        tree = {"x": torch.ones(50_000), "y": torch.ones(50_000)}
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
        try:
            with pytest.raises(OSError, match="File too large") as caught:
                store.save("epoch_1", tree, step=11, format="pth")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

        assert caught.value.errno == 27
        assert caught.value.__notes__ == [
            f"The checkpoint 'epoch_1' in {store.folder} was not saved; older ones are as they were."
        ]
        assert sorted(path.name for path in store.folder.iterdir()) == ["epoch_1", "last_checkpoint"]
        assert load_checkpoint(saved)["value"] == 1.0
        assert same(load_checkpoint(store.save("epoch_1", tree, step=11, format="pth")), tree)


class TestRefused:
    @pytest.mark.parametrize(
        ("tree", "what"),
        [
            ({"x": {"y": [1, np.ones(2), (3, frozenset())]}}, "checkpoint['x']['y'][2][1] is of type frozenset"),
            ({"x": [*range(99), frozenset({1})], "y": 1}, "checkpoint['x'][99] is of type frozenset"),
            ({"x": 2**20000}, "checkpoint['x'] is of type int"),
            ({"a": 1, "x": {"y": {np.int64(3): 1}}}, "checkpoint['x']['y'] has a key"),
            ({"x": {frozenset(): 1}}, "checkpoint['x'] has a key"),
            ({"x": {np.int64(1)}}, "checkpoint['x'] is of type set"),
        ],
    )
    def test_what_could_not_be_loaded_is_refused_by_its_path(
        self, store: Store, tree: dict[str, Any], what: str
    ) -> None:
        """And nothing is written; the other format takes it."""
        message = (
            f"{what} that format='pth' can't hold, as torch.load(weights_only=True) refuses it; put plain numbers, "
            "strings and tensors there, or use format='safetensors'."
        )

        with pytest.raises(CheckpointError, match=f"^{re.escape(message)}$"):
            store.save("a", tree, step=1, format="pth")
        assert not store.folder.exists()
        store.save("a", tree, step=1)

    def test_a_refusal_in_a_modules_versions_is_found_too(self, store: Store) -> None:
        """They are part of a state_dict, if a hidden one."""
        state = nn.Linear(2, 2).state_dict()
        state._metadata["x"] = {"version": frozenset({1})}  # type: ignore[attr-defined]

        with pytest.raises(
            CheckpointError, match=r"^checkpoint\['state_dict'\] has a key that format='pth' can't hold"
        ):
            store.save("a", {"state_dict": state}, step=1, format="pth")


class TestStore:
    def test_a_newer_one_of_either_format_is_found(self, store: Store, saved: Path) -> None:
        """They lie side by side."""
        assert find_newest(store.folder).path == saved
        second = store.save("epoch_2", a_tree(2.0), step=20)
        assert find_newest(store.folder).path == second
        third = store.save("epoch_3", a_tree(3.0), step=30, format="pth")
        assert find_newest(store.folder).path == third
        assert store.names() == ["epoch_1", "epoch_2", "epoch_3"]

    def test_either_format_replaces_the_other(self, store: Store, saved: Path) -> None:
        """Of the old one nothing is left."""
        store.save("epoch_1", a_tree(2.0), step=10)
        assert MANIFEST_NAME in os.listdir(saved)
        assert "checkpoint.pth" not in os.listdir(saved)

        store.save("epoch_1", a_tree(3.0), step=10, format="pth")
        assert sorted(os.listdir(saved)) == FILES
        assert load_checkpoint(saved)["value"] == 3.0

    def test_a_twin_outlives_its_source(self, store: Store, saved: Path) -> None:
        """It is the same file under another name."""
        path = store.link("best", "epoch_1", meta={"score": 0.5})

        assert (path / "checkpoint.pth").samefile(saved / "checkpoint.pth")
        store.delete("epoch_1")
        assert verify_checkpoint(path).meta == {"reasons": ["interval"], "score": 0.5}
        assert load_checkpoint(path)["value"] == 1.0

    def test_a_folder_that_only_looks_like_one_is_never_touched(self, store: Store, saved: Path) -> None:
        """Other programs write a checkpoint.pth too; it is told of, and neither replaced nor deleted."""
        (store.folder / "mine").mkdir()
        torch.save({}, store.folder / "mine" / "checkpoint.pth")

        with pytest.raises(CheckpointError, match="is there and is no checkpoint; move it"):
            store.save("mine", a_tree(), step=11, format="pth")
        with pytest.raises(CheckpointNotFoundError):
            store.delete("mine")
        assert is_checkpoint(store.folder / "mine")
        missing = f"{store.folder}/mine/MANIFEST.json is missing."
        assert listing(store.folder).unreadable == ((store.folder / "mine", missing),)
        assert find_newest(store.folder).path == saved


class TestLoad:
    def test_weights_come_from_it(self, store: Store) -> None:
        """With ties, the modules' versions and the names that they were saved with."""
        state = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)).state_dict()
        state["tied"] = state["0.weight"]
        path = store.save("a", {"state_dict": state, "optimizer": {"x": torch.ones(1)}}, step=1, format="pth")

        weights = load_weights(path)

        assert list(weights) == list(state)
        assert weights["tied"] is weights["0.weight"]
        assert weights._metadata == state._metadata  # type: ignore[attr-defined]
        assert list(load_weights(path / "checkpoint.pth")) == list(state)

    def test_one_without_weights_is_an_error(self, store: Store) -> None:
        """The sentence says why."""
        path = store.save("a", {"epoch": 1}, step=1, format="pth")

        with pytest.raises(CheckpointError, match=r"a has no weights, as it was saved without a 'state_dict'\.$"):
            load_weights(path)

    def test_tensors_go_to_the_device_that_is_asked_for(self, saved: Path) -> None:
        """The meta device stands for any other."""
        assert load_checkpoint(saved, map_location="meta")["state_dict"]["weight"].is_meta

    @pytest.mark.parametrize("read", [load_checkpoint, load_weights, verify_checkpoint])
    def test_a_flipped_bit_is_found_and_the_file_named(self, saved: Path, read: Any) -> None:
        """Torch itself would load it."""
        file = saved / "checkpoint.pth"
        whole = file.read_bytes()
        message = f"{file} has other bytes than were committed, by their xxh3 digest."
        for bit in random.Random(0).sample(range(8 * len(whole)), 40):
            data = bytearray(whole)
            data[bit // 8] ^= 1 << bit % 8
            file.write_bytes(data)

            with pytest.raises(CorruptCheckpointError, match=f"^{re.escape(message)}$"):
                read(saved)

    @pytest.mark.parametrize("read", [load_checkpoint, load_weights])
    def test_a_truncated_a_longer_or_no_file_is_found(self, saved: Path, read: Any) -> None:
        """By its size, before it is read."""
        file = saved / "checkpoint.pth"
        whole = file.read_bytes()
        for data in (b"", whole[:-1], whole + b"x"):
            file.write_bytes(data)
            with pytest.raises(
                CorruptCheckpointError, match=rf"checkpoint\.pth has {len(data)} bytes, and {len(whole)}"
            ):
                read(saved)
        file.unlink()
        with pytest.raises(CorruptCheckpointError, match=r"checkpoint\.pth is missing\.$"):
            read(saved)

    def test_without_verification_only_the_digest_goes_unseen(self, saved: Path) -> None:
        """It is asked for, and then a flipped bit in a tensor is loaded."""
        file = saved / "checkpoint.pth"
        file.write_bytes(file.read_bytes().replace(torch.ones(12).numpy().tobytes(), torch.zeros(12).numpy().tobytes()))

        assert load_checkpoint(saved, verify=False)["state_dict"]["weight"].sum() == 0


class Payload:
    """What runs if anything unpickles it."""

    def __init__(self, call: Any, *arguments: Any) -> None:
        self.call, self.arguments = call, arguments

    def __reduce__(self) -> Any:
        """The call, and not what it is made of."""
        return (self.call, self.arguments)


def in_an_archive(data: bytes) -> bytes:
    """A pickle where torch.save puts its own."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("archive/data.pkl", data)
        archive.writestr("archive/version", "3\n")
        archive.writestr("archive/byteorder", "little")
    return ended(file.getvalue())


def sizes_of(data: bytes) -> tuple[bytes, bytes]:
    """The last entry of an archive's table, and the same with a size of gigabytes."""
    entry = data[data.rindex(b"PK\x01\x02") : data.rindex(b"PK\x06\x06")]
    return entry, entry[:20] + b"\x00\x00\x00\x7f" * 2 + entry[28:]


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
class TestHostile:
    @pytest.mark.parametrize("wrap", [bytes, in_an_archive], ids=["bare", "in an archive"])
    @pytest.mark.parametrize("protocol", [2, 4])
    @pytest.mark.parametrize(
        ("call", "arguments"),
        [
            (os.system, ("touch ran",)),
            (eval, ("open('ran', 'w')",)),
            (exec, ("open('ran', 'w')",)),
            (Path.touch, (Path("ran"),)),
            (os.mkdir, ("ran",)),
            (torch.load, ("ran",)),
        ],
        ids=lambda value: getattr(value, "__name__", "with"),
    )
    def test_a_pickle_is_never_run(
        self, saved: Path, tmp_path: Path, call: Any, arguments: Any, protocol: int, wrap: Any
    ) -> None:
        """Though the manifest vouches for it."""
        vouch(saved, wrap(pickle.dumps({"x": Payload(call, *arguments)}, protocol)))

        for read in (load_checkpoint, load_weights):
            with pytest.raises(CorruptCheckpointError, match=re.escape(f"{saved}/checkpoint.pth can't be read with ")):
                read(saved)
        assert os.listdir(tmp_path) == ["checkpoints"]

    @pytest.mark.parametrize(
        ("change", "problem"),
        [
            pytest.param(
                lambda made, data: made.writestr("archive/data.pkl", data, zipfile.ZIP_DEFLATED),
                "compressed",
                id="bomb",
            ),
            pytest.param(
                lambda made, data: [made.writestr(f"archive/{name}.pkl", data) for name in ("data", "DATA")],
                "a name twice",
                id="twice",
            ),
            pytest.param(lambda made, data: made.writestr("archive/x.pkl", data), "no pickle where", id="none"),
        ],
    )
    def test_an_archive_that_torch_save_does_not_write_is_refused(self, saved: Path, change: Any, problem: str) -> None:
        """Nothing in it is unpacked, so that it takes no more memory than it has bytes."""
        file = io.BytesIO()
        with zipfile.ZipFile(file, "w") as made:
            change(made, b"\x80\x02}.")
        vouch(saved, ended(file.getvalue()))

        with pytest.raises(CorruptCheckpointError, match=problem):
            load_checkpoint(saved)

    @pytest.mark.parametrize(
        ("change", "problem"),
        [
            pytest.param(lambda data, end: data[: end + 48] + b"\x7f" + data[end + 49 :], "doesn't end as", id="start"),
            pytest.param(lambda data, end: data[: end + 40] + b"\x7f" + data[end + 41 :], "doesn't end as", id="size"),
            pytest.param(lambda data, end: data[: end + 64] + b"\x7f" + data[end + 65 :], "doesn't end as", id="place"),
            pytest.param(lambda data, end: data + b"x", "doesn't end as", id="a comment"),
            pytest.param(lambda data, end: b"x" + data, "doesn't begin or end as", id="something before it"),
            pytest.param(lambda data, end: data.replace(*sizes_of(data)), "unpacks to more than the", id="more"),
        ],
    )
    def test_an_archive_that_lies_about_what_is_where_is_refused(self, saved: Path, change: Any, problem: str) -> None:
        """Before anything is read from there."""
        data = in_an_archive(b"\x80\x02}.")
        vouch(saved, change(data, data.rindex(b"PK\x06\x06")))

        with pytest.raises(CorruptCheckpointError, match=problem):
            load_checkpoint(saved)

    @pytest.mark.parametrize(
        ("data", "problem"),
        [
            pytest.param(
                b"c__builtin__\nbytearray\nJ\x00\x00\x00\x10\x85R.", "asks for '__builtin__ bytearray'", id="size"
            ),
            pytest.param(b"](K\x01eq\x00]c__builtin__\nset\nh\x00\x85Ra.", "copies one thing again", id="copies"),
            pytest.param(b"K\x01K\x02\x85R.", "calls what makes no part of a tree", id="no function"),
            pytest.param(b"ctorch\nTensor\nK\x02\x85R.", "asks for 'torch Tensor'", id="a tensor of nothing"),
            pytest.param(b"\x93.", "STACK_GLOBAL", id="another operation"),
        ],
    )
    def test_a_pickle_that_makes_more_than_it_holds_is_refused(self, saved: Path, data: bytes, problem: str) -> None:
        """Though it would execute nothing."""
        vouch(saved, in_an_archive(b"\x80\x02" + data))

        with pytest.raises(CorruptCheckpointError, match=problem):
            load_checkpoint(saved)

    def test_weights_of_other_programs_are_taken(self, tmp_path: Path) -> None:
        """Parameters, what is shared among them, and the files that torch.save wrote at first."""
        shared = (0.9, 0.999)
        weights = {"w": nn.Parameter(torch.ones(2)), "s": torch.ones(2).to_sparse(), "n": torch.arange(3)[1:]}
        tree = {"state_dict": weights, "a": shared, "b": shared, "c": {"x": b"ab"}, "d": {1, 2}}
        for archive in (True, False):
            torch.save(tree, tmp_path / "w.pth", _use_new_zipfile_serialization=archive)

            loaded = load_weights(tmp_path / "w.pth")

            assert loaded.keys() == weights.keys()
            assert loaded["n"].tolist() == [1, 2]

    def test_bytes_of_one_letter_are_one_object_and_no_copy(self, store: Store) -> None:
        """As Python has each of them once."""
        tree = {"x": [b"a", b"a", "a", "a"], "y": [torch.ones(1)] * 2}

        assert load_checkpoint(store.save("a", tree, step=1, format="pth"))["x"] == tree["x"]

    @pytest.mark.parametrize("data", [b"", b"garbage", b"PK\x03\x04", pickled({"x": torch.ones(3)})[:-200]])
    def test_what_torch_can_not_read_is_an_error_of_the_checkpoint(self, saved: Path, data: bytes) -> None:
        """Not any of those that torch has for it."""
        vouch(saved, data)

        with pytest.raises(CorruptCheckpointError, match="as it is damaged or wasn't written by a Store: "):
            load_checkpoint(saved)

    def test_something_else_than_a_tree_is_refused(self, saved: Path) -> None:
        """Though torch loads it."""
        vouch(saved, pickled([1]))

        with pytest.raises(
            CorruptCheckpointError, match=r"checkpoint\.pth holds a list, where a checkpoint is a dict\.$"
        ):
            load_checkpoint(saved)

    def test_damage_within_ends_in_no_other_error(self, saved: Path) -> None:
        """Two hundred seeded ways to break the pickle of a file that the manifest vouches for."""
        whole = (saved / "checkpoint.pth").read_bytes()
        begin = whole.index(b"state_dict") - 20
        draw = random.Random(1)
        outcomes = Counter()
        for _ in range(200):
            data = bytearray(whole)
            data[draw.randrange(begin, begin + 400)] = draw.randrange(256)
            (saved / "checkpoint.pth").write_bytes(data)
            try:
                load_checkpoint(saved, verify=False)
            except CorruptCheckpointError:
                outcomes["refused"] += 1
            else:
                outcomes["loaded"] += 1

        assert outcomes["refused"] > 50, json.dumps(outcomes)
