"""State: counters that stand where the work stands, and generators that are put back."""

from __future__ import annotations

import functools
import json
import random
import sys
from collections.abc import Callable
from typing import Any

import numpy
import pytest
import torch

from eventrunner.checkpoint.codec import decode
from eventrunner.checkpoint.plan import encode
from eventrunner.training.optim import OptimWrapper
from eventrunner.training.state import (
    Progress,
    Stateful,
    generator_state,
    is_generator,
    rng_state,
    seed_all,
    set_generator_state,
    set_rng_state,
)


def test_what_is_done_counts_before_the_counters_advance() -> None:
    """Between the end of the work and the advance, the sum is what a checkpoint records."""
    progress = Progress(epoch=1, iter=7, iter_done=1)
    assert (progress.epochs_completed, progress.step) == (1, 8)
    progress.epoch_done = 1
    assert progress.epochs_completed == 2
    assert progress.state_dict() == {"epoch": 2, "iter": 8, "validated": -1}


def test_a_progress_goes_on_right_after_what_was_complete() -> None:
    """Loaded or advanced, nothing is pending."""
    saved = Progress(1, 7, 1, 1, validated=1).state_dict()
    loaded = Progress()
    loaded.load_state_dict(saved)
    advanced = Progress(1, 7, 1, 1, validated=1)
    advanced.advance()
    assert loaded == advanced == Progress(2, 8, 0, 0, validated=1)


def draws() -> list[float]:
    """One number of each global generator, python's with the half of a pair that it keeps."""
    return [random.random(), random.gauss(), torch.rand(()).item(), float(numpy.random.rand()), numpy.random.normal()]


def test_generators_are_put_back() -> None:
    """All of them draw the same numbers again, those that keep half a pair too."""
    outer = rng_state()
    random.gauss()
    numpy.random.normal()
    state = rng_state()
    first = draws()
    set_rng_state(state)
    assert draws() == first
    set_rng_state(outer)


def test_generators_are_put_back_from_lists_too() -> None:
    """As checkpoints once had their words."""
    outer = rng_state()
    python, torchs, numpys = outer["python"], outer["torch"], outer["numpy"]
    listed = [python[0], python[1].tolist(), python[2]], [numpys[0], numpys[1].tolist(), *numpys[2:]]
    first = draws()
    set_rng_state({"python": listed[0], "torch": torchs, "numpy": listed[1]})
    assert draws() == first
    set_rng_state(outer)


def test_the_words_are_in_tensors_of_their_own() -> None:
    """A save writes a handful of tensors instead of more than a thousand numbers, and drawing doesn't reach them."""
    state = rng_state()
    python, numpys = state["python"][1].clone(), state["numpy"][1].clone()
    draws()
    random.seed(3)
    numpy.random.seed(3)
    assert torch.equal(state["python"][1], python)
    assert torch.equal(state["numpy"][1], numpys)
    set_rng_state(state)
    encoded = encode({"rng": state})
    assert len(json.dumps(encoded.document)) < 1000
    restored = decode(encoded.document, encoded.tensors)["rng"]
    first = draws()
    set_rng_state(restored)
    assert draws() == first
    set_rng_state(state)


def test_a_seed_makes_the_draws() -> None:
    """The same for the same seed, also for one beyond what numpy takes."""
    outer = rng_state()
    for seed in (0, 2**40 + 3):
        seed_all(seed)
        first = draws()
        seed_all(seed)
        assert draws() == first
        seed_all(seed + 1)
        assert draws() != first
    set_rng_state(outer)


def test_without_numpy_there_is_one_generator_less(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where it was never imported its state isn't there, and one that was saved is passed over."""
    with_numpy = rng_state()
    monkeypatch.delitem(sys.modules, "numpy")
    outer = rng_state()
    assert "numpy" in with_numpy
    assert "numpy" not in outer
    first = random.random()
    seed_all(3)
    set_rng_state(with_numpy)
    assert torch.equal(torch.get_rng_state(), with_numpy["torch"])
    assert random.random() == first


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_the_generators_of_gpus_are_put_back() -> None:
    """Each device's own."""
    torch.cuda.init()
    state = rng_state()
    first = [torch.rand((), device=f"cuda:{index}").item() for index in range(torch.cuda.device_count())]
    set_rng_state(state)
    assert [torch.rand((), device=f"cuda:{index}").item() for index in range(torch.cuda.device_count())] == first


@pytest.mark.slow
def test_stateful_is_what_has_both_methods() -> None:
    """Told by duck type: torch's modules and our wrappers are, a plain object isn't."""
    assert isinstance(torch.nn.Linear(1, 1), Stateful)
    assert isinstance(OptimWrapper(torch.optim.SGD(torch.nn.Linear(1, 1).parameters(), lr=1.0)), Stateful)
    assert not isinstance(object(), Stateful)


def of_numpy(kind: str) -> numpy.random.Generator:
    """One of its newer generators."""
    return numpy.random.Generator(getattr(numpy.random, kind)(3))


def encode_and_decode(state: Any) -> Any:
    """What a checkpoint makes of it."""
    encoded = encode({"state": state})
    return decode(json.loads(json.dumps(encoded.document)), encoded.tensors)["state"]


GENERATORS: list[Callable[[], Any]] = [
    lambda: random.Random(3),
    lambda: torch.Generator().manual_seed(3),
    lambda: numpy.random.RandomState(3),
    *(functools.partial(of_numpy, kind) for kind in ("PCG64", "PCG64DXSM", "MT19937", "Philox", "SFC64")),
]


@pytest.mark.parametrize("make", GENERATORS, ids=range(len(GENERATORS)))
@pytest.mark.parametrize("form", [encode_and_decode, lambda state: state], ids=["saved", "kept"])
def test_a_generator_goes_on_from_its_state(make: Callable[[], Any], form: Callable[[Any], Any]) -> None:
    """Of every kind, also behind a checkpoint, and whatever is drawn from it afterwards."""

    def draw(generator: Any) -> float:
        if isinstance(generator, torch.Generator):
            return torch.rand((), generator=generator).item()
        return float(generator.random())

    first = make()
    draw(first)
    state = form(generator_state(first))
    following = [draw(first), draw(first)]
    again = make()
    set_generator_state(again, state)
    assert is_generator(again)
    assert [draw(again), draw(again)] == following


@pytest.mark.parametrize("thing", [random.SystemRandom(), random, iter([1]), 3, None])
def test_what_has_no_state_to_be_saved_is_no_generator(thing: Any) -> None:
    """The system's chance above all."""
    assert not is_generator(thing)
