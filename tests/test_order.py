"""What draws the order of the data from something of its own goes on with it after a resume, or the resume says so."""

from __future__ import annotations

import functools
import itertools
import random
from collections.abc import Callable, Iterator
from typing import Any

import numpy
import pytest
import torch
from conftest import MakeRunner
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    Sampler,
    SequentialSampler,
    Subset,
    SubsetRandomSampler,
    WeightedRandomSampler,
)

from eventrunner.checkpoint import load_checkpoint
from eventrunner.errors import ResumeError
from eventrunner.training.position import DataPosition
from eventrunner.training.state import rng_state, seed_all, set_rng_state

SIZE, BATCH = 8, 2
MODULE_RNG = random.Random(0)


class Numbers(Dataset[Tensor]):
    """Eight samples, each its number."""

    def __len__(self) -> int:
        return SIZE

    def __getitem__(self, index: int) -> Tensor:
        return torch.tensor(float(index))


def shuffled(rng: Any) -> list[int]:
    """An order drawn from any kind of generator."""
    if isinstance(rng, torch.Generator):
        return torch.randperm(SIZE, generator=rng).tolist()
    if isinstance(rng, random.Random):
        return rng.sample(range(SIZE), SIZE)
    return [int(index) for index in rng.permutation(SIZE)]


class Own(Sampler[int]):
    """Shuffles by what it is given."""

    def __init__(self, rng: Any) -> None:
        self.rng = rng

    def __len__(self) -> int:
        return SIZE

    def __iter__(self) -> Iterator[int]:
        return iter(shuffled(self.rng))


class Lazy(Own):
    """Draws each index when it is asked for it."""

    def __iter__(self) -> Iterator[int]:
        for _ in range(SIZE):
            yield self.rng.randrange(SIZE)


class Several(Own):
    """Has its generators in a list."""

    def __iter__(self) -> Iterator[int]:
        return iter(shuffled(self.rng[1]))


class Shuffler:
    """A helper of a sampler's."""

    def __init__(self) -> None:
        self.source = numpy.random.default_rng(3)


class Helped(Own):
    """Has a helper that has the generator."""

    def __iter__(self) -> Iterator[int]:
        return iter(shuffled(self.rng.source))


class Slotted(Sampler[int]):
    """Has its generator in a slot."""

    __slots__ = ("rng",)
    __init__, __len__, __iter__ = Own.__init__, Own.__len__, Own.__iter__


class OfTheModule(Own):
    """Draws from a generator of its module."""

    def __iter__(self) -> Iterator[int]:
        return iter(shuffled(MODULE_RNG))


class Around(Sampler[list[int]]):
    """A batch sampler around another one, under a name of its own."""

    def __init__(self, base: Any) -> None:
        self.base_sampler = base

    def __len__(self) -> int:
        return SIZE // BATCH

    def __iter__(self) -> Iterator[list[int]]:
        left = iter(self.base_sampler)
        while batch := list(itertools.islice(left, BATCH)):
            yield batch


class Stated(Own):
    """Counts its passes in its state."""

    def __init__(self) -> None:
        self.passes = 0

    def __iter__(self) -> Iterator[int]:
        self.passes += 1
        return iter(random.Random(self.passes).sample(range(SIZE), SIZE))

    def state_dict(self) -> dict[str, int]:
        return {"passes": self.passes}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.passes = state["passes"]


class Noise:
    """A collate function with a generator of its own."""

    def __init__(self, rng: Any) -> None:
        self.rng = rng

    def __call__(self, samples: list[Tensor]) -> Tensor:
        return torch.stack(samples) + self.rng.random()

    def collate(self, samples: list[Tensor]) -> Tensor:
        return self(samples)


class StatedNoise:
    """A collate function that counts in its state."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, samples: list[Tensor]) -> Tensor:
        self.count += 1
        return torch.stack(samples) + self.count

    def state_dict(self) -> dict[str, int]:
        return {"count": self.count}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.count = state["count"]


def closure() -> Callable[[list[Tensor]], Tensor]:
    """A collate function that has its generator from the function around it."""
    rng = random.Random(5)
    return lambda samples: torch.stack(samples) + rng.random()


def with_rng(samples: list[Tensor], rng: Any) -> Tensor:
    """A collate function to be given its generator."""
    return torch.stack(samples) + rng.random()


def with_module_rng(samples: list[Tensor]) -> Tensor:
    """A collate function that draws from a generator of its module."""
    return torch.stack(samples) + MODULE_RNG.random()


class HomeMade:
    """An iterable of batches that shuffles by itself."""

    def __init__(self) -> None:
        self.rng = random.Random(4)

    def __len__(self) -> int:
        return SIZE // BATCH

    def __iter__(self) -> Iterator[Tensor]:
        yield from torch.tensor(shuffled(self.rng), dtype=torch.float32).split(BATCH)


def loader(**options: Any) -> DataLoader[Any]:
    """Of the numbers, in batches of two."""
    size = {} if "batch_sampler" in options else {"batch_size": BATCH}
    return DataLoader(Numbers(), **size, **options)


def shared(rng: random.Random) -> DataLoader[Any]:
    """Indices and noise drawn by turns from one generator."""
    return loader(sampler=Lazy(rng), collate_fn=Noise(rng))


KEPT: dict[str, Callable[[], Any]] = {
    "random": lambda: loader(sampler=Own(random.Random(0))),
    "numpy": lambda: loader(sampler=Own(numpy.random.default_rng(0))),
    "numpy's older kind": lambda: loader(sampler=Own(numpy.random.RandomState(0))),
    "numpy's Philox": lambda: loader(sampler=Own(numpy.random.Generator(numpy.random.Philox(0)))),
    "torch": lambda: loader(sampler=Own(torch.Generator().manual_seed(0))),
    "drawn one by one": lambda: loader(sampler=Lazy(random.Random(0))),
    "several": lambda: loader(sampler=Several([random.Random(0), random.Random(1)])),
    "a helper's": lambda: loader(sampler=Helped(Shuffler())),
    "in a slot": lambda: loader(sampler=Slotted(random.Random(0))),
    "the module's": lambda: loader(sampler=OfTheModule(None)),
    "a batch sampler's": lambda: loader(batch_sampler=BatchSampler(Own(random.Random(0)), BATCH, False)),
    "an inner sampler's": lambda: loader(batch_sampler=Around(Own(random.Random(0)))),
    "a sampler without batches": lambda: DataLoader(Numbers(), batch_size=None, sampler=Own(random.Random(0))),
    "a sampler's state": lambda: loader(sampler=Stated()),
    "an inner sampler's state": lambda: loader(batch_sampler=Around(Stated())),
    "a collate object's": lambda: loader(shuffle=True, collate_fn=Noise(random.Random(1))),
    "a collate method's": lambda: loader(collate_fn=Noise(numpy.random.default_rng(1)).collate),
    "a collate closure's": lambda: loader(collate_fn=closure()),
    "a collate argument's": lambda: loader(collate_fn=functools.partial(with_rng, rng=random.Random(2))),
    "a collate function's module's": lambda: loader(collate_fn=with_module_rng),
    "a collate object's state": lambda: loader(collate_fn=StatedNoise()),
    "one for order and noise": lambda: shared(random.Random(6)),
    "a home-made loader's": HomeMade,
}


def take(position: DataPosition, loader: Any, until: int) -> list[Any]:
    """Take batches as a loop does, drawing between them as dropout does, until so many passes' worth are taken."""
    taken: list[Any] = []
    length = len(loader)
    while position.passes * length + position.consumed < until:
        for _, batch in position.batches(loader):
            torch.rand(3)
            taken.append(batch.tolist())
            position.consumed += 1
            if position.passes * length + position.consumed == until and position.consumed < length:
                break
    return taken


STEP: dict[str, Any] = {"train_step": lambda model, batch: {"loss": model(batch.view(-1, 2)).sum()}}


def fresh(make: Callable[[], Any]) -> Any:
    """A loader as a new process makes it."""
    MODULE_RNG.seed(0)
    return make()


def resumed(first: DataPosition) -> DataPosition:
    """A new position that stands where the first one does."""
    again = DataPosition()
    again.load_state_dict(first.state_dict())
    return again


@pytest.mark.parametrize("kind", KEPT)
def test_the_order_goes_on_as_if_never_stopped(kind: str) -> None:
    """From a pass's end and from within one, twice in a row, with nothing to be said of what was drawn."""
    make = KEPT[kind]
    seed_all(1)
    first_loader = fresh(make)
    passes, length = 3, len(first_loader)
    whole = take(DataPosition(), first_loader, passes * length)
    assert whole[:length] != whole[length : 2 * length]
    for stop in (1, length - 1, length, length + 2):
        seed_all(1)
        first = DataPosition()
        taken = take(first, fresh(make), stop)
        second, rng = resumed(first), rng_state()
        seed_all(99)
        again = fresh(make)
        assert "put back" not in (second.caveat(again) or "")
        set_rng_state(rng)
        taken += take(second, again, stop + 1)
        third = resumed(second)
        taken += take(third, fresh(make), passes * length)
        assert taken == whole, stop


@pytest.mark.parametrize("form", ["safetensors", "pth"])
@pytest.mark.parametrize(
    "kind", ["random", "numpy", "numpy's older kind", "numpy's Philox", "torch", "a sampler's state"]
)
@pytest.mark.slow
def test_a_checkpoint_on_the_disk_holds_them(make_runner: MakeRunner, kind: str, form: str) -> None:
    """In both formats, where the states of all kinds of generators come back as they were."""
    hooks = {"logger": None, "checkpoint": {"format": form, "by_epoch": False, "interval": 3}}

    def run(name: str, **more: Any) -> list[Any]:
        runner = make_runner(work_dir=name, train_dataloader=KEPT[kind](), default_hooks=hooks, **STEP, **more)
        seen: list[Any] = []
        runner.on("before_train_iter")(lambda data_batch: seen.append(data_batch.tolist()))
        runner.train()
        return seen

    whole = run("whole")
    for step in (3, 6):
        assert run(f"from_{step}", resume=f"whole/iter_{step}") == whole[step:], step


# What can't be put back is said


class Counting(Own):
    """Counts its passes."""

    def __init__(self) -> None:
        self.count = 0

    def __iter__(self) -> Iterator[int]:
        self.count += 1
        return iter(random.Random(self.count).sample(range(SIZE), SIZE))


class InPlace(Own):
    """Shuffles its list further in each pass."""

    def __init__(self) -> None:
        self.indices = list(range(SIZE))

    def __iter__(self) -> Iterator[int]:
        random.shuffle(self.indices)
        return iter(self.indices)


class InPlaceArray(InPlace):
    """The same with an array."""

    def __init__(self) -> None:
        self.indices = numpy.arange(SIZE)  # type: ignore[assignment]

    def __iter__(self) -> Iterator[int]:
        numpy.random.shuffle(self.indices)
        return iter(self.indices.tolist())


class Streaming(Own):
    """Takes its indices from a stream that goes on."""

    def __init__(self) -> None:
        self.stream = itertools.cycle(random.Random(3).sample(range(SIZE), SIZE - 1))

    def __iter__(self) -> Iterator[int]:
        return itertools.islice(self.stream, SIZE)


class Tally:
    """A helper that counts."""

    def __init__(self) -> None:
        self.count = 0


class HelpedCounting(Own):
    """Has a helper that counts."""

    def __init__(self) -> None:
        self.tally = Tally()

    def __iter__(self) -> Iterator[int]:
        self.tally.count += 1
        return iter(random.Random(self.tally.count).sample(range(SIZE), SIZE))


class CountingNoise(StatedNoise):
    """A collate function that counts, and gives its state but doesn't take it back."""

    load_state_dict = property()  # type: ignore[assignment]


def counting_closure() -> Callable[[list[Tensor]], Tensor]:
    """A collate function that counts in the function around it."""
    count = [0]

    def collate(samples: list[Tensor]) -> Tensor:
        count[0] += 1
        return torch.stack(samples) + count[0]

    return collate


LOST: dict[str, tuple[Callable[[], Any], str]] = {
    "counter": (lambda: loader(sampler=Counting()), "sampler.count"),
    "a list shuffled in place": (lambda: loader(sampler=InPlace()), "sampler.indices"),
    "an array shuffled in place": (lambda: loader(sampler=InPlaceArray()), "sampler.indices"),
    "an iterator": (lambda: loader(sampler=Streaming()), "sampler.stream"),
    "the system's chance": (lambda: loader(sampler=Own(random.SystemRandom())), "sampler.rng"),
    "a helper's counter": (lambda: loader(sampler=HelpedCounting()), "sampler.tally.count"),
    "an inner sampler's counter": (
        lambda: loader(batch_sampler=Around(Counting())),
        "batch_sampler.base_sampler.count",
    ),
    "a collate object's counter": (lambda: loader(collate_fn=CountingNoise()), "collate_fn.count"),
    "a collate closure's counter": (lambda: loader(collate_fn=counting_closure()), "collate_fn.count"),
}


@pytest.mark.parametrize("kind", LOST)
def test_what_can_not_be_put_back_is_said_by_name(kind: str) -> None:
    """In one sentence, at a pass's end and within one; a first pass that can be taken again is exact."""
    make, name = LOST[kind]
    length = SIZE // BATCH
    for stop in (length, length + 2):
        first = DataPosition()
        take(first, make(), stop)
        said = resumed(first).caveat(make())
        assert said is not None
        assert f"its {name} can't be put back to what it was, so its order may be another" in said
    seed_all(1)
    whole = take(DataPosition(), make(), length)
    seed_all(1)
    first = DataPosition()
    taken = take(first, make(), 2)
    second = resumed(first)
    exact = "put back" not in (second.caveat(again := make()) or "")
    assert not exact or taken + take(second, again, length) == whole


def test_the_run_says_it_when_the_pass_begins(make_runner: MakeRunner, capsys: pytest.CaptureFixture[str]) -> None:
    """As a warning, of the loader that is passed over then."""
    make_runner(epochs=1, train_dataloader=loader(sampler=Counting()), **STEP).train()
    again = make_runner(epochs=2, train_dataloader=loader(), resume=True, log_level="WARNING", **STEP)
    again.on("before_train_epoch")(lambda runner: setattr(runner.train_loop, "dataloader", loader(sampler=Counting())))
    again.train()
    out = capsys.readouterr().out
    assert out.count("level=warning") == 1
    assert "its sampler.count can't be put back to what it was" in out


class WithEpoch(Counting):
    """Is told the number of its pass."""

    def set_epoch(self, epoch: int) -> None:
        self.count = epoch


class Stateless(Own):
    """Draws from the global generator."""

    def __init__(self, size: int = SIZE) -> None:
        self.size, self.weights, self.data = size, torch.ones(size), Numbers()

    def __iter__(self) -> Iterator[int]:
        self.order = torch.randperm(self.size).tolist()
        return iter(self.order)


SILENT: dict[str, Callable[[], Any]] = {
    "in order": lambda: loader(sampler=SequentialSampler(Numbers())),
    "shuffled": lambda: loader(shuffle=True),
    "shuffled by a generator": lambda: loader(shuffle=True, generator=torch.Generator().manual_seed(1)),
    "with replacement": lambda: loader(sampler=RandomSampler(Numbers(), replacement=True)),
    "a random subset": lambda: loader(sampler=SubsetRandomSampler(range(SIZE))),
    "weighted": lambda: loader(sampler=WeightedRandomSampler([1.0] * SIZE, SIZE)),
    "distributed": lambda: loader(sampler=DistributedSampler(Numbers(), 1, 0)),
    "batched": lambda: loader(batch_sampler=BatchSampler(RandomSampler(Numbers()), BATCH, drop_last=True)),
    "told its epoch": lambda: loader(sampler=WithEpoch()),
    "stateless": lambda: loader(sampler=Stateless()),
    "a list": lambda: list(torch.arange(4.0)),
}


@pytest.mark.parametrize("kind", SILENT)
def test_of_what_goes_on_exactly_nothing_is_said(kind: str) -> None:
    """Of torch's own samplers, and of others that hold nothing."""
    for stop in (2, 4, 6):
        first = DataPosition()
        take(first, SILENT[kind](), stop)
        assert resumed(first).caveat(SILENT[kind]()) is None


# What a loader is


OTHERS: dict[str, tuple[Callable[[], Any], str]] = {
    "length": (
        lambda: DataLoader(Subset(Numbers(), range(6)), BATCH),
        "its number of batches is 3 and was 4; its number of samples is 6 and was 8; its dataset is Subset and was "
        "Numbers",
    ),
    "batch size": (
        lambda: DataLoader(Numbers(), 4),
        "its number of batches is 2 and was 4; its batch_size is 4 and was 2",
    ),
    "sampler": (lambda: loader(shuffle=True), "its sampler is RandomSampler and was SequentialSampler"),
    "type": (
        lambda: list(torch.arange(4.0)),
        "its type is list and was DataLoader; its number of samples is None and was 8; its batch_size is None and was "
        "2; its sampler is None and was SequentialSampler; its batch_sampler is None and was BatchSampler; its dataset "
        "is None and was Numbers",
    ),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_another_loader_is_named_at_a_passs_end_too(kind: str) -> None:
    """Its length, its batch size, the types of its parts."""
    make, said = OTHERS[kind]
    first = DataPosition()
    take(first, loader(), 4)
    other = make()
    kind = type(other).__name__
    assert resumed(first).caveat(other) == f"going on in the train_dataloader, of type {kind}: {said}."


def test_a_loader_that_was_swapped_in_once_is_missed(
    make_runner: MakeRunner, capsys: pytest.CaptureFixture[str]
) -> None:
    """The receiver isn't called again in the resumed run; one that swaps in each epoch is, and nothing is said."""

    def run(epochs: int, once: bool, **more: Any) -> str:
        runner = make_runner(epochs=epochs, train_dataloader=loader(), log_level="WARNING", **STEP, **more)
        swap = runner.on("before_train_epoch", start=1, once=once)
        swap(lambda runner: setattr(runner.train_loop, "dataloader", DataLoader(Numbers(), 4)))
        runner.train()
        return capsys.readouterr().out

    assert run(2, once=True, work_dir="once") == ""
    said = run(3, once=True, work_dir="once", resume=True)
    assert "its number of batches is 4 and was 2; its batch_size is 2 and was 4" in said
    assert run(2, once=False, work_dir="each") == ""
    assert run(3, once=False, work_dir="each", resume=True) == ""


@pytest.mark.parametrize(
    ("saved", "other", "said"),
    [
        (random.Random(0), torch.Generator(), "it holds another kind of generator as sampler.rng than it held;"),
        (random.Random(0), None, "it holds no generator where it held sampler.rng;"),
    ],
)
def test_another_kind_of_generator_is_an_error(saved: Any, other: Any, said: str) -> None:
    """The order would be another."""
    first = DataPosition()
    take(first, loader(sampler=Own(saved)), 2)
    with pytest.raises(ResumeError, match=said):
        next(resumed(first).batches(loader(sampler=Own(other))))


@pytest.mark.parametrize("stop", [2, 4])
def test_a_position_of_before_other_generators_were_saved_goes_on(stop: int) -> None:
    """By torch's alone, which it has in a list; the others begin anew."""

    def make() -> DataLoader[Any]:
        rng = torch.Generator().manual_seed(5)
        return loader(shuffle=True, generator=rng, collate_fn=Noise(random.Random(1)))

    def indices(batches: list[Any]) -> list[list[int]]:
        return [[int(number) for number in batch] for batch in batches]

    whole = take(DataPosition(), make(), 8)
    first = DataPosition()
    take(first, make(), stop)
    state = first.state_dict()
    for part in (state, state["start"]):
        if part:
            part["generators"] = [part["generators"]["generator"]]
            for key in ("states", "notes", "facts"):
                del part[key]
    again = DataPosition()
    again.load_state_dict(state)
    assert indices(take(again, make(), 8)) == indices(whole[stop:])


# Who is told the number of a pass


class Told:
    """Keeps the numbers that it was told."""

    def __init__(self) -> None:
        self.told: list[int] = []

    def set_epoch(self, epoch: int) -> None:
        self.told.append(epoch)


class Stream(Told, IterableDataset[Tensor]):
    """A stream in an order that its epoch decides."""

    def __iter__(self) -> Iterator[Tensor]:
        yield from torch.randperm(SIZE, generator=torch.Generator().manual_seed(self.told[-1])).float()


class ToldSampler(Told, Around):
    """A batch sampler that is told."""

    def __init__(self) -> None:
        Told.__init__(self)
        Around.__init__(self, range(SIZE))


class ToldData(Told, Numbers):
    """A dataset by index that is told."""


class ToldLoader(Told, HomeMade):
    """A home-made loader that is told."""

    def __init__(self) -> None:
        Told.__init__(self)
        HomeMade.__init__(self)


def told_parts() -> dict[str, tuple[Any, Told]]:
    """Loaders, and what of each is to be told."""
    stream, data, sampler, own = Stream(), ToldData(), ToldSampler(), ToldLoader()
    return {
        "stream": (DataLoader(stream, BATCH), stream),
        "dataset": (DataLoader(data, BATCH), data),
        "dataset of a subset": (DataLoader(Subset(data, range(SIZE)), BATCH), data),
        "batch sampler": (DataLoader(Numbers(), batch_sampler=sampler), sampler),
        "loader": (own, own),
    }


@pytest.mark.parametrize("kind", list(told_parts()))
@pytest.mark.parametrize("cfg", [{"max_epochs": 3}, {"max_iters": 12}])
@pytest.mark.slow
def test_each_pass_announces_itself(make_runner: MakeRunner, kind: str, cfg: dict[str, int]) -> None:
    """By epochs and by iterations, to samplers, datasets and loaders; in a resumed run from its own pass on."""

    def run(until: int | None = None, **more: Any) -> tuple[list[int], list[Any]]:
        loader, part = told_parts()[kind]
        seen: list[Any] = []
        runner = make_runner(train_dataloader=loader, train_cfg=cfg, **STEP, **more)
        runner.on("before_train_iter")(lambda data_batch: seen.append(data_batch.tolist()))
        if until is not None:
            runner.on("after_train_iter", when=lambda runner: runner.iter + 1 == until)(lambda runner: runner.stop())
        runner.train()
        return part.told, seen

    told, whole = run(work_dir="whole")
    assert told == [0, 1, 2]
    told, first = run(6, work_dir="cut")
    assert told == [0, 1]
    told, rest = run(work_dir="cut", resume=True)
    assert told[-2:] == [1, 2]
    assert first + rest == whole


def test_a_checkpoint_says_what_the_loader_was(make_runner: MakeRunner) -> None:
    """In plain words."""
    runner = make_runner(epochs=1, train_dataloader=loader(shuffle=True), **STEP)
    runner.train()
    facts = load_checkpoint(runner.work_dir / "epoch_1")["loop"]["data"]["facts"]
    assert facts == {
        "type": "DataLoader",
        "number of batches": 4,
        "number of samples": 8,
        "batch_size": 2,
        "sampler": "RandomSampler",
        "batch_sampler": "BatchSampler",
        "dataset": "Numbers",
    }
