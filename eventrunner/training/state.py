"""What must survive a stop: counters and random-number generators.

Everything that a checkpoint restores is ``Stateful``: it hands out its state as a dict of plain data and tensors, and
takes it back.
"""

from __future__ import annotations

import random
import sys
from array import array
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from eventrunner.errors import OptionError, listed

__all__ = [
    "Progress",
    "Stateful",
    "check_initialized",
    "generator_state",
    "is_generator",
    "is_stateful",
    "rng_state",
    "seed_all",
    "seeded_rng",
    "set_generator_state",
    "set_rng_state",
]


@runtime_checkable
class Stateful(Protocol):
    """Has a state that is saved with a run and put back on resume."""

    def state_dict(self) -> dict[str, Any]:
        """Return the state, as plain data and tensors."""

    def load_state_dict(self, state_dict: dict[str, Any], /) -> Any:
        """Go on where :meth:`state_dict` was taken."""


def check_initialized(user: str, model: nn.Module) -> None:
    """Refuse a model with lazy modules that no forward pass has given their shapes.

    Raises:
        OptionError: there is one; the message says what to do, and for which *user*.
    """
    tensors = (*model.named_parameters(), *model.named_buffers())
    if lazy := [name for name, tensor in tensors if is_lazy(tensor)]:
        raise OptionError(
            f"{user} was given a model whose {listed(lazy[:5])} have no shape yet; run one forward pass first, with a "
            "batch as those of the training."
        )


@dataclass(slots=True)
class Progress:
    """The counters of a training run.

    ``epoch`` and ``iter`` advance after the receivers of ``after_train_epoch`` and ``after_train_iter``; between the
    end of the work and the advance, ``epoch_done`` and ``iter_done`` are 1. So their sum is what is complete at any
    moment, and it is what a checkpoint records. ``validated`` is the sum in the loop's own unit at which a validation
    last ended: a checkpoint saved just before a validation is resumed with that validation.
    """

    epoch: int = 0
    iter: int = 0
    epoch_done: int = 0
    iter_done: int = 0
    validated: int = -1

    @property
    def epochs_completed(self) -> int:
        """Epochs whose work is done, that of the site under way included."""
        return self.epoch + self.epoch_done

    @property
    def step(self) -> int:
        """Iterations whose work is done: the one clock of logs, trackers and checkpoints."""
        return self.iter + self.iter_done

    def advance(self) -> None:
        """Count what is done and was not counted, because a receiver failed between the two."""
        self.load_state_dict(self.state_dict())

    def state_dict(self) -> dict[str, int]:
        """Return what is complete."""
        return {"epoch": self.epochs_completed, "iter": self.step, "validated": self.validated}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Stand right after what was complete."""
        self.epoch, self.iter, self.validated = state["epoch"], state["iter"], state["validated"]
        self.epoch_done = self.iter_done = 0


def seeded_rng(seed: int) -> dict[str, Any]:
    """Return the states that the global generators have after :func:`seed_all`, and leave them as they are."""
    before = rng_state()
    seed_all(seed, False)
    try:
        return rng_state()
    finally:
        set_rng_state(before)


def rng_state() -> dict[str, Any]:
    """Return the states of the global generators: python, torch, each CUDA device in use, and numpy if imported.

    All words are in tensors of the call's own, which cost a save little.
    """
    state: dict[str, Any] = {"python": _python_state(random.getstate()), "torch": torch.get_rng_state()}
    # Not where it isn't in use: asking would initialize it, which costs a run on the CPU memory on a GPU.
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        state["cuda"] = torch.cuda.get_rng_state_all()
    numpy = sys.modules.get("numpy")
    if numpy is not None:
        state["numpy"] = _numpy_state(numpy.random.get_state())
    return state


def set_rng_state(state: dict[str, Any]) -> None:
    """Put back what :func:`rng_state` gave; CUDA's only where as many devices are there.

    Words may also be in lists, as earlier checkpoints have them.
    """
    random.setstate(_python_words(state["python"]))
    torch.set_rng_state(state["torch"])
    if "cuda" in state and torch.cuda.is_available() and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])
    numpy = sys.modules.get("numpy")
    if numpy is not None and "numpy" in state:
        numpy.random.set_state(_numpy_words(state["numpy"]))


def is_stateful(thing: Any) -> bool:
    """Return whether it has a state and takes it back."""
    return not isinstance(thing, type) and hasattr(thing, "state_dict") and hasattr(thing, "load_state_dict")


def is_generator(thing: Any) -> bool:
    """Return whether it draws random numbers from a state that can be saved: python's, numpy's or torch's."""
    if isinstance(thing, random.SystemRandom):
        return False
    numpy = sys.modules.get("numpy")
    kinds = (numpy.random.Generator, numpy.random.RandomState) if numpy is not None else ()
    return isinstance(thing, (random.Random, torch.Generator, *kinds))


def generator_state(generator: Any) -> Any:
    """Return the state of a generator, as plain data and tensors of its own."""
    if isinstance(generator, torch.Generator):
        return generator.get_state()
    if isinstance(generator, random.Random):
        return _python_state(generator.getstate())
    if hasattr(generator, "bit_generator"):
        return _without_arrays(generator.bit_generator.state)
    return _numpy_state(generator.get_state())


def set_generator_state(generator: Any, state: Any) -> None:
    """Put back what :func:`generator_state` gave of a generator of the same kind.

    Raises:
        Exception: it is of another kind; which one depends on the kind.
    """
    if isinstance(generator, torch.Generator):
        generator.set_state(state)
    elif isinstance(generator, random.Random):
        generator.setstate(_python_words(state))
    elif hasattr(generator, "bit_generator"):
        generator.bit_generator.state = state
    else:
        generator.set_state(_numpy_words(state))


def _python_state(state: tuple[Any, ...]) -> list[Any]:
    version, words, gauss = state
    return [version, _tensor(array("q", words)), gauss]


def _python_words(state: Any) -> tuple[Any, ...]:
    version, words, gauss = state
    return version, tuple(_list(words)), gauss


def _numpy_state(state: tuple[Any, ...]) -> list[Any]:
    kind, keys, position, has_gauss, cached = state
    return [kind, _tensor(keys.astype("int64")), int(position), int(has_gauss), float(cached)]


def _numpy_words(state: Any) -> tuple[Any, ...]:
    kind, keys, position, has_gauss, cached = state
    return kind, sys.modules["numpy"].array(_list(keys), dtype="uint32"), position, has_gauss, cached


def _without_arrays(state: Any) -> Any:
    """Return the state of numpy's bit generator, with lists and integers in place of numpy's arrays and scalars."""
    if isinstance(state, dict):
        return {key: _without_arrays(value) for key, value in state.items()}
    return state.tolist() if hasattr(state, "tolist") else state


def _tensor(words: Any) -> torch.Tensor:
    """Return words as a tensor of a dtype that has all of torch's operations; it shares their memory."""
    return torch.frombuffer(words, dtype=torch.int64)


def _list(words: Any) -> list[int]:
    return words.tolist() if isinstance(words, torch.Tensor) else words


def seed_all(seed: int, deterministic: bool = False) -> None:
    """Seed python, torch (all devices) and, where it is imported, numpy.

    ``deterministic`` also asks torch for deterministic algorithms, which costs speed and raises at operations that
    have none.
    """
    random.seed(seed)
    torch.manual_seed(seed)
    numpy = sys.modules.get("numpy")
    if numpy is not None:
        numpy.random.seed(seed % 2**32)
    if deterministic:
        torch.backends.cudnn.benchmark = False
        torch.use_deterministic_algorithms(True)
