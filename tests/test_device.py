"""Devices by name, and batches on their way to one. The meta device stands for the second device."""

from __future__ import annotations

import dataclasses
import re
import types
from collections import OrderedDict, UserDict, defaultdict, namedtuple
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pack_sequence

from eventrunner.errors import OptionError
from eventrunner.training.device import batch_mover, resolve_device, to_device

META = torch.device("meta")
CPU = torch.device("cpu")
Pair = namedtuple("Pair", "image label")


@dataclasses.dataclass
class Sample:
    """A batch as a dataclass, with a field that __init__ doesn't take."""

    image: Tensor
    name: str
    seen: int = dataclasses.field(default=0, init=False)


@dataclasses.dataclass(frozen=True, slots=True)
class FrozenSample:
    """One that can't be assigned to."""

    image: Tensor
    name: str = "a"


class Box:
    """An object that moves itself."""

    def __init__(self, inside: Tensor) -> None:
        self.inside = inside

    def to(self, device: torch.device) -> Box:
        return Box(self.inside.to(device))


class Named(list[Tensor]):
    """A list with an attribute."""

    name = ""


def one() -> Tensor:
    """A tensor on the CPU."""
    return torch.ones(2)


class TestResolve:
    def test_a_name_is_a_device(self) -> None:
        """Names and devices come back as devices."""
        assert resolve_device("cpu") == resolve_device(CPU) == CPU
        assert resolve_device("meta") == META

    def test_the_default_is_the_accelerator_if_there_is_one(self) -> None:
        """With an index, as its tensors have it; else the CPU."""
        expected = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else CPU

        assert resolve_device(None) == torch.empty(0, device=expected).device

    @pytest.mark.parametrize(
        ("name", "message"),
        [
            ("gpu", "device='gpu' is no device that torch knows; examples are 'cpu', 'cuda', 'cuda:1' and 'mps'."),
            (
                "cuda:x",
                "device='cuda:x' is no device that torch knows; examples are 'cpu', 'cuda', 'cuda:1' and 'mps'.",
            ),
            (3, "device=3 must be None, a torch.device or a name such as 'cpu' or 'cuda:0'."),
        ],
    )
    def test_what_is_no_device_is_refused(self, name: Any, message: str) -> None:
        """The error gives examples."""
        with pytest.raises(OptionError, match=f"^{re.escape(message)}$"):
            resolve_device(name)

    @pytest.mark.parametrize("name", ["cuda:99", "hpu"])
    def test_a_device_that_is_not_there_is_refused_at_once(self, name: str) -> None:
        """The error says what would be used by default, and torch's own reason is its cause."""
        message = rf"^device='{name}' isn't available here; leave device= out to use '\w+'\.$"
        with pytest.raises(OptionError, match=message) as caught:
            resolve_device(name)

        assert caught.value.__cause__ is not None


class TestMove:
    @pytest.mark.parametrize(
        "batch",
        [
            one(),
            [one(), "a"],
            (one(), 1),
            {"x": one(), "y": None},
            OrderedDict(x=one()),
            UserDict({"x": one()}),
            types.MappingProxyType({"x": one()}),
            Pair(one(), 3),
            Sample(one(), "a"),
            FrozenSample(one()),
            Box(one()),
            torch.ones(2, 2).max(dim=0),
            pack_sequence([torch.ones(3), torch.ones(2)]),
            [{"deep": (Pair([one()], 0),)}],
        ],
        ids=lambda batch: type(batch).__name__,
    )
    def test_tensors_move_and_containers_keep_their_type(self, batch: Any) -> None:
        """Whatever the container, its copy is one of the same, and the batch itself stays on the CPU."""
        moved = to_device(batch, META)

        assert type(moved) is type(batch)
        assert devices(moved) == {"meta"}
        assert devices(batch) == {"cpu"}

    @pytest.mark.parametrize(
        "batch",
        [
            one(),
            [one(), [one()]],
            (one(), Pair(one(), 1)),
            {"x": {"y": one()}},
            Sample(one(), "a"),
            types.MappingProxyType({"x": one()}),
        ],
        ids=lambda batch: type(batch).__name__,
    )
    def test_what_is_there_already_is_the_very_object(self, batch: Any) -> None:
        """Nothing is rebuilt without need."""
        assert to_device(batch, CPU) is batch

    def test_only_what_moved_is_rebuilt(self) -> None:
        """A part without tensors is shared with the batch."""
        names = ["a", "b"]
        moved = to_device({"images": one(), "names": names}, META)

        assert moved["names"] is names

    @pytest.mark.parametrize(
        "leaf", [None, 1, 2.5, True, "text", b"bytes", Box, {1, 2}, range(3), torch.Size([2]), [], (), {}]
    )
    def test_what_holds_no_tensor_is_left_alone(self, leaf: Any) -> None:
        """A class with a method to is no object that moves."""
        assert to_device(leaf, META) is leaf

    def test_order_and_attributes_of_containers_survive(self) -> None:
        """A defaultdict keeps its factory, a mapping its order, a list subclass its attributes."""
        first = to_device(defaultdict(list, b=one(), a=1), META)
        second = Named([one()])
        second.name = "kept"

        assert list(first) == ["b", "a"]
        assert first["missing"] == []
        assert to_device(second, META).name == "kept"

    def test_fields_that_init_does_not_take_survive(self) -> None:
        """A dataclass is copied, not made anew."""
        sample = Sample(one(), "a")
        sample.seen = 5
        moved = to_device(sample, META)

        assert (moved.seen, moved.name, moved.image.device) == (5, "a", META)

    def test_an_object_that_moves_in_place_counts_as_unmoved(self) -> None:
        """What to() returns is what is there; a module returns itself."""
        module = torch.nn.Linear(1, 1)
        batch = [module]

        assert to_device(batch, META) is batch
        assert module.weight.device == META


class TestMover:
    def test_the_cpu_needs_none(self) -> None:
        """A loop on the CPU can leave the call out."""
        assert batch_mover(CPU) is None

    def test_another_device_gets_a_function(self) -> None:
        """It moves what it is given."""
        move = batch_mover(META)

        assert move is not None
        assert devices(move({"x": [one()]})) == {"meta"}

    @pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
    def test_pinned_batches_arrive_whole(self) -> None:
        """Copied without waiting, they are there for what computes next; back on the host, nothing is read early."""
        batch = {"x": torch.arange(1 << 20).pin_memory()}
        move = batch_mover(resolve_device("cuda"))
        assert move is not None
        moved = move(batch)

        assert torch.equal(to_device(moved, CPU, non_blocking=True)["x"], batch["x"])


def devices(batch: Any) -> set[str]:
    """The types of the devices of all tensors in a batch."""
    if isinstance(batch, Tensor):
        return {batch.device.type}
    if isinstance(batch, PackedSequence):
        return {batch.data.device.type}
    if isinstance(batch, Box):
        return devices(batch.inside)
    if isinstance(batch, (Sample, FrozenSample)):
        return devices(batch.image)
    if isinstance(batch, (dict, UserDict, types.MappingProxyType)):
        batch = list(batch.values())
    return set().union(*map(devices, batch)) if isinstance(batch, (list, tuple)) else set()
