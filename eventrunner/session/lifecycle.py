"""One ``train()``, ``val()`` or ``test()`` from its first site to its last, whatever happens between them."""

from __future__ import annotations

import contextlib
import functools
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from eventrunner.checkpoint import Found, find_newest, listing, load_checkpoint, load_weights
from eventrunner.errors import LaneError, Preempted
from eventrunner.lanes.lanes import Lanes
from eventrunner.lanes.signals import StopRequest, kill_daemons, preemptible
from eventrunner.ranks.agree import Agreement, Failure
from eventrunner.report.account import write_trace
from eventrunner.run import Run
from eventrunner.session.resume import changed_counts, found_for, left_out, restore
from eventrunner.session.rundir import abandoned_in, check_free, environment, read_run, resumes_in, write_run
from eventrunner.training.state import set_rng_state
from eventrunner.training.weights import load_model, load_what_fits, shortened
from eventrunner.training.workers import shielded_workers
from eventrunner.units import shown_path

__all__ = ["running"]


@contextlib.contextmanager
def running(run: Run, mode: str) -> Iterator[None]:
    """Emit ``before_run``, load what is to be loaded, and leave through ``after_train`` and ``after_run``.

    On an exception, KeyboardInterrupt included, ``on_exception`` is emitted first. A signal that asks the run to end is
    no exception to it: it is left as after a stop, and ``Preempted`` is raised at the end. So it is at the first
    Ctrl-C, but that ``on_exception`` is emitted too, and KeyboardInterrupt is raised. At the leaving sites every
    receiver is called even where one of them fails, and the first exception is what propagates; later ones are logged
    and reported by ``on_receiver_error``. What was offloaded is done before the run is left, for whatever reason.

    Raises:
        OptionError: another session of the runner is under way.
        RunExistsError: another run has begun in the folder since the Runner was made.
    """
    _enter(run, mode)
    try:
        with (
            preemptible(functools.partial(_leave_word, run)) as asked,
            shielded_workers(),
            _lanes(run) as lanes,
            _agreeing(run, mode, asked),
        ):
            try:
                _open(run, mode)
                run.call_hook("before_run")
                if not run.session.loaded:
                    _load(run)
                    run.session.loaded = True
                yield
                lanes.deadline.shorten(run.offloading.deadline)  # one for all of the end
                if mode == "train":
                    _finish_train(run)
                run.flush()
                if run.session.log_failure is not None:
                    raise run.session.log_failure
                run.session.stop_reason = run.session.stop_reason or "completed"
            except BaseException as error:
                lanes.deadline.shorten(run.offloading.deadline)
                if asked.is_answer(error):
                    _end_early(run, error, asked)
                    raise
                first = _first_failure(run, error)
                _fail(run, first, asked)
                if first is not error:
                    raise first from error
                raise
            failure = _leave(run, "after_run", None) or run.session.log_failure
            if failure is not None:
                raise failure
            run.flush()
        asked.answer()
    except BaseException as error:
        run.session.stop_reason = _reason(error)
        try:
            _close(run, mode)
        except OSError as also:
            error.add_note(f"run.json doesn't say how the run ended: {also}")
        raise
    _close(run, mode)


def _leave_word(run: Run, asked: StopRequest) -> None:
    """In a signal's handler: end the run at its next iteration, to which a job that hangs mustn't bar the way."""
    run.session.request(functools.partial(_answer, run, asked))
    _hurry(run, asked)


def _hurry(run: Run, asked: StopRequest) -> None:
    """Let nothing be waited for longer than a scheduler gives; Ctrl-C comes again where a wait takes too long."""
    if not asked.interrupted and run.session.lanes is not None:
        run.session.lanes.deadline.shorten(run.offloading.grace)


def _answer(run: Run, asked: StopRequest) -> None:
    """At a tick: end the run for a signal, on all ranks at one tick."""
    if not run.session.post("signal", number=asked.number):
        asked.answer()


@contextlib.contextmanager
def _agreeing(run: Run, mode: str, asked: StopRequest) -> Iterator[None]:
    """Within the block, all ranks do what one asks for, and fail where one fails; with one rank there is nothing."""
    if not run.ranks.several:
        yield
        return

    def answer(kind: str, reason: str = "", where: str = "", number: int = 0) -> None:
        if kind == "stop":
            run.session.stopped(reason, where)
        elif not asked.answered:
            asked.take(number)
            _hurry(run, asked)
            asked.answer()

    end = functools.partial(_end_for, run, mode)
    run.session.agreement = agreement = Agreement(run.ranks, run.session, answer, end)
    try:
        try:
            yield
        except BaseException as error:
            if asked.is_answer(error):
                agreement.close()
            elif (first := _first_failure(run, error)) is not error:
                raise first from error
            raise
        agreement.close()
    finally:
        run.session.agreement = None
        agreement.leave()


def _first_failure(run: Run, error: BaseException) -> BaseException:
    """Tell the other ranks of an exception; return what has failed first, here or on one of them."""
    agreement = run.session.agreement
    return error if agreement is None else agreement.fail(error, run.progress.step)


def _end_for(run: Run, mode: str, failure: Failure) -> None:
    """In the sentinel, as the training thread is in a collective that nobody comes to: do what is done at an end."""
    run.session.stop_reason, run.session.torn = "exception", True
    lanes = run.session.lanes
    with contextlib.suppress(Exception):
        run.logger.error("ended", reason=str(failure), exception=failure.traceback)
    if lanes is not None:
        lanes.deadline.shorten(min(run.offloading.deadline, run.offloading.grace))
        with contextlib.suppress(Exception):  # it is the other rank's that counts
            lanes.flush(label="end")
    with contextlib.suppress(Exception):
        if run.is_main:
            write_run(run.work_dir, _ending(run, mode))
        print(f"{failure.traceback}{type(failure.exception()).__name__}: {failure}", file=sys.stderr, flush=True)
        kill_daemons()


@contextlib.contextmanager
def _lanes(run: Run) -> Iterator[Lanes]:
    """Open the run's lanes; however the block is left, what is in them is done first."""
    request, logger = run.session.request, run.logger  # not the run, which the lanes outlive
    lanes = Lanes(
        run.offloading.backend,
        run.offloading.deadline,
        on_failure=lambda: request(lanes.check),
        warn=lambda text, error: logger.warning("offloaded", reason=text, error=repr(error)),
    )
    try:
        with run.bus.open_lanes(run, lanes=lanes):
            run.session.lanes = run.session.last_lanes = lanes
            if run.session.saver is not None:
                run.session.saver.open(lanes)
            try:
                yield lanes
            finally:
                if run.session.saver is not None:
                    run.session.saver.close()
    finally:
        run.session.lanes = None
        if lanes.unfinished and run.session.saver is not None:
            run.session.saver.abandon()  # the folder is free for another run from here on


def _reason(error: BaseException) -> str:
    if isinstance(error, Preempted):
        return "preempted"
    return "interrupted" if isinstance(error, KeyboardInterrupt) else "exception"


def _enter(run: Run, mode: str) -> None:
    if not run.session.opened:  # two runs may have been made for one folder before either began
        run.ranks.on_main(lambda: check_free(run.work_dir, run.resume))
    _check_collectives(run)
    run.session.begin(mode)
    try:
        run.begin_hooks()
    except BaseException:
        run.session.mode = None
        raise
    run.ledger.reset()
    run.session.stopping = False


def _check_collectives(run: Run) -> None:
    """Refuse a session in which a rank would wait in a receiver that isn't connected on the others."""
    if run.ranks.several:
        own = [
            f"{row.receiver} ({os.path.basename(row.location)}) at {row.site!r}" + (row.filters and f", {row.filters}")
            for row in run.bus.describe(run)
            if row.collective
        ]
        run.ranks.check_same("the first collective receiver that differs", own)


def _finish_train(run: Run) -> None:
    run.session.stop_reason = run.session.stop_reason or ("stopped" if run.session.stopping else "completed")
    run.flush()
    run.session.training_began = False
    failure = _leave(run, "after_train", None)
    if failure is not None:
        raise failure
    run.session.tick()


def _fail(run: Run, error: BaseException, asked: StopRequest) -> None:
    """Leave with *error*, which nothing that fails on the way may mask."""
    run.session.stop_reason, run.session.torn = _reason(error), True
    asked.failed = True
    _leave(run, "on_exception", error, exception=error)
    _drain(run, error, asked)
    if run.session.training_began:
        _leave(run, "after_train", error)
    _leave(run, "after_run", error)


def _end_early(run: Run, end: BaseException, asked: StopRequest) -> None:
    """Save, drain within the grace that a scheduler gives, and leave; raises what fails of that, in place of *end*."""
    run.session.stop_reason = _reason(end)
    if isinstance(end, Preempted):
        run.session.stop_where = end.signal
    else:
        _leave(run, "on_exception", end, exception=end)
    failure: BaseException | None = None
    try:
        run.session.tick()
        run.progress.advance()
        if run.session.training_began:
            failure = _leave(run, "after_train", None)
            run.session.tick()
        run.flush()
    except BaseException as error:  # noqa: BLE001  # raised below, when all receivers were called
        failure = failure or error
        _drain(run, failure, asked)
    if run.session.rng_before_val is not None:  # train() called again validates again, with the same draws
        set_rng_state(run.session.rng_before_val)
    if failure is not None:
        run.session.stop_reason = _reason(failure)
    failure = _leave(run, "after_run", failure)
    if failure is not None:
        raise failure


def _drain(run: Run, error: BaseException, asked: StopRequest) -> None:
    """Let what was offloaded before the failure be done: a save that was asked for is still committed."""
    assert run.session.lanes is not None  # they are open until the session has ended
    deadline = run.session.lanes.deadline
    if asked.again:
        deadline.expire()
    while True:
        try:
            return run.flush()
        except LaneError as also:  # no more can be waited for
            if also is not error:
                error.add_note(f"besides, {type(also).__name__}: {also}")
            return None
        except KeyboardInterrupt:
            error.add_note("interrupted while waiting for what was offloaded, which is given up")
            return deadline.expire()
        except BaseException as also:  # noqa: BLE001  # reported, and then the next one is looked for
            if also is not error:
                _report(run, "the lanes", also)


def _leave(run: Run, site: str, failure: BaseException | None, **payload: Any) -> BaseException | None:
    """Emit *site* to every receiver; return the first failure there was, *failure* if there was one before."""
    for error in run.bus.find(site, site).emit_all(run, **payload):
        if failure is None:
            failure = error
        else:
            _report(run, site, error)
    return failure


def _report(run: Run, site: str, error: BaseException) -> None:
    """Where an error goes that must not mask an earlier one: the log, and ``on_receiver_error``."""
    further = run.bus.on_receiver_error.emit_all(run, site=site, error=error)
    with contextlib.suppress(OSError):  # the disk that is full may be what the run failed of
        for each in (error, *further):
            each.__suppress_context__ = True  # the first failure is shown where it is caught
            run.logger.error("receiver failed too", reason=f"{site}: {each!r}", exc_info=each)


def _open(run: Run, mode: str) -> None:
    if not run.is_main:
        return
    run.log.open(run.work_dir / "log.txt")
    known = read_run(run.work_dir)
    facts = {} if known else {**environment(), "experiment_name": run.experiment_name, "ended": ""}
    write_run(run.work_dir, {**facts, "seed": run.seed, **({"ended": ""} if mode == "train" else {})})
    run.logger.debug("receivers by site, in the order in which they run:\n" + run.get_hooks_info())


def _close(run: Run, mode: str) -> None:
    run.session.mode = None
    run.session.closing.close()
    path, run.session.trace_path = run.session.trace_path, None
    if not run.is_main:
        return
    try:
        if path is not None:
            write_trace(path, run)
        write_run(run.work_dir, _ending(run, mode))
    finally:
        run.log.close()


def _ending(run: Run, mode: str) -> dict[str, str]:
    """How it ended, as ``run.json`` says it; a validation or test says nothing where a training has ended before."""
    if mode == "train":
        progress = run.progress
        return {"ended": f"{run.session.stop_reason} after epoch {progress.epochs_completed}, step {progress.step}"}
    ended = (read_run(run.work_dir) or {}).get("ended", "")
    return {} if " after epoch " in ended else {"ended": f"{mode} {run.session.stop_reason}"}


def _load(run: Run) -> None:
    found = _found(run)  # on the CPU: generators and step counts stay there, the rest is copied
    path, checkpoint = found.path, found.content
    if path is not None:
        run.session.resuming = True
        run.call_hook("after_load_checkpoint", checkpoint=checkpoint)
        if run.train_loop is None:
            load_model(run.unwrapped, checkpoint["state_dict"], left_out(checkpoint))
        else:
            restore(run, checkpoint)
            for change in changed_counts(run, checkpoint):
                run.logger.warning("resume", reason=change)
        run.session.seed = checkpoint.get("meta", {}).get("seed", run.seed)
        _report_resume(run, path)
    elif run.load_from is not None:
        checkpoint = {"state_dict": load_weights(Path(run.load_from))}
        run.call_hook("after_load_checkpoint", checkpoint=checkpoint)
        _load_weights(run, checkpoint["state_dict"])
        run.logger.info("weights", path=Path(run.load_from))


def _load_weights(run: Run, weights: Mapping[str, Any]) -> None:
    if run.load_strict:
        load_model(run.unwrapped, weights)
        return
    own, left = load_what_fits(run.unwrapped, weights)
    for names, what in ((own, "the model keeps its own"), (left, "not taken, as the model has none of that shape")):
        if names:
            run.logger.warning("weights", reason=f"{what}: {shortened(names)}")
            run.logger.debug("weights", reason=f"{what}, in full: {', '.join(names)}")


def _found(run: Run) -> Found:
    """Return the checkpoint to resume from, read."""
    find = functools.partial(find_newest, run.checkpoint_dir, abandoned_in(run.work_dir), load_checkpoint)
    found = found_for(run.ranks, run.resume, find)
    for path, reason in found.rejected:
        run.logger.warning("checkpoint not used", path=path, reason=str(reason))
    if found.path is None and run.resume:
        run.logger.info("resume", reason=f"nothing to resume in {shown_path(run.checkpoint_dir)}: a fresh start")
    return found


def _report_resume(run: Run, path: Path) -> None:
    progress = run.progress
    run.logger.info("resume", path=path, epoch=progress.epoch, step=progress.iter)
    if run.is_main:
        facts = environment()
        # By the times of checkpoints alone, which only ever go forward: the clock may be put back.
        newest = max((manifest.created for _, manifest in listing(run.checkpoint_dir).complete), default="")
        entry = {"checkpoint": str(path), "step": progress.iter, "newest": newest, "at": facts.pop("started"), **facts}
        write_run(run.work_dir, {"seed": run.seed, "resumes": [*resumes_in(run.work_dir), entry]})
