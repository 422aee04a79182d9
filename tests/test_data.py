"""DataPosition: a pass that is gone on with gives the batches that were left, and what is no loader is refused."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

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
    WeightedRandomSampler,
)

from eventrunner.data import DataPosition, batch_count, check_loader, samplers
from eventrunner.errors import OptionError, ResumeError
from eventrunner.state import rng_state, seed_all, set_rng_state


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


@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # more workers than this machine has cores
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


def test_endless_passes_tell_samplers_their_number_also_when_gone_on_with() -> None:
    """A DistributedSampler gives each pass an order of its own, and in a resumed run the same one."""

    def make() -> DataLoader[Any]:
        return DataLoader(Noisy(), 2, sampler=DistributedSampler(Noisy(), 1, 0, seed=3))

    def take(position: DataPosition, count: int) -> list[Any]:
        taken = []
        for batch in position.endless(make()):
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
        (lambda: own_generator(), "has 1 generators of its own where there were 0"),
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
    with pytest.raises(ResumeError, match="it has 0 generators of its own where there were 1;"):
        next(again.batches(shuffled()))


def test_what_was_loaded_is_saved_again_before_the_next_pass() -> None:
    """A checkpoint between the resume and the first batch still has the loader's own generators."""
    position = DataPosition()
    train(position, own_generator(), passes=1)
    again = DataPosition()
    again.load_state_dict(position.state_dict())
    assert len(again.state_dict()["generators"]) == 1
    assert torch.equal(again.state_dict()["generators"][0], position.state_dict()["generators"][0])


def test_the_state_is_a_copy_of_generators() -> None:
    """Drawing from a loader's generator doesn't reach a state taken before."""
    loader = own_generator()
    position = DataPosition()
    train(position, loader, passes=1, until=2)
    saved = position.state_dict()["generators"][0].clone()
    state = position.state_dict()
    torch.rand(3, generator=loader.generator)
    assert torch.equal(state["generators"][0], saved)


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
]


@pytest.mark.parametrize(("loader", "said"), REFUSED, ids=lambda value: type(value).__name__)
def test_what_is_no_loader_is_refused(loader: Any, said: str) -> None:
    """A config dict, what one pass uses up, and what can't be iterated over."""
    with pytest.raises(OptionError) as caught:
        check_loader("x_dataloader", loader)
    assert str(caught.value) == said


def test_what_can_be_passed_over_again_is_a_loader() -> None:
    """Lists, DataLoaders, datasets by index, and iterators with a length that begin anew by themselves."""

    class Renewing:
        def __iter__(self) -> Renewing:
            return self

        def __next__(self) -> int:
            raise StopIteration

        def __len__(self) -> int:
            return 0

    for loader in ([1], shuffled(), Noisy(), Renewing()):
        check_loader("x_dataloader", loader)
