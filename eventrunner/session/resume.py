"""How what a run has saved is put back.

Names are compared both ways before anything is loaded. What makes the weights what they are must be the same, or it is
an error that says where they differ; a hook or a scheduler may come or go, which is said.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from eventrunner.checkpoint import Found, load_checkpoint
from eventrunner.errors import ResumeError, listed
from eventrunner.ranks.world import Ranks
from eventrunner.run import Run
from eventrunner.session.saves import kinds_of, stateful_hooks
from eventrunner.training.optim import OptimWrapper
from eventrunner.training.optim_dict import OptimWrapperDict
from eventrunner.training.schedule import Schedule, begin_schedules
from eventrunner.training.state import seeded_rng
from eventrunner.training.weights import INSTEAD, check_weights, same_names, set_gradients, shortened

__all__ = ["changed_counts", "found_for", "left_out", "restore", "rng_for"]


def found_for(ranks: Ranks, resume: Any, find: Callable[[], Found]) -> Found:
    """Return the checkpoint that *resume* means, read: that path's, or where it is True what *find* finds and reads.

    Rank 0 finds, and the others read the one that it has chosen. All ranks must call it.
    """
    own: list[Found] = []

    def choose() -> Path | None:
        own.append(find())
        return own[0].path

    path = ranks.on_main(choose) if resume is True else Path(resume) if resume else None
    return own[0] if own else Found(path, (), None if path is None else load_checkpoint(path))


def rng_for(ranks: Ranks, saved: Mapping[str, Any], seed: int) -> tuple[dict[str, Any], str]:
    """Return the generators' states that a rank goes on with, and what is to be said of that.

    Where another number of ranks has saved, they are new ones, of *seed* and the rank.
    """
    states: list[dict[str, Any]] = saved.get("rng_of_ranks", [saved["rng"]])
    if len(states) == ranks.world:
        return states[ranks.rank], ""
    remark = f"the checkpoint is of {len(states)} ranks and this run has {ranks.world}: generators begin afresh."
    return seeded_rng(seed + ranks.rank), remark


def left_out(checkpoint: Mapping[str, Any]) -> set[str]:
    """Return the names of the weights that receivers took out of a checkpoint when it was saved."""
    return set(checkpoint.get("meta", {}).get("left_out", ()))


def restore(run: Run, checkpoint: Mapping[str, Any]) -> None:
    """Put a gathered state back; the generators' states wait in ``run.session.pending_rng`` until training goes on.

    A hook or a scheduler that wasn't there begins afresh, and the state of one that is gone is dropped.

    Raises:
        ResumeError: the checkpoint is of another model, optimizer or kind of loop; nothing is changed.
    """
    assert run.train_loop is not None  # who resumes no training takes the weights alone
    _check_kind(run.train_loop.by_epoch, checkpoint)
    weights, absent = _trained_weights(run, checkpoint), left_out(checkpoint)
    _compare(run, checkpoint, weights)
    run.unwrapped.load_state_dict(weights, strict=not absent)
    _restore_flags(run, checkpoint)
    run.message_hub.load_state_dict(checkpoint["message_hub"])
    _restore_hooks(run, checkpoint["hooks"])
    run.bus.load_state_dict(run, checkpoint["filters"])
    _restore_optimizers(run, checkpoint)
    set_gradients(run.unwrapped, checkpoint["gradients"])
    for name, wrapper in run.optim_wrappers:
        wrapper.grad_norm = checkpoint["grad_norms"][name]
    run.train_loop.load_state_dict(checkpoint["loop"])
    seed = run.seed + checkpoint["meta"]["iter"] * run.world_size
    run.session.pending_rng, remark = rng_for(run.ranks, checkpoint, seed)
    if remark:
        _say(run, remark)
    if own := sorted(absent - weights.keys()):
        _say(run, f"the checkpoint was saved without {shortened(own)}: the model keeps its own.")


def changed_counts(run: Run, checkpoint: Mapping[str, Any]) -> Iterator[str]:
    """Where losses are accumulated otherwise than in the run that was saved, a sentence for each optimizer."""
    saved = checkpoint["optimizer"]
    for prefix, wrapper in run.optim_wrappers:
        name = prefix.removesuffix(".")
        change = wrapper.changed_count(saved[name] if name else saved)
        if change is not None:
            yield f"{prefix}{change}"


def _trained_weights(run: Run, checkpoint: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the weights to train on with, also where a hook that is gone had put an average in their place."""
    weights, average = checkpoint["state_dict"], checkpoint.get("ema_state_dict", {})
    gone = checkpoint["hooks"].keys() - dict(stateful_hooks(run)).keys()
    trained: dict[str, Any] = copy.copy(weights)  # with the versions that a module's state_dict has
    if any(checkpoint["hooks"][name].get("swapped") for name in gone):
        trained.update({name: average[f"module.{name}"] for name in weights if f"module.{name}" in average})
    return trained


def _restore_flags(run: Run, checkpoint: Mapping[str, Any]) -> None:
    """Let those parameters require gradients that did, as far as the checkpoint knows them."""
    if "frozen" not in checkpoint:
        return
    known = {*checkpoint["state_dict"], *left_out(checkpoint)}
    changed = []
    for name, parameter in run.unwrapped.named_parameters():
        if name in known and parameter.requires_grad == (name in checkpoint["frozen"]):
            parameter.requires_grad_(not parameter.requires_grad)
            changed.append(name)
    if changed:
        run.logger.info("resume", reason=f"requires_grad is as it was when it was saved, of {shortened(changed)}")


def _restore_hooks(run: Run, saved: Mapping[str, Any]) -> None:
    own = dict(stateful_hooks(run))
    for name, hook in own.items():
        if name in saved:
            hook.load_state_dict(saved[name])
        else:
            _say(run, f"the checkpoint has no state of the hook {name}: it begins afresh.")
    for name in sorted(saved.keys() - own.keys()):
        _say(run, f"the checkpoint's hook {name} isn't in this run: its state is dropped.")


def _restore_optimizers(run: Run, checkpoint: Mapping[str, Any]) -> None:
    """Put back optimizers and schedules; what a new schedule has set when it was made stays."""
    optimizers = [wrapper.optimizer for _, wrapper in run.optim_wrappers]
    made = {id(optimizer): [dict(group) for group in optimizer.param_groups] for optimizer in optimizers}
    run.optim_wrapper.load_state_dict(checkpoint["optimizer"])
    kept, new, gone = _matched(run, checkpoint)
    for schedule, state in kept:
        schedule.load_state_dict(state)
    driven = {id(schedule.scheduler.optimizer) for schedule, _ in kept}
    for optimizer in {id(schedule.scheduler.optimizer): schedule.scheduler.optimizer for schedule in new}.values():
        begin_schedules(optimizer, made[id(optimizer)], alone=id(optimizer) not in driven)
    for schedule in new:
        kind = type(schedule.scheduler).__name__
        _say(run, f"the checkpoint has no state of the scheduler {kind}: it begins afresh.")
    for kind in gone:
        _say(
            run,
            f"the checkpoint's scheduler {kind} isn't in this run: its state is dropped, and the learning rate is what "
            "it left.",
        )


def _matched(
    run: Run, checkpoint: Mapping[str, Any]
) -> tuple[list[tuple[Schedule, dict[str, Any]]], list[Schedule], list[str]]:
    """Each schedule with the next state saved of its class and optimizer; those without one; the classes left over."""
    kinds, left = iter(checkpoint["meta"]["kinds"]["schedulers"]), []
    for name, states in _by_optimizer(checkpoint["param_schedulers"]):
        left += [(name, next(kinds), state) for state in states]
    kept, new = [], []
    for name, schedules in _by_optimizer(run.param_schedulers):
        for schedule in schedules:
            kind = type(schedule.scheduler).__name__
            found = next((each for each in left if each[:2] == (name, kind)), None)
            if found is None:
                new.append(schedule)
            else:
                left.remove(found)
                kept.append((schedule, found[2]))
    return kept, new, [kind for _, kind, _ in left]


def _by_optimizer(schedules: Any) -> list[tuple[str, list[Any]]]:
    return list(schedules.items()) if isinstance(schedules, dict) else [("", list(schedules))]


def _say(run: Run, reason: str) -> None:
    run.logger.warning("resume", reason=reason)


def _check_kind(by_epoch: bool, checkpoint: Mapping[str, Any]) -> None:
    if "loop" not in checkpoint:
        raise ResumeError("resuming needs a run that trains, and a checkpoint of one; load_from= takes weights alone.")
    for part, option in (("optimizer", "save_optimizer"), ("param_schedulers", "save_param_scheduler")):
        if part not in checkpoint:
            raise ResumeError(
                f"the checkpoint was saved with {option}=False and can't be resumed from; load_from= takes its weights."
            )
    saved, own = ("epoch" if by else "iter" for by in (checkpoint["loop"]["by_epoch"], by_epoch))
    if saved != own:
        raise ResumeError(
            f"the checkpoint is of a training by {saved} and this one goes by {own}; resume it as it was."
        )


def _compare(run: Run, checkpoint: Mapping[str, Any], weights: Mapping[str, Any]) -> None:
    check_weights(run.unwrapped, weights, left_out(checkpoint))
    mine, theirs = kinds_of(run)["optimizers"], checkpoint["meta"]["kinds"]["optimizers"]
    if mine != theirs:
        raise ResumeError(f"the checkpoint's optimizers are {listed(theirs)} and this run's {listed(mine)}; {INSTEAD}")
    _check_optimizers(run.optim_wrapper, checkpoint["optimizer"])


def _check_optimizers(optim: OptimWrapper | OptimWrapperDict, saved: Mapping[str, Any]) -> None:
    if isinstance(optim, OptimWrapper):
        optim.check_state_dict(saved, "this run's optimizer")
        return
    same_names("optimizers", dict(optim.items()), saved)
    for name, wrapper in optim.items():
        wrapper.check_state_dict(saved[name], f"this run's optimizer {name!r}")
