"""One ``train()``, ``val()`` or ``test()`` from its first site to its last, whatever happens between them."""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eventrunner.checkpoint import Found, find_newest, listing, load_checkpoint, load_weights
from eventrunner.errors import LaneError, LaneTimeoutError, OptionError, Preempted
from eventrunner.lanes.lanes import Lanes
from eventrunner.lanes.signals import Asked, preemptible
from eventrunner.report.account import write_trace
from eventrunner.report.log import shown_path
from eventrunner.session.resume import changed_counts, left_out, restore
from eventrunner.session.rundir import abandoned_in, check_free, environment, read_run, resumes_in, write_run
from eventrunner.training.state import set_rng_state
from eventrunner.training.weights import load_model, load_what_fits, shortened
from eventrunner.training.workers import shielded_workers

if TYPE_CHECKING:
    from eventrunner.runner import Runner

__all__ = ["session"]

_GLANCE = 0.2
"""Seconds between two looks at whether a signal came while the end of a run is waited for."""


@contextlib.contextmanager
def session(runner: Runner, mode: str) -> Iterator[None]:
    """Pass ``before_run``, load what is to be loaded, and leave through ``after_train`` and ``after_run``.

    On an exception, KeyboardInterrupt included, ``on_exception`` is passed first. A signal that asks the run to end is
    no exception to it: it is left as after a stop, and ``Preempted`` is raised at the end. So it is at the first
    Ctrl-C, but that ``on_exception`` is passed too, and KeyboardInterrupt is raised. At the leaving sites every
    receiver is called even where one of them fails, and the first exception is what propagates; later ones are logged
    and passed to ``on_receiver_error``. What was offloaded is done before the run is left, for whatever reason.

    Raises:
        OptionError: another session of the runner is under way.
        RunExistsError: another run has begun in the folder since the Runner was made.
    """
    _enter(runner, mode)
    try:
        with preemptible(functools.partial(_leave_word, runner)) as asked, shielded_workers():
            patience = _Patience(runner.offloading.deadline, runner.offloading.grace, asked)
            with _lanes(runner, patience):
                try:
                    _open(runner, mode)
                    runner.call_hook("before_run")
                    if not runner.loaded:
                        _load(runner)
                        runner.loaded = True
                    yield
                    if mode == "train":
                        _finish_train(runner, patience)
                    _flush(runner, patience)
                    if runner.log_failure is not None:
                        raise runner.log_failure
                    runner.stop_reason = runner.stop_reason or "completed"
                except BaseException as error:
                    leave_early = _end_early if asked.is_answer(error) else _fail
                    leave_early(runner, error, patience)
                    raise
                failure = _leave(runner, "after_run", None) or runner.log_failure
                if failure is not None:
                    raise failure
                _flush(runner, patience)
        asked.answer()
    except BaseException as error:
        runner.stop_reason = _reason(error)
        try:
            _close(runner, mode)
        except OSError as also:
            error.add_note(f"run.json doesn't say how the run ended: {also}")
        raise
    _close(runner, mode)


def _leave_word(runner: Runner, asked: Asked) -> None:
    """In a signal's handler: end the run at its next iteration, to which a job that hangs mustn't bar the way."""
    runner.deferred.append(asked.answer)
    if asked.interrupted:  # and will interrupt again whoever waits for too long
        return
    if runner.lanes is not None:
        runner.lanes.hurry(runner.offloading.grace)
    if runner.saver is not None:
        runner.saver.hurry(runner.offloading.grace)


class _Patience:
    """How long the end of a run waits for what is offloaded: one deadline for it all, less once a signal came."""

    def __init__(self, deadline: float, grace: float, asked: Asked) -> None:
        self.deadline, self.grace, self.asked = deadline, grace, asked
        self._until: float | None = None

    def left(self) -> float:
        """The seconds left; they are counted from the first call on."""
        now = time.monotonic()
        if self._until is None:
            self._until = now + self.deadline
        if self.asked.again:
            self._until = now
        elif self.asked.at is not None and not self.asked.interrupted:
            self._until = min(self._until, self.asked.at + self.grace)
        return max(self._until - now, 0.0)

    def end(self) -> None:
        """Wait for nothing any more."""
        self._until = 0.0


def _flush(runner: Runner, patience: _Patience) -> None:
    """``runner.flush()``, for as long as there is patience, which a signal may shorten meanwhile.

    Raises:
        LaneTimeoutError: there is none left.
    """
    while True:
        left = patience.left()
        try:
            return runner.flush(timeout=min(left, _GLANCE))
        except LaneTimeoutError as error:
            if left <= _GLANCE or getattr(error, "__notes__", None):  # a note is one of where a job failed
                raise


@contextlib.contextmanager
def _lanes(runner: Runner, patience: _Patience) -> Iterator[None]:
    """Open the run's lanes; however the block is left, what is in them is done first."""
    deferred, logger = runner.deferred, runner.logger  # not the runner, which the lanes outlive
    lanes = Lanes(
        runner.offloading.backend,
        runner.offloading.deadline,
        on_failure=lambda: deferred.append(lanes.check),
        warn=lambda text, error: logger.warning("offloaded", reason=text, error=repr(error)),
    )
    try:
        with runner.bus.open_lanes(runner, lanes=lanes):
            runner.lanes = runner.last_lanes = lanes
            if runner.saver is not None:
                runner.saver.open(lanes)
            try:
                yield
            finally:
                if runner.saver is not None:
                    runner.saver.close()
                lanes.deadline = max(patience.left(), _GLANCE)
    finally:
        runner.lanes = None
        if lanes.unfinished and runner.saver is not None:
            runner.saver.abandon()  # the folder is free for another run from here on


def _reason(error: BaseException) -> str:
    if isinstance(error, Preempted):
        return "preempted"
    return "interrupted" if isinstance(error, KeyboardInterrupt) else "exception"


def _enter(runner: Runner, mode: str) -> None:
    if runner.mode is not None:
        instead = "." if mode == "train" else f"; within it, runner.{mode}_loop.run() evaluates."
        raise OptionError(f"{mode}() was called while {runner.mode}() is under way{instead}")
    if runner.is_main and not runner.opened:  # two runs may have been made for one folder before either began
        check_free(runner.work_dir, runner.resume)
    runner.opened = True
    runner.mode, runner.stop_reason, runner.stop_where = mode, "", ""
    runner.training_began = False
    runner.rng_before_val = None
    runner.torn, runner.log_failure = False, None
    runner.deferred.clear()
    runner.ledger.reset()
    vars(runner).pop("_facts", None)
    runner.roster.begin()
    if runner.train_loop is not None:
        runner.train_loop.stop_training = False


def _finish_train(runner: Runner, patience: _Patience) -> None:
    stopped = runner.train_loop is not None and runner.train_loop.stop_training
    runner.stop_reason = runner.stop_reason or ("stopped" if stopped else "completed")
    _flush(runner, patience)
    runner.training_began = False
    failure = _leave(runner, "after_train", None)
    if failure is not None:
        raise failure
    runner.run_deferred()


def _fail(runner: Runner, error: BaseException, patience: _Patience) -> None:
    """Leave with *error*, which nothing that fails on the way may mask."""
    runner.stop_reason, runner.torn = _reason(error), True
    patience.asked.failed = True
    _leave(runner, "on_exception", error, exception=error)
    _drain(runner, error, patience)
    if runner.training_began:
        _leave(runner, "after_train", error)
    _leave(runner, "after_run", error)


def _end_early(runner: Runner, end: BaseException, patience: _Patience) -> None:
    """Save, drain within the grace that a scheduler gives, and leave; raises what fails of that, in place of *end*."""
    runner.stop_reason = _reason(end)
    if isinstance(end, Preempted):
        runner.stop_where = end.signal
    else:
        _leave(runner, "on_exception", end, exception=end)
    failure: BaseException | None = None
    if runner.saver is not None:
        runner.saver.be_patient(patience.left())
    try:
        runner.run_deferred()
        runner.progress.settle()
        if runner.training_began:
            failure = _leave(runner, "after_train", None)
            runner.run_deferred()
        _flush(runner, patience)
    except BaseException as error:  # noqa: BLE001  # raised below, when everybody has been told
        failure = failure or error
        _drain(runner, failure, patience)
    if runner.rng_before_val is not None:  # train() called again validates again, with the same draws
        set_rng_state(runner.rng_before_val)
    if failure is not None:
        runner.stop_reason = _reason(failure)
    failure = _leave(runner, "after_run", failure)
    if failure is not None:
        raise failure


def _drain(runner: Runner, error: BaseException, patience: _Patience) -> None:
    """Let what was offloaded before the failure be done: a save that was asked for is still committed."""
    while True:
        try:
            return _flush(runner, patience)
        except LaneError as also:  # no more can be waited for
            if also is not error:
                error.add_note(f"besides, {type(also).__name__}: {also}")
            return None
        except KeyboardInterrupt:
            error.add_note("interrupted while waiting for what was offloaded, which is given up")
            return patience.end()
        except BaseException as also:  # noqa: BLE001  # reported, and then the next one is looked for
            if also is not error:
                _report(runner, "the lanes", also)


def _leave(runner: Runner, site: str, failure: BaseException | None, **payload: Any) -> BaseException | None:
    """Pass *site*, every receiver of it; returns the first failure there was, *failure* if there was one before."""
    for error in runner.bus.find(site, site).emit_all(runner, **payload):
        if failure is None:
            failure = error
        else:
            _report(runner, site, error)
    return failure


def _report(runner: Runner, site: str, error: BaseException) -> None:
    """Where an error goes that must not mask an earlier one: the log, and ``on_receiver_error``."""
    further = runner.bus.on_receiver_error.emit_all(runner, site=site, error=error)
    with contextlib.suppress(OSError):  # the disk that is full may be what the run failed of
        for each in (error, *further):
            each.__suppress_context__ = True  # the first failure is shown by whoever catches it
            runner.logger.error("receiver failed too", reason=f"{site}: {each!r}", exc_info=each)


def _open(runner: Runner, mode: str) -> None:
    if not runner.is_main:
        return
    runner.log.open(runner.work_dir / "log.txt")
    known = read_run(runner.work_dir)
    facts = {} if known else {**environment(), "experiment_name": runner.experiment_name, "ended": ""}
    write_run(runner.work_dir, {**facts, "seed": runner.seed, **({"ended": ""} if mode == "train" else {})})
    runner.logger.debug("receivers by site, in the order in which they run:\n" + runner.get_hooks_info())


def _close(runner: Runner, mode: str) -> None:
    runner.mode = None
    runner.closing.close()
    path, runner.trace_path = runner.trace_path, None
    if not runner.is_main:
        return
    try:
        if path is not None:
            write_trace(path, runner)
        write_run(runner.work_dir, _ending(runner, mode))
    finally:
        runner.log.close()


def _ending(runner: Runner, mode: str) -> dict[str, str]:
    """How it ended, as ``run.json`` says it; a validation or test says nothing where a training has ended before."""
    if mode == "train":
        progress = runner.progress
        return {"ended": f"{runner.stop_reason} after epoch {progress.epochs_completed}, step {progress.step}"}
    ended = (read_run(runner.work_dir) or {}).get("ended", "")
    return {} if " after epoch " in ended else {"ended": f"{mode} {runner.stop_reason}"}


def _load(runner: Runner) -> None:
    found = _found(runner)  # on the CPU: generators and step counts stay there, the rest is copied
    path, checkpoint = found.path, found.content
    if path is not None:
        runner.resuming = True
        runner.call_hook("after_load_checkpoint", checkpoint=checkpoint)
        if runner.train_loop is None:
            load_model(runner.model, checkpoint["state_dict"], left_out(checkpoint))
        else:
            restore(runner, checkpoint)
            for change in changed_counts(runner, checkpoint):
                runner.logger.warning("resume", reason=change)
        runner.seed = checkpoint.get("meta", {}).get("seed", runner.seed)
        _report_resume(runner, path)
    elif runner.load_from is not None:
        checkpoint = {"state_dict": load_weights(Path(runner.load_from))}
        runner.call_hook("after_load_checkpoint", checkpoint=checkpoint)
        _load_weights(runner, checkpoint["state_dict"])
        runner.logger.info("weights", path=Path(runner.load_from))


def _load_weights(runner: Runner, weights: Mapping[str, Any]) -> None:
    if runner.load_strict:
        load_model(runner.model, weights)
        return
    own, left = load_what_fits(runner.model, weights)
    for names, what in ((own, "the model keeps its own"), (left, "not taken, as the model has none of that shape")):
        if names:
            runner.logger.warning("weights", reason=f"{what}: {shortened(names)}")
            runner.logger.debug("weights", reason=f"{what}, in full: {', '.join(names)}")


def _found(runner: Runner) -> Found:
    """The checkpoint to resume from, read."""
    if runner.resume is not True:
        path = Path(runner.resume) if runner.resume else None
        return Found(path, (), None if path is None else load_checkpoint(path))
    found = find_newest(runner.checkpoint_dir, abandoned_in(runner.work_dir), load_checkpoint)
    for path, reason in found.rejected:
        runner.logger.warning("checkpoint not used", path=path, reason=str(reason))
    if found.path is None:
        runner.logger.info("resume", reason=f"nothing to resume in {shown_path(runner.checkpoint_dir)}: a fresh start")
    return found


def _report_resume(runner: Runner, path: Path) -> None:
    progress = runner.progress
    runner.logger.info("resume", path=path, epoch=progress.epoch, step=progress.iter)
    if runner.is_main:
        facts = environment()
        # By the times of checkpoints alone, which only ever go forward: the clock may be put back.
        newest = max((manifest.created for _, manifest in listing(runner.checkpoint_dir).complete), default="")
        entry = {"checkpoint": str(path), "step": progress.iter, "newest": newest, "at": facts.pop("started"), **facts}
        write_run(runner.work_dir, {"seed": runner.seed, "resumes": [*resumes_in(runner.work_dir), entry]})
