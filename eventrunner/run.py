"""What a receiver may use of a run: :class:`Run` while it goes on, and :class:`RunView` of one moment of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from eventrunner.errors import did_you_mean, listed
from eventrunner.session.session import RunFacts, Session

if TYPE_CHECKING:
    import torch
    from torch import nn

    from eventrunner.bus.bus import Bus
    from eventrunner.bus.emissions import Emitters
    from eventrunner.bus.ledger import Ledger
    from eventrunner.ranks.world import Ranks
    from eventrunner.report.hub import MessageHub
    from eventrunner.report.log import RunLog
    from eventrunner.session.settings import Offloading
    from eventrunner.training.evaluator import Evaluator
    from eventrunner.training.optim import OptimWrapper
    from eventrunner.training.position import DataPosition
    from eventrunner.training.state import Progress

__all__ = ["Run", "RunView", "RunningEvaluation", "RunningTraining"]


class RunningTraining(Protocol):
    """The train loop, as receivers see it."""

    by_epoch: bool
    dataloader: Any
    position: DataPosition
    val_begin: int
    val_interval: int
    running: bool
    stop_training: bool
    """Set it to end the training after the iteration under way; :meth:`Run.stop` also says why."""
    stepped_late: bool
    reloading: tuple[int, int] | None

    @property
    def epoch(self) -> int:
        """Epochs counted."""

    @property
    def iter(self) -> int:
        """Iterations counted."""

    @property
    def max_epochs(self) -> int:
        """The epochs planned; 1 where the training goes by iterations."""

    @property
    def max_iters(self) -> int | None:
        """The iterations planned, as far as they are known."""

    @property
    def completed(self) -> int:
        """What is complete in the loop's own unit."""

    @property
    def validated(self) -> bool:
        """Whether the present state was validated."""

    def state_dict(self) -> dict[str, Any]:
        """Return counters and data position."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where :meth:`state_dict` was taken."""


class RunningEvaluation(Protocol):
    """The loop of a validation or test, as receivers see it."""

    dataloader: Any
    running: bool

    def run(self) -> dict[str, float]:
        """Evaluate; returns the metrics by name."""


class Run(Protocol):
    """A run, as its receivers and hooks see it; what they are called with is the Runner itself.

    The names are MMEngine's where it has one. Everything is for reading: what a receiver changes, it changes by a
    method, or in an object that it finds here (the model, a loop's ``stop_training``).
    """

    rank: int
    world_size: int
    distributed: bool
    is_main: bool
    """Whether this is the process that writes: the one of rank 0."""
    ranks: Ranks
    """The processes of the run, and what they do together."""
    device: torch.device
    work_dir: Path
    experiment_name: str
    cfg: Any
    resume: Any
    """What the Runner was given: False, True or a path."""
    load_from: Any
    """The weights that the Runner was given to begin with."""
    load_strict: bool
    offloading: Offloading
    show_progress: bool
    log: RunLog
    logger: Any
    """structlog's: ``runner.logger.info("event", key=value)``."""
    bus: Bus
    emitters: Emitters
    ledger: Ledger
    session: Session
    """What lives from ``train()``, ``val()`` or ``test()`` to its end."""
    model: nn.Module
    message_hub: MessageHub
    progress: Progress
    optim_wrapper: Any
    """An ``OptimWrapper`` or an ``OptimWrapperDict``; None without a training."""
    param_schedulers: Any
    train_step: Callable[..., Any] | None
    val_step: Callable[..., Any] | None
    updates_itself: bool
    """Whether the train step updates the weights itself."""
    skips_data: bool
    """Whether a resumed pass leaves used batches out unloaded."""
    val_evaluator: Evaluator | None
    test_evaluator: Evaluator | None

    @property
    def unwrapped(self) -> nn.Module:
        """The model as it was given, where ``model`` wraps it for several ranks."""

    @property
    def seed(self) -> int:
        """The seed that the run began with, that of the resumed one included."""

    @property
    def mode(self) -> str | None:
        """Return ``train``, ``val`` or ``test``, whichever is under way; None between them."""

    @property
    def stop_reason(self) -> str:
        """Why the session has ended or is to end; empty as long as it isn't."""

    @property
    def epoch(self) -> int:
        """Epochs counted; 0 in the first."""

    @property
    def iter(self) -> int:
        """Iterations counted; 0 in the first."""

    @property
    def max_epochs(self) -> int | None:
        """The epochs planned, or None without a training."""

    @property
    def max_iters(self) -> int | None:
        """The iterations planned, or None where that isn't known."""

    @property
    def train_loop(self) -> RunningTraining | None:
        """The train loop; None without a training."""

    @property
    def val_loop(self) -> RunningEvaluation | None:
        """The validation's loop; None without one."""

    @property
    def test_loop(self) -> RunningEvaluation | None:
        """The test's loop; None without one."""

    @property
    def train_dataloader(self) -> Any:
        """The train loop's dataloader."""

    @property
    def val_dataloader(self) -> Any:
        """The validation loop's dataloader."""

    @property
    def test_dataloader(self) -> Any:
        """The test loop's dataloader."""

    @property
    def optim_wrappers(self) -> list[tuple[str, OptimWrapper]]:
        """The optimizers' wrappers, each with the prefix of its keys in the log."""

    @property
    def log_dir(self) -> Path:
        """Where logs are."""

    @property
    def checkpoint_dir(self) -> Path:
        """Where checkpoints are."""

    @property
    def hooks(self) -> Sequence[Any]:
        """The registered ``Hook`` objects in order of priority, then of registration."""

    def call_hook(self, name: str, **payload: Any) -> None:
        """Emit the site called *name*, a custom one too."""

    def defer(self, action: Callable[[], Any], mutates: bool = True) -> None:
        """Have *action* called once all receivers of the site under way have run."""

    def stop(self, reason: str = "stopped") -> None:
        """Stop training after the iteration under way."""

    def end_for(self, error: OSError) -> None:
        """Have the training stop after this iteration and save, and fail with *error* then; any thread may call it."""

    def wait_for_copies(self) -> None:
        """Wait until weights may be written to by what is neither an optimizer's step nor a receiver."""

    def flush(self, lane: str | None = None, timeout: float | None = None) -> None:
        """Wait until everything that was offloaded, or put into one lane, is done, and raise what failed of it."""

    def begin_hooks(self) -> None:
        """Have the hooks that another run was given, and has used since, begin afresh in this one."""

    def delete_checkpoint(self, name: str) -> None:
        """Have checkpoint *name* deleted once what was saved before is committed and nobody may be reading it."""

    def get_hooks_info(self) -> str:
        """Return the receivers of this run by site, in the order in which they run."""


@dataclass(frozen=True, slots=True)
class RunView:
    """A run at one moment. It has numbers and names alone, so that nothing that training has since changed is read.

    Attributes:
        epoch: As ``runner.epoch`` was.
        iter: As ``runner.iter`` was.
        scalars: The latest row that LoggerHook gathered, by key.
        facts: What stays the same; each is also an attribute of the view itself.
    """

    epoch: int
    iter: int
    scalars: Mapping[str, float]
    facts: RunFacts

    @classmethod
    def of(cls, run: Run) -> RunView:
        """Look at *run* as it is now."""
        session = run.session
        if session.facts is None:
            session.facts = RunFacts(**{name: getattr(run, name) for name in RunFacts.__slots__})
        return cls(run.epoch, run.iter, session.scalars, session.facts)

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            if name in RunFacts.__slots__:
                return getattr(self.facts, name)
            known = ("epoch", "iter", "scalars", *RunFacts.__slots__)
            raise AttributeError(
                f"an offloaded receiver sees no {name!r} of the run, only {listed(known)}; name the payload that it "
                f"needs, or connect it with offload=False{did_you_mean(name, known) or '.'}"
            )
