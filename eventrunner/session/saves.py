"""What a run saves: its state as one nested dict, and what is emitted around a save."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from eventrunner.checkpoint import Store
from eventrunner.checkpoint.saver import Save, Saver, stepped_tensors
from eventrunner.files.lock import FolderLock
from eventrunner.run import Run
from eventrunner.training.schedule import Schedules, all_schedules
from eventrunner.training.state import Stateful, rng_state
from eventrunner.training.weights import gradients_of, parameter_names
from eventrunner.version import __version__

__all__ = ["RunSource", "gather", "kinds_of", "open_saver", "own_rng", "readers", "save_now", "stateful_hooks"]

_COUNTS = ("requested", "committed", "failed", "bytes", "took", "blocked")


class RunSource:
    """A run, as what a ``Saver`` saves: ``before_save_checkpoint`` may change the state that was gathered.

    ``runner.message_hub`` has in ``saves`` how many were requested, committed and failed, their bytes, the seconds
    that their writing took, and those that the training was blocked for them.
    """

    def __init__(self, run: Run) -> None:
        self._run = run

    @property
    def step(self) -> int:
        """Iterations completed."""
        return self._run.progress.step

    @property
    def epoch(self) -> int:
        """Epochs completed."""
        return self._run.progress.epochs_completed

    def state(self, **parts: bool) -> dict[str, Any]:
        """Return the state as receivers of ``before_save_checkpoint`` leave it; *parts* are those of :func:`gather`."""
        self._count(requested=1)
        checkpoint = gather(self._run, **parts)
        names = set(checkpoint["state_dict"])
        self._run.call_hook("before_save_checkpoint", checkpoint=checkpoint)
        _note_left_out(checkpoint, names)
        return checkpoint

    def stepped(self) -> Iterable[torch.Tensor]:
        """Return the tensors that change only at an optimizer's step or in receivers that say so."""
        run = self._run
        if not run.updates_itself:  # a step that calls its optimizers itself may write to weights at any other time
            yield from stepped_tensors(run.unwrapped, (wrapper.optimizer for _, wrapper in run.optim_wrappers))
        for hook in run.hooks:
            yield from hook.own_tensors()

    def parameters(self) -> Collection[str]:
        """Return the names of what must be numbers, those of a shared tensor all."""
        return parameter_names(self._run.unwrapped)

    def finished(self, save: Save) -> None:
        """Count a save that is over, and emit ``after_commit_checkpoint`` where it was committed."""
        path = save.path
        if save.mode != "link":
            size = sum(file.stat().st_size for file in path.iterdir()) if path is not None and path.is_dir() else 0
            took, committed = save.ended - save.began, path is not None
            self._count(committed=committed, failed=not committed, bytes=size, took=took, blocked=save.blocked)
        if path is not None:
            self._run.call_hook("after_commit_checkpoint", path=path, step=save.step)

    def _count(self, **more: float) -> None:
        hub = self._run.message_hub
        counts = hub.get_info("saves", {})
        hub.update_info("saves", {key: counts.get(key, 0) + more.get(key, 0) for key in _COUNTS}, resumed=False)


def open_saver(run: Run, **options: Any) -> Saver:
    """Have the run's saves made by a new ``Saver`` with these options, in its folder of checkpoints."""
    saver = run.session.saver = _saver_of(run, run.checkpoint_dir, **options)
    if run.session.lanes is not None:
        saver.open(run.session.lanes)
    return saver


def _saver_of(run: Run, folder: Path, **options: Any) -> Saver:
    request = run.session.request
    return Saver(Store(folder), RunSource(run), after=("log",), guards=run.bus.guards, request=request, **options)


def save_now(
    run: Run, where: str | os.PathLike[str], filename: str | None, meta: Mapping[str, Any] | None, **parts: bool
) -> Path | None:
    """Save the run's state and wait until it is durable; see ``Runner.save_checkpoint``."""
    folder, name = (run.checkpoint_dir, str(where)) if filename is None else (Path(where).absolute(), filename)
    saver = run.session.saver or open_saver(run, mode="sync")
    with contextlib.ExitStack() as stack:
        if folder != run.checkpoint_dir:
            stack.enter_context(FolderLock(folder))
            saver = _saver_of(run, folder, mode="sync", format=saver.format)
        save = saver.save(name, meta=meta, **parts)
        saver.wait()
    return save.path


def readers(run: Run) -> list[str]:
    """Return the lanes of receivers that may be reading a committed checkpoint (uploads, for one)."""
    connections = run.bus.after_commit_checkpoint.connections_for(run)
    return [connection.task.lane for connection in connections if connection.task is not None]


def gather(run: Run, save_optimizer: bool = True, save_param_scheduler: bool = True) -> dict[str, Any]:
    """Return the run's state as one nested dict, with MMEngine's top-level names; its tensors are the live ones."""
    progress, loop = run.progress, run.train_loop
    checkpoint: dict[str, Any] = {
        "meta": {
            "epoch": progress.epochs_completed,
            "iter": progress.step,
            "seed": run.seed,
            "experiment_name": run.experiment_name,
            "time": time.strftime("%Y%m%d_%H%M%S"),
            "eventrunner_version": __version__,
            "kinds": kinds_of(run),
        },
        "state_dict": run.unwrapped.state_dict(),
        "frozen": [name for name, parameter in run.unwrapped.named_parameters() if not parameter.requires_grad],
        "message_hub": _hub_state(run),
        "hooks": {name: hook.state_dict() for name, hook in stateful_hooks(run)},
        "filters": run.bus.state_dict(run),
        "rng": own_rng(run),
    }
    if loop is not None:
        checkpoint["loop"] = loop.state_dict()
        checkpoint["gradients"] = gradients_of(run.unwrapped)
        checkpoint["grad_norms"] = {name: wrapper.grad_norm for name, wrapper in run.optim_wrappers}
        if run.session.rng_of_ranks is not None:
            checkpoint["rng_of_ranks"] = run.session.rng_of_ranks
        if save_optimizer:
            checkpoint["optimizer"] = run.optim_wrapper.state_dict()
        if save_param_scheduler:
            checkpoint["param_schedulers"] = _scheduler_states(run.param_schedulers)
    return checkpoint


def own_rng(run: Run) -> dict[str, Any]:
    """Return the states of this rank's generators, as a resumed run has to have them."""
    return run.session.pending_rng or run.session.rng_before_val or rng_state()


def _note_left_out(checkpoint: dict[str, Any], names: set[str]) -> None:
    """Note in a checkpoint that is about to be saved which weights, of those *names*, receivers took out of it."""
    taken = names - checkpoint.get("state_dict", {}).keys()
    if taken and "meta" in checkpoint:
        checkpoint["meta"] = {**checkpoint["meta"], "left_out": sorted(taken)}


def _hub_state(run: Run) -> dict[str, Any]:
    hub = run.message_hub
    said = set(hub.left_out)
    state = hub.state_dict()
    for key in hub.left_out.keys() - said:
        run.logger.warning("message hub", reason=hub.left_out[key])
    return state


def stateful_hooks(run: Run) -> Iterator[tuple[str, Stateful]]:
    """Yield the run's hooks that have a state, each under its class's name; a second of a class as ``Name#2``."""
    seen: dict[str, int] = {}
    for hook in run.hooks:
        if isinstance(hook, Stateful):
            name = type(hook).__name__
            seen[name] = seen.get(name, 0) + 1
            yield name if seen[name] == 1 else f"{name}#{seen[name]}", hook


def kinds_of(run: Run) -> dict[str, list[str]]:
    """Return the classes of what has a state without saying whose it is: torch would load it into any other."""
    return {
        "optimizers": [type(wrapper.optimizer).__name__ for _, wrapper in run.optim_wrappers],
        "schedulers": [type(schedule.scheduler).__name__ for schedule in all_schedules(run.param_schedulers)],
    }


def _scheduler_states(schedules: Schedules) -> Any:
    if isinstance(schedules, dict):
        return {name: [schedule.state_dict() for schedule in part] for name, part in schedules.items()}
    return [schedule.state_dict() for schedule in schedules]
