"""What the order of a loader's batches depends on, beyond the global generators.

Samplers and the collate function may hold generators or have a ``state_dict``: both can be saved. What else they hold,
such as a counter of passes, is noted, so that a resumed run can say that it isn't as it was. Torch's own samplers hold
nothing of the kind, and one that has a ``set_epoch`` is given the number of the pass.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any

from eventrunner.checkpoint.plan import encode
from eventrunner.errors import CheckpointError, ResumeError, listed
from eventrunner.training.dataloader import batch_count
from eventrunner.training.loader_parts import COLLATE, Held, changed, held_by
from eventrunner.training.state import generator_state, set_generator_state

__all__ = [
    "collate_generators",
    "collates_alike",
    "differences",
    "order_state",
    "other_loader",
    "set_order_state",
    "state_of",
]


def order_state(loader: Any) -> dict[str, Any]:
    """Return what can be saved of what a loader's order depends on, notes of the rest, and what it looks like.

    Raises:
        CheckpointError: a part's ``state_dict`` has something in it that a checkpoint can't hold.
    """
    held = held_by(loader)
    return {
        "generators": {name: generator_state(each) for name, each in held.generators.items()},
        "states": {name: state_of(loader, f"its {name}'s state_dict()", each) for name, each in held.stateful.items()},
        "notes": held.notes,
        "facts": _facts(loader),
    }


def set_order_state(loader: Any, saved: Mapping[str, Any], under_way: bool = False) -> None:
    """Put back what :func:`order_state` could save.

    Where a pass is *under way*, samplers with a state are left alone: they stand where drawing has brought them.

    Raises:
        ResumeError: the loader doesn't hold what was saved.
    """
    held, generators, states = held_by(loader), saved["generators"], saved.get("states", {})
    if isinstance(generators, list):
        generators = _by_name(generators, held)
    elif {*held.generators, *held.stateful} != {*generators, *states}:
        both = ({*held.generators, *held.stateful}, {*generators, *states})
        mine, theirs = (listed(sorted(names), "no generator") for names in both)
        raise other_loader(f"holds {mine} where it held {theirs}")
    for name, state in generators.items():
        try:
            set_generator_state(held.generators[name], state)
        except (TypeError, ValueError, RuntimeError) as error:
            raise other_loader(f"holds another kind of generator as {name} than it held") from error
    for name, state in states.items():
        if not under_way or _is_collated(name):
            held.stateful[name].load_state_dict(copy.deepcopy(state))  # it may make it its own


def collate_generators(loader: Any) -> list[Any]:
    """Return the states of the generators that the collate function holds."""
    held = held_by(loader).generators
    return [generator_state(each) for name, each in held.items() if _is_collated(name)]


def collates_alike(before: Mapping[str, Any], after: Mapping[str, Any]) -> bool:
    """Return whether the collate function has kept what can't be put back, as far as two states show."""
    return not any(map(_is_collated, changed(before.get("notes", {}), after.get("notes", {}))))


def differences(loader: Any, saved: Mapping[str, Any]) -> Iterator[str]:
    """Yield in what a loader isn't the one that *saved* was taken of, or else what it held and can't be given back."""
    mine, theirs = _facts(loader), saved.get("facts", {})
    other = [f"its {name} is {mine.get(name)} and was {was}" for name, was in theirs.items() if mine.get(name) != was]
    lost = [] if other else changed(saved.get("notes", {}), held_by(loader).notes)
    yield from other
    if lost:
        yield (
            f"its {listed(lost)} can't be put back to what it was, so its order may be another than in an "
            "uninterrupted run (a generator, or a state_dict with load_state_dict, would be saved)"
        )


def other_loader(difference: str) -> ResumeError:
    """Return the error of a loader that isn't the one that a position was taken in."""
    return ResumeError(f"going on in the train_dataloader: it {difference}; it must be the one that was begun.")


def state_of(loader: Any, what: str, source: Any) -> Any:
    """Return a copy of the state that a part of a loader gives.

    Raises:
        CheckpointError: a checkpoint can't hold it; the message says *what* it is, and where in it that is.
    """
    state = source.state_dict()
    try:
        encode({"state": state})
    except CheckpointError as error:
        where = str(error).removeprefix("checkpoint['state']")
        kind = type(loader).__name__
        raise CheckpointError(f"saving the train_dataloader, of type {kind}: {what}{where}") from error
    return copy.deepcopy(state)


def _facts(loader: Any) -> dict[str, Any]:
    """Return what distinguishes a loader from another one, in plain words."""
    if loader is None:
        return {}
    parts = {name: getattr(loader, name, None) for name in ("sampler", "batch_sampler", "dataset")}
    kinds = {name: type(part).__name__ for name, part in parts.items() if part is not None}
    size = getattr(parts["batch_sampler"], "batch_size", None)
    return {
        "type": type(loader).__name__,
        "number of batches": batch_count(loader),
        "number of samples": batch_count(parts["dataset"]),
        "batch_size": size if isinstance(size, int) else None,
        **kinds,
    }


def _by_name(generators: list[Any], held: Held) -> dict[str, Any]:
    """Return the states of an earlier checkpoint, a list of those of torch's that are called ``generator``."""
    names = [name for name in held.generators if name.rpartition(".")[2] == "generator"]
    if len(names) != len(generators):
        raise other_loader(f"has {len(names)} generators of its own where there were {len(generators)}")
    return dict(zip(names, generators, strict=True))


def _is_collated(name: str) -> bool:
    return name.partition(".")[0] == COLLATE
