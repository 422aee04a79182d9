"""The Runner: puts the parts of a run together and offers the names that hooks read."""

from __future__ import annotations

import functools
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import nn

from eventrunner.bus.bus import Bus, default_bus
from eventrunner.bus.ledger import Ledger
from eventrunner.bus.priority import Priority
from eventrunner.errors import ArgumentError, OptionError, did_you_mean, listed
from eventrunner.foreign import argument_hint, method_hint
from eventrunner.hook import Hook, HookHandle
from eventrunner.hooks.run_hooks import RunHooks
from eventrunner.ranks.parallel import Parallel, parallelize, reduces, unwrapped
from eventrunner.ranks.world import join
from eventrunner.report.account import RunAccount, account_of, begin_trace
from eventrunner.report.hub import MessageHub
from eventrunner.report.log import RunLog
from eventrunner.run import RunView
from eventrunner.session.lifecycle import running
from eventrunner.session.loops import EpochBasedTrainLoop, EvalLoop, IterBasedTrainLoop
from eventrunner.session.rundir import (
    absolute,
    claim,
    folder_of,
    known_seed,
    script_name,
)
from eventrunner.session.saves import open_saver, readers, save_now
from eventrunner.session.session import Session
from eventrunner.session.settings import (
    Offloading,
    Randomness,
    Sources,
    Training,
    check_model,
    check_parameters,
    compile_options,
    parse_evaluation,
)
from eventrunner.training.dataloader import batch_count, build_dataloader, check_loader
from eventrunner.training.device import resolve_device
from eventrunner.training.modules import ModuleWatch, watch_modules
from eventrunner.training.optim import OptimWrapper
from eventrunner.training.optim_dict import OptimWrapperDict, named_wrappers
from eventrunner.training.state import Progress, seed_all

__all__ = ["Runner"]

F = TypeVar("F", bound=Callable[..., Any])
PathLike = str | os.PathLike[str]


class Runner:
    """Train, validate and test a model, and emit a site at every step of the way.

    Everything is an object that the caller made; dicts are taken where they name hooks or hold plain settings.

    Args:
        model: What is trained. Moved to *device*; the optimizer may have been made before.
        work_dir: The run's folder. None makes ``runs/<script>/<next number>``. Here and below, a relative path is one
            of the working directory that there is when the Runner is made.
        train_dataloader: Any iterable of batches that can be passed over repeatedly.
        val_dataloader: The same, for the validations within training and for :meth:`val`.
        test_dataloader: The same, for :meth:`test`.
        train_cfg: ``dict(max_epochs=…)`` or ``dict(max_iters=…)``, and ``val_begin``, ``val_interval`` in that unit.
        train_step: ``f(model, batch)`` that returns a dict with ``'loss'``, a scalar tensor; other one-element
            tensors or numbers in it are logged. One that also takes ``optim_wrapper`` updates the weights itself.
            Left out where the model has a ``train_step(batch)`` of its own.
        val_step: ``f(model, batch)`` that returns what the metrics' ``update`` takes: a tuple for several arguments.
            Also used by the test. Left out where the model has a ``val_step(batch)``.
        optimizer: Any ``torch.optim`` optimizer, or
        optim_wrapper: an :class:`OptimWrapper` for accumulation, clipping and mixed precision, or a dict of several.
        param_scheduler: torch's scheduler, ``dict(scheduler=…, by_epoch=…, monitor=…, rule=…)``, a list of these, or a
            dict of lists. Without ``by_epoch`` the unit is the training's own; numbers that fit the other one are
            warned of. A plateau scheduler's ``mode`` must be the rule of its metric, as told from its name or by
            ``rule``, ``'greater'`` or ``'less'``.
        val_evaluator: ``{"accuracy": metric}``: anything with update, compute and reset; logged as ``val/accuracy``.
        test_evaluator: The same for the test; by default the validation's.
        default_hooks: Overrides by name (``runtime_info, timer, sampler_seed, logger, param_scheduler,
            checkpoint``): options, a hook, or None to leave one out. Other names add hooks.
        custom_hooks: Further hooks: objects, or dicts with ``type``, ``priority`` and options.
        load_from: Weights to begin with: a checkpoint's folder, a ``.safetensors`` or a ``.pth`` file.
            ``dict(path=…, strict=False)`` takes of them what the model has by name and shape, and lists the rest.
        resume: True goes on from the newest valid checkpoint of the folder, or begins afresh where there is none; a
            path goes on from that checkpoint. ``dict(data="skip")``, with a ``path`` or without, goes on at once where
            that takes loading used batches once more: what is drawn while loading may then be other than it was.
        randomness: ``dict(seed=…, deterministic=…, diff_rank_seed=…)``. Without a seed one is drawn and logged. It is
            set when the Runner is made, so seed a model's initial weights before making it.
        parallel: How several ranks train the model, see :func:`eventrunner.ranks.parallel.parallelize`; with one,
            nothing changes. By default ``DistributedDataParallel``, unless the model is wrapped or sharded already.
        device: Where to train; by default the accelerator, if there is one; with several ranks, each its own.
        offload: ``dict(backend=…, deadline=…, grace=…)`` for receivers that run in the background: the event loop of
            ``async def`` ones, ``"asyncio"`` or ``"trio"``; the seconds (600) that the end of a run waits for what is
            offloaded before it fails; and those (30) that it waits after a signal.
        compile: What ``torch.compile`` takes: True, a mode, or a dict of options.
        bus: Whose sites are emitted; by default the one that ``eventrunner.on`` connects to.
        experiment_name: For logs and trackers; by default the script's name and the time.
        cfg: Anything; hooks find it as ``runner.cfg``.
        log_level: The least level of lines on stdout.
        progress: Whether a bar is drawn on stderr where that is a terminal.

    Raises:
        ArgumentError: an argument that Runner doesn't have; says what it is called here.
        OptionError: a value that can't be, or parts that don't go together; before anything is written.
        RunExistsError: *work_dir* holds another run.
    """

    def __init__(
        self,
        *,
        model: nn.Module | None = None,
        work_dir: PathLike | None = None,
        train_dataloader: Any = None,
        val_dataloader: Any = None,
        test_dataloader: Any = None,
        train_cfg: Mapping[str, Any] | None = None,
        train_step: Callable[..., Any] | None = None,
        val_step: Callable[..., Any] | None = None,
        optimizer: torch.optim.Optimizer | None = None,
        optim_wrapper: OptimWrapper | OptimWrapperDict | Mapping[str, Any] | None = None,
        param_scheduler: Any = None,
        val_evaluator: Any = None,
        test_evaluator: Any = None,
        default_hooks: Mapping[str, Any] | None = None,
        custom_hooks: Sequence[Any] | None = None,
        load_from: PathLike | Mapping[str, Any] | None = None,
        resume: bool | PathLike | Mapping[str, Any] = False,
        randomness: Mapping[str, Any] | None = None,
        parallel: Parallel = "auto",
        device: str | torch.device | None = None,
        offload: Mapping[str, Any] | None = None,
        compile: bool | str | Mapping[str, Any] = False,  # noqa: A002  # torch's own word
        bus: Bus | None = None,
        experiment_name: str | None = None,
        cfg: Any = None,
        log_level: str = "INFO",
        progress: bool = True,
        **unknown: Any,
    ) -> None:
        _refuse_unknown(unknown)
        _refuse_import(sys._getframe(1))  # noqa: SLF001  # where it is called
        self._init_ranks()
        sources = Sources.parse(resume, load_from)
        folder = self._init_folder(work_dir, sources)
        self._init_output(experiment_name, log_level, progress)
        self.cfg, self.train_step, self.val_step = cfg, train_step, val_step
        self.device = resolve_device(device, self.ranks.local_rank)
        self.model = check_model(model).to(self.device)
        self._init_bus(bus, offload)
        known = self.ranks.on_main(lambda: known_seed(folder)) if sources.resume else None
        chance = Randomness.parse(randomness, known)
        compiled = compile_options(compile)
        self._init_evaluation((val_dataloader, test_dataloader), (val_evaluator, test_evaluator))
        parts = {"train_dataloader": train_dataloader, "train_cfg": train_cfg, "train_step": train_step}
        parts.update(optimizer=optimizer, optim_wrapper=optim_wrapper, param_scheduler=param_scheduler)
        self._init_training(Training.parse(self.model, self.val_evaluator, parts), parallel)
        self._init_randomness(chance)
        self.register_hooks(default_hooks, custom_hooks)
        self._begin_in(folder, compiled)

    def _init_ranks(self) -> None:
        self.ranks = join()
        self.rank, self.world_size = self.ranks.rank, self.ranks.world
        self.distributed, self.is_main = self.ranks.several, self.ranks.is_main

    def _begin_in(self, folder: Path | None, compiled: dict[str, Any] | None) -> None:
        if compiled is not None:
            self.model.compile(**compiled)  # in place, so that the names in state_dict stay those of the model
        self.work_dir: Path = self.ranks.on_main(lambda: claim(folder))

    def _init_folder(self, work_dir: PathLike | None, sources: Sources) -> Path | None:
        folder: Path | None = self.ranks.on_main(lambda: folder_of(work_dir, sources.resume, sources.load_from))
        self.load_from, self.resume = absolute(sources.load_from), absolute(sources.resume)
        self.load_strict, self.skips_data = sources.load_strict, sources.skips_data
        return folder

    def _init_output(self, experiment_name: str | None, log_level: str, progress: bool) -> None:
        self.log = RunLog(log_level, self.rank)
        self.logger, self.log.on_failure = self.log.logger, self.end_for
        self.show_progress = progress
        self.timestamp = self.ranks.broadcast(time.strftime("%Y%m%d_%H%M%S"))
        self.experiment_name = experiment_name or f"{script_name()}_{self.timestamp}"
        self.message_hub = MessageHub(self.experiment_name)

    def _init_bus(self, bus: Bus | None, offload: Mapping[str, Any] | None) -> None:
        self.bus = default_bus if bus is None else bus
        self.ledger, self.offloading = Ledger(), Offloading.parse(offload)
        self.emitters = self.bus.emitters(self, self.ledger)
        self.session, self.progress, self.run_hooks = Session(), Progress(), RunHooks(self)

    def _init_randomness(self, randomness: Randomness) -> None:
        self.deterministic = randomness.deterministic
        self.session.seed = self.ranks.broadcast(randomness.seed)
        seed_all(self.seed + self.rank, self.deterministic)  # else all ranks would drop out the same units

    def _init_evaluation(self, loaders: Sequence[Any], metrics: Sequence[Any]) -> None:
        evaluators = parse_evaluation(self.model, self.val_step, loaders, metrics)
        self.val_evaluator, self.test_evaluator = evaluators
        self.val_loop = EvalLoop.of(self, "val", loaders[0], self.val_evaluator)
        self.test_loop = EvalLoop.of(self, "test", loaders[1], self.test_evaluator)

    def _init_training(self, training: Training | None, parallel: Parallel) -> None:
        self.optim_wrapper: Any = None
        self.param_schedulers: Any = []
        self.train_loop: EpochBasedTrainLoop | IterBasedTrainLoop | None = None
        self.updates_itself = False
        if training is not None:
            self.optim_wrapper, self.param_schedulers = training.optim, training.schedules
            self.updates_itself = training.updates_itself
            loop = EpochBasedTrainLoop if training.settings.by_epoch else IterBasedTrainLoop
            self.train_loop = loop(self, training.dataloader, training.settings)
            for argument, remark in training.remarks:
                self.logger.warning(argument, reason=remark)
        self.model = parallelize(self.model, parallel, self.ranks, self.device)
        if callable(parallel):  # fully_shard puts others in the place of the parameters
            check_parameters(self.model, (wrapper.optimizer for _, wrapper in self.optim_wrappers))
        if training is not None and self.distributed:
            self._check_ranks(training)

    def _check_ranks(self, training: Training) -> None:
        """Refuse what isn't the same on all ranks, whose collectives would wait for each other for ever."""
        self.ranks.check_same("train_cfg", training.settings)
        if reduces(self.model):
            self.ranks.check_same("the number of batches of the train_dataloader", batch_count(training.dataloader))

    @property
    def optim_wrappers(self) -> list[tuple[str, OptimWrapper]]:
        """The optimizers' wrappers, each with the prefix of its keys in the log: ``""``, or ``name.`` among several."""
        return named_wrappers(self.optim_wrapper)

    @property
    def unwrapped(self) -> nn.Module:
        """The model as it was given, where :attr:`model` wraps it for several ranks."""
        return unwrapped(self.model)

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            hint = None if name.startswith("_") else method_hint(name)
            raise AttributeError(f"Runner has no {name!r}: {hint}." if hint else f"Runner has no attribute {name!r}.")

    # What hooks read

    @property
    def mode(self) -> str | None:
        """``train``, ``val`` or ``test``, whichever is under way; None between them."""
        return self.session.mode

    @property
    def stop_reason(self) -> str:
        """Why the last session has ended, or the one under way is to end."""
        return self.session.stop_reason

    @property
    def seed(self) -> int:
        """What the generators began with; in a resumed run, that of the one that goes on."""
        return self.session.seed

    @property
    def epoch(self) -> int:
        """Epochs counted; 0 in the first."""
        return self.progress.epoch

    @property
    def iter(self) -> int:
        """Iterations counted; 0 in the first."""
        return self.progress.iter

    @property
    def max_epochs(self) -> int | None:
        """The epochs planned, or None without a training."""
        return None if self.train_loop is None else self.train_loop.max_epochs

    @property
    def max_iters(self) -> int | None:
        """The iterations planned, or None without a training or where the dataloader has no length."""
        return None if self.train_loop is None else self.train_loop.max_iters

    @property
    def train_dataloader(self) -> Any:
        """The train loop's dataloader; one that is set is used from the next epoch on."""
        return None if self.train_loop is None else self.train_loop.dataloader

    @train_dataloader.setter
    def train_dataloader(self, loader: Any) -> None:
        if self.train_loop is None:
            raise OptionError("setting train_dataloader of a Runner that was made without a training.")
        check_loader("train_dataloader", loader)
        self.train_loop.dataloader = loader

    @property
    def val_dataloader(self) -> Any:
        """The validation loop's dataloader."""
        return None if self.val_loop is None else self.val_loop.dataloader

    @property
    def test_dataloader(self) -> Any:
        """The test loop's dataloader."""
        return None if self.test_loop is None else self.test_loop.dataloader

    build_dataloader = staticmethod(build_dataloader)

    @property
    def _resume(self) -> bool:
        """Whether the run goes on with an earlier one, by the name that MMEngine's hooks ask for."""
        return bool(self.resume)

    @property
    def log_dir(self) -> Path:
        """Where logs are: the run's folder."""
        return self.work_dir

    @property
    def checkpoint_dir(self) -> Path:
        """Where checkpoints are: the run's folder, unless CheckpointHook has an ``out_dir``."""
        return self.session.checkpoint_folder or self.work_dir

    @property
    def hooks(self) -> list[Hook]:
        """The registered hooks in order of priority, then of registration."""
        return self.run_hooks.hooks()

    # Receivers

    def on(self, site: str, **options: Any) -> Callable[[F], F]:
        """Decorate a function to be called when this run emits *site*; options as in ``Site.connect``."""
        return self.bus.on(site, sender=self, depth=2, **options)

    def watch(self, pattern: str = "*", backward: bool = False) -> ModuleWatch:
        """Put the modules whose names match *pattern* on the bus; see :func:`.watch_modules`."""
        return watch_modules(self.model, pattern, bus=self.bus, sender=self, backward=backward)

    def register_hook(self, hook: Hook | Mapping[str, Any], priority: int | str | Priority | None = None) -> HookHandle:
        """Register a hook, or build and register one from ``dict(type=…, priority=…, **options)``.

        The priority is the argument, else the dict's, else the class's. The dict is left as it is. Registering the
        same object again replaces its priority.

        Raises:
            HookError: neither a hook nor a dict, or a method that no site calls.
            OptionError: a type or option that there isn't, or a value that can't be.
        """
        return self.run_hooks.add(hook, priority)

    def register_default_hooks(self, hooks: Mapping[str, Any] | None = None) -> None:
        """Register the six default hooks with *hooks* in place of those it names."""
        self.run_hooks.add_defaults(hooks)

    def register_custom_hooks(self, hooks: Sequence[Any]) -> None:
        """Register *hooks* in order."""
        self.run_hooks.add_custom(hooks)

    def register_hooks(
        self, default_hooks: Mapping[str, Any] | None = None, custom_hooks: Sequence[Any] | None = None
    ) -> None:
        """Register the default hooks, then the custom ones; where one is refused, none stays."""
        self.run_hooks.add_all(default_hooks, custom_hooks)

    def begin_hooks(self) -> None:
        """Have the hooks that another run was given, and has used since, begin afresh in this one."""
        self.run_hooks.begin()

    def get_hooks_info(self) -> str:
        """Return the receivers of this run by site, in the order in which they run."""
        return str(self.bus.describe(self))

    def call_hook(self, name: str, **payload: Any) -> None:
        """Emit the site called *name*, a custom one too.

        Raises:
            UnknownSiteError: nobody declared it and no hook implements it.
            SignatureError: the payload isn't the site's.
        """
        self.bus.find(name, f"call_hook({name!r})").emit(self, **payload)

    # Running

    def train(self) -> nn.Module:
        """Train to the end, or to a stop; returns the model. Called again after a stop, it goes on."""
        if self.train_loop is None:
            raise OptionError(
                "train() needs train_dataloader, train_cfg and an optimizer; Runner was made without them."
            )
        with running(self, "train"):
            try:
                self.train_loop.run()
            finally:
                self.train_loop.end()
        return self.model

    def val(self) -> dict[str, float]:
        """Validate once; returns the metrics by name."""
        return self._evaluate("val", self.val_loop)

    def test(self) -> dict[str, float]:
        """Test once; returns the metrics by name."""
        return self._evaluate("test", self.test_loop)

    def _evaluate(self, mode: str, loop: EvalLoop | None) -> dict[str, float]:
        if loop is None:
            raise OptionError(f"{mode}() needs {mode}_dataloader and {mode}_evaluator; Runner was made without them.")
        with running(self, mode):
            return loop.run()

    def stop(self, reason: str = "stopped") -> None:
        """Stop training after the iteration under way; the run is left as it would be at its end.

        Any rank may ask; of several, all stop after the same iteration, which may be one or two later.

        Raises:
            OptionError: the reason is one of those that say how a run ended by itself.
        """
        self.session.stop(reason, sys._getframe(1))  # noqa: SLF001  # who stopped it is worth a line at the end

    def end_for(self, error: OSError) -> None:
        """Have the training stop after this iteration and save, and fail with *error* then; any thread may call it."""
        if self.session.log_failure is None:
            self.session.log_failure = error
            self.session.request(self.session.end_training)

    def defer(self, action: Callable[[], Any], mutates: bool = True) -> None:
        """Have *action* called once all receivers of the site under way have run.

        At the sites within an iteration that is when the iteration is done; at ``after_run`` it is never. One that
        writes to no weights says ``mutates=False``; any other waits for a save that is still copying them.
        """
        self.session.request(functools.partial(_after, self.wait_for_copies, action) if mutates else action)

    # In the background

    def offload_view(self) -> RunView:
        """Return what an offloaded receiver gets in place of the run."""
        return RunView.of(self)

    def wait_for_copies(self) -> None:
        """Wait until weights may be written to by what is neither an optimizer's step nor a receiver.

        For a ``train_step`` that changes weights before its step, for one: a save may still be copying them. Returns at
        once where none is.
        """
        self.bus.wait_for_copies()

    def flush(self, lane: str | None = None, timeout: float | None = None) -> None:
        """Wait until everything that was offloaded, or put into one lane, is done, and raise what failed of it.

        Raises:
            LaneTimeoutError: it wasn't within *timeout* seconds; names the job that runs.
        """
        self.session.flush(lane, timeout)

    def account(self) -> RunAccount:
        """Return what each receiver and the saves have cost, in the session under way or the last; ``print()`` it."""
        return account_of(self)

    def trace(self, path: PathLike) -> None:
        """Record every call of a receiver from now on, and write it to *path* when the session ends.

        The file is for chrome://tracing or ui.perfetto.dev. Without a call of this, jobs in lanes and saves are
        recorded all the same, so that after a session it writes those at once. Recording costs half a microsecond per
        call; the last 200,000 are kept.

        Raises:
            OptionError: the folder that it is to go to isn't there.
        """
        begin_trace(self, path)

    def save_checkpoint(
        self,
        out_dir: PathLike,
        filename: str | None = None,
        *,
        save_optimizer: bool = True,
        save_param_scheduler: bool = True,
        meta: Mapping[str, Any] | None = None,
        by_epoch: bool | None = None,
        backend_args: None = None,
    ) -> Path | None:
        """Save the run's state as a folder, complete and durable when this returns; None on other ranks.

        Args:
            out_dir: Where to save; or, without *filename*, the folder's name where this run's checkpoints are.
            filename: The folder's name in *out_dir*.
            save_optimizer: Whether the optimizer's state is saved; without it the checkpoint can't be resumed from.
            save_param_scheduler: The same of the schedulers' states.
            meta: Anything to note in the manifest.
            by_epoch: MMEngine's, as the next; of no use here, where the counters say what is complete.
            backend_args: See *by_epoch*.

        Raises:
            CheckpointError: something in the state can't be held by a checkpoint.
            OSError: the disk refused; nothing was changed.
        """
        parts = {"save_optimizer": save_optimizer, "save_param_scheduler": save_param_scheduler}
        return save_now(self, out_dir, filename, meta, **parts) if self.is_main else None

    def delete_checkpoint(self, name: str) -> None:
        """Have checkpoint *name* deleted once what was saved before is committed and nobody may be reading it.

        That is, once the offloaded receivers of ``after_commit_checkpoint`` (uploads, for one) have done what they
        were given so far. One that has gone already is no error.
        """
        saver = self.session.saver or open_saver(self, mode="sync")
        saver.delete(name, after=readers(self))


def _after(wait: Callable[[], None], action: Callable[[], Any]) -> None:
    wait()
    action()


def _refuse_import(caller: FrameType) -> None:
    """Refuse to begin a run in a process that only imports the script to find a function in it."""
    frame: FrameType | None = caller
    while frame is not None:
        if frame.f_globals.get("__name__") == "__mp_main__" and frame.f_code.co_name == "<module>":
            raise OptionError(
                "Runner() was called while a worker process imports the script; put what runs under "
                "if __name__ == '__main__':, so that worker='process' can find its functions."
            )
        frame = frame.f_back


def _refuse_unknown(arguments: Mapping[str, Any]) -> None:
    known = Runner.__init__.__kwdefaults__ or {}
    for name in arguments:
        hint = argument_hint(name)
        reason = f": {hint}." if hint else did_you_mean(name, known) or f"; it takes {listed(known)}."
        raise ArgumentError(f"Runner() has no argument {name!r}{reason}")
