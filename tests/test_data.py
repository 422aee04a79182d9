"""DataPosition: a pass that is gone on with gives the batches that were left, and what is no loader is refused."""

from __future__ import annotations

import multiprocessing
import random
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    Sampler,
    Subset,
    TensorDataset,
    WeightedRandomSampler,
    get_worker_info,
)
from torchdata.nodes import Batcher, Loader, Mapper, Prefetcher, SamplerWrapper
from torchdata.stateful_dataloader import StatefulDataLoader

from eventrunner.errors import CheckpointError, OptionError, ResumeError
from eventrunner.training.dataloader import batch_count, check_loader, samplers
from eventrunner.training.position import DataPosition
from eventrunner.training.state import rng_state, seed_all, set_rng_state

pytestmark = [
    pytest.mark.filterwarnings("ignore:'set_vital' is deprecated"),  # torchdata calls it
    pytest.mark.filterwarnings("ignore:This DataLoader will create"),  # more workers than this machine has cores
]


class Noisy(Dataset[Tensor]):
    """Eight samples, each its number with noise from the global generators: an augmentation."""

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> Tensor:
        return torch.tensor([float(index), torch.rand(()).item(), random.random()])


class Stream(IterableDataset[Tensor]):
    """The same without a length, in an order drawn at its start."""

    def __iter__(self) -> Iterator[Tensor]:
        yield from torch.randperm(8).float()


def shuffled(**more: Any) -> DataLoader[Any]:
    """Shuffled by the global generator."""
    return DataLoader(Noisy(), 2, shuffle=True, **more)


def own_generator(**more: Any) -> DataLoader[Any]:
    """Shuffled by a generator of the loader's."""
    return DataLoader(Noisy(), 2, shuffle=True, generator=torch.Generator().manual_seed(5), **more)


def own_sampler() -> DataLoader[Any]:
    """Drawn with replacement by a generator of the sampler's."""
    sampler = RandomSampler(Noisy(), replacement=True, num_samples=8, generator=torch.Generator().manual_seed(6))
    return DataLoader(Noisy(), 2, sampler=sampler)


def own_batch_sampler() -> DataLoader[Any]:
    """Batches by a sampler that has the generator two steps away."""
    sampler = RandomSampler(Noisy(), generator=torch.Generator().manual_seed(7))
    return DataLoader(Noisy(), batch_sampler=BatchSampler(sampler, 2, drop_last=False))


def weighted() -> DataLoader[Any]:
    """Drawn by weight from the global generator."""
    return DataLoader(Noisy(), 2, sampler=WeightedRandomSampler(torch.arange(1.0, 9.0).tolist(), 8))


def stream() -> DataLoader[Any]:
    """Without a length."""
    return DataLoader(Stream(), 2)


def plain() -> list[Tensor]:
    """Batches in a list."""
    return list(torch.arange(4.0))


LOADERS = [shuffled, own_generator, own_sampler, own_batch_sampler, weighted, stream, plain]


def train(position: DataPosition, loader: Any, passes: int, until: int | None = None) -> list[Any]:
    """Take batches as a loop does, drawing between them as dropout does; stop when so many were taken in all."""
    taken: list[Any] = []
    done = position.passes * 4 + position.consumed
    while position.passes < passes:
        for _, batch in position.batches(loader):
            torch.rand(3)
            random.random()
            taken.append(batch)
            position.consumed += 1
            done += 1
            if done == until:
                return taken
    return taken


def equal(ours: list[Any], theirs: list[Any]) -> bool:
    """Whether two lists of tensors are equal to the bit."""
    return len(ours) == len(theirs) and all(map(torch.equal, ours, theirs))


@pytest.mark.parametrize("make", LOADERS, ids=lambda make: make.__name__)
def test_from_any_batch_the_rest_is_as_if_never_stopped(make: Any) -> None:
    """In a new process (a new loader, other generators), from every batch of two passes, twice in a row."""
    seed_all(1)
    whole = train(DataPosition(), make(), passes=2)
    assert len(whole) == 8
    for stop in range(8):
        seed_all(1)
        first = DataPosition()
        taken = train(first, make(), passes=2, until=stop) if stop else []
        saved, rng = first.state_dict(), rng_state()
        again = DataPosition()
        again.load_state_dict(saved)
        assert again.state_dict() == saved or stop  # nothing is known of a loader before the first pass
        torch.manual_seed(99)
        set_rng_state(rng)
        middle = train(again, make(), passes=2, until=stop + 1)
        third = DataPosition()
        third.load_state_dict(again.state_dict())
        taken += middle + train(third, make(), passes=2)
        assert equal(taken, whole), f"stopped after {stop} batches"


@pytest.mark.parametrize("make", [shuffled, own_generator], ids=lambda make: make.__name__)
def test_with_worker_processes_it_is_as_exact(make: Any) -> None:
    """The workers' own draws too: what they are seeded with is drawn again."""
    seed_all(1)
    whole = train(DataPosition(), make(num_workers=2), passes=2)
    for stop in (1, 6):
        seed_all(1)
        first = DataPosition()
        taken = train(first, make(num_workers=2), passes=2, until=stop)
        again = DataPosition()
        again.load_state_dict(first.state_dict())
        taken += train(again, make(num_workers=2), passes=2)
        assert equal(taken, whole)


@pytest.mark.parametrize("make", LOADERS, ids=lambda make: make.__name__)
def test_the_same_position_goes_on_in_the_same_process(make: Any) -> None:
    """A pass that was left midway is finished, not begun again: no batch twice, none left out."""
    seed_all(1)
    whole = train(DataPosition(), make(), passes=2)
    seed_all(1)
    position, loader = DataPosition(), make()
    taken: list[Any] = []
    for stop in (2, 3, 4, 7, None):
        taken += train(position, loader, passes=2, until=stop)
    assert equal(taken, whole)


@settings(max_examples=25, deadline=None)
@given(stops=st.lists(st.integers(1, 11), unique=True).map(sorted), seed=st.integers(0, 1000))
def test_however_often_it_stops_each_batch_comes_once(stops: list[int], seed: int) -> None:
    """Random stops over three passes, each with a new position and loader."""
    seed_all(seed)
    whole = train(DataPosition(), own_generator(), passes=3)
    seed_all(seed)
    position, taken = DataPosition(), []
    for stop in [*stops, None]:
        following = DataPosition()
        following.load_state_dict(position.state_dict())
        position = following
        taken += train(position, own_generator(), passes=3, until=stop)
    assert equal(taken, whole)


def test_a_pass_begun_but_not_trained_on_is_begun_again_in_the_same_order() -> None:
    """Saved while its first batch was under way, the position stands at the pass's very start."""
    seed_all(1)
    whole = train(DataPosition(), shuffled(), passes=1)
    seed_all(1)
    position = DataPosition()
    next(position.batches(shuffled()))
    again = DataPosition()
    again.load_state_dict(position.state_dict())
    assert equal(train(again, shuffled(), passes=1), whole)


def test_a_generator_that_the_training_shares_with_its_loader_goes_on_too() -> None:
    """What a step draws from it between two batches is drawn once: it stands where it stood, not where it began."""

    def take(position: DataPosition, loader: DataLoader[Any], count: int) -> list[float]:
        drawn = []
        for _ in position.batches(loader):
            drawn.append(torch.rand((), generator=loader.generator).item())
            position.consumed += 1
            if len(drawn) == count:
                break
        return drawn

    whole = take(DataPosition(), own_generator(), 4)
    position = DataPosition()
    first = take(position, own_generator(), 2)
    again = DataPosition()
    again.load_state_dict(position.state_dict())
    assert first + take(again, own_generator(), 2) == whole


def test_samplers_are_told_the_number_of_each_pass_also_when_gone_on_with() -> None:
    """A DistributedSampler gives each pass an order of its own, and in a resumed run the same one."""

    def make() -> DataLoader[Any]:
        return DataLoader(Noisy(), 2, sampler=DistributedSampler(Noisy(), 1, 0, seed=3))

    def take(position: DataPosition, count: int) -> list[Any]:
        taken: list[Any] = []
        loader = make()
        while len(taken) < count:
            position.announce(loader)
            for _, batch in position.batches(loader):
                taken.append(batch[:, 0])
                position.consumed += 1
                if len(taken) == count:
                    break
        return taken

    whole = take(DataPosition(), 12)
    assert not equal(whole[:4], whole[4:8])
    for stop in (3, 4, 5, 9):
        position = DataPosition()
        first = take(position, stop)
        again = DataPosition()
        again.load_state_dict(position.state_dict())
        assert equal(first + take(again, 12 - stop), whole)


@pytest.mark.parametrize(
    ("other", "difference"),
    [
        (lambda: DataLoader(Noisy(), 1), "has 8 batches where there were 4"),
        (lambda: DataLoader(Stream(), 2), "has None batches where there were 4"),
        (lambda: own_generator(), "holds generator where it held no generator"),
    ],
)
def test_another_loader_than_the_one_that_was_begun_is_an_error(other: Any, difference: str) -> None:
    """A pass can't be gone on with in a loader of another length or with other generators."""
    position = DataPosition()
    train(position, shuffled(), passes=1, until=2)
    again = DataPosition()
    again.load_state_dict(position.state_dict())
    with pytest.raises(ResumeError) as caught:
        next(again.batches(other()))
    said = f"going on in the train_dataloader: it {difference}; it must be the one that was begun."
    assert str(caught.value) == said


def test_a_stream_that_ends_too_soon_is_an_error() -> None:
    """Without a length it shows only when the batches are taken again."""
    position = DataPosition()
    train(position, DataLoader(Stream(), 2), passes=1, until=3)

    class Short:
        def __iter__(self) -> Iterator[Tensor]:
            return iter(torch.arange(2.0))

    again = DataPosition()
    again.load_state_dict(position.state_dict())
    with pytest.raises(ResumeError, match="it ended after 2 of the 3 batches already taken;"):
        next(again.batches(Short()))


def test_at_a_boundary_a_missing_generator_is_an_error() -> None:
    """The next pass would have another order."""
    position = DataPosition()
    train(position, own_generator(), passes=1)
    again = DataPosition()
    again.load_state_dict(position.state_dict())
    with pytest.raises(ResumeError, match="it holds no generator where it held generator;"):
        next(again.batches(shuffled()))


def test_what_was_loaded_is_saved_again_before_the_next_pass() -> None:
    """A checkpoint between the resume and the first batch still has the loader's own generators."""
    position = DataPosition()
    train(position, own_generator(), passes=1)
    again = DataPosition()
    again.load_state_dict(position.state_dict())
    assert len(again.state_dict()["generators"]) == 1
    assert torch.equal(*(each.state_dict()["generators"]["generator"] for each in (again, position)))


def test_the_state_is_a_copy_of_generators() -> None:
    """Drawing from a loader's generator doesn't reach a state taken before."""
    loader = own_generator()
    position = DataPosition()
    train(position, loader, passes=1, until=2)
    saved = position.state_dict()["generators"]["generator"].clone()
    state = position.state_dict()
    torch.rand(3, generator=loader.generator)
    assert torch.equal(state["generators"]["generator"], saved)


# Batches left behind by their indices


class Counted(Dataset[Tensor]):
    """Eight samples that note when they are loaded."""

    def __init__(self) -> None:
        self.loaded: list[int] = []

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> Tensor:
        self.loaded.append(index)
        return torch.tensor(float(index))


@pytest.mark.parametrize("loader", [DataLoader, StatefulDataLoader])
def test_without_workers_nothing_is_loaded_twice(loader: Any) -> None:
    """Of three batches taken, only the indices are drawn again."""
    seed_all(1)
    first, dataset = DataPosition(), Counted()
    train(first, loader(dataset, 2, shuffle=True), passes=1, until=3)
    again, fresh = DataPosition(), Counted()
    again.load_state_dict(first.state_dict())
    train(again, loader(fresh, 2, shuffle=True), passes=1)
    assert sorted(dataset.loaded + fresh.loaded) == list(range(8))
    assert len(fresh.loaded) == 2


class Drawing(Sampler[int]):
    """Draws each index, of those that are left, from a global generator when it is asked for it."""

    def __init__(self) -> None:
        pass

    def __len__(self) -> int:
        return 8

    def __iter__(self) -> Iterator[int]:
        left = list(range(8))
        while left:
            yield left.pop(random.randrange(len(left)))


class Shifted(Dataset[Tensor]):
    """Samples with noise from the generator that ``Drawing`` draws from."""

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> Tensor:
        return torch.tensor(index + random.random() / 2)


class Remembering(Shifted):
    """Samples with noise from a generator of the dataset's own."""

    def __init__(self, generator: Any = None) -> None:
        self.generator = generator or random.Random(3)

    def __getitem__(self, index: int) -> Tensor:
        return torch.tensor(index + self.generator.random() / 2)


@pytest.mark.parametrize(
    "make",
    [lambda: DataLoader(Shifted(), 2, sampler=Drawing()), lambda: DataLoader(Remembering(), 2, shuffle=True)],
    ids=["sampler", "dataset"],
)
def test_what_is_drawn_while_loading_is_drawn_again(make: Callable[[], DataLoader[Any]]) -> None:
    """A sampler and samples that draw by turns from one generator, or from one that only loading moves: all is loaded.

    The training draws from torch's alone.
    """

    def take(position: DataPosition, count: int) -> list[Any]:
        taken = []
        for _, batch in position.batches(make()):
            taken.append(batch)
            torch.rand(3)
            position.consumed += 1
            if len(taken) == count:
                break
        return taken

    for stop in (1, 2, 3):
        seed_all(1)
        whole = take(DataPosition(), 4)
        seed_all(1)
        position = DataPosition()
        taken = take(position, stop)
        again = DataPosition()
        again.load_state_dict(position.state_dict())
        assert equal(taken + take(again, 4 - stop), whole)


# Loaders that tell where they stand


class Sharded(IterableDataset[Tensor]):
    """Eight samples by turns to the workers; it goes on where its state says."""

    def __init__(self) -> None:
        self.at = 0

    def __iter__(self) -> Iterator[Tensor]:
        worker = get_worker_info()
        shards, own = (worker.num_workers, worker.id) if worker else (1, 0)
        while self.at < 8:
            self.at += 1
            if (self.at - 1) % shards == own:
                yield torch.tensor(float(self.at))
        self.at = 0

    def state_dict(self) -> dict[str, int]:
        return {"at": self.at}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.at = state["at"]


class Counter(Iterator[Tensor]):
    """An iterator with a state, of a dataset without."""

    def __init__(self) -> None:
        self.at = 0

    def __next__(self) -> Tensor:
        if self.at == 8:
            raise StopIteration
        self.at += 1
        return torch.tensor(float(self.at))

    state_dict, load_state_dict = Sharded.state_dict, Sharded.load_state_dict


class Counting(IterableDataset[Tensor]):
    """Its iterator has the state."""

    def __iter__(self) -> Iterator[Tensor]:
        return Counter()


class Aging(Noisy):
    """Counts its samples beyond the end of a pass."""

    def __init__(self) -> None:
        self.at = 0

    def __getitem__(self, index: int) -> Tensor:
        self.at += 1
        return torch.tensor([index, self.at, torch.rand(()).item()])

    state_dict, load_state_dict = Sharded.state_dict, Sharded.load_state_dict


class Eager(Drawing):
    """Draws its order when it is asked for an iterator."""

    def __iter__(self) -> Iterator[int]:
        return iter(torch.randperm(8).tolist())


class Simple:
    """A home-made loader that stays at its end until it is begun once more; it numbers and shuffles its passes."""

    def __init__(self) -> None:
        self.at = self.passes = 0
        self.resumed = False
        self.order: list[int] = []

    def __iter__(self) -> Iterator[Tensor]:
        if not self.resumed:
            self.at, self.passes = 0, self.passes + 1
        self.resumed, self.order = False, torch.randperm(4).tolist()
        return iter(self.give, None)

    def give(self) -> Tensor | None:
        if self.at == 4:
            return None
        self.at += 1
        return torch.tensor(float(10 * self.passes + self.order[self.at - 1]))

    def state_dict(self) -> dict[str, int]:
        return {"at": self.at, "passes": self.passes}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.at, self.passes, self.resumed = state["at"], state["passes"], True


def nodes() -> Loader[Any]:
    """A pipeline that prepares batches in a thread, in an order from the global generator."""
    samples = Mapper(SamplerWrapper(RandomSampler(Noisy())), lambda index: torch.tensor(float(index)))
    return Loader(Prefetcher(Mapper(Batcher(samples, 2), torch.stack), prefetch_factor=2))


def stateful(dataset: Any, workers: int = 0, **more: Any) -> Any:
    """A StatefulDataLoader; the seed that it draws when it is made is always the same."""
    with torch.random.fork_rng():
        torch.manual_seed(4)
        return StatefulDataLoader(dataset, 2, num_workers=workers, **more)


class Numbers(Counted):
    """Samples without noise, as workers' noise isn't in a loader's state."""


def shared() -> dict[str, torch.Generator]:
    """One generator for the order and for the workers' seed."""
    return {"generator": torch.Generator().manual_seed(5)}


TELLING: dict[str, Callable[[], Any]] = {
    "a stateful iterable": lambda: stateful(Sharded()),
    "a stateful iterator": lambda: stateful(Counting()),
    "a stateful dataset": lambda: stateful(Aging(), shuffle=True),
    "a home-made one": Simple,
    "nodes": nodes,
    "workers": lambda: stateful(Numbers(), 2, shuffle=True, **shared()),
    "workers, weighted": lambda: stateful(
        Numbers(), 2, sampler=WeightedRandomSampler(torch.arange(1.0, 9.0).tolist(), 8)
    ),
    "workers, a stateful iterable": lambda: stateful(Sharded(), 2),
    "workers that persist": lambda: stateful(Sharded(), 2, persistent_workers=True),
}
COUNTING: dict[str, Callable[[], Any]] = {
    "shuffled": lambda: stateful(Noisy(), shuffle=True),
    "shuffled by its own generator": lambda: stateful(Noisy(), shuffle=True, **shared()),
    "weighted": lambda: stateful(Noisy(), sampler=WeightedRandomSampler(torch.arange(1.0, 9.0).tolist(), 8)),
    "drawn at once": lambda: stateful(Noisy(), sampler=Eager()),
    "drawn at once, with workers": lambda: stateful(Numbers(), 1, sampler=Eager()),
    "a stream": lambda: stateful(Stream()),
}


def gone_on(position: DataPosition) -> DataPosition:
    """A new position with the state of one."""
    again = DataPosition()
    again.load_state_dict(position.state_dict())
    return again


@pytest.mark.parametrize("kind", [*TELLING, *COUNTING])
def test_a_loader_with_a_state_goes_on_exactly(kind: str) -> None:
    """In a new loader, twice in a pass, at a pass's last batch and behind its end; what it draws globally too.

    One that tells no more than a count isn't asked: torchdata counts double what it has passed over in a stream, and
    draws an order twice of a sampler that draws it at once.
    """
    make = {**TELLING, **COUNTING}[kind]
    seed_all(1)
    whole = train(DataPosition(), make(), passes=2)
    after = rng_state()
    for stop in (3, 4) if "workers" in kind else range(1, 8):
        seed_all(1)
        first = DataPosition()
        taken = train(first, make(), passes=2, until=stop)
        assert (first.state_dict()["loader"] is not None) == (kind in TELLING)
        second, rng = gone_on(first), rng_state()
        seed_all(99)
        loader = make()
        set_rng_state(rng)
        taken += train(second, loader, passes=2, until=stop + 1)
        taken += train(gone_on(second), make(), passes=2)
        assert equal(taken, whole), stop
        assert torch.equal(rng_state()["torch"], after["torch"]), stop
    seed_all(1)
    first = DataPosition()
    taken = train(first, make(), passes=1)
    assert equal(taken + train(gone_on(first), make(), passes=2), whole)


def interrupted(position: DataPosition, loader: Any, count: int) -> list[Any]:
    """Train on so many batches, and be interrupted with one more under way."""
    taken: list[Any] = []
    while True:
        for _, batch in position.batches(loader):
            if len(taken) == count:
                return taken
            torch.rand(3)
            random.random()
            taken.append(batch)
            position.consumed += 1


KINDS = ["a stateful iterable", "a home-made one", "workers"]


@pytest.mark.parametrize(
    ("kind", "new"), [("a stateful dataset", False), *((kind, new) for kind in KINDS for new in (True, False))]
)
@pytest.mark.slow
def test_a_batch_that_a_loader_gave_but_that_was_not_trained_on_comes_again(kind: str, new: bool) -> None:
    """The loader is one batch ahead of the training, in a new process or the same; also where it was resumed before."""
    make = TELLING[kind]
    seed_all(1)
    whole = train(DataPosition(), make(), passes=2)
    for stop in (1, 5) if kind == "workers" else (0, 1, 2, 3, 4, 5):
        seed_all(1)
        loader, first = make(), DataPosition()
        taken, rng = interrupted(first, loader, stop), rng_state()
        interrupted(first, loader, 0)  # and once more at the same batch
        loader, second = (make(), gone_on(first)) if new else (loader, first)
        set_rng_state(rng)
        taken, rng = taken + interrupted(second, loader, 2), rng_state()
        loader, third = (make(), gone_on(second)) if new else (loader, second)
        set_rng_state(rng)
        assert equal(taken + train(third, loader, passes=2), whole), stop


def test_a_loader_that_fails_right_after_a_resume_goes_on_where_it_stood() -> None:
    """What was loaded has been used up by then, and no batch has come yet."""

    class Flaky(Simple):
        fails = False

        def give(self) -> Tensor | None:
            if self.fails:
                self.fails = False
                raise OSError("the share is gone")
            return super().give()

    seed_all(1)
    whole = train(DataPosition(), Flaky(), passes=2)
    seed_all(1)
    first = DataPosition()
    taken, rng = train(first, Flaky(), passes=2, until=2), rng_state()
    loader, second = Flaky(), gone_on(first)
    loader.fails = True
    with pytest.raises(OSError, match="the share is gone"):
        train(second, loader, passes=2)
    set_rng_state(rng)
    assert equal(taken + train(second, loader, passes=2), whole)


def test_a_pass_that_is_left_leaves_no_workers() -> None:
    """A position that lives on keeps no iterator of a plain loader."""
    before = {process.pid for process in multiprocessing.active_children()}
    position = DataPosition()
    train(position, shuffled(num_workers=1), passes=1, until=1)
    assert {process.pid for process in multiprocessing.active_children()} <= before


def test_a_loader_that_someone_else_passes_over_meanwhile_still_tells_of_the_training() -> None:
    """A validation on the same object, in the middle of a pass."""
    whole = train(DataPosition(), TELLING["workers"](), passes=1)
    loader, first = TELLING["workers"](), DataPosition()
    taken = []
    for _, batch in first.batches(loader):
        taken.append(batch)
        first.consumed += 1
        if len(taken) == 2:
            list(loader)
            saved = first.state_dict()
    assert equal(taken, whole)
    again = DataPosition()
    again.load_state_dict(saved)
    assert equal(train(again, TELLING["workers"](), passes=1), whole[2:])


class Adopting(Sharded):
    """Hands out the very list that it works with, and works with the very list that it is given."""

    def __init__(self) -> None:
        self.seen: list[int] = []

    def __iter__(self) -> Iterator[Tensor]:
        while len(self.seen) < 8:
            self.seen.append(len(self.seen))
            yield torch.tensor(float(self.seen[-1]))

    def state_dict(self) -> dict[str, Any]:
        return {"seen": self.seen}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.seen = state["seen"]


def test_a_state_is_the_positions_own() -> None:
    """Neither training on nor loading it elsewhere changes what was handed out."""
    first = DataPosition()
    for _ in first.batches(stateful(Adopting())):
        first.consumed += 1
        if first.consumed == 2:
            saved = first.state_dict()
            kept = repr(saved["loader"])
    for _ in range(2):
        again = DataPosition()
        again.load_state_dict(saved)
        assert [batch.tolist() for batch in train(again, stateful(Adopting()), passes=1)] == [[4.0, 5.0], [6.0, 7.0]]
    assert repr(saved["loader"]) == kept


def test_a_state_that_no_checkpoint_holds_is_an_error_that_names_the_loader() -> None:
    """At the first save, with the place in it."""

    class Locked(Sharded):
        def state_dict(self) -> dict[str, Any]:
            return {"lock": threading.Lock()}

    position = DataPosition()
    train(position, stateful(Locked()), passes=1, until=1)
    with pytest.raises(CheckpointError) as caught:
        position.state_dict()
    said = (
        "saving the train_dataloader, of type StatefulDataLoader: its state_dict()['dataset_state']['lock'] is a lock, "
        "which a checkpoint can't hold; it takes"
    )
    assert str(caught.value).startswith(said)


@pytest.mark.parametrize("stop", [2, 4])
def test_a_state_for_a_loader_that_takes_none_is_an_error(stop: int) -> None:
    """A plain DataLoader can't go on from it."""
    position = DataPosition()
    train(position, stateful(Aging()), passes=1, until=stop if stop < 4 else None)
    with pytest.raises(ResumeError) as caught:
        train(gone_on(position), DataLoader(Aging(), 2), passes=2)
    said = "going on in the train_dataloader: it can't load the state that was saved of it; it must be the one that was"
    assert str(caught.value) == f"{said} begun."


def test_a_position_of_before_loaders_were_asked_goes_on_by_its_count() -> None:
    """Checkpoints without a loader's state stay good."""
    seed_all(1)
    whole = train(DataPosition(), TELLING["a stateful dataset"](), passes=1)
    seed_all(1)
    position = DataPosition()
    train(position, TELLING["a stateful dataset"](), passes=1, until=2)
    saved = position.state_dict()
    del saved["loader"]
    again = DataPosition()
    again.load_state_dict(saved)
    rest = train(again, TELLING["a stateful dataset"](), passes=1)
    assert equal(rest, whole[2:])


# What the user is told


class Batches:
    """An iterable of batches that is nothing else."""

    def __iter__(self) -> Iterator[Tensor]:
        return iter(torch.arange(4.0))


AGAIN = "going on in the train_dataloader, of type"
WORKERS = {"num_workers": 2}
PERSISTENT = {"num_workers": 2, "persistent_workers": True}
OWN = "its dataset has a state or a generator of its own, which isn't saved and begins anew"
CAVEATS: list[tuple[Callable[[], Any], int, str | None]] = [
    (shuffled, 6, None),
    (plain, 6, None),
    (lambda: DataLoader([1.0] * 8, 2), 6, None),
    (TELLING["a stateful iterable"], 6, None),
    (TELLING["nodes"], 6, None),
    (lambda: shuffled(**WORKERS), 4, None),
    (TELLING["workers"], 4, None),
    (
        lambda: shuffled(**WORKERS),
        6,
        f"{AGAIN} DataLoader: 2 of its batches are loaded once more, as what its workers draw depends on them.",
    ),
    (
        lambda: shuffled(**PERSISTENT),
        3,
        f"{AGAIN} DataLoader: 3 of its batches are loaded once more, as what its workers draw depends on them.",
    ),
    (
        lambda: shuffled(**PERSISTENT),
        4,
        f"{AGAIN} DataLoader: its workers persist, so random transforms in them, if any, draw otherwise than in an "
        "uninterrupted run.",
    ),
    (
        lambda: shuffled(**WORKERS, in_order=False),
        4,
        f"{AGAIN} DataLoader: with in_order=False the order of its batches is that in which its workers finish.",
    ),
    (
        TELLING["workers"],
        6,
        f"{AGAIN} StatefulDataLoader: its state lacks its workers' generators, so random transforms in them, if any, "
        "begin anew.",
    ),
    (
        stream,
        5,
        f"{AGAIN} DataLoader: 1 of its batches is loaded once more, and must come in the same order as before.",
    ),
    (
        Batches,
        6,
        f"{AGAIN} Batches: 2 of its batches are loaded once more, and must come in the same order as before.",
    ),
    (lambda: DataLoader(Remembering(), 2), 3, f"{AGAIN} DataLoader: 3 of its batches are loaded once more."),
    (lambda: DataLoader(Remembering(numpy.random.default_rng(3)), 2), 4, f"{AGAIN} DataLoader: {OWN}."),
    (
        lambda: DataLoader(Subset(Aging(), range(8)), 2),
        6,
        f"{AGAIN} DataLoader: {OWN}; 2 of its batches are loaded once more.",
    ),
]


@pytest.mark.parametrize(("make", "stop", "said"), CAVEATS, ids=range(len(CAVEATS)))
def test_what_is_not_exact_or_takes_time_is_said(make: Callable[[], Any], stop: int, said: str | None) -> None:
    """In one sentence, when the state has been loaded; nothing where nothing is to be said."""
    position = DataPosition()
    assert position.caveat(make()) is None
    train(position, make(), passes=1, until=stop if stop < 4 else None)
    if stop > 4:
        train(position, make(), passes=2, until=stop)
    assert gone_on(position).caveat(make()) == said


@pytest.mark.parametrize("attribute", ["generator", "transform"])
def test_a_generator_in_a_datasets_transform_is_found(attribute: str) -> None:
    """As deep as that, and no deeper."""
    dataset = Numbers()
    dataset.transform = Remembering() if attribute == "transform" else None  # type: ignore[attr-defined]
    dataset.generator = torch.Generator() if attribute == "generator" else None  # type: ignore[attr-defined]
    position = DataPosition()
    train(position, DataLoader(dataset, 2), passes=1)
    assert gone_on(position).caveat(DataLoader(dataset, 2)) == f"{AGAIN} DataLoader: {OWN}."


def test_a_save_with_a_batch_under_way_costs_loading_once_more() -> None:
    """The state is then that of the pass's start, and going on from it loads what was taken since."""
    position, loader = DataPosition(), TELLING["a stateful iterable"]()
    interrupted(position, loader, 2)
    said = (
        f"{AGAIN} StatefulDataLoader: 2 of its batches are loaded once more, and must come in the same order as before."
    )
    assert gone_on(position).caveat(TELLING["a stateful iterable"]()) == said


def test_batch_count_is_none_where_there_is_no_length() -> None:
    """Neither a stream nor a plain iterable has one."""
    assert [batch_count(loader) for loader in (shuffled(), stream(), plain(), object())] == [4, None, 4, None]


def test_samplers_are_those_that_may_shuffle() -> None:
    """The sampler, the batch sampler, and that one's sampler; none of a list."""
    loader = own_batch_sampler()
    found = list(samplers(loader))
    assert loader.batch_sampler in found
    assert loader.batch_sampler.sampler in found
    assert list(samplers([1])) == []


def test_a_pass_without_a_batch_is_an_error() -> None:
    """Else an endless training would go round and round."""
    with pytest.raises(OptionError) as caught:
        next(DataPosition().batches([]))
    said = "the train_dataloader gave no batch; check its dataset, batch_size and drop_last."
    assert str(caught.value) == said


REFUSED = [
    ({"batch_size": 2}, "x_dataloader was given a dict; pass the object, such as a torch.utils.data.DataLoader."),
    (
        iter([1]),
        "x_dataloader was given a list_iterator, which one pass uses up; pass an iterable that begins anew, such as a "
        "DataLoader or a list of batches.",
    ),
    (
        zip([1], [2], strict=True),
        "x_dataloader was given a zip, which one pass uses up; pass an iterable that begins anew, such as a DataLoader "
        "or a list of batches.",
    ),
    (
        5,
        "x_dataloader was given an object of type int, which can't be iterated over; pass an iterable of batches, such "
        "as a DataLoader.",
    ),
    (
        TensorDataset(torch.zeros(4, 2)),
        "x_dataloader was given a dataset, of type TensorDataset, whose samples would be taken for batches; pass "
        "DataLoader(dataset, batch_size=…), with batch_size=None where its items are batches.",
    ),
    (
        Subset(TensorDataset(torch.zeros(4, 2)), [1]),
        "x_dataloader was given a dataset, of type Subset, whose samples would be taken for batches; pass "
        "DataLoader(dataset, batch_size=…), with batch_size=None where its items are batches.",
    ),
    (
        [DataLoader([1]), DataLoader([2])],
        "x_dataloader was given a list of 2 dataloaders, each of which would be taken for a batch; pass one, such as a "
        "DataLoader of the ConcatDataset of their datasets.",
    ),
    (
        (TensorDataset(torch.zeros(4, 2)),),
        "x_dataloader was given a tuple of 1 dataloaders, each of which would be taken for a batch; pass one, such as "
        "a DataLoader of the ConcatDataset of their datasets.",
    ),
    (
        RandomSampler([1, 2]),
        "x_dataloader was given an object of type RandomSampler, which gives no batches; pass a DataLoader.",
    ),
    (
        BatchSampler(RandomSampler([1, 2]), 2, drop_last=False),
        "x_dataloader was given an object of type BatchSampler, which gives no batches; pass a DataLoader.",
    ),
    (DataLoader, "x_dataloader was given the class DataLoader, which gives no batches; pass a DataLoader."),
    ("data/train", "x_dataloader was given an object of type str, which gives no batches; pass a DataLoader."),
]


@pytest.mark.parametrize(("loader", "said"), REFUSED, ids=lambda value: type(value).__name__)
def test_what_is_no_loader_is_refused(loader: Any, said: str) -> None:
    """A config dict, what one pass uses up, what can't be iterated over, and what gives something else than batches."""
    with pytest.raises(OptionError) as caught:
        check_loader("x_dataloader", loader)
    assert str(caught.value) == said


def test_what_can_be_passed_over_again_is_a_loader() -> None:
    """Lists, DataLoaders, iterable datasets (of batches), and iterators with a length that begin anew by themselves."""

    class Renewing:
        def __iter__(self) -> Renewing:
            return self

        def __next__(self) -> int:
            raise StopIteration

        def __len__(self) -> int:
            return 0

    class ByIndex:
        def __getitem__(self, index: int) -> int:
            raise IndexError

    class Batches(IterableDataset[int]):
        def __iter__(self) -> Any:
            return iter([1])

    for loader in ([1], shuffled(), Batches(), ByIndex(), Renewing()):
        check_loader("x_dataloader", loader)
