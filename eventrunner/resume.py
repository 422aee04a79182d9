"""What a run saves, and how it is put back.

Names are compared both ways before anything is loaded: a resumed run is the run that was saved, or an error that says
where they differ.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.parameter import is_lazy

from eventrunner.checkpoint.saver import stepped_tensors
from eventrunner.errors import ResumeError, listed
from eventrunner.optim import OptimWrapper, OptimWrapperDict
from eventrunner.schedule import Schedules, all_schedules
from eventrunner.state import Stateful, rng_state
from eventrunner.version import __version__

if TYPE_CHECKING:
    from eventrunner.runner import Runner

__all__ = ["changed_counts", "gather", "load_model", "restore", "same_names", "stateful_hooks", "stepped"]


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


def _hub_state(runner: Runner) -> dict[str, Any]:
    hub = runner.message_hub
    said = set(hub.left_out)
    state = hub.state_dict()
    for key in hub.left_out.keys() - said:
        runner.logger.warning("message hub", reason=hub.left_out[key])
    return state


def restore(runner: Runner, checkpoint: Mapping[str, Any]) -> None:
    """Put a gathered state back; the generators' states wait in ``runner.pending_rng`` until training goes on.

    Raises:
        ResumeError: the checkpoint is of another model, optimizer, set of hooks or kind of loop; nothing is changed.
    """
    _compare(runner, checkpoint)
    load_model(runner.model, checkpoint["state_dict"])
    runner.message_hub.load_state_dict(checkpoint["message_hub"])
    for name, hook in stateful_hooks(runner):
        hook.load_state_dict(checkpoint["hooks"][name])
    runner.bus.load_state_dict(runner, checkpoint["filters"])
    runner.optim_wrapper.load_state_dict(checkpoint["optimizer"])
    states = _flat(checkpoint["param_schedulers"])
    for schedule, state in zip(all_schedules(runner.param_schedulers), states, strict=True):
        schedule.load_state_dict(state)
    for name, parameter in runner.model.named_parameters():
        gradient = checkpoint["gradients"].get(name)
        parameter.grad = None if gradient is None else gradient.to(parameter.device)
    for name, wrapper in runner.optim_wrappers:
        wrapper.grad_norm = checkpoint["grad_norms"][name]
    assert runner.train_loop is not None  # _compare
    runner.train_loop.load_state_dict(checkpoint["loop"])
    runner.pending_rng = checkpoint["rng"]


def changed_counts(runner: Runner, checkpoint: Mapping[str, Any]) -> Iterator[str]:
    """Where losses are accumulated otherwise than in the run that was saved, a sentence for each optimizer."""
    saved = checkpoint["optimizer"]
    for prefix, wrapper in runner.optim_wrappers:
        name = prefix.removesuffix(".")
        change = wrapper.changed_count(saved[name] if name else saved)
        if change is not None:
            yield f"{prefix}{change}"


def load_model(model: torch.nn.Module, weights: Mapping[str, Any]) -> None:
    """Load weights whose names and shapes are exactly the model's; into another dtype they are cast.

    Raises:
        ResumeError: they aren't; the model is left as it was.
    """
    same_names("weights", model.state_dict(), weights, "load them into the model that they are of.")
    _same_tensors(model, weights, ("shape", "layout"))
    model.load_state_dict(weights)


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


def _flat(states: Any) -> list[dict[str, Any]]:
    return [state for part in states.values() for state in part] if isinstance(states, dict) else list(states)


def _compare(runner: Runner, checkpoint: Mapping[str, Any]) -> None:
    if runner.train_loop is None or "loop" not in checkpoint:
        raise ResumeError("resuming needs a run that trains, and a checkpoint of one; load_from= takes weights alone.")
    for part, option in (("optimizer", "save_optimizer"), ("param_schedulers", "save_param_scheduler")):
        if part not in checkpoint:
            raise ResumeError(
                f"the checkpoint was saved with {option}=False and can't be resumed from; load_from= takes its weights."
            )
    saved, own = ("epoch" if by else "iter" for by in (checkpoint["loop"]["by_epoch"], runner.train_loop.by_epoch))
    if saved != own:
        raise ResumeError(
            f"the checkpoint is of a training by {saved} and this one goes by {own}; resume it as it was."
        )
    same_names("model", runner.model.state_dict(), checkpoint["state_dict"])
    _same_tensors(runner.model, checkpoint["state_dict"], ("shape", "dtype", "layout"))
    same_names("hooks", dict(stateful_hooks(runner)), checkpoint["hooks"])
    for part, mine in _kinds(runner).items():
        theirs = checkpoint["meta"]["kinds"][part]
        if mine != theirs:
            raise ResumeError(
                f"the checkpoint's {part} are {listed(theirs)} and this run's {listed(mine)}; give this run the same, "
                "or take the weights alone with load_from=."
            )
    _check_optimizers(runner.optim_wrapper, checkpoint["optimizer"])


def _check_optimizers(optim: OptimWrapper | OptimWrapperDict, saved: Mapping[str, Any]) -> None:
    if isinstance(optim, OptimWrapper):
        optim.check_state_dict(saved, "this run's optimizer")
        return
    same_names("optimizers", dict(optim.items()), saved)
    for name, wrapper in optim.items():
        wrapper.check_state_dict(saved[name], f"this run's optimizer {name!r}")


_INSTEAD = "give this run the same, or take the weights alone with load_from=."


def same_names(part: str, own: Mapping[str, Any], saved: Mapping[str, Any], instead: str = _INSTEAD) -> None:
    """Refuse to load *saved* where its names aren't *own*'s; the message says *instead* what can be done.

    Raises:
        ResumeError: it names what is missing and what is too much.
    """
    missing, surplus = sorted(own.keys() - saved.keys()), sorted(saved.keys() - own.keys())
    if missing or surplus:
        raise ResumeError(
            f"the checkpoint's {part} and this run's differ: it lacks {listed(missing[:5])} and has "
            f"{listed(surplus[:5])} besides; {instead}"
        )


def _same_tensors(model: torch.nn.Module, weights: Mapping[str, Any], traits: Sequence[str]) -> None:
    for name, tensor in model.state_dict().items():
        for trait in traits if isinstance(tensor, torch.Tensor) and not is_lazy(tensor) else ():
            mine, theirs = getattr(tensor, trait), getattr(weights[name], trait, None)
            if mine != theirs:
                raise ResumeError(
                    f"loading weights into {type(model).__name__}: {name!r} has {trait} {_shown(theirs)} in the "
                    f"checkpoint and {_shown(mine)} in the model."
                )


def _shown(trait: Any) -> str:
    return str(list(trait) if isinstance(trait, torch.Size) else trait)
