"""The loops: the order of things in time.

A loop trains correctly with no receiver at all: forward, backward and the optimizer's step are its own. It knows
sites, not hooks, and nothing of checkpoints. What was requested of the session is done at its tick, once per iteration:
when all receivers of a site have run, so that a save holds the state of each as that site leaves it.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch

from eventrunner.ranks.deal import Deal, Shares, deal
from eventrunner.ranks.parallel import reduces
from eventrunner.training.dataloader import batch_count, no_batch
from eventrunner.training.device import batch_mover
from eventrunner.training.position import DataPosition
from eventrunner.training.state import rng_state, set_rng_state
from eventrunner.training.steps import Step, bind_step, check_outputs, loss_of

if TYPE_CHECKING:
    from eventrunner.run import Run
    from eventrunner.session.settings import TrainSettings
    from eventrunner.training.evaluator import Evaluator

__all__ = ["EpochBasedTrainLoop", "EvalLoop", "IterBasedTrainLoop", "TrainLoop"]

_SAID_EVERY = 10.0
"""Seconds between two lines on how far loading used batches once more is."""


class TrainLoop:
    """What training by epochs and by iterations share: one iteration, the nested validations, and the stop.

    By iterations the data is passed over as often as that takes, and to receivers the whole training is one epoch:
    ``before_train_epoch`` and ``after_train_epoch`` are emitted once, and ``batch_idx`` is the iteration.

    Args:
        runner: Whose model, optimizer and sites.
        dataloader: Any iterable of batches that can be passed over repeatedly. Read anew after
            ``before_train_epoch``, so a receiver there may replace it.
        settings: The unit, where the training ends, and when it validates.
    """

    def __init__(self, runner: Run, dataloader: Any, settings: TrainSettings) -> None:
        self.runner, self.dataloader, self.by_epoch = runner, dataloader, settings.by_epoch
        self.val_begin, self.val_interval = settings.val_begin, settings.val_interval
        self.progress, self.position = runner.progress, DataPosition()
        self.position.skips, self.position.report = runner.skips_data, self._report_reload
        self.reloading: tuple[int, int] | None = None
        """While used batches are loaded once more: how many have been, and how many there are."""
        self._reload_said = 0.0
        self._session, self._several = runner.session, runner.ranks.several
        self._guards, self._requested = runner.bus.guards, runner.session.requested
        self.running = False
        self._maximum = settings.maximum
        self._step: Step = _unbound
        self._move = batch_mover(runner.device)
        self._shares = Shares("train_dataloader", runner.ranks)
        self._deal: Deal | None = None  # of the pass under way
        self._reduces: Any = None  # the model, where torch reduces gradients in each backward
        deal("train_dataloader", dataloader, runner.ranks, 0)  # refuse it now
        self._sites = vars(runner.emitters)  # an attribute is slower to come by than an entry
        self._updates_itself = False  # as the runner says when it begins
        self._end: int | None = None  # the iterations that the training will have, as far as its loader knows
        self.stepped_late = False
        """Whether the last group of accumulation stepped when the last iteration was over."""

    @property
    def stop_training(self) -> bool:
        """Set it to end the training after the iteration under way; ``runner.stop`` also says why."""
        return self._session.stopping

    @stop_training.setter
    def stop_training(self, stop: bool) -> None:
        if stop:
            self._session.end_training()
        else:
            self._session.stopping = False

    @property
    def max_epochs(self) -> int:
        """The epochs planned; 1 where the training goes by iterations."""
        return self._maximum if self.by_epoch else 1

    @property
    def max_iters(self) -> int | None:
        """The iterations planned, or None where epochs are planned and the dataloader has no length."""
        if not self.by_epoch:
            return self._maximum
        count = batch_count(self.dataloader)
        return None if count is None else count * self._maximum

    @property
    def epoch(self) -> int:
        """Epochs completed and counted; see ``eventrunner.bus.sites`` for when it advances."""
        return self.progress.epoch

    @property
    def iter(self) -> int:
        """Iterations completed and counted."""
        return self.progress.iter

    @property
    def completed(self) -> int:
        """What is complete in the loop's own unit."""
        return self.progress.epoch if self.by_epoch else self.progress.iter

    @property
    def midway(self) -> bool:
        """Whether an epoch has begun and isn't complete; by iterations that is never so."""
        return self.by_epoch and self.position.consumed > 0

    @property
    def validated(self) -> bool:
        """Whether the present state was validated; if not, a validation at the present step is still to come."""
        return self.progress.validated == self.completed and not self.midway

    def state_dict(self) -> dict[str, Any]:
        """Counters and data position."""
        return {"by_epoch": self.by_epoch, **self.progress.state_dict(), "data": self.position.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where :meth:`state_dict` was taken."""
        self.progress.load_state_dict(state)
        self.position.load_state_dict(state["data"])

    def begin(self) -> None:
        """Bind the step to the model as it is now, let the optimizer emit its sites, and emit ``before_train``.

        After a failure, what was complete when it came counts: the training goes on behind it.
        """
        self.running, self.stepped_late = True, False
        self.progress.advance()
        self._bind()
        self._begin_train()
        if not self._session.stopping:
            self.validate_if_due()

    def _begin_train(self) -> None:
        """Emit ``before_train``; then, in a resumed run, put the generators back where the checkpoint had them."""
        session = self.runner.session
        session.training_began = True
        self.runner.call_hook("before_train")
        session.meet()
        if session.pending_rng is not None:
            set_rng_state(session.pending_rng)
            session.pending_rng = None

    def _bind(self) -> None:
        runner = self.runner
        optim, self._updates_itself = runner.optim_wrapper, runner.updates_itself
        accumulates = any(wrapper.accumulative_counts > 1 for _, wrapper in runner.optim_wrappers)
        self._reduces = runner.model if accumulates and reduces(runner.model) and not self._updates_itself else None
        extra = {"optim_wrapper": optim} if self._updates_itself else {}
        self._step = bind_step(runner.train_step, runner.model, "train_step", **extra)
        optim.before_step, optim.after_step = self._before_step, self._after_step
        for _, wrapper in runner.optim_wrappers:
            wrapper.begins_groups, wrapper.holds_gradients = self._updates_itself, True
            repeats = not self._updates_itself and wrapper.inner_count != self.progress.iter
            if self.progress.iter == 0 or repeats:
                wrapper.zero_grad()  # of the caller's own backward, or of an iteration that failed
            if repeats:
                wrapper.inner_count = self.progress.iter

    def end(self) -> None:
        """Release the optimizer: what the caller does with it later emits no site and adds to no group."""
        self.running = False
        optim = self.runner.optim_wrapper
        optim.before_step = optim.after_step = None
        for _, wrapper in self.runner.optim_wrappers:
            wrapper.begins_groups, wrapper.weight = True, 1.0
            wrapper.hold()

    def _plan_groups(self) -> None:
        """Tell the optimizers how many losses are to come, as the loader has it now."""
        self._end = self._expected_end()
        for _, wrapper in self.runner.optim_wrappers:
            wrapper.expect_batches(self._batches_left())

    def _expected_end(self) -> int | None:
        if not self.by_epoch:
            return self._maximum
        length = batch_count(self.dataloader)
        if length is None:
            return None
        progress = self.progress
        return progress.iter - self.position.consumed + length * (self._maximum - progress.epoch)

    def _batches_left(self) -> int | None:
        return None if self._end is None else self._end - self.progress.step

    def _end_groups(self) -> bool:
        """Have each group of accumulation that is under way step with the losses that it has; say whether one did."""
        optim = self.runner.optim_wrapper
        optim.before_step, optim.after_step = self._before_step, self._after_step
        stepped = []
        for _, wrapper in self.runner.optim_wrappers:
            if self._reduces is not None and wrapper.in_group:
                wrapper.begin_loss()
                self.runner.ranks.mean_(wrapper.gradients())  # of a group's losses but for the last, torch reduces none
            stepped.append(wrapper.end_group())
        return any(stepped)

    def _end_batch(self) -> None:
        """Count what a step that updates the weights itself has made of its batch; the last ends all groups."""
        left = self._batches_left()
        for _, wrapper in self.runner.optim_wrappers:
            wrapper.end_batch(left)
        if left == 0:
            self._end_groups()

    def run_iter(self, batch_idx: int, data_batch: Any) -> None:
        """Train on one batch."""
        runner, progress, sites = self.runner, self.progress, self._sites
        if self._move is not None:
            data_batch = self._move(data_batch)
        emit = sites["before_train_iter"]
        if emit is not None:
            emit(runner, batch_idx, data_batch)
        optim = runner.optim_wrapper
        if self._deal is not None:
            for _, wrapper in runner.optim_wrappers:
                wrapper.weight = self._deal.weights[self.position.consumed]
        if self._reduces is not None:
            self._reduces.require_backward_grad_sync = optim.completes_next()
        if not self._updates_itself:
            begins = optim.accumulative_counts > 1
            for group in optim.optimizer.param_groups:  # mostly nobody left any: a look here spares the call
                for param in group["params"]:
                    if param.grad is not None:
                        begins = True
            if begins:
                optim.begin_loss()
        if optim.amp_dtype is None:
            outputs = self._step(data_batch)
        else:
            with torch.autocast(runner.device.type, optim.amp_dtype):
                outputs = self._step(data_batch)
        if self._updates_itself:
            check_outputs(outputs)
        else:
            # Both are mostly called for nothing; so they aren't, where there is nothing.
            optim.before_step = self._before_step if self._guards or sites["before_optimizer_step"] else None
            optim.after_step = self._after_step if sites["after_optimizer_step"] else None
            optim.update_params(outputs["loss"] if type(outputs) is dict and "loss" in outputs else loss_of(outputs))
        progress.iter_done = 1
        if self._updates_itself:
            self._end_batch()
        self.position.consumed += 1
        emit = sites["after_train_iter"]
        if emit is not None:
            emit(runner, batch_idx, data_batch, outputs)
        if self._several:
            self._session.ticks += 1
        if self._requested:
            runner.session.tick()
        progress.iter += 1
        progress.iter_done = 0

    def validate_if_due(self) -> None:
        """Validate where the interval, or the end of training, asks for it and it hasn't been done yet."""
        loop, done = self.runner.val_loop, self.completed
        if loop is None or done < self.val_begin or self.midway or self.validated:
            return
        if done % self.val_interval == 0 or done == self._maximum:
            loop.run()
            if self._several:
                self._session.meet()

    def _begin_epoch(self) -> bool:
        """Emit ``before_train_epoch``; False where the training was stopped before its first iteration.

        An epoch that is gone on with emits it again. What receivers draw there at random was drawn when the epoch
        began, so the generators are put back.
        """
        runner = self.runner
        runner.model.train()
        if runner.emitters.before_train_epoch and not self._session.stopping:
            drawn = rng_state() if self.position.consumed else None
            runner.emitters.before_train_epoch(runner)
            if drawn is not None:
                set_rng_state(drawn)
        if runner.session.requested:
            runner.session.tick()
        self._plan_groups()
        return not self._session.stopping

    def _end_epoch(self) -> None:
        runner, progress = self.runner, self.progress
        progress.epoch_done = 1
        if runner.emitters.after_train_epoch:
            runner.emitters.after_train_epoch(runner)
        if runner.session.requested:
            runner.session.tick()
        if self._several:
            self._session.meet()
        progress.epoch += 1
        progress.epoch_done = 0

    def _batches(self, dataloader: Any) -> Iterator[tuple[int, Any]]:
        """Return one pass over the data, or what is left of it; warn first of what in it can't be exact."""
        dataloader = self._shares.of(dataloader, self.runner.seed, self.position.passes)
        self._deal = self._shares.deal
        caveat = self.position.caveat(dataloader)
        if caveat is not None:
            self.runner.logger.warning("resume", reason=caveat)
        self.reloading = None
        return self.position.batches(dataloader)

    def _report_reload(self, done: int, total: int) -> None:
        """Say every ten seconds how far loading used batches once more is; a stop that was asked for is heeded."""
        now = time.monotonic()
        if done == 1:
            self._reload_said = now
        elif now - self._reload_said >= _SAID_EVERY:
            self._reload_said = now
            self.runner.logger.info("resume", reason=f"{done} of {total} batches loaded once more")
        self.reloading = None if done == total else (done, total)
        self._session.ticks += 1
        if self._requested:
            self.runner.session.tick()

    def _before_step(self) -> None:
        if self._guards:  # weights that are being copied are about to change
            self.runner.wait_for_copies()
        emit = self._sites["before_optimizer_step"]
        if emit:
            emit(self.runner)
            self.runner.optim_wrapper.after_step = self._after_step  # which a receiver may just have been connected to

    def _after_step(self) -> None:
        emit = self._sites["after_optimizer_step"]
        if emit:
            emit(self.runner)


class EpochBasedTrainLoop(TrainLoop):
    """Training by epochs."""

    def run(self) -> None:
        """Train from where the progress stands to the last epoch, or to a stop."""
        self.begin()
        while self.progress.epoch < self._maximum and not self._session.stopping:
            if not self.run_epoch():
                return
            self.validate_if_due()

    def run_epoch(self) -> bool:
        """Train one epoch, or what is left of it; False where it was stopped midway."""
        if not self._begin_epoch():
            return False
        dataloader = self.dataloader
        length = batch_count(dataloader)
        for batch_idx, data_batch in self._batches(dataloader):
            self.run_iter(batch_idx, data_batch)
            if self._session.stopping and batch_idx + 1 != length:
                return False
        if self.progress.epoch + 1 >= self._maximum:
            self.stepped_late = self._end_groups()
        self._end_epoch()
        return True


class IterBasedTrainLoop(TrainLoop):
    """Training by iterations."""

    def run(self) -> None:
        """Train from where the progress stands to the last iteration, or to a stop."""
        progress = self.progress
        self.begin()
        if progress.iter >= self._maximum:
            return
        progress.epoch = 0  # 1 where an earlier training ended here and this one goes further
        if not self._begin_epoch():
            return
        dataloader = self.dataloader
        while self._run_pass(dataloader):
            pass
        if progress.iter >= self._maximum:
            self.stepped_late = self._end_groups()
            self._end_epoch()

    def _run_pass(self, dataloader: Any) -> bool:
        """Train on one pass over the data, or what is left of it; False where the training ended within it."""
        progress, validates = self.progress, self.runner.val_loop is not None
        self.position.announce(dataloader)
        for _, data_batch in self._batches(dataloader):
            self.run_iter(progress.iter, data_batch)
            if validates:
                self.validate_if_due()
            if self._session.stopping or progress.iter >= self._maximum:
                return False
        return True


class EvalLoop:
    """One pass over a dataloader without gradients, in eval mode: validation or test, by ``mode``.

    Every submodule is put back into the mode that it had, so parts that were frozen stay frozen.
    """

    def __init__(self, runner: Run, mode: str, dataloader: Any, evaluator: Evaluator) -> None:
        self.runner, self.mode, self.dataloader, self.evaluator = runner, mode, dataloader, evaluator
        deal(f"{mode}_dataloader", dataloader, runner.ranks, 0)  # refuse it now
        evaluator.check_ranks(mode, runner.ranks.world)
        evaluator.to(runner.device)
        self._before_iter, self._after_iter = f"before_{mode}_iter", f"after_{mode}_iter"
        self.running = False
        self._ticks = False  # whether its batches count
        self._step: Step = _unbound
        self._move = batch_mover(runner.device)

    @classmethod
    def of(cls, runner: Run, mode: str, dataloader: Any, evaluator: Evaluator | None) -> EvalLoop | None:
        """Make one where there is anything to evaluate."""
        return None if evaluator is None else cls(runner, mode, dataloader, evaluator)

    def run(self) -> dict[str, float]:
        """Evaluate; returns the metrics by name.

        Raises:
            OptionError: there was no batch.
        """
        self.running = True
        try:
            return self._run()
        finally:
            self.running = False

    def _run(self) -> dict[str, float]:
        runner, mode = self.runner, self.mode
        self._step = bind_step(runner.val_step, runner.unwrapped, "val_step")
        if runner.mode == "train":  # a run that is preempted within this validation goes on with all of it
            runner.session.rng_before_val = rng_state()
        self._emit(f"before_{mode}")
        self._emit(f"before_{mode}_epoch")
        if reduces(runner.model):  # each rank has taken other batches in since the last forward made them equal
            runner.ranks.broadcast_(list(runner.unwrapped.buffers()))
        modes = [(module, module.training) for module in runner.model.modules()]
        runner.model.eval()
        self.evaluator.reset()
        try:
            batch_idx, ticks = -1, runner.session.ticks
            with torch.no_grad():
                shares = deal(f"{mode}_dataloader", self.dataloader, runner.ranks, runner.seed, fills=False)
                self._ticks = isinstance(getattr(shares, "batch_sampler", None), Deal)  # of as many batches for all
                for batch_idx, data_batch in enumerate(shares):
                    self.run_iter(batch_idx, data_batch)
            if self._ticks:  # on all ranks as often, of which some had no share of the last batch
                runner.session.ticks = ticks + len(shares)
                runner.session.tick()
            if batch_idx < 0 and (shares is self.dataloader or not len(shares)):
                raise no_batch(mode)  # the metrics would be those of nothing, and might be the best
            metrics = self.evaluator.evaluate()
        finally:
            for module, training in modes:
                module.training = training
        runner.session.rng_before_val = None
        if mode == "val" and runner.mode == "train" and runner.train_loop is not None:
            runner.progress.validated = runner.train_loop.completed
        self._emit(f"after_{mode}_epoch", metrics=metrics)
        self._emit(f"after_{mode}")
        return metrics

    def run_iter(self, batch_idx: int, data_batch: Any) -> None:
        """Evaluate one batch."""
        runner = self.runner
        if self._move is not None:
            data_batch = self._move(data_batch)
        emit = getattr(runner.emitters, self._before_iter)
        if emit:
            emit(runner, batch_idx=batch_idx, data_batch=data_batch)
        amp_dtype = None if runner.optim_wrapper is None else runner.optim_wrapper.amp_dtype
        if amp_dtype is None:
            outputs = self._step(data_batch)
        else:
            with torch.autocast(runner.device.type, amp_dtype):
                outputs = self._step(data_batch)
        self.evaluator.process(outputs)
        emit = getattr(runner.emitters, self._after_iter)
        if emit:
            emit(runner, batch_idx=batch_idx, data_batch=data_batch, outputs=outputs)
        if self._ticks:
            runner.session.ticks += 1
        if runner.session.requested:
            runner.session.tick()

    def _emit(self, site: str, **payload: Any) -> None:
        emit = getattr(self.runner.emitters, site)
        if emit:
            emit(self.runner, **payload)
        self.runner.session.ticks += 1
        if self.runner.session.requested:
            self.runner.session.tick()


def _unbound(batch: Any) -> Any:
    raise RuntimeError("a loop's step is bound when the loop runs.")
