"""RuntimeInfoHook: what is going on, put into the message hub for code that has no runner."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeAlias

from eventrunner.errors import OptionError
from eventrunner.hook import Hook
from eventrunner.hooks.iter_timer import TIMES, IterTimerHook
from eventrunner.registry import HOOKS
from eventrunner.report.history import AGGREGATE_EVERY, Scalar, scalar_of
from eventrunner.version import __version__

if TYPE_CHECKING:
    from eventrunner.run import Run
    from eventrunner.training.optim import OptimWrapper

__all__ = ["RuntimeInfoHook"]

_Keep: TypeAlias = Callable[[float], None]


@HOOKS.register_module()
class RuntimeInfoHook(Hook):
    """Keep counters, learning rates, losses and metrics in ``runner.message_hub``.

    Infos: ``epoch, iter, max_epochs, max_iters, seed, experiment_name, eventrunner_version``; ``loop_stage``, which is
    ``train``, ``val`` or ``test`` as the innermost loop that runs, or None; and ``dataset_meta``, the ``metainfo`` of
    the training's dataset where it has one. Scalars:
    ``train/lr`` (``train/lr/0`` … where there are several groups) as it is used in the iteration, ``train/grad_norm``
    where gradients are clipped, every one-element entry of train_step's dict as ``train/<key>`` (one that has the key
    of a rate, a norm or a time is refused), and ``val/<metric>``, ``test/<metric>``. Tensors on a device are kept and
    read only when somebody looks: no transfer from it at a quiet iteration.
    """

    priority = "VERY_HIGH"
    mutates = ()

    def __init__(self) -> None:
        # What keeps values is the hub's own histories', so that it needn't be asked for them at each iteration.
        self._optim: Any = None  # whose rates and norms these are
        self._rates: list[tuple[OptimWrapper, str, _Keep | None]] = []  # None where there are several groups
        self._norms: list[tuple[OptimWrapper, str]] = []
        self._outputs: dict[str, tuple[_Keep, Callable[[Scalar], None]]] = {}  # append and update, by train_step's key

    def before_run(self, runner: Run) -> None:
        """Say which run this is."""
        runner.message_hub.update_info_dict(
            {"seed": runner.seed, "experiment_name": runner.experiment_name, "eventrunner_version": __version__},
            resumed=False,
        )
        runner.message_hub.provide_info("loop_stage", lambda: _stage(runner))

    def before_train(self, runner: Run) -> None:
        """Say how far the training is and how far it goes."""
        hub = runner.message_hub
        hub.update_info_dict({"max_epochs": runner.max_epochs, "max_iters": runner.max_iters}, resumed=False)
        hub.provide_info("dataset_meta", lambda: _dataset_meta(runner))
        self._optim, self._outputs = None, {}  # another run has its own
        self._count(runner)

    def before_train_epoch(self, runner: Run) -> None:
        """Count again where somebody else has written to the counters."""
        self._count(runner)

    def _count(self, runner: Run) -> None:
        progress = runner.progress
        runner.message_hub.provide_info("epoch", lambda: progress.epoch)
        runner.message_hub.provide_info("iter", lambda: progress.iter)

    def before_train_iter(self, runner: Run, batch_idx: int, data_batch: Any = None) -> None:
        """Note the learning rates that the iteration uses."""
        if self._optim is not runner.optim_wrapper:
            self._look_at(runner)
        for wrapper, key, keep in self._rates:
            groups = wrapper.optimizer.param_groups
            rate = groups[0]["lr"]
            if keep is not None and len(groups) == 1 and type(rate) is float:
                keep(rate)
            else:
                for index, group in enumerate(groups):
                    runner.message_hub.update_scalar(key if len(groups) == 1 else f"{key}/{index}", group["lr"])

    def after_train_iter(self, runner: Run, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        """Keep what train_step returned, and the gradients' norm."""
        for name, value in (outputs or {}).items():  # a step that updates the weights itself may return nothing
            scalar = scalar_of(value)
            if scalar is not None:
                append, update = self._outputs.get(name) or self._begin_output(runner, name)
                if type(scalar) is float:
                    append(scalar)
                else:
                    update(scalar)
        for wrapper, key in self._norms:
            if wrapper.grad_norm is not None:
                runner.message_hub.update_scalar(key, wrapper.grad_norm)
        if (batch_idx + 1) % AGGREGATE_EVERY == 0:
            runner.message_hub.aggregate()

    def after_train_epoch(self, runner: Run) -> None:
        """Have histories take in an epoch that is shorter, too."""
        runner.message_hub.aggregate()

    def _look_at(self, runner: Run) -> None:
        """Find out whose rates and norms there are to keep."""
        self._optim = runner.optim_wrapper
        self._rates, self._norms = [], []
        for name, wrapper in runner.optim_wrappers:
            prefix, keep = f"train/{name}", None
            if len(wrapper.param_groups) == 1:
                keep = runner.message_hub.history(f"{prefix}lr").append
            self._rates.append((wrapper, f"{prefix}lr", keep))
            if wrapper.clips:
                self._norms.append((wrapper, f"{prefix}grad_norm"))

    def _begin_output(self, runner: Run, name: str) -> tuple[_Keep, Callable[[Scalar], None]]:
        key = f"train/{name}"
        if self._is_own(runner, key):
            raise OptionError(
                f"train_step returned {name!r}, but the run itself logs {key!r}, and would mix the two; give it "
                "another name."
            )
        history = runner.message_hub.history(key)
        self._outputs[name] = history.append, history.update
        return self._outputs[name]

    def _is_own(self, runner: Run, key: str) -> bool:
        """Whether it is the key of a rate, a norm or a time that this run keeps."""
        rates = [rate for _, rate, _ in self._rates]
        parts = {f"{rate}/{index}" for wrapper, rate, _ in self._rates for index in range(len(wrapper.param_groups))}
        timed = any(isinstance(hook, IterTimerHook) for hook in runner.hooks)
        times = [f"train/{name}" for name in TIMES] if timed else []
        return key in {*rates, *parts, *times, *(norm for _, norm in self._norms)}

    def after_val_epoch(self, runner: Run, metrics: dict[str, float] | None = None) -> None:
        """Keep the metrics."""
        _keep_metrics(runner, "val", metrics)

    def after_test_epoch(self, runner: Run, metrics: dict[str, float] | None = None) -> None:
        """Keep the metrics."""
        _keep_metrics(runner, "test", metrics)


def _keep_metrics(runner: Run, mode: str, metrics: dict[str, float] | None) -> None:
    runner.message_hub.update_scalars({f"{mode}/{name}": value for name, value in (metrics or {}).items()})


def _stage(runner: Run) -> str | None:
    loops = (("val", runner.val_loop), ("test", runner.test_loop), ("train", runner.train_loop))
    return next((stage for stage, loop in loops if loop is not None and loop.running), None)


def _dataset_meta(runner: Run) -> Any:
    return getattr(getattr(runner.train_dataloader, "dataset", None), "metainfo", None)
