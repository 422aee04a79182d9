"""The bytes of a save's files: what other readers of safetensors find in them."""

from __future__ import annotations

import json
import struct
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load as load_safetensors

from eventrunner.checkpoint.layout import DTYPES, PAGE, Spec, entries_of, lay_out
from eventrunner.checkpoint.manifest import Chunk, TensorEntry
from eventrunner.checkpoint.plan import Encoded, encode
from eventrunner.checkpoint.staging import allocate, memory_of, stage

TREE = {
    "state_dict": {"a.weight": torch.arange(6.0).reshape(2, 3), "a.bias": torch.ones(3, dtype=torch.float64)},
    "optimizer": {"state": {0: {"step": torch.tensor(3, dtype=torch.int16)}}},
    "rng": torch.arange(5, dtype=torch.uint8),
    "epoch": 3,
}


class TestImages:
    def test_every_file_is_read_by_safetensors(self) -> None:
        """Names, dtypes, shapes and bits."""
        encoded = encode(TREE)
        image = stage(encoded)

        assert list(image.files) == ["model.safetensors", "optimizer.safetensors", "state.safetensors"]
        for file, data in image.files.items():
            back = load_safetensors(bytes(data))
            assert back.keys() == encoded.tensors[file].keys()
            for name, tensor in encoded.tensors[file].items():
                assert back[name].dtype == tensor.dtype
                assert torch.equal(back[name], tensor)

    @pytest.mark.parametrize("dtype", list(DTYPES), ids=str)
    def test_each_dtype_has_the_name_that_safetensors_gives_it(self, dtype: torch.dtype, tmp_path: Any) -> None:
        """Random bits come back in the same dtype."""
        bits = torch.randint(0, 2 if dtype == torch.bool else 256, (16,), dtype=torch.uint8)
        (tmp_path / "f.safetensors").write_bytes(stage(encode({"x": bits.view(dtype)})).files["state.safetensors"])

        with safe_open(tmp_path / "f.safetensors", framework="pt") as file:
            back = file.get_tensor("x")

        assert back.dtype == dtype
        assert torch.equal(back.view(torch.uint8), bits)

    def test_an_image_is_a_copy(self) -> None:
        """What is done to the tensors later doesn't reach it."""
        weight = torch.ones(2)
        image = stage(encode({"x": weight}))
        weight.zero_()

        assert load_safetensors(bytes(image.files["state.safetensors"]))["x"].tolist() == [1, 1]

    def test_a_tree_without_tensors_has_no_files(self) -> None:
        """Its document is all of it."""
        image = stage(encode({"epoch": 3}))

        assert (image.files, image.tensors, image.document, image.nbytes) == ({}, (), {"epoch": 3}, 0)

    def test_its_size_is_that_of_its_files(self) -> None:
        """Headers and padding included."""
        image = stage(encode({"x": torch.ones(3)}))

        assert image.nbytes == PAGE + 12

    def test_the_manifest_is_told_of_every_tensor(self) -> None:
        """Its dtype and shape in the file, and the one piece that it is."""
        entries = entries_of(encode({"x": torch.ones(2, 3), "z": torch.ones(1, dtype=torch.complex128)}).tensors)

        assert entries == (
            TensorEntry("x", "float32", (2, 3), (Chunk("state.safetensors", (0, 0), (2, 3)),)),
            TensorEntry("z", "uint8", (16,), (Chunk("state.safetensors", (0,), (16,)),)),
        )
        assert stage(encode(TREE)).tensors == entries_of(encode(TREE).tensors)

    def test_an_image_of_nothing_but_empty_tensors_has_a_file(self) -> None:
        """They have a name and a shape."""
        image = stage(Encoded({}, {"f": {"x": torch.empty(0, 3)}}))

        assert load_safetensors(bytes(image.files["f"]))["x"].shape == (0, 3)


class TestLayouts:
    def test_tensors_begin_at_a_page_and_follow_each_other_without_holes(self) -> None:
        """Those of large elements first, so that each is aligned."""
        specs = {
            "byte": Spec(torch.uint8, (3,), 3, 1),
            "wide": Spec(torch.uint8, (32,), 32, 16),
            "float": Spec(torch.float32, (2,), 8, 4),
        }

        layout = lay_out(specs)

        assert layout.places == {"wide": PAGE, "float": PAGE + 32, "byte": PAGE + 40}
        assert layout.nbytes == PAGE + 43

    @pytest.mark.parametrize("count", [1, 30, 60, 1000])
    def test_a_header_fills_whole_pages(self, count: int) -> None:
        """Its length is that of the JSON with its padding."""
        header = lay_out({f"tensor {i}": torch.empty(2) for i in range(count)}).header

        (length,) = struct.unpack("<Q", header[:8])
        assert len(header) == length + 8
        assert len(header) % PAGE == 0
        assert len(json.loads(header[8:])) == count + 1


class TestMemory:
    @pytest.mark.parametrize("nbytes", [0, 1, PAGE, 5_000_000])
    def test_memory_begins_at_a_page(self, nbytes: int) -> None:
        """And is all zeros, as the system gives it."""
        memory = allocate(nbytes)

        assert memory.nbytes == nbytes
        assert memory.data_ptr() % PAGE == 0
        assert not memory.any()

    def test_a_view_of_memory_keeps_it_alive(self) -> None:
        """Also when nobody else does."""
        view = memory_of(allocate(1_000_000).fill_(7))

        assert bytes(view[-2:]) == b"\7\7"
        assert view.nbytes == 1_000_000
