"""Checkpointer: saves in the background, and exact resume, for a loop that somebody has written by hand.

::

    with Checkpointer("runs/mine", model=model, optimizer=optimizer, resume=True) as ckpt:
        for epoch in range(ckpt.epoch, 10):
            for batch in ckpt.batches(loader):
                ...  # forward, backward, optimizer.step()
                ckpt.save(every=500)
"""

from __future__ import annotations

import contextlib
import functools
import os
import warnings
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from eventrunner.checkpoint import Found, Store, find_newest, load_checkpoint
from eventrunner.checkpoint.contents import check_tree
from eventrunner.checkpoint.saver import Save, Saver, stepped_tensors, watch_steps
from eventrunner.checks import check_ints, check_seconds, is_int, refusal
from eventrunner.errors import ArgumentError, OptionError, ResumeError, RunExistsError, listed
from eventrunner.files.lock import FolderLock
from eventrunner.lanes.lanes import Lanes
from eventrunner.lanes.signals import StopRequest, preemptible
from eventrunner.ranks.deal import Shares
from eventrunner.ranks.parallel import unwrapped
from eventrunner.ranks.world import ALONE, join
from eventrunner.session.resume import found_for, rng_for
from eventrunner.session.retention import Retention
from eventrunner.session.rundir import absolute
from eventrunner.training.position import DataPosition
from eventrunner.training.state import Stateful, check_initialized, rng_state, set_rng_state
from eventrunner.training.weights import gradients_of, load_model, parameter_names, same_names, set_gradients
from eventrunner.training.workers import shielded_workers

__all__ = ["Checkpointer"]

_RESERVED = ("meta", "rng", "rng_of_ranks", "data", "gradients", "state_dict")
_OPTIONAL = ("gradients", "rng_of_ranks")


class Checkpointer:
    """Saves a model, its optimizer and whatever else has a state; all of it within a ``with`` block.

    A save copies weights and moments while the next forward and backward run, and is written, verified and committed
    in the background. The step of any optimizer waits for the copy by itself; call :meth:`wait_for_copies` before
    weights are written to in another way. A save that failed raises at the next step, batch or save, and at the latest
    when the block is left, which waits for all saves. SIGTERM, SIGUSR1 and SIGHUP end the loop at the next batch of
    :meth:`batches`, with a save, by ``SystemExit`` with code 75; so does the first Ctrl-C, by KeyboardInterrupt.

    With several ranks (a group that the script has made, or ``eventrunner.join()``), every one of them has a
    Checkpointer and calls the same: rank 0 writes, a plain ``DataLoader`` is dealt out, and each rank's generators are
    saved and put back. Multiply the loss by :attr:`weight` where a batch can't be divided evenly.

    Args:
        folder: Where the checkpoints go, each a folder ``step_<n>``. One process writes to it at a time.
        model: Saved as ``state_dict``.
        optimizer: Saved as ``optimizer``; a dict of several is saved by name.
        resume: True goes on from the newest checkpoint that verifies, or begins afresh where there is none; a path
            goes on from that one.
        keep: How many checkpoints are kept, the newest; -1 keeps all.
        gradients: Whether gradients are saved too, for a save within an accumulation.
        mode: ``"auto"``, ``"lazy"``, ``"eager"`` or ``"sync"``, as in ``CheckpointHook``.
        format: ``"safetensors"`` or ``"pth"``.
        deadline: Seconds that leaving the block waits for saves before it fails; after a signal it is *grace*.
        grace: See *deadline*.
        **parts: Anything else with ``state_dict`` and ``load_state_dict``, saved under its keyword: a scheduler, a
            scaler, a loader with a state.

    Raises:
        ArgumentError: a part without a state.
        OptionError: a value that can't be, or a model with lazy modules that no forward pass has given their shapes.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        model: nn.Module,
        optimizer: Optimizer | Mapping[str, Optimizer],
        resume: bool | str | os.PathLike[str] = False,
        keep: int = -1,
        gradients: bool = False,
        mode: str = "auto",
        format: str = "safetensors",  # noqa: A002  # torch and safetensors call it so
        deadline: float = 600.0,
        grace: float = 30.0,
        **parts: Stateful,
    ) -> None:
        _check_parts(parts)
        _check_things(model, optimizer, keep, grace)
        self.folder, self.resume = Path(folder).absolute(), absolute(resume)
        self._source = _Source(model, optimizer, parts, gradients, keep)
        self._grace = grace
        self._position = self._source.position
        self._resumed = self._entered = False
        self._counted = True  # the batch under way, as far as there is one
        self._rng: dict[str, Any] | None = None
        self._word: list[StopRequest] = []
        self._saver = self._source.saver = Saver(Store(self.folder), self._source, mode=mode, format=format)
        self._lanes = Lanes(deadline=deadline)
        self._ranks = ALONE
        self._shares = Shares("loader", ALONE)
        self._stack = contextlib.ExitStack()

    @property
    def step(self) -> int:
        """The batches (or what :meth:`save` was given) completed."""
        return self._source.step

    @property
    def epoch(self) -> int:
        """The passes over the data completed, as :meth:`batches` counts them."""
        return self._source.epoch

    @property
    def saves(self) -> tuple[Save, ...]:
        """What became of the latest saves."""
        return tuple(self._saver.saves)

    def __enter__(self) -> Checkpointer:
        """Take the folder, load what is to be resumed, and begin to watch optimizers.

        Raises:
            RunExistsError: the folder has checkpoints, and nothing was said of resuming.
            LockedError: another process saves there.
            ResumeError: the newest checkpoint is of something else.
            CheckpointError: something in the state can't be held by a checkpoint.
        """
        if self._entered:
            raise OptionError("a Checkpointer's with block was entered a second time; make a new one.")
        self._entered = True
        self._ranks = join()
        self._shares = Shares("loader", self._ranks)
        with contextlib.ExitStack() as stack:
            self._ranks.on_main(functools.partial(self._take_folder, stack))
            self._load()
            check_tree(self._source.state(), self._saver.format)
            stack.callback(self._saver.collect)
            stack.callback(self._give_up)
            self._saver.open(stack.enter_context(self._lanes))
            stack.callback(self._saver.close)
            watch_steps(self._on_step)
            stack.callback(watch_steps, self._on_step, watch=False)
            stack.enter_context(preemptible(self._leave_word))
            stack.enter_context(shielded_workers())
            self._stack = stack.pop_all()
        return self

    def _take_folder(self, stack: contextlib.ExitStack) -> None:
        if not self.resume and self._saver.store.names():
            raise RunExistsError(f"{self.folder} has checkpoints; pass resume=True, or choose another folder.")
        stack.enter_context(FolderLock(self.folder))
        self._saver.store.clean()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Wait for all saves, and raise what failed of them; an error of the block is not masked.

        Raises:
            Preempted: a signal came after the last batch or save, and the state is saved.
        """
        if error is None and self._word:
            with self._stack:
                self._end()
        self._stack.__exit__(kind, error, traceback)

    def batches(self, loader: Iterable[Any]) -> Iterator[Any]:
        """One pass over *loader*, or what is left of it; counts :attr:`step` and :attr:`epoch`.

        What is left is what a resumed run hadn't taken, or, after a ``break``, what comes behind it; a pass counts as
        an epoch when its last batch was taken.

        Warns:
            RuntimeWarning: at the first call after a resume, if that can't be exact or loads batches once more.
        """
        if self._rng is not None:
            set_rng_state(self._rng)  # what has been drawn since the block was entered doesn't count
            self._rng = None
        self._check_open("batches()")
        loader = self._shares.of(loader, 0, self._position.passes)
        caveat = self._position.caveat(loader) if self._resumed else None
        self._resumed = False
        if caveat is not None:
            warnings.warn(caveat, RuntimeWarning, stacklevel=2)
        for _, batch in self._position.batches(loader):
            self._counted = False
            try:
                yield batch
            finally:
                self._count()
            self._saver.collect()
            if self._word:
                self._end()

    @property
    def weight(self) -> float:
        """What the loss of the batch under way is to be multiplied by: 1.0, unless ranks have unequal shares of it."""
        dealt = self._shares.deal
        return 1.0 if dealt is None else dealt.weights[self._position.consumed]

    def save(self, step: int | None = None, *, every: int = 1, **meta: Any) -> Save | None:
        """Save the state as it is now; to be called after the optimizer's step.

        Args:
            step: Its number; by default the batches of :meth:`batches` so far, the one under way included.
            every: Do nothing unless the number is a multiple of this.
            **meta: Anything to note in the manifest; plain JSON.

        Returns:
            The save, which is committed when its ``path`` is set; None where none was due, and on other ranks than 0,
            which must call it all the same.

        Raises:
            OptionError: outside of the ``with`` block, or a number that can't be.
            CheckpointError: something in the state can't be held by a checkpoint.
            Preempted: a signal came, and the state is saved, whatever *every* says.
            Exception: what an earlier save failed of.
        """
        self._check_open("save()")
        check_ints("Checkpointer.save", 1, every=every)
        if step is not None:
            check_ints("Checkpointer.save", 0, step=step)
        self._count()
        self._source.step = self.step if step is None else step
        self._saver.collect()
        self._lanes.check()
        if self._word:
            self._end()
        if self.step % every:
            return None
        if self._ranks.several:
            self._source.rng_of_ranks = self._ranks.gather(rng_state())
        return self._save(meta)

    def _save(self, meta: Mapping[str, Any]) -> Save | None:
        if not self._ranks.is_main:
            return None
        name, source, before = f"step_{self.step}", self._source, self._source.retention
        source.plan(name)
        try:
            return self._saver.save(name, meta=meta)
        except BaseException:
            source.retention = before
            raise

    def wait_for_copies(self) -> None:
        """Wait until weights may be written to by something that is no optimizer's step."""
        self._saver.wait_for_copies()

    def wait(self) -> None:
        """Wait until everything that was saved is committed, or raise what failed."""
        self._saver.wait()

    def _count(self) -> None:
        if not self._counted:
            self._counted = True
            self._position.consumed += 1
            self._source.step += 1

    def _on_step(self) -> None:
        if self._lanes.failures:
            self._lanes.check()

    def _give_up(self) -> None:
        if self._lanes.unfinished:
            self._saver.abandon()

    def _check_open(self, call: str) -> None:
        if not self._lanes.is_open:
            raise OptionError(f"Checkpointer.{call} was called outside of its with block; do so within it.")

    def _leave_word(self, asked: StopRequest) -> None:
        """In a signal's handler: a job that hangs mustn't bar the way to the next batch or save."""
        self._word.append(asked)
        if asked.interrupted:  # and whoever waits for too long interrupts again
            return
        self._lanes.deadline.shorten(self._grace)

    def _end(self) -> None:
        asked = self._word.pop()
        self._source.rng_of_ranks = None  # a signal may reach the ranks at different batches
        self._save({})
        asked.answer()

    def _found(self) -> Found:
        """Return the checkpoint to resume from, read."""
        find = functools.partial(find_newest, self.folder, read=load_checkpoint)
        found = found_for(self._ranks, self.resume, find)
        for path, reason in found.rejected:
            warnings.warn(f"checkpoint {path} is not used: {reason}", RuntimeWarning, stacklevel=4)
        return found

    def _load(self) -> None:
        found = self._found()
        path, saved = found.path, found.content
        if path is None:
            return
        self._source.load(path, saved)
        self._resumed = True
        self._rng, remark = rng_for(self._ranks, saved, self.step * self._ranks.world)
        if remark and self._ranks.is_main:
            warnings.warn(remark, RuntimeWarning, stacklevel=3)
        set_rng_state(self._rng)


class _Source:
    """What a Checkpointer saves and loads, and which of its checkpoints it keeps."""

    saver: Saver

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer | Mapping[str, Optimizer],
        parts: Mapping[str, Stateful],
        gradients: bool,
        keep: int,
    ) -> None:
        self.model, self.optimizer, self.parts, self.gradients = unwrapped(model), optimizer, parts, gradients
        self.rng_of_ranks: list[dict[str, Any]] | None = None
        self.keep, self.retention = keep, Retention()
        self.position, self.step = DataPosition(), 0
        self._planned: dict[str, tuple[Retention, list[str]]] = {}  # by name: what was kept before, what may go after

    @property
    def epoch(self) -> int:
        return self.position.passes

    def plan(self, name: str) -> None:
        """Keep the checkpoint *name*, which is about to be saved, and what else there is room for."""
        before = self.retention
        self.retention, doomed = before.plan(name, self.step, False, self.keep)
        self._planned[name] = before, doomed

    def finished(self, save: Save) -> None:
        before, doomed = self._planned.pop(save.name)
        if save.path is None:
            self.retention = self.retention.without(save.name, save.step, before)
            return
        for name in doomed:
            if name not in self.retention.names:
                self.saver.delete(name)

    def state(self, **parts: bool) -> dict[str, Any]:
        given, kept = self.optimizer, self.retention.state_dict()
        optimizer: Any = (
            {name: each.state_dict() for name, each in given.items()}
            if isinstance(given, Mapping)
            else given.state_dict()
        )
        meta = {"step": self.step, "kept": kept["kept"], "retired": kept["retired"], "optimizers": self._kinds()}
        state: dict[str, Any] = {
            "state_dict": self.model.state_dict(),
            "optimizer": optimizer,
            "meta": meta,
            "data": self.position.state_dict(),
            "rng": rng_state(),
            **{name: part.state_dict() for name, part in self.parts.items()},
        }
        if self.rng_of_ranks is not None:
            state["rng_of_ranks"] = self.rng_of_ranks
        if self.gradients:
            state["gradients"] = gradients_of(self.model)
        return state

    def stepped(self) -> Iterable[Tensor]:
        return stepped_tensors(self.model, self._optimizers())

    def parameters(self) -> Collection[str]:
        return parameter_names(self.model)

    def load(self, path: Path, saved: Mapping[str, Any]) -> None:
        """Put back what was saved, but for the generators' states.

        Raises:
            ResumeError: it is of something else; nothing is changed.
        """
        ours = {key: None for key in self.state() if key not in _OPTIONAL}
        same_names("parts", ours, {key: None for key in saved if key not in _OPTIONAL})
        if saved["meta"]["optimizers"] != self._kinds():
            raise ResumeError(
                f"{path} was saved with {listed(saved['meta']['optimizers'])} and is to be loaded into "
                f"{listed(self._kinds())}; give the same optimizers."
            )
        load_model(self.model, saved["state_dict"])
        if isinstance(self.optimizer, Mapping):
            same_names("optimizers", self.optimizer, saved["optimizer"])
            for name, optimizer in self.optimizer.items():
                optimizer.load_state_dict(saved["optimizer"][name])
        else:
            self.optimizer.load_state_dict(saved["optimizer"])
        for name, part in self.parts.items():
            part.load_state_dict(saved[name])
        set_gradients(self.model, saved.get("gradients", {}))
        self.position.load_state_dict(saved["data"])
        meta = saved["meta"]
        flat = all(isinstance(each, str) for each in meta["retired"])  # as the first ones had it
        self.retention = Retention.of({**meta, "retired": [meta["retired"]] if flat else meta["retired"], "last": None})
        self.step = meta["step"]

    def _optimizers(self) -> list[Optimizer]:
        return list(self.optimizer.values()) if isinstance(self.optimizer, Mapping) else [self.optimizer]

    def _kinds(self) -> list[str]:
        return [type(each).__name__ for each in self._optimizers()]


def _check_things(model: object, optimizer: object, keep: object, grace: object) -> None:
    if not isinstance(model, nn.Module):
        raise ArgumentError(f"Checkpointer(model=…) takes a torch.nn.Module, not a {type(model).__name__}.")
    check_initialized("Checkpointer", model)
    several = list(optimizer.values()) if isinstance(optimizer, Mapping) else [optimizer]
    for each in several:
        if not isinstance(each, Optimizer):
            raise ArgumentError(
                "Checkpointer(optimizer=…) takes a torch.optim.Optimizer or a dict of them, not a "
                f"{type(each).__name__}."
            )
    if not is_int(keep) or (keep < 1 and keep != -1):
        raise refusal("Checkpointer", "keep", keep, "an int of 1 or more, or -1 for all")
    check_seconds("Checkpointer", grace=grace)


def _check_parts(parts: Mapping[str, object]) -> None:
    for name, part in parts.items():
        if name in _RESERVED:
            raise ArgumentError(f"Checkpointer({name}=…): {listed(_RESERVED)} are its own; choose another keyword.")
        if not isinstance(part, Stateful):
            raise ArgumentError(
                f"Checkpointer({name}={type(part).__name__}(…)): a part has state_dict() and load_state_dict(); it "
                "takes folder, model, optimizer, resume, keep, gradients, mode, format, deadline and grace besides."
            )
