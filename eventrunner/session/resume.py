"""What a run saves, and how it is put back.

Names are compared both ways before anything is loaded. What makes the weights what they are must be the same, or it is
an error that says where they differ; a hook or a scheduler may come or go, which is said.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch

from eventrunner.checkpoint.saver import stepped_tensors
from eventrunner.errors import ResumeError, listed
from eventrunner.training.optim import OptimWrapper, OptimWrapperDict
from eventrunner.training.schedule import Schedule, Schedules, all_schedules, begin_schedules
from eventrunner.training.state import Stateful, rng_state
from eventrunner.training.weights import INSTEAD, check_weights, same_names, shortened
from eventrunner.version import __version__

if TYPE_CHECKING:
    from eventrunner.runner import Runner

__all__ = ["changed_counts", "gather", "left_out", "note_left_out", "restore", "stateful_hooks", "stepped"]


def gather(runner: Runner, save_optimizer: bool = True, save_param_scheduler: bool = True) -> dict[str, Any]:
    """The run's state as one nested dict, with MMEngine's top-level names; its tensors are the live ones."""
    progress, loop = runner.progress, runner.train_loop
    checkpoint: dict[str, Any] = {
        "meta": {
            "epoch": progress.epochs_completed,
            "iter": progress.step,
            "seed": runner.seed,
            "experiment_name": runner.experiment_name,
            "time": time.strftime("%Y%m%d_%H%M%S"),
            "eventrunner_version": __version__,
            "kinds": _kinds(runner),
        },
        "state_dict": runner.model.state_dict(),
        "frozen": [name for name, parameter in runner.model.named_parameters() if not parameter.requires_grad],
        "message_hub": _hub_state(runner),
        "hooks": {name: hook.state_dict() for name, hook in stateful_hooks(runner)},
        "filters": runner.bus.state_dict(runner),
        "rng": runner.pending_rng or runner.rng_before_val or rng_state(),
    }
    if loop is not None:
        checkpoint["loop"] = loop.state_dict()
        checkpoint["gradients"] = _gradients(runner)
        checkpoint["grad_norms"] = {name: wrapper.grad_norm for name, wrapper in runner.optim_wrappers}
        if save_optimizer:
            checkpoint["optimizer"] = runner.optim_wrapper.state_dict()
        if save_param_scheduler:
            checkpoint["param_schedulers"] = _scheduler_states(runner.param_schedulers)
    return checkpoint


def note_left_out(checkpoint: dict[str, Any], names: set[str]) -> None:
    """Note in a checkpoint that is about to be saved which weights, of those *names*, receivers took out of it."""
    taken = names - checkpoint.get("state_dict", {}).keys()
    if taken and "meta" in checkpoint:
        checkpoint["meta"] = {**checkpoint["meta"], "left_out": sorted(taken)}


def left_out(checkpoint: Mapping[str, Any]) -> set[str]:
    """Return the names of the weights that receivers took out of a checkpoint when it was saved."""
    return set(checkpoint.get("meta", {}).get("left_out", ()))


def _hub_state(runner: Runner) -> dict[str, Any]:
    hub = runner.message_hub
    said = set(hub.left_out)
    state = hub.state_dict()
    for key in hub.left_out.keys() - said:
        runner.logger.warning("message hub", reason=hub.left_out[key])
    return state


def restore(runner: Runner, checkpoint: Mapping[str, Any]) -> None:
    """Put a gathered state back; the generators' states wait in ``runner.pending_rng`` until training goes on.

    A hook or a scheduler that wasn't there begins afresh, and the state of one that is gone is dropped.

    Raises:
        ResumeError: the checkpoint is of another model, optimizer or kind of loop; nothing is changed.
    """
    assert runner.train_loop is not None  # who resumes no training takes the weights alone
    _check_kind(runner.train_loop.by_epoch, checkpoint)
    weights, absent = _trained_weights(runner, checkpoint), left_out(checkpoint)
    _compare(runner, checkpoint, weights)
    runner.model.load_state_dict(weights, strict=not absent)
    _restore_flags(runner, checkpoint)
    runner.message_hub.load_state_dict(checkpoint["message_hub"])
    _restore_hooks(runner, checkpoint["hooks"])
    runner.bus.load_state_dict(runner, checkpoint["filters"])
    _restore_optimizers(runner, checkpoint)
    for name, parameter in runner.model.named_parameters():
        gradient = checkpoint["gradients"].get(name)
        parameter.grad = None if gradient is None else gradient.to(parameter.device)
    for name, wrapper in runner.optim_wrappers:
        wrapper.grad_norm = checkpoint["grad_norms"][name]
    runner.train_loop.load_state_dict(checkpoint["loop"])
    runner.pending_rng = checkpoint["rng"]
    if own := sorted(absent - weights.keys()):
        _say(runner, f"the checkpoint was saved without {shortened(own)}: the model keeps its own.")


def changed_counts(runner: Runner, checkpoint: Mapping[str, Any]) -> Iterator[str]:
    """Where losses are accumulated otherwise than in the run that was saved, a sentence for each optimizer."""
    saved = checkpoint["optimizer"]
    for prefix, wrapper in runner.optim_wrappers:
        name = prefix.removesuffix(".")
        change = wrapper.changed_count(saved[name] if name else saved)
        if change is not None:
            yield f"{prefix}{change}"


def _trained_weights(runner: Runner, checkpoint: Mapping[str, Any]) -> Mapping[str, Any]:
    """The weights to train on with: beside those of a hook that is gone, where it had put an average in their place."""
    weights, average = checkpoint["state_dict"], checkpoint.get("ema_state_dict", {})
    gone = checkpoint["hooks"].keys() - dict(stateful_hooks(runner)).keys()
    trained: dict[str, Any] = copy.copy(weights)  # with the versions that a module's state_dict has
    if any(checkpoint["hooks"][name].get("swapped") for name in gone):
        trained.update({name: average[f"module.{name}"] for name in weights if f"module.{name}" in average})
    return trained


def _restore_flags(runner: Runner, checkpoint: Mapping[str, Any]) -> None:
    """Let those parameters require gradients that did, as far as the checkpoint knows them."""
    if "frozen" not in checkpoint:
        return
    known = {*checkpoint["state_dict"], *left_out(checkpoint)}
    changed = []
    for name, parameter in runner.model.named_parameters():
        if name in known and parameter.requires_grad == (name in checkpoint["frozen"]):
            parameter.requires_grad_(not parameter.requires_grad)
            changed.append(name)
    if changed:
        runner.logger.info("resume", reason=f"requires_grad is as it was when it was saved, of {shortened(changed)}")


def _restore_hooks(runner: Runner, saved: Mapping[str, Any]) -> None:
    own = dict(stateful_hooks(runner))
    for name, hook in own.items():
        if name in saved:
            hook.load_state_dict(saved[name])
        else:
            _say(runner, f"the checkpoint has no state of the hook {name}: it begins afresh.")
    for name in sorted(saved.keys() - own.keys()):
        _say(runner, f"the checkpoint's hook {name} isn't in this run: its state is dropped.")


def _restore_optimizers(runner: Runner, checkpoint: Mapping[str, Any]) -> None:
    """Put back optimizers and schedules; what a new schedule has set when it was made stays."""
    optimizers = [wrapper.optimizer for _, wrapper in runner.optim_wrappers]
    made = {id(optimizer): [dict(group) for group in optimizer.param_groups] for optimizer in optimizers}
    runner.optim_wrapper.load_state_dict(checkpoint["optimizer"])
    kept, new, gone = _matched(runner, checkpoint)
    for schedule, state in kept:
        schedule.load_state_dict(state)
    driven = {id(schedule.scheduler.optimizer) for schedule, _ in kept}
    for optimizer in {id(schedule.scheduler.optimizer): schedule.scheduler.optimizer for schedule in new}.values():
        begin_schedules(optimizer, made[id(optimizer)], alone=id(optimizer) not in driven)
    for schedule in new:
        kind = type(schedule.scheduler).__name__
        _say(runner, f"the checkpoint has no state of the scheduler {kind}: it begins afresh.")
    for kind in gone:
        _say(
            runner,
            f"the checkpoint's scheduler {kind} isn't in this run: its state is dropped, and the learning rate is what "
            "it left.",
        )


def _matched(
    runner: Runner, checkpoint: Mapping[str, Any]
) -> tuple[list[tuple[Schedule, dict[str, Any]]], list[Schedule], list[str]]:
    """Each schedule with the next state saved of its class and optimizer; those without one; the classes left over."""
    kinds, left = iter(checkpoint["meta"]["kinds"]["schedulers"]), []
    for name, states in _by_optimizer(checkpoint["param_schedulers"]):
        left += [(name, next(kinds), state) for state in states]
    kept, new = [], []
    for name, schedules in _by_optimizer(runner.param_schedulers):
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


def _say(runner: Runner, reason: str) -> None:
    runner.logger.warning("resume", reason=reason)


def stateful_hooks(runner: Runner) -> Iterator[tuple[str, Stateful]]:
    """The run's hooks that have a state, each under its class's name; a second of a class as ``Name#2``."""
    seen: dict[str, int] = {}
    for hook in runner.hooks:
        if isinstance(hook, Stateful):
            name = type(hook).__name__
            seen[name] = seen.get(name, 0) + 1
            yield name if seen[name] == 1 else f"{name}#{seen[name]}", hook


def stepped(runner: Runner) -> Iterator[torch.Tensor]:
    """The tensors that change only at an optimizer's step or in receivers that say so: a save may copy them later."""
    if not runner.updates_itself:  # a step that calls its optimizers itself may write to weights at any other time
        yield from stepped_tensors(runner.model, (wrapper.optimizer for _, wrapper in runner.optim_wrappers))
    for hook in runner.hooks:
        yield from hook.own_tensors()


def _gradients(runner: Runner) -> dict[str, torch.Tensor]:
    """The gradients of an accumulation that is under way; empty right after a step, which clears them."""
    return {name: p.grad for name, p in runner.model.named_parameters() if p.grad is not None}


def _kinds(runner: Runner) -> dict[str, list[str]]:
    """The classes of what has a state without saying whose it is: torch would load it into any other."""
    return {
        "optimizers": [type(wrapper.optimizer).__name__ for _, wrapper in runner.optim_wrappers],
        "schedulers": [type(schedule.scheduler).__name__ for schedule in all_schedules(runner.param_schedulers)],
    }


def _scheduler_states(schedules: Schedules) -> Any:
    if isinstance(schedules, dict):
        return {name: [schedule.state_dict() for schedule in part] for name, part in schedules.items()}
    return [schedule.state_dict() for schedule in schedules]


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


def _compare(runner: Runner, checkpoint: Mapping[str, Any], weights: Mapping[str, Any]) -> None:
    check_weights(runner.model, weights, left_out(checkpoint))
    mine, theirs = _kinds(runner)["optimizers"], checkpoint["meta"]["kinds"]["optimizers"]
    if mine != theirs:
        raise ResumeError(f"the checkpoint's optimizers are {listed(theirs)} and this run's {listed(mine)}; {INSTEAD}")
    _check_optimizers(runner.optim_wrapper, checkpoint["optimizer"])


def _check_optimizers(optim: OptimWrapper | OptimWrapperDict, saved: Mapping[str, Any]) -> None:
    if isinstance(optim, OptimWrapper):
        optim.check_state_dict(saved, "this run's optimizer")
        return
    same_names("optimizers", dict(optim.items()), saved)
    for name, wrapper in optim.items():
        wrapper.check_state_dict(saved[name], f"this run's optimizer {name!r}")
