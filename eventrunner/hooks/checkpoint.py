"""CheckpointHook: when to save, what to keep, and which was the best."""

from __future__ import annotations

import contextlib
import functools
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from eventrunner.checkpoint import Store, load_checkpoint, verify_checkpoint
from eventrunner.checkpoint.contents import check_tree
from eventrunner.checkpoint.manifest import PTH_NAME
from eventrunner.checkpoint.saver import FORMATS, MODES, WRITE_LANE, Save, stepped_tensors
from eventrunner.checks import check_bools, check_choices, check_folders, check_ints, is_int, refusal
from eventrunner.errors import (
    CheckpointError,
    CheckpointNotFoundError,
    OptionError,
    ResumeError,
    RunExistsError,
    did_you_mean,
    listed,
)
from eventrunner.files.lock import FolderLock
from eventrunner.hook import Hook
from eventrunner.registry import HOOKS
from eventrunner.session.best import BestScores, best_name, name_list
from eventrunner.session.retention import Retention
from eventrunner.session.rundir import absolute
from eventrunner.session.saves import gather, open_saver, own_rng
from eventrunner.training.state import check_initialized

if TYPE_CHECKING:
    from eventrunner.run import Run

__all__ = ["CheckpointHook"]

_IN_COMMON = ("out_dir", "save_optimizer", "save_param_scheduler", "mode", "offload", "format", "verify")
# The options that say where and how a run is saved, which several hooks of one run can't have each in its own way.

_LONGEST_TEMPLATE = 80  # bytes: with a metric's name and a number, a checkpoint's has 200
_DIGITS = re.compile(r"\d*\{\}\d*")

_SECTIONS = (
    *("meta", "state_dict", "message_hub", "optimizer", "param_schedulers", "hooks", "filters", "rng", "loop"),
    *("gradients", "ema_state_dict"),
)


@dataclass(slots=True)
class _Asked:
    """A save that was asked for and isn't over yet.

    Attributes:
        step: The iterations that its state has completed.
        before: What each of its hooks kept before it.
        doomed: What may be deleted once it is committed.
        metric: That by which it is the best; None for a regular save.
        best: The score and name that were the best before.
        score: Its own.
        save: What became of it, once it was begun.
    """

    step: int
    before: list[tuple[CheckpointHook, Retention]]
    doomed: list[str]
    metric: str | None = None
    best: tuple[float, str] | None = None
    score: float = 0.0
    save: Save | None = None


@HOOKS.register_module()
class CheckpointHook(Hook):
    """Save the run by epochs or iterations, keep the newest, mark the best, publish at the end.

    A save is decided at this hook's turn and made when all receivers of the site have run, so that it holds all of
    their states. It is written and committed in the background; a failure is raised at the next iteration. An older
    checkpoint is deleted only when its successor is durable. The best checkpoint is a twin of the save already made at
    that step (hard links: no second write), or a save of its own, and can be resumed from.

    ``runner.message_hub`` has, when a save is committed, ``last_ckpt``, ``best_ckpt`` and ``best_score``
    (``best_ckpt_<metric>`` … where there are several), and in ``saves`` how many were requested, committed and failed,
    their bytes, the seconds that their writing took, and those that the training was blocked for them.

    A run may have several, as one that saves often and keeps the newest, and one that keeps what it saves. They save to
    one folder in one way, each deletes its own alone, and what two save under one name is one save. One of them marks
    the best, and one publishes. A resumed run registers them in the same order.

    Args:
        interval: Save each n-th epoch or iteration; by default each epoch, or at each validation interval where the
            training goes by iterations. -1 saves at the end alone.
        by_epoch: The unit; by default the training's own. A training by iterations has no epochs to count.
        save_optimizer: Whether the optimizer's state is saved; without it the checkpoint can't be resumed from.
        save_param_scheduler: The same of the schedulers' states.
        out_dir: Where to save: in a folder there that is named like the run's.
        max_keep_ckpts: How many regular checkpoints are kept, the newest; -1 keeps all. The best is not counted.
        save_last: Whether the state at the end of training is saved, planned or early, whatever the interval.
        save_best: A metric's name, several, or ``'auto'`` for the validation's first.
        rule: ``'greater'`` or ``'less'``, or a list of one for each key; by default inferred from the key's words.
        greater_keys: Further keys of which more is better.
        less_keys: Further keys of which less is better.
        filename_tmpl: The folder's name with one ``{}``; by default ``epoch_{}`` or ``iter_{}``.
        published_keys: The parts of a checkpoint (``'state_dict'``, ``'meta'`` …) that a published copy of the best
            and the last gets, at the end of training, as ``<name>-<first 8 digits of its weights' digest>``.
        save_begin: The first epoch or iteration that may be saved; the interval counts from it.
        mode: How the state is copied. ``'lazy'``: weights and moments while the next forward and backward run, all else
            at once (gradients that accumulate, weights that no optimizer holds, and everything where ``train_step``
            calls its optimizers itself). ``'eager'``: all of it at once. ``'auto'``: lazy from 4 MB of these on,
            else eager. ``'sync'``: nothing goes on until the save is committed.
        offload: False is the same as ``mode='sync'``.
        format: ``'safetensors'``, or ``'pth'`` for one ``torch.save`` file, in the same kind of folder.
        verify: Check that no tensor changed while it was being copied, by hashing each twice; for tests of one's own
            receivers.

    Raises:
        OptionError: a value that can't be; at construction, or when it is registered where it depends on the run or
            on the run's other hooks of this kind.
        ResumeError: several of them are in another order than in the run that is resumed.
        RunExistsError: at ``train()``, where another run has its checkpoints in *out_dir* under the same name.
        CheckpointError: the model, the optimizer or a hook has in its state what *format* can't hold; before the first
            batch, or after it where that has put it there. Where a receiver of ``before_save_checkpoint`` might mend
            that, it is a warning in the log.
    """

    priority = "VERY_LOW"
    mutates = ()

    def __init__(
        self,
        interval: int | None = None,
        by_epoch: bool | None = None,
        save_optimizer: bool = True,
        save_param_scheduler: bool = True,
        out_dir: str | Path | None = None,
        max_keep_ckpts: int = -1,
        save_last: bool = True,
        save_best: str | Sequence[str] | None = None,
        rule: str | Sequence[str] | None = None,
        greater_keys: Sequence[str] | None = None,
        less_keys: Sequence[str] | None = None,
        filename_tmpl: str | None = None,
        published_keys: str | Sequence[str] | None = None,
        save_begin: int = 0,
        mode: str = "auto",
        offload: bool = True,
        format: str = "safetensors",  # noqa: A002  # torch and safetensors call it so
        verify: bool = False,
    ) -> None:
        self.interval, self.by_epoch, self.save_last = interval, by_epoch, save_last
        self.save_optimizer, self.save_param_scheduler = save_optimizer, save_param_scheduler
        self.out_dir, self.max_keep_ckpts, self.save_begin = out_dir, max_keep_ckpts, save_begin
        self.filename_tmpl = filename_tmpl
        self.mode, self.offload, self.format, self.verify = mode, offload, format, verify
        self.best = BestScores(save_best, rule, greater_keys, less_keys)
        self.published_keys = name_list("published_keys", published_keys)
        _check_flags(self)
        _check_numbers(self)
        _check_names(self)
        _check_published(self)
        _check_way(self)
        self.out_dir = absolute(out_dir)
        self.kept = Retention()
        self.due: str | None = None  # the name under which a regular save is about to be made
        self._asked: dict[str, _Asked] = {}  # by name
        self._told: dict[str, tuple[float, str]] = {}  # the bests that are committed
        self.resumed: tuple[Any, ...] | None = None  # the kind of hook whose state the resumed run had
        self._derived: dict[str, Any] = {}  # options that weren't given, and what they are in this run
        self._prepared = self.warned = False
        self._planned: int | None = None  # iterations

    def check_run(self, runner: Run) -> None:
        """Refuse what doesn't go with the run; called when the hook is registered."""
        loop = runner.train_loop
        if loop is None:
            return
        check_initialized("CheckpointHook", runner.unwrapped)
        if self.by_epoch and not loop.by_epoch:
            raise OptionError("CheckpointHook(by_epoch=True): the training goes by iterations; leave by_epoch out.")
        if self.interval is None and loop.by_epoch and self.by_epoch is False:
            raise OptionError(
                "CheckpointHook(by_epoch=False) in a training by epochs: say how many iterations with interval=."
            )
        if self.by_epoch is None:
            self.by_epoch = self._derived["by_epoch"] = loop.by_epoch
        if self.interval is None:
            self.interval = self._derived["interval"] = 1 if self.by_epoch else loop.val_interval
        if self.best.keys and runner.val_evaluator is None:
            raise OptionError(
                f"CheckpointHook(save_best={self.best.keys[0]!r}) needs a val_dataloader and a val_evaluator."
            )
        self.best.check(None if runner.val_evaluator is None else runner.val_evaluator.names())
        for other in _hooks_of(runner):
            if other is not self:
                _check_beside(self, other, loop.by_epoch)

    def forget_run(self) -> None:
        """Leave to the next run what wasn't given and followed from the last."""
        derived, self._derived = self._derived, {}
        for name, value in derived.items():
            if getattr(self, name) == value:  # else it was set since
                setattr(self, name, None)
        self.best.forget()

    def before_run(self, runner: Run) -> None:
        """Say where checkpoints go, and clear away what a run that was killed left unfinished, before one is sought."""
        if self.out_dir is not None and runner.session.checkpoint_folder is None:
            folder = Path(self.out_dir) / runner.work_dir.name
            _check_elsewhere(self, runner, folder)
            runner.session.checkpoint_folder = folder
        if runner.mode == "train" and runner.is_main and self._is_first(runner):
            runner.session.closing.enter_context(FolderLock(runner.checkpoint_dir))
            Store(runner.checkpoint_dir).clean()
            mode = self.mode if self.offload else "sync"
            open_saver(runner, mode=mode, format=self.format, verify=self.verify)

    def before_train(self, runner: Run) -> None:
        """Begin to count saves, tell what a resumed run has saved before, and refuse a state that can't be saved."""
        self.warned, self.due = False, None
        self._asked.clear()
        self._prepared, self._planned = False, runner.max_iters
        _check_order(self, runner)
        if self._is_first(runner):
            _check_state(self, runner)
            runner.message_hub.pop_info("saves")
            self._tell_last(runner)
        if runner.is_main:  # what a run that was killed had no time to delete: no later save need come
            self._delete(runner, [name for batch in self.kept.retired for name in batch])
        self._told = dict(self.best.best)
        self._tell_best(runner)

    def after_train_iter(self, runner: Run, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        """Save by iterations."""
        if not self._prepared:  # only now an optimizer has its state
            self._prepared = True
            if self.save_last or self.best.keys or self.interval != -1:
                runner.defer(lambda: _prepare(runner), mutates=False)
            if self._is_first(runner):
                runner.defer(lambda: _check_state(self, runner), mutates=False)
        if self.by_epoch:
            return
        step, interval = runner.progress.iter + 1, self.interval or 0
        due = interval > 0 and step >= self.save_begin and (step - self.save_begin) % interval == 0
        if due or (step == self._planned and self.save_last):
            self.due = _name(self, "iter_{}", runner.progress.step)
            runner.defer(lambda: self._save_due(runner), mutates=False)

    def after_train_epoch(self, runner: Run) -> None:
        """Save by epochs."""
        if self.by_epoch and (
            self.every_n_epochs(runner, self.interval or 0, self.save_begin)
            or (self.save_last and self.is_last_train_epoch(runner))
        ):
            self.due = _name(self, "epoch_{}", runner.progress.epochs_completed)
            runner.defer(lambda: self._save_due(runner), mutates=False)

    def after_val_epoch(self, runner: Run, metrics: dict[str, float] | None = None) -> None:
        """Mark the best; a validation by ``val()`` is no part of a training and marks nothing."""
        if runner.mode != "train" or not self.best.keys:
            return
        if not metrics:
            runner.logger.warning("save_best", reason="the validation gave no metrics")
            return
        improved = self.best.improvements(metrics)
        if improved:
            runner.defer(functools.partial(self._save_best, runner, dict(improved)), mutates=False)

    def after_train(self, runner: Run) -> None:
        """Save the last state where a run ended early, and publish; not after a failure, which may have torn it."""
        if runner.session.torn:
            return
        for hook in _hooks_of(runner):
            hook.due = _boundary_name(hook, runner) if _lacks_last(hook, runner) else None
        self._save_due(runner)
        if self.published_keys and runner.is_main and not _is_asked(runner):
            runner.flush(WRITE_LANE)
            last = [self.kept.last[1]] if self.save_last and self.kept.last else []
            for name in dict.fromkeys([*last, *(best for _, best in self.best.best.values())]):
                _publish(runner, name, self.published_keys)

    def after_commit_checkpoint(self, runner: Run, path: Path, step: int) -> None:
        """Tell the message hub, and have deleted what the save has made superfluous, after all others were called."""
        asked = self._asked.pop(path.name, None)
        if asked is None:  # not this hook's
            return
        if asked.metric is None:
            runner.message_hub.update_info("last_ckpt", str(path), resumed=False)
        else:
            self._told[asked.metric] = asked.score, path.name
            self._tell_best(runner)
        runner.defer(functools.partial(self._delete, runner, asked.doomed), mutates=False)

    def state_dict(self) -> dict[str, Any]:
        """Return what is kept and what was best."""
        return {**self.kept.state_dict(), "best": self.best.state_dict(), "saves": _kind(self)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on keeping and comparing."""
        self.kept = Retention.of(state)
        self.best.load_state_dict(state["best"])
        self.resumed = tuple(state["saves"]) if "saves" in state else None

    def _is_first(self, runner: Run) -> bool:
        """Return whether it does what is to be done once for all of the run's hooks of this kind."""
        return next(iter(_hooks_of(runner)), self) is self

    def _save_due(self, runner: Run) -> None:
        """Make the save that is due, which is also that of the hooks that have the same name due: it has their states.

        None is due any more where another hook has made it.
        """
        if (name := self.due) is None:
            return
        step, late = runner.progress.step, _stepped_late(runner)
        self._forget_failed()
        asked = _Asked(step, [], [])
        for hook in [hook for hook in _hooks_of(runner) if hook.due == name]:
            asked.before.append((hook, hook.kept))
            hook.kept, doomed = hook.kept.plan(name, step, late, hook.max_keep_ckpts)
            hook.due = None
            asked.doomed += doomed
        try:
            _gather_rng(runner)
            self._save(runner, name, asked)
        except BaseException:
            for hook, kept in asked.before:
                hook.kept, hook.due = kept, name
            raise

    def _save(self, runner: Run, name: str, asked: _Asked, meta: dict[str, Any] | None = None) -> None:
        saver = runner.session.saver
        if saver is None:  # rank 0's part
            return
        self._asked[name] = asked
        optimizer, schedulers = self.save_optimizer, self.save_param_scheduler
        asked.save = saver.save(name, meta=meta, save_optimizer=optimizer, save_param_scheduler=schedulers)

    def _forget_failed(self) -> None:
        """Keep no longer, and hold no longer for the best, what was asked for and has failed."""
        for name, asked in list(self._asked.items()):
            if asked.save is None or asked.save.error is None:
                continue
            del self._asked[name]
            for hook, kept in asked.before:
                hook.kept = hook.kept.without(name, asked.step, kept)
            metric, best = asked.metric, self.best.best
            if metric is not None and best.get(metric, (0.0, ""))[1] == name:
                rest = {key: each for key, each in best.items() if key != metric}
                self.best.best = rest if asked.best is None else {**rest, metric: asked.best}

    def _save_best(self, runner: Run, improved: dict[str, float]) -> None:
        self._forget_failed()
        before, kept = self.best.best, self.kept
        where = _boundary_name(self, runner)
        new = {metric: (score, best_name(metric, where)) for metric, score in improved.items()}
        self.best.best = {**before, **new}
        source = self.kept.last[1] if self.kept.last is not None and _is_saved(self, runner) else None
        try:
            if source is None:
                _gather_rng(runner)
            for metric, (score, name) in new.items():
                old = [before[metric][1]] if metric in before and before[metric][1] != name else []
                self.kept, doomed = self.kept.retire(old)
                asked = _Asked(runner.progress.step, [], doomed, metric, before.get(metric), score)
                meta = {"best": {metric: score if math.isfinite(score) else str(score)}}  # JSON has no infinity
                self._save_twin(runner, name, source, asked, meta)
                source = source or name
        except BaseException:
            self.best.best, self.kept = before, kept
            raise

    def _save_twin(self, runner: Run, name: str, source: str | None, asked: _Asked, meta: dict[str, Any]) -> None:
        """Make a twin of the save that has been made at this step, or a save where there is none, or no more."""
        saver = runner.session.saver
        if source is not None and saver is not None:
            with contextlib.suppress(CheckpointNotFoundError):
                self._asked[name] = asked
                asked.save = saver.link(name, source, meta=meta)
                return
        self._save(runner, name, asked, meta)

    def _tell_last(self, runner: Run) -> None:
        """Tell the newest save of a resumed run, whichever hook's."""
        known = {hook.kept.last[1] for hook in _hooks_of(runner) if hook.kept.last is not None}
        saved = [name for name in Store(runner.checkpoint_dir).names() if name in known] if known else []
        if saved:
            runner.message_hub.update_info("last_ckpt", str(runner.checkpoint_dir / saved[-1]), resumed=False)

    def _tell_best(self, runner: Run) -> None:
        if not self.best.keys:
            return
        infos: dict[str, Any] = {"best": {}}
        for metric, (score, name) in self._told.items():
            suffix, path = "" if len(self.best.keys) == 1 else f"_{metric}", runner.checkpoint_dir / name
            infos[f"best_score{suffix}"] = score
            if path.is_dir():
                infos[f"best_ckpt{suffix}"] = str(path)
                infos["best"][metric] = {"score": score, "path": str(path)}
        runner.message_hub.update_info_dict(infos, resumed=False)

    def _delete(self, runner: Run, names: Sequence[str]) -> None:
        """Delete those that no hook keeps, once what was saved before is committed and nobody may be reading them."""
        hooks = _hooks_of(runner)
        needed = {name for hook in hooks for name in hook.kept.names}  # again, where a successor has failed
        needed |= {name for hook in hooks for _, name in hook.best.best.values()}
        for name in names:
            if name not in needed and (runner.checkpoint_dir / name).is_dir():
                runner.delete_checkpoint(name)


def _check_order(hook: CheckpointHook, runner: Run) -> None:
    """Refuse another hook's state, before what that one has kept is deleted."""
    theirs = [_kind(each) for each in _hooks_of(runner) if each is not hook]
    if hook.resumed != _kind(hook) and hook.resumed in theirs:
        template, by_epoch, interval = _kind(hook)
        raise ResumeError(
            f"resuming CheckpointHook(interval={interval}, by_epoch={by_epoch}, filename_tmpl={template!r}) with "
            "the state of another one of this run; register them in the order that the resumed run had."
        )


def _check_state(hook: CheckpointHook, runner: Run) -> None:
    if hook.warned:
        return
    try:
        check_tree(gather(runner, hook.save_optimizer, hook.save_param_scheduler), hook.format)
    except CheckpointError as error:
        connections = runner.bus.before_save_checkpoint.connections_for(runner)
        changing = [each.receiver for each in connections if each.task is None]  # what is offloaded has a copy
        if all(getattr(each, "__module__", "").startswith("eventrunner.") for each in changing):
            raise
        hook.warned = True
        runner.logger.warning("save", reason=f"unless a receiver of before_save_checkpoint changes it, {error}")


def _check_elsewhere(hook: CheckpointHook, runner: Run, folder: Path) -> None:
    if runner.mode == "train" and not runner.resume and Store(folder).names():
        raise RunExistsError(
            f"CheckpointHook(out_dir={str(hook.out_dir)!r}): {folder} holds another run's checkpoints; choose "
            "another out_dir or work_dir."
        )


def _gather_rng(runner: Run) -> None:
    """Have what is about to be saved hold the generators of all ranks; each must come to it."""
    if runner.distributed:
        runner.session.rng_of_ranks = runner.ranks.gather(own_rng(runner))


def _hooks_of(runner: Run) -> list[CheckpointHook]:
    return [hook for hook in runner.hooks if isinstance(hook, CheckpointHook)]


def _is_asked(runner: Run) -> bool:
    """Return whether a signal or a log that fails ends the run, so that it is to be saved whatever the options are."""
    return runner.stop_reason in ("preempted", "interrupted") or runner.session.log_failure is not None


def _boundary_name(hook: CheckpointHook, runner: Run) -> str:
    """By epoch only where an epoch is complete: midway the same name would stand for another state."""
    loop, step = runner.train_loop, runner.progress.step
    if not hook.by_epoch:
        return _name(hook, "iter_{}", step)
    if loop is not None and loop.by_epoch and not loop.position.consumed:
        return _name(hook, "epoch_{}", runner.progress.epochs_completed)
    return f"iter_{step}"


def _name(hook: CheckpointHook, default: str, number: int) -> str:
    return (hook.filename_tmpl or default).format(number)


def _kind(hook: CheckpointHook) -> tuple[Any, ...]:
    """Return what tells it from the other hooks of the run."""
    return hook.filename_tmpl, hook.by_epoch, hook.interval


def _is_saved(hook: CheckpointHook, runner: Run) -> bool:
    """Return whether the newest regular save is of the present state."""
    return hook.kept.is_at(runner.progress.step, _stepped_late(runner))


def _lacks_last(hook: CheckpointHook, runner: Run) -> bool:
    """Return whether the state at the end is still to be saved, by its own option or as the run was asked to end."""
    hooks = [hook] if hook.save_last else _hooks_of(runner) if _is_asked(runner) else []
    return bool(hooks and runner.progress.step) and not any(_is_saved(each, runner) for each in hooks)


def _stepped_late(runner: Run) -> bool:
    return runner.train_loop is not None and runner.train_loop.stepped_late


def _prepare(runner: Run) -> None:
    """Have memory ready for the first save, as much as the model and its optimizers have."""
    if runner.session.saver is not None:
        optimizers = [wrapper.optimizer for _, wrapper in runner.optim_wrappers]
        tensors = [*runner.unwrapped.state_dict().values(), *stepped_tensors(runner.unwrapped, optimizers)]
        dense = [each for each in tensors if isinstance(each, Tensor) and each.layout is torch.strided]
        unique = {each.data_ptr(): each.nbytes for each in dense}
        runner.session.saver.prepare(sum(unique.values()))


def _publish(runner: Run, name: str, keys: Sequence[str]) -> None:
    path, store = runner.checkpoint_dir / name, Store(runner.checkpoint_dir)
    checkpoint, manifest = load_checkpoint(path), verify_checkpoint(path, digests=False)
    absent = [key for key in keys if key not in checkpoint]
    if absent:
        runner.logger.warning("published_keys", reason=f"{path} has no {listed(absent)}")
    target = store.save(
        f"{name}-{(manifest.files.get('model.safetensors') or manifest.files[PTH_NAME]).digest[:8]}",
        {key: checkpoint[key] for key in keys if key in checkpoint},
        step=manifest.step,
        epoch=manifest.epoch,
        meta={**manifest.meta, "published": True},
    )
    runner.logger.info("published", path=str(target))


def _check_beside(hook: CheckpointHook, other: CheckpointHook, by_epoch: bool) -> None:
    """Refuse a second hook that would save elsewhere or otherwise, or other states under the same names."""
    for name in _IN_COMMON:
        mine, theirs = getattr(hook, name), getattr(other, name)
        if mine != theirs:
            raise OptionError(
                f"CheckpointHook({name}={mine!r}) beside one with {name}={theirs!r}: the hooks of one run save to one "
                "folder in one way; give both the same."
            )
    for option, own, others in (
        ("save_best", hook.best.keys, other.best.keys),
        ("published_keys", hook.published_keys, other.published_keys),
    ):
        if own and others:
            raise OptionError(
                f"CheckpointHook({option}={own!r}) beside one with {option}={others!r}: give all of them to one hook."
            )
    for template, unit in _names_made(hook, by_epoch):
        for theirs in _names_made(other, by_epoch):
            if _DIGITS.sub("{}", template) == _DIGITS.sub("{}", theirs[0]) and (template, unit) != theirs:
                raise OptionError(
                    f"CheckpointHook(filename_tmpl={template!r}) beside one with {theirs[0]!r}: the same name would "
                    "stand for different steps; give one of them another filename_tmpl."
                )


def _names_made(hook: CheckpointHook, by_epoch: bool) -> set[tuple[str, bool]]:
    """Return the templates of its names, each with whether it counts epochs; *by_epoch* is the training's own unit."""
    unit = by_epoch if hook.by_epoch is None else hook.by_epoch
    own = hook.filename_tmpl or ("epoch_{}" if unit else "iter_{}")
    return {(own, unit), *([("iter_{}", False)] if unit else [])}  # the latter where it ends within an epoch


def _check_way(hook: CheckpointHook) -> None:
    check_choices("CheckpointHook", MODES, mode=hook.mode)
    check_choices("CheckpointHook", FORMATS, format=hook.format)


def _check_flags(hook: CheckpointHook) -> None:
    names = ("save_optimizer", "save_param_scheduler", "save_last", "offload", "verify")
    check_bools("CheckpointHook", **{name: getattr(hook, name) for name in names})
    if hook.by_epoch is not None:
        check_bools("CheckpointHook", by_epoch=hook.by_epoch)


def _check_numbers(hook: CheckpointHook) -> None:
    for name, value in (("interval", hook.interval), ("max_keep_ckpts", hook.max_keep_ckpts)):
        if value is not None and not is_int(value, 1) and value != -1:
            raise refusal("CheckpointHook", name, value, "an int of 1 or more, or -1")
    check_ints("CheckpointHook", 0, save_begin=hook.save_begin)


def _check_names(hook: CheckpointHook) -> None:
    out_dir, template = hook.out_dir, hook.filename_tmpl
    if out_dir is not None:
        check_folders("CheckpointHook", out_dir=out_dir)
    if template is not None and not _is_template(template):
        raise OptionError(
            f"CheckpointHook(filename_tmpl={template!r}): give a plain name with one {{}}, of at most "
            f"{_LONGEST_TEMPLATE} bytes."
        )


def _check_published(hook: CheckpointHook) -> None:
    if hook.published_keys and not (hook.best.keys or hook.save_last):
        raise OptionError(
            "CheckpointHook(published_keys=…) publishes the best or the last: set save_best or save_last."
        )
    for key in hook.published_keys:
        near = did_you_mean(key, _SECTIONS, 0.75)
        if key not in _SECTIONS and near:
            raise OptionError(f"CheckpointHook(published_keys={key!r}): a checkpoint has no such part{near}")


def _is_template(value: object) -> bool:
    """Return whether it makes one plain name of each number."""
    if not isinstance(value, str) or value.count("{}") != 1:
        return False
    rest = value.replace("{}", "")
    plain = not set(rest) & set("{}/\\") and not value.startswith(".") and rest.isprintable()
    return plain and len(value.encode()) <= _LONGEST_TEMPLATE
