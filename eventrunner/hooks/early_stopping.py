"""EarlyStoppingHook: end the training when a metric no longer improves."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from eventrunner.checks import check_bools, check_ints, check_numbers, refusal
from eventrunner.errors import OptionError, listed
from eventrunner.hook import Hook
from eventrunner.registry import HOOKS
from eventrunner.training.rules import check_monitor, infer_rule, is_better, known_rule, worst

if TYPE_CHECKING:
    from eventrunner.run import Run

__all__ = ["EarlyStoppingHook"]


@HOOKS.register_module()
class EarlyStoppingHook(Hook):
    """Stop when a metric hasn't improved for *patience* validations of the training, or has reached its goal.

    The run ends as planned ones do, with the stop reason ``early_stop``, or ``nan`` where the metric wasn't finite. The
    best score and the count of validations are saved with the run: a resumed one stops where it would have.

    Args:
        monitor: A metric's name, with or without ``val/``.
        rule: ``greater`` or ``less`` is better; by default inferred from the name.
        min_delta: By how much a score must beat the best to count as an improvement. MMEngine's default is 0.1, with
            which a metric between 0 and 1 seems to stand still before long; here it is 0.
        strict: Whether a validation without the metric is an error; otherwise it is passed over, with one warning.
        check_finite: Stop at once at a nan or an infinity; otherwise a nan is no improvement.
        patience: The validations without improvement that end the training.
        stopping_threshold: The goal: stop at once at a score as good as this.

    Raises:
        OptionError: a value that can't be, or, when it is registered, a metric that the run doesn't have.
    """

    priority = "LOWEST"
    mutates = ()

    def __init__(
        self,
        monitor: str,
        rule: str | None = None,
        min_delta: float = 0.0,
        strict: bool = False,
        check_finite: bool = True,
        patience: int = 5,
        stopping_threshold: float | None = None,
    ) -> None:
        if not isinstance(monitor, str) or not monitor.removeprefix("val/"):
            raise refusal("EarlyStoppingHook", "monitor", monitor, "the name of a metric")
        check_bools("EarlyStoppingHook", strict=strict, check_finite=check_finite)
        check_ints("EarlyStoppingHook", 1, patience=patience)
        check_numbers("EarlyStoppingHook", least=0, min_delta=min_delta)
        if stopping_threshold is not None:
            check_numbers("EarlyStoppingHook", stopping_threshold=stopping_threshold)
        self._given, self.monitor = monitor, monitor.removeprefix("val/")
        self.rule = known_rule(self.monitor, rule) or ""
        self.min_delta, self.patience, self.stopping_threshold = min_delta, patience, stopping_threshold
        self.strict, self.check_finite = strict, check_finite
        self.best_score = worst(self.rule)
        self.wait_count = 0
        self._warned = False

    def check_run(self, runner: Run) -> None:
        """Refuse a metric that this run's validations won't report; called when the hook is registered."""
        attempt = f"EarlyStoppingHook(monitor={self.monitor!r})"
        if runner.val_evaluator is not None:
            self.monitor = check_monitor(attempt, self._given, runner.val_evaluator.names())
        infer_rule(self.monitor, self.rule or None)
        if runner.train_loop is not None and runner.val_loop is None:
            raise OptionError(f"{attempt} needs validations: give the Runner val_dataloader and val_evaluator.")

    def forget_run(self) -> None:
        """Warn once more."""
        self._warned = False

    def after_val_epoch(self, runner: Run, metrics: dict[str, float] | None = None) -> None:
        """Judge the score; a validation by ``val()`` is no part of a training and doesn't count."""
        if runner.mode != "train":
            return
        score = (metrics or {}).get(self.monitor)
        if score is None:
            self._miss(runner, metrics or {})
        elif self.check_finite and not math.isfinite(score):
            self._stop(runner, "nan", f"{self.monitor} is {score}")
        else:
            self._judge(runner, score)

    def state_dict(self) -> dict[str, Any]:
        """Return the best score and the validations since."""
        return {"best_score": self.best_score, "wait_count": self.wait_count}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on counting."""
        self.best_score, self.wait_count = state_dict["best_score"], state_dict["wait_count"]

    def _judge(self, runner: Run, score: float) -> None:
        goal = self.stopping_threshold
        if is_better(self.rule, score, self.best_score, self.min_delta):
            self.best_score, self.wait_count = score, 0
        else:
            self.wait_count += 1
        if goal is not None and (score == goal or is_better(self.rule, score, goal)):
            self._stop(runner, "early_stop", f"{self.monitor} is {score:.4g} and was to reach {goal:.4g}")
        elif self.wait_count >= self.patience:
            waited = f"{self.wait_count} validation{'s' * (self.wait_count > 1)}"
            self._stop(runner, "early_stop", f"{self.monitor} hasn't improved on {self.best_score:.4g} in {waited}")

    def _stop(self, runner: Run, reason: str, why: str) -> None:
        runner.logger.info("early stop", reason=why)
        runner.stop(reason)

    def _miss(self, runner: Run, metrics: Mapping[str, float]) -> None:
        why = f"the validation gave {listed(map(repr, metrics))}"
        if self.strict:
            raise OptionError(f"EarlyStoppingHook(monitor={self.monitor!r}, strict=True): {why}.")
        if not self._warned:
            self._warned = True
            runner.logger.warning("early stopping waits", reason=f"for {self.monitor!r}: {why}")
