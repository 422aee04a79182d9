"""Saver: a run's saves, from the copy that training waits for to the commit that it doesn't.

A save has two halves. The snapshot copies the state: in mode ``eager`` before :meth:`Saver.save` returns, in ``lazy``
during the next forward and backward, and then no weight may change before it is done. The other half, writing and
committing, runs in a lane, one save after another; at most one is written while the next is copied.
"""

from __future__ import annotations

import contextlib
import functools
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_pre_hook

from eventrunner.checkpoint.contents import FORMATS
from eventrunner.checkpoint.finite import has_finite_weights
from eventrunner.checkpoint.manifest import plain_json
from eventrunner.checkpoint.snapshot import Snapshot, Snapshotter
from eventrunner.checkpoint.store import Store
from eventrunner.checkpoint.verify import FINITE, newest_finite
from eventrunner.checks import check_choices
from eventrunner.errors import CheckpointNotFoundError
from eventrunner.lanes.lanes import Lanes, Task

__all__ = [
    "FORMATS",
    "MODES",
    "OTHER_LANE",
    "WRITE_LANE",
    "Save",
    "Saver",
    "Source",
    "stepped_tensors",
    "watch_steps",
]

MODES = ("auto", "lazy", "eager", "sync")
COPY_LANE, WRITE_LANE, DELETE_LANE = "snapshot", "checkpoint", "retention"
OTHER_LANE = "another lane"
"""Under what a lane's account has the waits of this one for it, which the training has no part in."""

_watchers: tuple[Callable[[], None], ...] = ()
# Called before every step of any optimizer, through one hook of torch's that stays: each thread that steps goes through
# torch's hooks, and one that came and went with the saves would be taken away under its feet.
_watching = threading.Lock()
_hooks: list[Any] = []

_LAZY_FROM = 4_000_000  # bytes: below, copying at once takes the training less than a thread that has to be woken
_REMEMBERED = 10_000  # saves whose times are kept for a trace


@dataclass(slots=True)
class Save:
    """One save: what was asked for, and what became of it. Times are those of ``time.perf_counter``, in seconds.

    Attributes:
        name: The checkpoint's.
        step: Iterations that the state has completed.
        mode: How the state was copied; ``link`` where the save is a twin of another.
        nbytes: The bytes of its files.
        requested: When it was asked for.
        blocked: How long the training thread was blocked by it so far, the barriers included.
        background: Whether it was written in the background.
        began: When its writing began.
        ended: When it was committed, or had failed.
        path: Where it is, once it is committed.
        error: Why it isn't, if it failed.
        finite: Whether its weights are numbers, as far as it is written.
    """

    name: str
    step: int
    mode: str
    nbytes: int = 0
    requested: float = field(default_factory=time.perf_counter)
    blocked: float = 0.0
    background: bool = False
    began: float = 0.0
    ended: float = 0.0
    path: Path | None = None
    error: BaseException | None = None
    finite: bool = True


class Source(Protocol):
    """What a saver saves. Called on the training thread, but for :meth:`parameters`, which the writer asks."""

    @property
    def step(self) -> int:
        """Iterations that the state has completed."""

    @property
    def epoch(self) -> int:
        """Epochs that it has completed."""

    def state(self, **parts: bool) -> Mapping[str, Any]:
        """Return the state, with live tensors; *parts* are those of :meth:`Saver.save`."""

    def stepped(self) -> Iterable[Tensor]:
        """Return the tensors that nothing changes but an optimizer's step and what calls the guards."""

    def parameters(self) -> Collection[str]:
        """Return the names in ``state()["state_dict"]`` of what must be numbers."""

    def finished(self, save: Save) -> None:
        """Take note of a save that was committed, or has failed."""


def watch_steps(watcher: Callable[[], None], watch: bool = True) -> None:
    """Have *watcher* called before every step of any optimizer in the process, or no longer."""
    global _watchers
    with _watching:
        others = tuple(each for each in _watchers if each != watcher)
        _watchers = (*others, watcher) if watch else others
        if not _hooks:
            _hooks.append(register_optimizer_step_pre_hook(_before_step))


def _before_step(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
    for watcher in _watchers:
        watcher()


def stepped_tensors(model: nn.Module, optimizers: Iterable[Optimizer]) -> Iterator[Tensor]:
    """Yield the tensors that only a step of these optimizers changes: what they update, and their own state.

    An ``Embedding`` with ``max_norm`` writes to its weights in each forward, so these aren't among them.
    """
    renormed = {id(each.weight) for each in model.modules() if getattr(each, "max_norm", None) is not None}
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            yield from (each for each in group["params"] if id(each) not in renormed)
        for state in optimizer.state.values():
            yield from (value for value in state.values() if isinstance(value, Tensor))


class Saver:
    """Saves into one store, in the order in which they are asked for.

    All methods are for the thread that trains. Without open lanes, and in mode ``sync``, a save is committed when
    :meth:`save` returns.

    Args:
        store: Where the checkpoints go.
        source: What is saved; of its tensors only those of ``stepped`` are ever copied lazily.
        mode: ``lazy``, ``eager``, ``sync``, or ``auto``: lazy where that spares the training more than it costs, which
            is told from the size.
        format: ``safetensors`` or ``pth``.
        verify: Whether each save is checked for a tensor that changed while it was being copied, by hashing it twice.
        after: Lanes whose jobs at the time of a save must be done before it is committed.
        guards: A list of callables: whoever is about to write to the weights calls those that are in it. The saver
            puts one in while it is copying. An optimizer's step waits by itself.
        request: Called in a worker when a save is done, with what the training thread is to call soon.

    Attributes:
        lanes: Where copying and writing are done; None where everything is done at once.
        saves: The latest saves that are done.
        pending: The saves that are not, oldest first.

    Raises:
        OptionError: a mode that there isn't.
    """

    def __init__(
        self,
        store: Store,
        source: Source,
        *,
        mode: str = "auto",
        format: str = "safetensors",  # noqa: A002  # torch and safetensors call it so
        verify: bool = False,
        after: Sequence[str] = (),
        guards: list[Callable[[], Any]] | None = None,
        request: Callable[[Callable[[], Any]], None] = lambda action: None,
    ) -> None:
        check_choices("", MODES, mode=mode)
        check_choices("", FORMATS, format=format)
        self.store, self.source, self.mode, self.format, self.verify = store, source, mode, format, verify
        self.lanes: Lanes | None = None
        self.saves: deque[Save] = deque(maxlen=_REMEMBERED)
        self.pending: deque[Save] = deque()
        self._guards = [] if guards is None else guards
        self._after, self._request = tuple(after), request
        self._arrived: deque[Save] = deque()
        self._is_broken = False  # whether the weights of the newest save aren't numbers
        self._finite: str | None = None  # the newest save of which they are, once it is known
        self._spared: dict[str, tuple[str, ...]] = {}  # as that, from being deleted, and after which lanes it may be
        self._snapshots = Snapshotter()
        self._copying: tuple[Save, Snapshot] | None = None
        self._changing = threading.Lock()  # held where steps come to be watched, and where they no longer are
        self._write_task = Task(self._write, WRITE_LANE, name="checkpoint", site="save", native=True)
        self._delete_task = Task(self._delete, DELETE_LANE, name="retention", site="save", native=True)
        self._copy_task = Task(_call, COPY_LANE, name="snapshot", site="save", native=True)

    def open(self, lanes: Lanes) -> None:
        """Save in the background from now on, in *lanes*; while one copies, every optimizer's step is watched."""
        self.lanes = lanes
        self._snapshots.deadline = lanes.deadline

    def prepare(self, nbytes: int) -> None:
        """Get memory for a state of so many bytes ready, in the background; else the first save waits for it."""
        if self.lanes is not None and self.mode != "sync":
            self.lanes.submit(self._copy_task, (functools.partial(self._snapshots.prepare, nbytes),))

    def save(self, name: str, *, meta: Mapping[str, Any] | None = None, **parts: bool) -> Save:
        """Snapshot the source's state and have it committed as checkpoint *name*.

        If one of its parameters isn't a number, the manifest notes it as ``finite: false``, and no run is resumed from
        this checkpoint by itself.

        Args:
            name: Of the checkpoint; one that has it already is replaced.
            meta: Anything to note in the manifest; plain JSON.
            **parts: What of the state is saved, as the source has it.

        Raises:
            CheckpointError: there is something in the state that a checkpoint can't hold.
            OptionError: there is something in *meta* that JSON can't.
            OSError: the disk refused, in mode ``sync``; else that is raised by the lanes.
        """
        requested, source = time.perf_counter(), self.source
        tree = source.state(**parts)
        noted = plain_json(meta or {})
        self._spared.pop(name, None)
        save = Save(name, source.step, "sync", requested=requested)
        lazy = self._choose(save)
        self.wait_for_copies()  # the one before, if no step came between
        in_background = self._copy_in_background if save.mode == "lazy" else None
        snapshot = self._snapshots.take(tree, lazy=lazy, in_background=in_background, verify=self.verify)
        facts: dict[str, Any] = {"step": save.step, "epoch": source.epoch, "tree_format": self.format}
        commit = functools.partial(self.store.commit, name, **facts)
        try:
            save.nbytes = snapshot.nbytes
            self._hold(save, snapshot)
            commit = functools.partial(_committed, save, snapshot, commit, noted, source.parameters, tree)
            self._start(save, commit, self._after)
        except BaseException:  # interrupted, or the lanes were closed meanwhile
            snapshot.release()
            raise
        save.blocked += time.perf_counter() - save.requested
        return save

    def link(self, name: str, source: str, *, meta: Mapping[str, Any] | None = None) -> Save:
        """Have a twin of checkpoint *source*, which may still be pending, committed as *name*.

        Raises:
            CheckpointNotFoundError: *source* is neither pending nor there.
        """
        save = Save(name, self.source.step, "link")
        if all(each.name != source for each in self.pending):
            self.store.path(source)
        self._start(save, functools.partial(self.store.link, name, source, meta=dict(meta or {})))
        save.blocked += time.perf_counter() - save.requested
        return save

    def delete(self, name: str, after: Iterable[str] = ()) -> None:
        """Have checkpoint *name* removed when what was asked for before is done; it may have gone already.

        Where the weights of the newest one aren't numbers, the newest of which they are stays until there is another.

        Args:
            name: Of the checkpoint.
            after: Lanes whose present jobs may still be reading it.
        """
        if self._is_broken and name == self._newest_finite():
            self._spared[name] = tuple(after)
            return
        lanes = self.lanes
        if self._inline() or lanes is None:
            self._delete(name)
        else:
            lanes.submit(self._delete_task, (name, _tickets(lanes, (WRITE_LANE, *after))))

    def wait_for_copies(self) -> None:
        """Wait until the tensors of the save under way may be written to."""
        copying = self._copying
        if copying is not None:
            save, snapshot = copying
            try:
                save.blocked += snapshot.wait()
            finally:
                # Not before: until then, nobody may write, whoever else asks, and even if the waiting is interrupted.
                if self._copying is copying and (snapshot.copied or snapshot.failed):
                    self._copying = None
                    self._guards.remove(self.wait_for_copies)

    def wait(self) -> None:
        """Wait until everything is committed, or raise what failed."""
        if self.lanes is not None:
            self.wait_for_copies()
            self.lanes.wait(WRITE_LANE, label="save")
            self.collect()
            self.lanes.check()

    def collect(self) -> int:
        """Hand each save that is done since to the source, and return how many there were."""
        count = 0
        while self._arrived:
            self._done(self._arrived.popleft())
            count += 1
        return count

    def close(self) -> None:
        """Stop looking at optimizers and give the memory back; what is pending stays with the lanes, which drain."""
        watch_steps(self._on_step, watch=False)
        with contextlib.suppress(Exception):  # a copy that failed is its save's failure, which the lanes have
            self.wait_for_copies()
        self.collect()
        self.lanes = None
        self._snapshots = Snapshotter()

    def abandon(self) -> None:
        """Let nothing be committed any more by a writer that hangs: the folder may be another's by then."""
        self.store.abandoned = True

    def _on_step(self) -> None:
        if self._copying is not None:
            self.wait_for_copies()
        with self._changing:  # another thread than that which saves may be stepping
            if self._copying is None:
                watch_steps(self._on_step, watch=False)

    def _inline(self) -> bool:
        return self.mode == "sync" or self.lanes is None or not self.lanes.is_open

    def _choose(self, save: Save) -> Collection[int]:
        """Set the save's mode; returns the addresses of what is copied lazily.

        ``auto`` goes by the size alone, so that two runs of one script do the same.
        """
        if self._inline():
            return ()
        stepped = [] if self.mode == "eager" else list(self.source.stepped())
        lazy = self.mode == "lazy" or sum(map(_nbytes, stepped)) >= _LAZY_FROM
        save.mode = "lazy" if lazy else "eager"
        return _addresses(stepped) if lazy else ()

    def _copy_in_background(self, copy: Callable[[], None]) -> None:
        assert self.lanes is not None  # the mode is lazy
        self.lanes.submit(self._copy_task, (copy,))

    def _hold(self, save: Save, snapshot: Snapshot) -> None:
        """See that nobody writes to what is being copied."""
        with self._changing:
            if not snapshot.copied:
                self._copying = save, snapshot
                self._guards.append(self.wait_for_copies)
                watch_steps(self._on_step)

    def _start(self, save: Save, commit: Callable[[], Path], after: Iterable[str] = ()) -> None:
        self.pending.append(save)
        lanes = self.lanes
        before = (
            []
            if lanes is None or not lanes.is_open
            else _tickets(lanes, after, "save" if self._inline() else OTHER_LANE)
        )
        if self._inline() or lanes is None:
            try:
                self._write(save, commit, before)
            finally:
                self.collect()
            return
        save.background = True
        try:
            lanes.submit(self._write_task, (save, commit, before), origin=f"step {save.step}")
        except BaseException:
            self.pending.remove(save)
            raise

    def _write(self, save: Save, commit: Callable[[], Path], before: Iterable[Callable[[], None]]) -> None:
        save.began = time.perf_counter()
        try:
            for wait in before:
                wait()
            save.path = commit()
        except BaseException as error:
            save.error = error
            raise
        finally:
            save.ended = time.perf_counter()
            self._arrived.append(save)
            self._request(self.collect)

    def _delete(self, name: str, before: Iterable[Callable[[], None]] = ()) -> None:
        for wait in before:
            wait()
        with contextlib.suppress(CheckpointNotFoundError):  # somebody has moved it away, and that is their right
            self.store.delete(name)

    def _done(self, save: Save) -> None:
        self.pending.remove(save)
        self.saves.append(save)
        if save.path is not None and save.mode != "link":
            self._note_finite(save)
        self.source.finished(save)

    def _note_finite(self, save: Save) -> None:
        self._is_broken = not save.finite
        if save.finite:
            self._finite = save.name
            spared, self._spared = self._spared, {}
            for name, after in spared.items():
                self.delete(name, after)

    def _newest_finite(self) -> str:
        if self._finite is None:
            self._finite = newest_finite(self.store.folder)
        return self._finite


def _committed(
    save: Save,
    snapshot: Snapshot,
    commit: Callable[..., Path],
    meta: Mapping[str, Any],
    parameters: Callable[[], Collection[str]],
    tree: object,
) -> Path:
    # The tree is released here: to free its hundreds of tensors took the training as long as to make them.
    try:
        staged = snapshot.staged()
        snapshot.check()
        save.finite = has_finite_weights(staged, parameters)
        return commit(staged, meta=meta if save.finite else {**meta, FINITE: False})
    finally:
        snapshot.release()


def _addresses(tensors: list[Tensor]) -> frozenset[int]:
    try:
        return frozenset(map(Tensor.data_ptr, tensors))
    except RuntimeError:  # a sparse one has no memory of its own, and is copied at once
        return frozenset(each.data_ptr() for each in tensors if each.layout is torch.strided)


def _nbytes(tensor: Tensor) -> int:
    return tensor.nbytes if tensor.layout is torch.strided else 0


def _call(action: Callable[[], None]) -> None:
    action()


def _tickets(lanes: Lanes, after: Iterable[str], label: str = OTHER_LANE) -> list[Callable[[], None]]:
    """Return what waits until the jobs that are in these lanes now are done; the time is accounted under *label*."""
    return [functools.partial(lanes.wait, lane, lanes.mark(lane), label=label) for lane in after]
