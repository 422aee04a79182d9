"""Copies of a tree that training can no longer change, loaded back from the bytes that a save would write."""

from __future__ import annotations

import gc
import json
import re
import threading
import tracemalloc
from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load as load_safetensors
from torch import Tensor, nn

from eventrunner.checkpoint.codec import decode
from eventrunner.checkpoint.copies import Once
from eventrunner.checkpoint.layout import PAGE
from eventrunner.checkpoint.plan import encode
from eventrunner.checkpoint.snapshot import Snapshot, Snapshotter
from eventrunner.checkpoint.staging import BufferPool, StagingBuffer
from eventrunner.errors import CheckpointError, OptionError

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

Job = Callable[[], None]


def loaded(taken: Snapshot) -> dict[str, Any]:
    """What a load of the files would bring back."""
    image = taken.staged()
    document = json.loads(json.dumps(image.document, allow_nan=False))
    return decode(document, {file: load_safetensors(bytes(data)) for file, data in image.files.items()})


def same(left: Any, right: Any) -> bool:
    """Whether two trees are equal in types and in every bit."""
    if isinstance(left, Tensor) or isinstance(right, Tensor):
        return left.dtype == right.dtype and left.shape == right.shape and raw(left) == raw(right)
    if isinstance(left, np.ndarray):
        return type(right) is np.ndarray and same(torch.tensor(left), torch.tensor(right))
    if type(left) is not type(right):
        return False
    if isinstance(left, dict):
        return same(list(left.items()), list(right.items()))
    if isinstance(left, list | tuple):
        return len(left) == len(right) and all(map(same, left, right))
    return bool(left == right)


def raw(tensor: Tensor) -> bytes:
    """The bytes of a tensor's elements, in the order of its dimensions."""
    data = tensor.detach().resolve_conj().resolve_neg().contiguous()
    return bytes(data.reshape(-1).view(torch.uint8).tolist()) if data.numel() else b""


def deep_copy(tree: Any) -> Any:
    """The tree as it is now, ties aside."""
    if isinstance(tree, Tensor):
        return tree.detach().clone()
    if isinstance(tree, np.ndarray):
        return tree.copy()
    if isinstance(tree, dict):
        return type(tree)({key: deep_copy(value) for key, value in tree.items()})
    if isinstance(tree, list | tuple):
        return type(tree)(map(deep_copy, tree))
    return tree


def spoil(tree: Any) -> None:
    """Write over every tensor and array in the tree, and add to every container."""
    for memory in {leaf.untyped_storage().data_ptr(): leaf.untyped_storage() for leaf in leaves_of(tree)}.values():
        torch.empty(0, dtype=torch.uint8).set_(memory).bitwise_not_()
    extend(tree)


def leaves_of(tree: Any) -> list[Tensor]:
    """Every tensor in the tree, and every array that can be written to."""
    if isinstance(tree, Tensor):
        return [tree.detach()]
    if isinstance(tree, np.ndarray):
        return [torch.from_numpy(tree.base if tree.base is not None else tree)] if tree.flags.writeable else []
    values = list(tree.values()) if isinstance(tree, dict) else tree if isinstance(tree, list | tuple) else []
    return [leaf for value in values for leaf in leaves_of(value)]


def extend(tree: Any) -> None:
    """Add something to every container in the tree."""
    for value in (
        list(tree.values()) if isinstance(tree, dict) else list(tree) if isinstance(tree, list | tuple) else []
    ):
        extend(value)
    if isinstance(tree, dict):
        tree["new"] = 1
    elif isinstance(tree, list):
        tree.append(1)


def pointers(tree: Any) -> frozenset[int]:
    """The addresses of all tensors in the tree."""
    return frozenset(leaf.data_ptr() for leaf in leaves_of(tree))


DTYPES = [
    *(torch.bool, torch.uint8, torch.int64, torch.float16, torch.bfloat16, torch.float32, torch.float64),
    *(torch.complex64, torch.complex128, torch.float8_e5m2),
]
SHAPES = [(), (0,), (3,), (2, 3, 4, 5), (300,), (200, 300)]
LOOKS: dict[str, Callable[[Tensor], Tensor]] = {
    "plain": lambda tensor: tensor,
    "parameter": lambda tensor: nn.Parameter(tensor, requires_grad=False),
    "transposed": lambda tensor: tensor.transpose(0, -1) if tensor.dim() else tensor,
    "channels_last": lambda t: t.to(memory_format=torch.channels_last) if t.dim() == 4 else t,
    "part": lambda tensor: tensor[::2] if tensor.dim() else tensor,
    "expanded": lambda tensor: tensor.expand(2, *tensor.shape),
    "conjugated": lambda tensor: tensor.conj(),
    "negated": lambda tensor: tensor.conj().imag if tensor.is_complex() else tensor,
}


def a_tensor(dtype: torch.dtype, shape: tuple[int, ...], look: str, seed: int) -> Tensor:
    """Random bits in some form."""
    generator = torch.Generator().manual_seed(seed)
    bits = torch.randint(0, 256, (*shape, torch.empty(0, dtype=dtype).itemsize), dtype=torch.uint8, generator=generator)
    tensor = bits[..., 0] < 128 if dtype == torch.bool else bits.view(dtype).squeeze(-1)
    return LOOKS[look](tensor)


tensors = st.builds(
    a_tensor, st.sampled_from(DTYPES), st.sampled_from(SHAPES), st.sampled_from(list(LOOKS)), st.integers(0, 3)
)
scalars = st.none() | st.booleans() | st.integers() | st.text(max_size=3) | st.binary(max_size=3)
arrays = st.sampled_from(
    [
        lambda: np.arange(3),
        lambda: np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        lambda: np.ones(4)[::-1],
        lambda: np.zeros((0, 2)),
        lambda: np.broadcast_to(1.0, 3),
    ]
).map(lambda make: make())
trees = st.recursive(
    scalars | tensors | arrays,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(tensors, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(st.text(max_size=3) | st.integers(0, 2) | st.booleans(), inner, max_size=3)
        | st.dictionaries(st.text(max_size=3), tensors, max_size=3)
        | st.dictionaries(st.integers(0, 2), st.dictionaries(st.sampled_from("ab"), tensors), max_size=3)
        | st.dictionaries(st.sampled_from("xy"), st.dictionaries(st.sampled_from("ab"), scalars), max_size=3)
    ),
    max_leaves=10,
)
whole_trees = st.dictionaries(st.sampled_from(["state_dict", "optimizer", "hooks", "rng"]), trees, max_size=4)


@pytest.fixture(scope="module")
def kept() -> Snapshotter:
    """One for many trees, so that what it keeps of one meets the next."""
    return Snapshotter(1)


class TestCopies:
    @settings(max_examples=80, deadline=None)
    @given(whole_trees)
    def test_nothing_done_to_a_tree_later_reaches_its_copy(self, kept: Snapshotter, tree: dict[str, Any]) -> None:
        """Every tensor, array and container is written to right after take()."""
        before = deep_copy(tree)
        taken = kept.take(tree)
        spoil(tree)

        try:
            assert same(loaded(taken), before)
        finally:
            taken.release()

    @settings(max_examples=80, deadline=None)
    @given(whole_trees, st.booleans(), st.data())
    def test_nothing_done_after_wait_reaches_what_is_copied_beside(
        self, kept: Snapshotter, tree: dict[str, Any], begun: bool, data: st.DataObject
    ) -> None:
        """Whatever is lazy, and whether a thread has begun with it or not."""
        found = leaves_of(tree)
        tree["twins"] = [data.draw(st.sampled_from(found)) for _ in range(3)] if found else []
        lazy = {leaf.data_ptr() for leaf in found if data.draw(st.booleans())}
        before, jobs = deep_copy(tree), list[Job]()
        taken = kept.take(tree, lazy=lazy, in_background=jobs.append, verify=True)
        for job in jobs if begun else ():
            job()
        taken.wait()
        spoil(tree)

        try:
            assert same(loaded(taken), before)
            taken.check()
        finally:
            taken.release()

    @settings(max_examples=40, deadline=None)
    @given(whole_trees)
    def test_a_tree_that_looks_like_the_last_is_copied_as_well(self, tree: dict[str, Any]) -> None:
        """Only the values differ, and the containers are new ones."""
        snapshotter = Snapshotter(1)
        snapshotter.take(tree).release()
        again = deep_copy(tree)
        spoil(tree)
        taken = snapshotter.take(again)

        assert same(loaded(taken), again)

    def test_only_what_is_lazy_large_and_dense_is_left_for_later(self) -> None:
        """All else is copied before take() returns: the small, the views, and what nobody called lazy."""
        tree = {
            "late": torch.ones(256),
            "small": torch.ones(255),
            "view": torch.ones(1000, 2)[:, 0],
            "eager": torch.ones(1000),
        }
        jobs: list[Job] = []
        lazy = pointers(tree) - {tree["eager"].data_ptr()}

        taken = Snapshotter().take(tree, lazy=lazy, in_background=jobs.append)
        assert not taken.copied
        spoil(dict(tree))
        jobs.pop()()

        back = loaded(taken)
        assert taken.copied
        assert {name: bool((back[name] == 1).all()) for name in back} == {
            "late": False,
            "small": True,
            "view": True,
            "eager": True,
        }

    def test_the_lazy_may_be_any_collection(self) -> None:
        """A list of addresses, for one."""
        weight, jobs = torch.ones(1000), list[Job]()

        taken = Snapshotter().take({"x": weight}, lazy=[weight.data_ptr()], in_background=jobs.append)

        assert not taken.copied
        assert len(jobs) == 1

    def test_nothing_is_left_for_later_where_nothing_is_lazy(self) -> None:
        """There is no job then, and no job without somebody to do it."""
        jobs: list[Job] = []
        weight = torch.ones(1000)

        assert Snapshotter().take({"x": weight}, in_background=jobs.append).copied
        assert Snapshotter().take({"x": weight}, lazy=pointers(weight)).copied
        assert jobs == []

    @pytest.mark.parametrize(
        "large",
        [
            pytest.param(torch.randn(64, 32, 9, 9).to(memory_format=torch.channels_last), id="channels_last"),
            pytest.param(torch.randn(40_000, dtype=torch.complex64).conj(), id="conjugated"),
            pytest.param(torch.randn(40_000, dtype=torch.complex64).conj().imag, id="negated"),
            pytest.param(torch.randn(300, 200).t(), id="transposed"),
            pytest.param(nn.Parameter(torch.randn(300, 200)), id="parameter"),
            pytest.param(torch.randn(40_000, dtype=torch.complex128), id="not safetensors' own"),
        ],
    )
    def test_large_tensors_of_every_look_are_copied_beside(self, large: Tensor) -> None:
        """By address where that is the same, and piece by piece where it isn't; strides stay."""
        jobs: list[Job] = []
        taken = Snapshotter().take({"x": large}, lazy=pointers(large), in_background=jobs.append)
        for job in jobs:
            job()

        back = loaded(taken)["x"]
        assert torch.equal(back, large)
        assert back.stride() == large.stride() or not large.is_contiguous()

    def test_a_large_tensor_given_other_memory_meanwhile_is_copied_as_it_was(self) -> None:
        """Its old memory stays until the copy is made."""
        large, jobs = torch.ones(1_000_000), list[Job]()
        taken = Snapshotter().take({"x": large}, lazy=pointers(large), in_background=jobs.append)
        large.data = torch.zeros(1_000_000)
        gc.collect()
        jobs.pop()()

        assert loaded(taken)["x"].all()

    def test_channels_last_stays_channels_last(self) -> None:
        """A copy is laid out as its original."""
        image = torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last)

        assert loaded(Snapshotter().take({"x": image}))["x"].is_contiguous(memory_format=torch.channels_last)

    def test_a_module_keeps_the_versions_in_its_state_dict(self) -> None:
        """As in a save that isn't a snapshot."""
        state = nn.BatchNorm1d(2).state_dict()

        back = loaded(Snapshotter().take({"state_dict": state}))["state_dict"]

        assert back._metadata == state._metadata

    @pytest.mark.parametrize(
        "value",
        [
            OrderedDict(a=torch.ones(1), b=2),
            Counter({"a": 2}),
            Counter({"a": torch.ones(1)}),
            {1: torch.ones(1), "$": 2},
            {"$": torch.ones(1)},
            {0: {"a": torch.ones(1)}, 1: {1: torch.ones(1)}},
            {(1, 2): torch.ones(1), np.int64(3): {3}},
            {"x": np.float64(3), "y": [np.float32(1), torch.float16]},
            [torch.Size([2]), frozenset({1}), (1, [torch.ones(1)])],
            {0: {}, 1: {}},
        ],
        ids=repr,
    )
    def test_a_snapshot_has_the_document_of_a_save(self, value: Any) -> None:
        """Every container, whether all in it are tensors or not."""
        snapshotter = Snapshotter(1)
        for _ in range(2):
            taken = snapshotter.take({"x": value})
            assert taken.staged().document == encode({"x": value}).document
            taken.release()

    def test_a_container_that_changes_later_is_copied_at_once(self) -> None:
        """Also one of scalars, at any depth."""
        tree = {"a": [1, {2}], "b": {"c": {"d": 1}}, "e": OrderedDict(f=1), "g": Counter(h=1)}
        taken = Snapshotter().take(tree)
        for container in (tree["a"], tree["b"]["c"], tree["e"], tree["g"]):  # type: ignore[index]
            container.clear()  # type: ignore[union-attr]

        assert loaded(taken) == {"a": [1, {2}], "b": {"c": {"d": 1}}, "e": {"f": 1}, "g": Counter(h=1)}


class TestTies:
    def test_what_was_shared_is_stored_once_and_shared_again(self) -> None:
        """A tied weight, and an alias of it in another part of the tree."""
        weight = nn.Parameter(torch.randn(1000))
        tree = {"state_dict": {"a": weight, "b": weight.detach()}, "hooks": [weight.data]}
        taken = Snapshotter().take(tree)
        back = loaded(taken)

        assert back["state_dict"]["a"] is back["state_dict"]["b"] is back["hooks"][0]
        assert taken.nbytes == PAGE + 4000

    def test_a_tie_that_is_new_is_seen(self) -> None:
        """In a tree with the same names, shapes and dtypes."""
        one, other = torch.ones(3), torch.zeros(3)
        snapshotter = Snapshotter(1)
        snapshotter.take({"a": one, "b": other}).release()
        taken = snapshotter.take({"a": one, "b": one})

        back = loaded(taken)
        assert back["a"] is back["b"]

    def test_a_tie_that_is_gone_is_seen(self) -> None:
        """Both have their own elements then."""
        one, other = torch.ones(3), torch.zeros(3)
        snapshotter = Snapshotter(1)
        snapshotter.take({"a": one, "b": one}).release()

        assert same(loaded(snapshotter.take({"a": one, "b": other})), {"a": one, "b": other})

    def test_a_tie_that_ends_by_a_conjugation_is_seen(self) -> None:
        """The same memory, shape and dtype, and other elements."""
        one = torch.tensor([1 + 2j])
        snapshotter = Snapshotter(1)
        snapshotter.take({"a": one, "b": one.detach()}).release()
        tree = {"a": one, "b": one.conj()}

        assert same(loaded(snapshotter.take(tree)), tree)

    def test_tied_tensors_stay_tied_from_save_to_save(self) -> None:
        """The plan is kept, though the objects are new ones."""
        weight, other = torch.ones(3), torch.ones(3)
        snapshotter = Snapshotter(1)
        for _ in range(3):
            weight += 1
            taken = snapshotter.take({"a": weight.detach(), "b": weight.detach(), "c": other})
            back = loaded(taken)
            assert back["a"] is back["b"]
            assert torch.equal(back["a"], weight)
            taken.release()

    def test_an_array_shares_its_place_with_a_tensor_of_its_memory(self) -> None:
        """Both are one piece of memory again."""
        array = np.ones(3)
        back = loaded(Snapshotter().take({"a": array, "b": torch.from_numpy(array)}))

        assert back["a"].ctypes.data == back["b"].data_ptr()

    def test_a_view_is_copied_by_its_own_elements(self) -> None:
        """Ten elements of a large tensor take less than two pages, one of them the header's."""
        assert Snapshotter().take({"x": torch.zeros(1_000_000)[5:15]}).nbytes == PAGE + 40


def changed(**changes: Any) -> dict[str, Any]:
    """A tree, with changes."""
    state = {"w": torch.ones(2, 3), "b": torch.ones(3)}
    return {"state_dict": state, "optimizer": {0: {"m": torch.ones(2)}}, "x": [torch.ones(4)]} | changes


class TestPlans:
    @pytest.mark.parametrize(
        "change",
        [
            pytest.param({"state_dict": {"w": torch.ones(3, 2), "b": torch.ones(3)}}, id="shape"),
            pytest.param({"state_dict": {"w": torch.ones(3, 2).t(), "b": torch.ones(3)}}, id="memory order"),
            pytest.param({"state_dict": {"w": torch.ones(2, 3).int(), "b": torch.ones(3)}}, id="dtype"),
            pytest.param({"state_dict": {"v": torch.ones(2, 3), "b": torch.ones(3)}}, id="name"),
            pytest.param({"state_dict": {"b": torch.ones(3), "w": torch.ones(2, 3)}}, id="order"),
            pytest.param({"state_dict": {"w": torch.ones(2, 3)}}, id="fewer"),
            pytest.param({"optimizer": {1: {"m": torch.ones(2)}}}, id="number"),
            pytest.param({"optimizer": {False: {"m": torch.ones(2)}}}, id="equal key of another type"),
            pytest.param({"optimizer": {0: {"m": torch.ones(1), "n": torch.ones(1)}}}, id="one more inside"),
            pytest.param({"optimizer": {}}, id="none"),
            pytest.param({"x": torch.ones(4)}, id="no list"),
            pytest.param({"x": [[torch.ones(4)]]}, id="list in a list"),
            pytest.param({"x": [1, torch.ones(4)]}, id="scalar before it"),
            pytest.param({"x": [np.ones(4, dtype=np.float32)]}, id="array"),
            pytest.param({"x": [torch.ones(4), torch.ones(2)]}, id="one more"),
            pytest.param({"y": torch.ones(4)}, id="new key"),
            pytest.param({"x": [torch.ones(0)]}, id="empty"),
            pytest.param({"x": [1.0]}, id="scalar"),
            pytest.param({"x": [torch.ones(400_000)]}, id="much larger"),
        ],
    )
    def test_a_tree_of_another_structure_is_planned_anew(self, change: dict[str, Any]) -> None:
        """There and back again, as the plan of the first must not be taken for that of the second."""
        snapshotter = Snapshotter(1)
        for tree in (changed(), changed(**change), changed()):
            taken = snapshotter.take(tree)
            assert same(loaded(taken), tree)
            taken.release()

    def test_a_tree_that_is_alike_keeps_its_plan_and_its_memory(self) -> None:
        """New objects at new addresses, and the very same bytes to write from."""
        snapshotter = Snapshotter(1)
        seen = set()
        for _ in range(4):
            tree = changed(rng=torch.get_rng_state(), n=3)
            tree["state_dict"] = {name: tensor.detach() for name, tensor in tree["state_dict"].items()}
            taken = snapshotter.take(tree)
            image = taken.staged()
            seen.add((id(taken._plan), *(id(data) for data in image.files.values()), id(image.tensors[0])))
            taken.release()

        assert len(seen) == 1

    def test_a_file_that_stays_the_same_keeps_its_part(self) -> None:
        """A history that grows at each save costs no new plan of the model."""
        snapshotter = Snapshotter(1)
        plans, files = [], []
        for size in (1, 2):
            taken = snapshotter.take(changed(x=[torch.ones(size)]))
            assert same(loaded(taken)["x"], [torch.ones(size)])
            plans.append(taken._plan)
            files.append(taken.staged().files)
            taken.release()

        kept = [old is new for old, new in zip(plans[0].files, plans[1].files, strict=True)]
        assert kept == [True, True, False]
        assert [files[0][name] is files[1][name] for name in files[0]] == kept

    def test_a_tree_is_planned_the_same_without_torchs_own_guard(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """It is not public: where it is gone, each tensor is looked at."""
        monkeypatch.setattr("torch._C._dynamo.guards.TensorGuards", None)
        self.test_a_tree_that_is_alike_keeps_its_plan_and_its_memory()
        self.test_a_tree_of_another_structure_is_planned_anew(
            {"state_dict": {"w": torch.ones(3, 2).t(), "b": torch.ones(3)}}
        )

    def test_a_mode_that_changes_nothing_costs_no_plan(self) -> None:
        """Torch's guard sees a difference there; a look at each tensor doesn't."""
        snapshotter = Snapshotter(1)
        plans = []
        for mode in (torch.enable_grad, torch.inference_mode, torch.enable_grad):
            with mode():
                taken = snapshotter.take(changed())
            plans.append(taken._plan)
            taken.release()

        assert plans[0] is plans[1] is plans[2]

    def test_a_tensor_that_occurs_twice_costs_no_plan(self) -> None:
        """Torch's guard refuses those too."""
        weight = torch.ones(3)
        snapshotter = Snapshotter(1)
        plans = []
        for _ in range(3):
            taken = snapshotter.take({"x": [weight, weight]})
            plans.append(taken._plan)
            taken.release()

        assert plans[0] is plans[1] is plans[2]

    @pytest.mark.parametrize(
        ("odd", "what"),
        [
            (torch.ones(3, device="meta"), "a tensor on the meta device, without data"),
            (print, "a builtin_function_or_method"),
        ],
        ids=["meta", "function"],
    )
    def test_what_can_not_be_held_is_refused_by_take(self, odd: Any, what: str) -> None:
        """With its path, whether it is there at first or only in a later tree; then the next save goes on."""
        snapshotter = Snapshotter(1)
        message = re.escape(f"checkpoint['x']['y'] is {what}, which a checkpoint can't hold")
        for _ in range(2):
            with pytest.raises(CheckpointError, match=f"^{message}"):
                snapshotter.take({"x": {"y": odd}})
            snapshotter.take({"x": {"y": torch.ones(3)}}).release()

    @pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")
    def test_a_nested_tensor_in_place_of_another_is_refused(self) -> None:
        """It is a Tensor with memory, but without a size."""
        nested = torch.nested.nested_tensor([torch.ones(1), torch.ones(2)])
        snapshotter = Snapshotter(1)
        snapshotter.take({"x": torch.ones(3)}).release()

        with pytest.raises(CheckpointError, match=re.escape("checkpoint['x'] is a tensor of layout")):
            snapshotter.take({"x": nested})

    def test_a_tree_that_another_thread_writes_to_is_an_error(self) -> None:
        """What is read then would be neither the old state nor the new."""

        class Growing(Mapping[str, Any]):
            def __iter__(self) -> Any:
                return iter(["x"])

            def __len__(self) -> int:
                return 1

            def __getitem__(self, key: str) -> Any:
                seen.append(key)
                if len(seen) == 1:
                    raise RuntimeError("dictionary changed size during iteration")
                return 1

        seen: list[str] = []
        with pytest.raises(CheckpointError, match="the state changed while a checkpoint of it was being taken"):
            Snapshotter().take(Growing())


class TestMemory:
    def test_no_save_after_the_first_allocates(self) -> None:
        """Neither buffers nor copies: what Python and its extensions hold is the same after fifty more."""
        snapshotter = Snapshotter(2)
        tree = {"state_dict": {f"w{i}": torch.randn(1000) for i in range(20)}, "n": [1, 2, 3]}

        def save() -> int:
            taken = snapshotter.take(dict(tree), lazy=pointers(tree), in_background=lambda job: job())
            taken.wait()
            address = torch.frombuffer(taken.staged().files["model.safetensors"], dtype=torch.uint8).data_ptr()
            taken.release()
            return address

        places = {save() for _ in range(3)}
        gc.collect()
        tracemalloc.start()
        save()
        before = tracemalloc.get_traced_memory()[0]
        places |= {save() for _ in range(50)}
        gc.collect()
        after = tracemalloc.get_traced_memory()[0]
        tracemalloc.stop()

        assert len(places) == 1
        assert after - before < 10_000

    def test_a_tree_that_grows_a_little_stays_in_its_memory(self) -> None:
        """And one that grows much gets other memory."""
        snapshotter = Snapshotter(1)

        def place(size: int) -> int:
            taken = snapshotter.take({"x": torch.ones(size)})
            address = torch.frombuffer(taken.staged().files["state.safetensors"], dtype=torch.uint8).data_ptr()
            taken.release()
            return address

        first = place(1_000_000)
        assert place(1_000_100) == first
        buffer = snapshotter._pool._free[0]
        before = buffer.nbytes
        place(2_000_000)
        assert buffer.nbytes > before

    def test_a_second_buffer_is_made_only_if_the_first_is_in_use(self) -> None:
        """Whoever saves one at a time holds one copy of the state."""
        snapshotter = Snapshotter(2)
        for _ in range(3):
            snapshotter.take(changed()).release()
        assert snapshotter._pool._count == 1

        one, other = snapshotter.take(changed()), snapshotter.take(changed(x=[torch.zeros(4)]))
        assert snapshotter._pool._count == 2
        assert loaded(one)["x"][0].tolist() == [1, 1, 1, 1]
        assert loaded(other)["x"][0].tolist() == [0, 0, 0, 0]

    def test_take_waits_until_a_buffer_is_released(self) -> None:
        """And counts it."""
        snapshotter = Snapshotter(1)
        first = snapshotter.take({"x": torch.ones(1)})
        begun, taken = threading.Event(), list[Snapshot]()

        def train() -> None:
            begun.set()
            taken.append(snapshotter.take({"x": torch.zeros(1)}))

        thread = threading.Thread(target=train)
        thread.start()
        begun.wait()
        thread.join(0.05)
        assert not taken
        first.release()
        thread.join()

        assert loaded(taken[0])["x"].tolist() == [0]
        assert snapshotter.waits == 1
        assert snapshotter.waited > 0

    def test_what_was_prepared_is_used(self) -> None:
        """Its pages are there, and no other memory is taken for a tree of that size."""
        snapshotter = Snapshotter(2)
        snapshotter.prepare(4_000_000)
        (buffer,) = snapshotter._pool._free
        memory = buffer._memory

        taken = snapshotter.take({"x": torch.ones(1_000_000)})
        assert buffer._memory is memory
        assert taken._buffer is buffer

    def test_a_second_buffer_can_be_prepared_while_the_first_is_in_use(self) -> None:
        """So that a save which comes early meets no new pages either."""
        snapshotter = Snapshotter(2)
        first = snapshotter.take({"x": torch.ones(1)})
        snapshotter.prepare(1000)

        assert snapshotter._pool._count == 2
        assert len(snapshotter._pool._free) == 1
        first.release()

    def test_nothing_is_prepared_where_it_is_there_or_all_are_in_use(self) -> None:
        """It never waits."""
        pool = BufferPool(1)
        pool.prepare(1000, pinned=False)
        buffer = pool._free[0]
        pool.prepare(1000, pinned=False)
        assert pool._free == [buffer]

        assert pool.acquire(10, pinned=False) is buffer
        pool.prepare(10_000_000, pinned=False)
        assert pool._free == []

    def test_take_waits_for_what_is_being_prepared(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Rather than to make another buffer, whose pages would come one by one."""
        pool = BufferPool(2)
        busy, go_on = threading.Event(), threading.Event()
        prefault = StagingBuffer.prefault

        def slowly(buffer: StagingBuffer) -> None:
            busy.set()
            go_on.wait()
            prefault(buffer)

        monkeypatch.setattr(StagingBuffer, "prefault", slowly)
        worker = threading.Thread(target=pool.prepare, args=(1000, False))
        worker.start()
        busy.wait()
        threading.Timer(0.02, go_on.set).start()
        buffer = pool.acquire(1000, pinned=False)
        worker.join()

        assert buffer.nbytes >= 1000
        assert (pool.waits, pool._count) == (1, 1)

    def test_a_buffer_that_can_not_be_had_leaves_the_pool_whole(self) -> None:
        """The next one, of a size that there is, can."""
        pool = BufferPool(1)
        with pytest.raises((OSError, OverflowError, MemoryError)):
            pool.acquire(2**62, pinned=False)
        with pytest.raises((OSError, OverflowError, MemoryError)):
            pool.prepare(2**62, pinned=False)

        assert pool.acquire(1000, pinned=False).nbytes >= 1000

    @pytest.mark.parametrize("buffers", [0, -1])
    def test_there_is_at_least_one_buffer(self, buffers: int) -> None:
        """Or take() would wait for ever."""
        with pytest.raises(OptionError, match=f"^buffers={buffers} leaves no memory to copy to; it takes 1 or more.$"):
            Snapshotter(buffers)


class TestLives:
    def test_a_snapshot_can_be_released_once_and_again(self) -> None:
        """The second time does nothing: the buffer is another's by then."""
        snapshotter = Snapshotter(1)
        first = snapshotter.take({"x": torch.ones(1)})
        first.release()
        second = snapshotter.take({"x": torch.ones(1)})
        first.release()

        assert snapshotter._pool._free == []
        second.release()

    @pytest.mark.parametrize("use", [Snapshot.staged, Snapshot.check], ids=["staged", "check"])
    def test_a_released_snapshot_has_no_bytes(self, use: Callable[[Snapshot], object]) -> None:
        """Its memory may be another's."""
        taken = Snapshotter().take({"x": torch.ones(1)})
        taken.release()

        with pytest.raises(CheckpointError, match=r"^the snapshot was released, and its memory may hold another"):
            use(taken)
        assert taken.wait() >= 0

    def test_a_snapshot_released_before_it_was_copied_is_not_copied(self) -> None:
        """The job does nothing then, as the memory may be another's."""
        snapshotter, jobs = Snapshotter(1), list[Job]()
        large = torch.ones(100_000)
        taken = snapshotter.take({"x": large}, lazy=pointers(large), in_background=jobs.append)
        taken.release()
        again = snapshotter.take({"x": torch.zeros(100_000)})
        jobs.pop()()

        assert not loaded(again)["x"].any()

    def test_a_release_waits_for_a_copy_under_way(self) -> None:
        """Otherwise it would write into the memory of the next."""
        begun, go_on, order = threading.Event(), threading.Event(), list[str]()

        def work() -> None:
            begun.set()
            go_on.wait()
            order.append("copied")

        once = Once(work)
        worker = threading.Thread(target=once.run)
        worker.start()
        begun.wait()
        threading.Timer(0.02, go_on.set).start()
        once.cancel()
        order.append("dropped")
        worker.join()

        assert order == ["copied", "dropped"]

    def test_a_copy_is_made_once_however_many_ask_for_it(self) -> None:
        """The thread that comes first makes it, and the others wait."""
        done: list[int] = []
        once = Once(lambda: done.append(threading.get_ident()))
        threads = [threading.Thread(target=once.wait) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        once.wait()

        assert len(done) == 1
        assert once.done

    def test_the_training_copies_what_nobody_has_begun_to(self) -> None:
        """It doesn't wait for a thread that is busy with something else."""
        large = torch.ones(100_000)
        taken = Snapshotter().take({"x": large}, lazy=pointers(large), in_background=lambda job: None)
        assert not taken.copied
        taken.wait()

        assert taken.copied

    @pytest.mark.parametrize("ask", [Snapshot.wait, Snapshot.staged, Snapshot.check], ids=["wait", "image", "check"])
    def test_what_the_copying_raised_is_raised_to_all_who_ask(self, ask: Callable[[Snapshot], object]) -> None:
        """And the buffer is free for another all the same."""
        large = torch.ones(20_000)
        snapshotter, jobs = Snapshotter(1), list[Job]()
        taken = snapshotter.take({"x": large}, lazy=pointers(large), in_background=jobs.append)
        large.data = torch.ones(7)
        jobs.pop()()

        for _ in range(2):
            with pytest.raises(RuntimeError, match="size of tensor"):
                ask(taken)
        assert not taken.copied
        taken.release()
        snapshotter.take({"x": torch.ones(1)}).release()

    def test_a_job_that_nobody_takes_leaves_the_buffer_free(self) -> None:
        """The error is the one of whoever refused it."""
        large = torch.ones(20_000)
        snapshotter = Snapshotter(1)

        def refuse(job: Job) -> None:
            raise TimeoutError("the lane is full")

        with pytest.raises(TimeoutError, match="the lane is full"):
            snapshotter.take({"x": large}, lazy=pointers(large), in_background=refuse)

        assert len(snapshotter._pool._free) == 1

    def test_a_write_during_the_copy_is_found_where_that_is_asked_for(self) -> None:
        """The error names the first tensor that it was done to."""
        tree = {"state_dict": {"a": torch.ones(1000), "b": torch.ones(1000), "c": torch.ones(1000)}}
        jobs: list[Job] = []
        taken = Snapshotter().take(tree, lazy=pointers(tree), in_background=jobs.append, verify=True)
        tree["state_dict"]["b"].data[3] = 0
        tree["state_dict"]["c"].data[3] = 0
        jobs.pop()()

        with pytest.raises(
            CheckpointError,
            match=r"^the copy of 'b' for model\.safetensors is not what the tensor was when the snapshot was taken; "
            r"copy it at once, or let nothing write to it before wait\(\) has returned\.$",
        ):
            taken.check()

    def test_a_write_that_autograd_counts_is_found_without_being_asked_for(self) -> None:
        """A step that clamps weights before the optimizer's, for one."""
        tree = {"state_dict": {"a": torch.ones(1000), "b": torch.ones(1000)}}
        jobs: list[Job] = []
        taken = Snapshotter().take(tree, lazy=pointers(tree), in_background=jobs.append)
        tree["state_dict"]["b"].clamp_(0, 0.5)
        jobs.pop()()

        with pytest.raises(CheckpointError, match=r"^'b' was written to while a save was copying it; write to weights"):
            taken.wait()
        assert not taken.copied
        taken.release()

    def test_a_snapshot_without_hashes_has_nothing_to_compare(self) -> None:
        """Its check passes."""
        Snapshotter().take({"x": torch.ones(3)}).check()

    def test_training_copying_and_writing_go_on_at_once(self) -> None:
        """Of two hundred saves of a state that is written to after each wait, every one has the values of its step."""
        snapshotter = Snapshotter(2)
        state = {"big": torch.zeros(50_000), "small": torch.zeros(300), "step": torch.zeros(1)}
        queues: list[list[Any]] = [[], []]
        wake = [threading.Semaphore(0), threading.Semaphore(0)]
        wrong: list[object] = []

        def serve(lane: int) -> None:
            while True:
                wake[lane].acquire()
                job = queues[lane].pop(0)
                if job is None:
                    return
                job()

        def put(lane: int, job: Any) -> None:
            queues[lane].append(job)
            wake[lane].release()

        def write(taken: Snapshot, step: int) -> None:
            back = loaded(taken)
            if any((back[name] != step).any() for name in state):
                wrong.append((step, {name: back[name].unique().tolist() for name in state}))
            taken.release()

        workers = [threading.Thread(target=serve, args=(lane,)) for lane in (0, 1)]
        for worker in workers:
            worker.start()
        for step in range(200):
            taken = snapshotter.take(dict(state), lazy=pointers(state), in_background=lambda job: put(0, job))
            put(1, lambda taken=taken, step=step: write(taken, step))
            taken.wait()
            for tensor in state.values():
                tensor += 1
        put(0, None)
        put(1, None)
        for worker in workers:
            worker.join()

        assert wrong == []


@needs_cuda
class TestDevices:
    def test_tensors_of_a_device_are_copied_beside_its_work(self) -> None:
        """What it is told to do after wait() doesn't reach the copy; ties among them hold."""
        weight = torch.ones(1_000_000, device="cuda")
        odd = torch.ones(3, dtype=torch.complex128, device="cuda").conj()
        snapshotter = Snapshotter(1)
        for step in range(1, 4):
            taken = snapshotter.take(
                {"a": weight, "b": weight.detach(), "c": weight[::2], "z": odd, "h": torch.ones(2)}
            )
            assert taken.copied
            taken.wait()
            weight += 1
            back = loaded(taken)
            assert back["a"] is back["b"]
            assert back["a"].device.type == "cpu"
            assert (back["a"] == step).all()
            assert (back["c"] == step).all()
            assert torch.equal(back["z"], odd.cpu())
            taken.release()

    def test_their_buffer_is_pinned(self) -> None:
        """Otherwise the device couldn't copy while the host goes on."""
        snapshotter = Snapshotter(1)
        snapshotter.prepare(1000)
        taken = snapshotter.take({"x": torch.ones(10, device="cuda")}, verify=True)

        assert taken._buffer is not None
        assert taken._buffer.pinned
        assert all(target.is_pinned() for target in taken._buffer.targets)
        taken.check()
