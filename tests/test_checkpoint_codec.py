"""A tree of state taken apart and put together again, through the JSON text that a file would hold."""

from __future__ import annotations

import io
import json
import re
import struct
import sys
import warnings
from collections import Counter, OrderedDict, defaultdict, namedtuple
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from eventrunner.checkpoint.codec import decode
from eventrunner.checkpoint.plan import encode
from eventrunner.errors import CheckpointError, CorruptCheckpointError

TAKES = (
    "which a checkpoint can't hold; it takes dense and sparse_coo tensors, numbers, strings, bytes, None and dicts, "
    "lists, tuples and sets of them."
)
NATIVE = [
    *(torch.bool, torch.uint8, torch.uint16, torch.uint32, torch.uint64),
    *(torch.int8, torch.int16, torch.int32, torch.int64),
    *(torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64),
    *(torch.float8_e4m3fn, torch.float8_e4m3fnuz, torch.float8_e5m2, torch.float8_e5m2fnuz),
]
AS_BYTES = [
    dtype
    for name in ("complex32", "complex128", "float8_e8m0fnu", "float4_e2m1fn_x2", "uint4", "int4", "bits8", "bits16")
    if (dtype := getattr(torch, name, None)) is not None
]


def there_and_back(tree: Mapping[str, Any]) -> dict[str, Any]:
    """The tree after a trip through standard JSON, and in memory of its own."""
    encoded = encode(tree)
    document = json.loads(json.dumps(encoded.document, allow_nan=False))
    tensors = {file: {name: tensor.clone() for name, tensor in held.items()} for file, held in encoded.tensors.items()}
    return decode(document, tensors)


def sparse(indices: list[list[int]], values: Tensor, *size: int) -> Tensor:
    """A sparse tensor."""
    return torch.sparse_coo_tensor(indices, values, size, check_invariants=True)


def components(tensor: Tensor) -> tuple[Any, ...]:
    """What a sparse tensor consists of."""
    return tuple(tensor.shape), tensor.is_coalesced(), tensor._indices(), tensor._values()


def raw(tensor: Tensor) -> list[int]:
    """The bytes of a tensor's elements, in the order of its dimensions."""
    data: list[int] = tensor.contiguous().reshape(-1).view(torch.uint8).tolist()
    return data


def same(left: Any, right: Any) -> bool:
    """Whether two trees are equal in types, in order and in every bit."""
    if type(left) is not type(right):
        return False
    if isinstance(left, Tensor) and left.is_sparse:
        return right.is_sparse and same(*map(components, (left, right)))
    if isinstance(left, Tensor):
        return left.dtype == right.dtype and left.shape == right.shape and raw(left) == raw(right)
    if isinstance(left, float):
        return struct.pack(">d", left) == struct.pack(">d", right)
    if isinstance(left, complex):
        return same(left.real, right.real) and same(left.imag, right.imag)
    if isinstance(left, dict):
        return same(list(left.items()), list(right.items()))
    if isinstance(left, set | frozenset):
        return same(sorted(map(repr, left)), sorted(map(repr, right)))
    if isinstance(left, list | tuple):
        return len(left) == len(right) and all(map(same, left, right))
    return bool(left == right)


def a_tensor(dtype: torch.dtype, seed: int = 0) -> Tensor:
    """Three rows of random bits."""
    generator = torch.Generator().manual_seed(seed)
    if dtype == torch.bool:
        return torch.rand(3, 4, generator=generator) < 0.5
    return torch.randint(0, 256, (3, 16), dtype=torch.uint8, generator=generator).view(dtype)


def a_trained(make: Any, steps: int = 3) -> tuple[nn.Module, torch.optim.Optimizer]:
    """A small model and its optimizer after some steps."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    optimizer = make(model.parameters())
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.randn(5, 3)).square().sum().backward()
        optimizer.step()
    return model, optimizer


scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(-(2**80), 2**80)
    | st.floats()
    | st.complex_numbers()
    | st.text(max_size=5)
    | st.just("$")
    | st.binary(max_size=5)
)
keys = scalars | st.tuples(scalars, scalars)
dense = st.builds(a_tensor, st.sampled_from([*NATIVE, torch.complex128]), st.integers(0, 3))
tensors = dense | dense.map(lambda tensor: tensor.reshape(-1).view(torch.uint8).reshape(6, -1).to_sparse())
trees = st.recursive(
    scalars | tensors,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(st.text(max_size=3) | st.just("$"), inner, max_size=3)
        | st.dictionaries(keys, inner, max_size=3)
        | st.sets(keys, max_size=3)
        | st.frozensets(keys, max_size=3)
        | st.dictionaries(keys, st.integers(), max_size=3).map(Counter)
    ),
    max_leaves=12,
)
names = st.sampled_from(["state_dict", "optimizer", "hooks"]) | st.text(max_size=3)


class TestValues:
    @settings(max_examples=60, deadline=None)
    @given(st.dictionaries(names, trees, max_size=4))
    def test_any_tree_comes_back_as_it_was(self, tree: dict[str, Any]) -> None:
        """Types, order and every bit survive the trip through standard JSON."""
        assert same(there_and_back(tree), tree)

    @pytest.mark.parametrize(
        "value",
        [
            pytest.param(2**53 + 1, id="int beyond a double"),
            pytest.param(-(2**20000), id="int of 6000 digits"),
            pytest.param(-0.0, id="negative zero"),
            pytest.param(5e-324, id="smallest float"),
            pytest.param(float("inf"), id="inf"),
            pytest.param(struct.unpack(">d", bytes.fromhex("fff8000000000007"))[0], id="nan with a payload"),
            pytest.param("\ud800", id="lone surrogate"),
            pytest.param(b"\x00\xff", id="bytes"),
            pytest.param(torch.Size([2, 3]), id="Size"),
            pytest.param(torch.bfloat16, id="dtype"),
            pytest.param(torch.device("cuda:1"), id="device"),
            pytest.param(Counter({30: 2, 80: 1}), id="Counter"),
            pytest.param({1, 2, "a"}, id="set"),
            pytest.param({frozenset({1}), (1, (2,))}, id="set of frozenset and tuple"),
            pytest.param({0: {"step": 1}, (1, "b"): 2, None: 3, 1.5: 4}, id="keys that JSON doesn't have"),
            pytest.param({"$": "tuple", "items": [1]}, id="dict that looks like a tag"),
            pytest.param({"$": {"$": 1}, 1: 2}, id="dict that looks like a tag in one with an int key"),
            pytest.param([[], (), {}, set(), b"", ""], id="empty things"),
        ],
    )
    def test_a_value_that_json_lacks_comes_back(self, value: Any) -> None:
        """Each kind that needs a tag, and dicts that look as if they had one."""
        assert same(there_and_back({"x": value}), {"x": value})

    def test_an_ordered_dict_comes_back_as_a_dict(self) -> None:
        """Both keep their order, so nothing is lost."""
        assert same(there_and_back({"x": OrderedDict(b=1, a=2)}), {"x": {"b": 1, "a": 2}})

    def test_a_module_keeps_the_versions_in_its_state_dict(self) -> None:
        """load_state_dict asks them how the state of an older class is to be read."""
        model, _ = a_trained(torch.optim.SGD)
        state = model.state_dict()

        back = there_and_back({"state_dict": state})["state_dict"]

        assert list(back) == list(state)
        assert back._metadata == state._metadata
        assert back._metadata["1"] == {"version": 2}

    def test_sets_are_written_in_one_order(self) -> None:
        """The same state is the same text, whatever the hashes of strings are in this process."""
        document = encode({"x": {"b", "a", "c"}}).document

        assert document["x"]["items"] == ["a", "b", "c"]


class TestTensors:
    @pytest.mark.parametrize("dtype", [*NATIVE, *AS_BYTES], ids=str)
    def test_every_dtype_comes_back_bit_for_bit(self, dtype: torch.dtype) -> None:
        """Random bits, so NaNs of every kind among them."""
        assert same(there_and_back({"x": a_tensor(dtype)}), {"x": a_tensor(dtype)})

    @pytest.mark.parametrize("dtype", [torch.float32, torch.complex128], ids=str)
    @pytest.mark.parametrize("shape", [(), (0,), (2, 0, 3), (1, 1)], ids=str)
    def test_every_shape_comes_back(self, shape: tuple[int, ...], dtype: torch.dtype) -> None:
        """Scalars and tensors without elements too."""
        tensor = torch.ones(shape, dtype=dtype)

        assert same(there_and_back({"x": tensor}), {"x": tensor})

    @pytest.mark.parametrize(
        "view",
        [
            pytest.param(torch.arange(12.0).reshape(3, 4).t(), id="transposed"),
            pytest.param(torch.arange(12.0).reshape(3, 4)[:, ::2], id="strided"),
            pytest.param(torch.arange(3.0).expand(4, 3), id="expanded"),
            pytest.param(torch.arange(12.0).to(torch.complex128).reshape(3, 4).t(), id="stored as bytes"),
            pytest.param(torch.view_as_complex(torch.arange(8.0).reshape(4, 2)).conj(), id="conjugated"),
            pytest.param(torch.view_as_complex(torch.arange(8.0).reshape(4, 2)).conj().imag, id="negated"),
            pytest.param(torch.tensor([1 + 2j]).conj().imag, id="negated and contiguous"),
        ],
    )
    def test_a_view_comes_back_with_its_elements(self, view: Tensor) -> None:
        """However the view is laid out, the elements are those that one sees."""
        back = there_and_back({"x": view})["x"]

        assert torch.equal(back, view.resolve_conj().resolve_neg())
        assert not back.is_conj()
        assert not back.is_neg()

    @pytest.mark.parametrize(
        "dense",
        [
            pytest.param(torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last), id="channels_last"),
            pytest.param(torch.randn(3, 4).t(), id="transposed"),
            pytest.param(torch.randn(2, 3, 4).permute(1, 2, 0), id="permuted"),
        ],
    )
    def test_a_dense_tensor_keeps_its_strides(self, dense: Tensor) -> None:
        """An optimizer whose state lies otherwise than its parameters takes a slower path."""
        back = there_and_back({"x": dense})["x"]

        assert back.stride() == dense.stride()
        assert torch.equal(back, dense)

    @pytest.mark.parametrize(
        "tensor",
        [
            pytest.param(sparse([[0, 0, 2], [1, 1, 0]], torch.arange(3.0), 3, 3), id="an entry twice"),
            pytest.param(torch.eye(3).to_sparse(), id="coalesced"),
            pytest.param(sparse([[2, 0]], torch.ones(2, 4, dtype=torch.complex128), 3, 4), id="rows"),
            pytest.param(torch.zeros(2, 3).to_sparse(), id="empty"),
        ],
    )
    def test_a_sparse_tensor_comes_back_with_its_entries(self, tensor: Tensor) -> None:
        """In their order, and those that occur twice, twice: sums of floats depend on it."""
        tree = {"x": tensor, "y": [torch.ones(2), (tensor,)], "state_dict": {"graph": tensor, "w": torch.ones(1)}}

        assert same(there_and_back(tree), tree)

    def test_a_view_is_stored_by_its_own_elements(self) -> None:
        """Ten elements of a large tensor are ten elements."""
        stored = encode({"x": torch.zeros(1_000_000)[:10]}).tensors["state.safetensors"]["x"]

        assert stored.nbytes == 40

    def test_a_parameter_comes_back_as_a_tensor(self) -> None:
        """It has no gradient, and isn't a leaf of any graph."""
        back = there_and_back({"x": nn.Parameter(torch.ones(2))})["x"]

        assert type(back) is Tensor
        assert not back.requires_grad


class TestTies:
    def test_a_tied_tensor_is_stored_once_and_comes_back_as_one(self) -> None:
        """By object and by memory, as two state dicts of one module show it."""
        weight = torch.randn(3, 2)
        tree = {"state_dict": {"embed": weight, "head": weight.detach()}}

        encoded = encode(tree)
        back = decode(encoded.document, encoded.tensors)["state_dict"]

        assert list(encoded.tensors["model.safetensors"]) == ["embed"]
        assert back["embed"] is back["head"]

    @pytest.mark.parametrize(
        "other",
        [
            pytest.param(lambda whole: whole[:2], id="part"),
            pytest.param(lambda whole: whole.t(), id="transposed"),
            pytest.param(lambda whole: whole.view(torch.int32), id="other dtype"),
            pytest.param(lambda whole: whole.clone(), id="equal"),
        ],
    )
    def test_a_tensor_that_only_overlaps_or_equals_is_its_own(self, other: Any) -> None:
        """A tie is the same memory seen in the same way."""
        whole = torch.arange(9.0).reshape(3, 3)
        back = there_and_back({"a": whole, "b": other(whole)})

        assert back["a"].untyped_storage().data_ptr() != back["b"].untyped_storage().data_ptr()
        assert same(back["b"], other(whole))

    def test_tensors_without_elements_are_not_tied(self) -> None:
        """They all have the same address, none."""
        back = there_and_back({"a": torch.empty(0), "b": torch.empty(0)})

        assert back["a"] is not back["b"]

    def test_the_model_has_the_tensors_that_others_share_with_it(self) -> None:
        """Its file is complete, wherever in the tree it stands."""
        weight = torch.ones(2)
        encoded = encode({"hooks": {"ema": weight}, "state_dict": {"w": weight}})

        assert {file: list(named) for file, named in encoded.tensors.items()} == {"model.safetensors": ["w"]}
        assert list(encoded.document) == ["hooks", "state_dict"]

    def test_an_array_at_two_places_is_stored_once(self) -> None:
        """Arrays are told apart by object."""
        array = np.arange(3)
        encoded = encode({"a": array, "b": array})
        back = decode(encoded.document, encoded.tensors)

        assert list(encoded.tensors["state.safetensors"]) == ["a"]
        assert np.array_equal(back["b"], array)


class TestNames:
    def test_tensors_are_named_by_where_they_stand(self) -> None:
        """Plain keys in the model's file, paths in the others."""
        model, optimizer = a_trained(torch.optim.AdamW)
        tree = {"state_dict": model.state_dict(), "optimizer": optimizer.state_dict(), "rng": {"cpu": [torch.ones(1)]}}

        named = {file: list(tensors) for file, tensors in encode(tree).tensors.items()}

        assert named["model.safetensors"] == list(model.state_dict())
        assert named["optimizer.safetensors"][:3] == ["state.0.step", "state.0.exp_avg", "state.0.exp_avg_sq"]
        assert named["state.safetensors"] == ["rng.cpu.0"]

    @pytest.mark.parametrize(
        ("weights", "expected"),
        [
            pytest.param({"a": {"b": 0}, "a.b": 1}, ["a.b#2", "a.b"], id="a path that is a plain key"),
            pytest.param({"a": {"b": 0}, "a.b": 1, "a.b#2": 2}, ["a.b#3", "a.b", "a.b#2"], id="and so is its next"),
            pytest.param({"a": {"b": {"c": 0}, "b.c": 1}}, ["a.b.c", "a.b.c#2"], id="two equal paths"),
            pytest.param({1: 0, "1": 1}, ["1#2", "1"], id="a key that is a number"),
            pytest.param({"__metadata__": 0}, ["__metadata__#2"], id="the header's own key"),
            pytest.param({"\ud800": 0}, ["\\ud800"], id="a key that is not UTF-8"),
        ],
    )
    def test_a_plain_key_is_taken_by_no_other(self, weights: dict[Any, Any], expected: list[str]) -> None:
        """Whatever else is in the model, its plain keys are what the file has."""

        def filled(node: dict[Any, Any]) -> dict[Any, Any]:
            return {k: filled(v) if isinstance(v, dict) else torch.tensor(v) for k, v in node.items()}

        tree = {"state_dict": filled(weights)}
        encoded = encode(tree)

        assert list(encoded.tensors["model.safetensors"]) == expected
        assert same(decode(encoded.document, encoded.tensors), tree)

    def test_a_section_that_is_itself_a_tensor_has_its_own_name(self) -> None:
        """There is no path below it."""
        assert list(encode({"state_dict": torch.ones(1)}).tensors["model.safetensors"]) == ["state_dict"]

    def test_a_tree_without_tensors_has_no_files(self) -> None:
        """A file is written only if there is something in it."""
        assert encode({"epoch": 3}).tensors == {}


class TestTorchState:
    @pytest.mark.parametrize(
        "make",
        [
            pytest.param(lambda p: torch.optim.AdamW(p, lr=1e-2, amsgrad=True), id="AdamW"),
            pytest.param(lambda p: torch.optim.SGD(p, lr=1e-2, momentum=0.9), id="SGD"),
        ],
    )
    def test_an_optimizer_goes_on_from_its_state_bit_for_bit(self, make: Any) -> None:
        """Loaded into a fresh one, the next step is the same."""
        model, optimizer = a_trained(make)
        back = there_and_back({"state_dict": model.state_dict(), "optimizer": optimizer.state_dict()})
        twin, twin_optimizer = a_trained(make, steps=1)
        twin.load_state_dict(back["state_dict"])
        twin_optimizer.load_state_dict(back["optimizer"])

        for one, its in ((model, optimizer), (twin, twin_optimizer)):
            its.zero_grad()
            one(torch.ones(5, 3)).square().sum().backward()
            its.step()

        assert same(dict(twin.state_dict()), dict(model.state_dict()))
        assert same(twin_optimizer.state_dict(), optimizer.state_dict())

    @pytest.mark.parametrize(
        "make",
        [
            pytest.param(lambda o: torch.optim.lr_scheduler.MultiStepLR(o, [2, 2, 5]), id="MultiStepLR"),
            pytest.param(lambda o: torch.optim.lr_scheduler.OneCycleLR(o, 0.1, total_steps=20), id="OneCycleLR"),
            pytest.param(lambda o: torch.optim.lr_scheduler.ReduceLROnPlateau(o), id="ReduceLROnPlateau"),
            pytest.param(
                lambda o: torch.optim.lr_scheduler.SequentialLR(
                    o,
                    [torch.optim.lr_scheduler.LinearLR(o), torch.optim.lr_scheduler.CosineAnnealingLR(o, 10)],
                    milestones=[4],
                ),
                id="SequentialLR",
            ),
        ],
    )
    def test_a_scheduler_comes_back_as_it_was(self, make: Any) -> None:
        """Counters, infinities and nested schedulers among them."""
        _, optimizer = a_trained(torch.optim.SGD)
        scheduler = make(optimizer)
        for _ in range(3):
            optimizer.step()
            scheduler.step(*([0.5] if "Plateau" in type(scheduler).__name__ else []))

        state = scheduler.state_dict()

        assert same(there_and_back({"x": state})["x"], dict(state))


class TestNumpy:
    @pytest.mark.parametrize(
        "array",
        [
            pytest.param(np.arange(6, dtype=np.uint32).reshape(2, 3), id="uint32"),
            pytest.param(np.array(1.5), id="0-dim"),
            pytest.param(np.zeros((0, 3)), id="empty"),
            pytest.param(np.array([True, False]), id="bool"),
            pytest.param(np.array([1 + 2j]), id="complex128"),
            pytest.param(np.arange(6.0).reshape(2, 3)[:, ::-1], id="negative strides"),
            pytest.param(np.asfortranarray(np.arange(6.0).reshape(2, 3)), id="Fortran order"),
            pytest.param(np.broadcast_to(np.float32(3), (2,)), id="read-only"),
        ],
    )
    def test_an_array_comes_back_as_an_array(self, array: Any) -> None:
        """With its dtype, shape and elements."""
        back = there_and_back({"x": array})["x"]

        assert type(back) is np.ndarray
        assert back.dtype == array.dtype
        assert back.shape == array.shape
        assert np.array_equal(back, array)

    @pytest.mark.parametrize(
        "scalar",
        [
            *(np.float32(0.1), np.float64("inf"), np.int64(-3), np.uint64(2**64 - 1), np.bool_(True), np.complex64(1j)),
            *(np.str_("name"), np.bytes_(b"name")),
        ],
        ids=lambda scalar: type(scalar).__name__,
    )
    def test_a_scalar_comes_back_with_its_type(self, scalar: Any) -> None:
        """As a value and as a key."""
        back = there_and_back({"x": scalar, "y": {scalar: 1}})

        assert type(back["x"]) is type(scalar)
        assert back["x"] == scalar
        assert back["y"] == {scalar: 1}

    def test_the_state_of_numpys_generator_comes_back(self) -> None:
        """The drawn numbers go on where they were."""
        generator = np.random.RandomState(3)
        state = there_and_back({"rng": generator.get_state()})["rng"]
        expected = generator.random_sample(5)
        generator.set_state(state)

        assert generator.random_sample(5).tolist() == expected.tolist()


class TestWithoutNumpy:
    def test_an_array_comes_back_as_a_tensor(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """And a scalar as Python's own."""
        encoded = encode({"x": np.arange(3), "y": np.float32(0.5)})
        monkeypatch.setitem(sys.modules, "numpy", None)

        assert same(decode(encoded.document, encoded.tensors), {"x": torch.arange(3), "y": 0.5})

    def test_an_unknown_object_is_refused_all_the_same(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Whether a value is numpy's is asked only of a numpy that somebody has imported."""
        monkeypatch.setitem(sys.modules, "numpy", None)

        with pytest.raises(CheckpointError, match="is an AnObject"):
            encode({"x": AnObject()})


def a_function() -> None:
    """Nothing that could be saved."""


class AnObject:
    """Nothing that could be saved."""


Pair = namedtuple("Pair", "a b")
SPARSE = {"indices": torch.tensor([[0, 2]]), "twice": torch.tensor([[0, 0]]), "values": torch.ones(2)}
INDICES, TWICE, VALUES = ({"$": "tensor", "file": "f", "name": name} for name in SPARSE)
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # that these layouts are new
    COMPRESSED = {
        name: torch.eye(2).to_sparse(layout=getattr(torch, name), blocksize=size)
        for name, size in (("sparse_csr", None), ("sparse_csc", None), ("sparse_bsr", (1, 1)), ("sparse_bsc", (1, 1)))
    }


class TestRefusals:
    @pytest.mark.parametrize(
        ("tree", "message"),
        [
            ({"hooks": {"MyHook": {"fn": a_function}}}, f"checkpoint['hooks']['MyHook']['fn'] is a function, {TAKES}"),
            ({"x": [0, (AnObject(),)]}, f"checkpoint['x'][1][0] is an AnObject, {TAKES}"),
            ({"x": {3: AnObject}}, f"checkpoint['x'][3] is a type, {TAKES}"),
            ({"x": Pair(1, 2)}, f"checkpoint['x'] is a Pair, {TAKES}"),
            ({"x": defaultdict(list)}, f"checkpoint['x'] is a defaultdict, {TAKES}"),
            ({"x": bytearray(b"a")}, f"checkpoint['x'] is a bytearray, {TAKES}"),
            *(
                ({"x": [tensor]}, f"checkpoint['x'][0] is a tensor of layout {name}, {TAKES}")
                for name, tensor in COMPRESSED.items()
            ),
            ({"x": io.BytesIO(b"a")}, f"checkpoint['x'] is a BytesIO, {TAKES}"),
            ({"x": torch.ones(2, device="meta")}, f"checkpoint['x'] is a tensor on the meta device, without data, {TAKES}"),  # noqa: E501
            ({"x": np.array(["a"])}, f"checkpoint['x'] is a numpy array of dtype <U1, {TAKES}"),
            ({"x": np.array([None])}, f"checkpoint['x'] is a numpy array of dtype object, {TAKES}"),
            ({"x": np.longdouble(1)}, f"checkpoint['x'] is a longdouble, {TAKES}"),
            ({"x": np.datetime64("2020")}, f"checkpoint['x'] is a datetime64, {TAKES}"),
            (
                {"x": {AnObject(): 1}},
                "checkpoint['x'] has an AnObject as a key or member, which a checkpoint can't hold; it takes strings, "
                "numbers, bytes, None and tuples of them there.",
            ),
            (
                {"x": {(1, torch.ones(1))}},
                "checkpoint['x'] has a tuple as a key or member, which a checkpoint can't hold; it takes strings, "
                "numbers, bytes, None and tuples of them there.",
            ),
            ({1: 2}, "the checkpoint has the key 1 at its top, where keys are strings."),
            ([1], "a checkpoint is a dict of state by name, not a list."),
        ],
    )  # fmt: skip
    def test_what_it_can_not_hold_is_named_with_its_path(self, tree: Any, message: str) -> None:
        """One sentence: where, what, and what is taken instead."""
        with pytest.raises(CheckpointError, match=f"^{re.escape(message)}$"):
            encode(tree)

    @pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor:UserWarning")
    def test_a_quantized_tensor_is_refused(self) -> None:
        """Its scale and zero point have no place in the file."""
        tensor = torch._empty_affine_quantized([2], scale=1.0, zero_point=0, dtype=torch.qint8)

        with pytest.raises(CheckpointError, match=re.escape("checkpoint['x'] is a quantized tensor, which")):
            encode({"x": tensor})

    def test_a_subclass_of_a_tensor_is_refused(self) -> None:
        """It would come back as something else than it was."""

        class Tagged(Tensor):
            pass

        with pytest.raises(CheckpointError, match=re.escape("checkpoint['x'] is a Tagged, which")):
            encode({"x": torch.ones(1).as_subclass(Tagged)})

    def test_a_container_in_itself_is_refused(self) -> None:
        """With the path at which it comes round again, not with a RecursionError."""
        loop: list[Any] = [0]
        loop.append({"again": loop})

        with pytest.raises(CheckpointError, match=re.escape("checkpoint['x'][1]['again'] leads back to a container")):
            encode({"x": loop})

    def test_a_container_that_occurs_twice_is_no_cycle(self) -> None:
        """It comes back twice."""
        shared = [1]

        assert there_and_back({"a": shared, "b": [shared, shared]}) == {"a": [1], "b": [[1], [1]]}

    @pytest.mark.parametrize("wrap", [lambda x: [x], lambda x: {"k": x}, lambda x: {0: x}, lambda x: (x,)])
    def test_a_hundred_levels_are_held_and_one_more_is_refused(self, wrap: Any) -> None:
        """The bound is far below Python's own, so that neither way ends in a RecursionError."""
        tree: Any = 1
        for _ in range(99):
            tree = wrap(tree)

        assert same(there_and_back({"x": tree}), {"x": tree})
        with pytest.raises(CheckpointError, match=r"is nested more than 100 deep, the most that a checkpoint holds\.$"):
            encode({"x": wrap(tree)})

    @pytest.mark.parametrize("flat", [{1}, frozenset({1}), torch.ones(1)], ids=lambda flat: type(flat).__name__)
    def test_what_has_nothing_in_it_may_lie_at_the_deepest_level(self, flat: Any) -> None:
        """It adds no level."""
        tree: Any = flat
        for _ in range(99):
            tree = [tree]

        assert same(there_and_back({"x": tree}), {"x": tree})

    def test_a_key_nested_too_deep_is_refused(self) -> None:
        """Like a value that is."""
        key: Any = 1
        for _ in range(200):
            key = (key,)

        with pytest.raises(CheckpointError, match=r"nested more than 100 deep"):
            encode({"x": {key: 1}})

    @pytest.mark.parametrize(
        "node",
        [
            pytest.param({"$": "unheard of"}, id="unknown tag"),
            pytest.param({"$": ["tuple"]}, id="tag that is no string"),
            pytest.param({"$": "tuple"}, id="no items"),
            pytest.param({"$": "tuple", "items": 3}, id="items that are none"),
            pytest.param({"$": "dict", "items": [[1]]}, id="half a pair"),
            pytest.param({"$": "dict", "items": [[[], 1]]}, id="key that can't be one"),
            pytest.param({"$": "int", "hex": "eleven"}, id="no number"),
            pytest.param({"$": "float", "bits": "00"}, id="too few bits"),
            pytest.param({"$": "bytes", "base64": "?"}, id="no base64"),
            pytest.param({"$": "dtype", "name": "torch.load"}, id="no dtype"),
            pytest.param({"$": "dtype", "name": "torch.none"}, id="nothing in torch"),
            pytest.param({"$": "device", "name": "moon"}, id="no device"),
            pytest.param({"$": "tensor", "file": "../../etc/passwd", "name": "x"}, id="another file"),
            pytest.param({"$": "tensor", "file": "f", "name": "y"}, id="another name"),
            pytest.param({"$": "tensor", "file": "f", "name": "x", "order": [5, 0]}, id="dimension that isn't"),
            pytest.param({"$": "tensor", "file": "f", "name": "x", "dtype": "torch.int64", "shape": [9]}, id="shape"),
            pytest.param({"$": "numpy", "dtype": "no dtype", "value": 1}, id="no numpy dtype"),
            *(
                pytest.param({"$": "sparse", "indices": INDICES, "values": VALUES, "size": [3], **wrong}, id=name)
                for name, wrong in (
                    ("sparse without all of it", {}),
                    ("index beyond the size", {"coalesced": False, "size": [2]}),
                    ("index twice that is said to be there once", {"coalesced": True, "indices": TWICE}),
                    ("sizes that no number holds", {"coalesced": True, "size": [2**62, 2**62]}),
                    ("size that is none", {"coalesced": True, "size": "3"}),
                )
            ),
            pytest.param({"$": "state_dict", "content": 1, "metadata": {}}, id="no state dict"),
        ],
    )
    def test_a_document_that_encode_never_made_is_corrupt(self, node: Any) -> None:
        """Whatever is wrong with it, the error is of one kind and names the document."""
        with pytest.raises(CorruptCheckpointError, match=r"^state\.json is not a document that can be decoded"):
            decode({"x": node}, {"f": {"x": torch.ones(8, dtype=torch.uint8), **SPARSE}}, where="state.json")

    def test_a_document_nested_without_end_is_corrupt(self) -> None:
        """Python's own bound on recursion is met, and reported as damage."""
        node: Any = 1
        for _ in range(5000):
            node = [node]

        with pytest.raises(CorruptCheckpointError, match="RecursionError"):
            decode({"x": node}, {})
