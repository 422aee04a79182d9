"""The catalogue of sites: their names, what they carry, and when a run emits them.

The first 22 are MMEngine's (``mmengine/hooks/hook.py``), with its names, payloads and order; its users' hooks depend
on all three. The others were added for a reason that each states. ``runner`` is no part of a payload: it is the
sender, and every receiver may have it.

Counters at a site: ``runner.epoch`` and ``runner.iter`` are 0-based and advance *after* ``after_train_epoch`` and
``after_train_iter``. So at a train site they number the epoch or iteration that is under way, and in a validation
nested in training, which comes after the advance, they are the number of those completed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["CATALOGUE", "MODULE_SITES", "NOT_SENDERS", "RUN_SITES", "SiteSpec", "Unit"]

Unit = Literal["epoch", "iter", "emission"]
"""What ``every=`` counts at a site: the sender's epochs, its iterations, or the emissions that the connection saw."""


@dataclass(frozen=True, slots=True)
class SiteSpec:
    """One site as declared: ``payload`` names the keyword arguments of an emission, besides the sender."""

    name: str
    payload: tuple[str, ...]
    doc: str
    unit: Unit = "emission"


NOT_SENDERS = frozenset({"batch", "epoch", "iter", "iteration", "logs", "loss", "model", "optimizer", "output"})
"""Parameters of these names aren't meant for the runner, though nothing in a payload is called so."""

_ITER = ("batch_idx", "data_batch")
_ITER_OUT = (*_ITER, "outputs")

RUN_SITES: tuple[SiteSpec, ...] = (
    SiteSpec("before_run", (), "Once per train(), val() or test(), before weights are loaded."),
    SiteSpec(
        "after_load_checkpoint",
        ("checkpoint",),
        "A checkpoint was read and verified; its dict may still be changed, the run has taken nothing from it yet.",
    ),
    SiteSpec("before_train", (), "The training is about to begin, at its first epoch or where it was resumed."),
    SiteSpec(
        "before_train_epoch",
        (),
        "An epoch is about to begin (by iterations: once, before the first). The loop asks for its dataloader after "
        "this site, so a receiver may replace it. The model is in train mode; a receiver may freeze parts of it.",
        "epoch",
    ),
    SiteSpec("before_train_iter", _ITER, "A batch is on the device and about to go forward.", "iter"),
    SiteSpec(
        "before_optimizer_step",
        (),
        "Gradients are complete, unscaled and not yet clipped; no weight has changed. Not in MMEngine: here one looks "
        "at or edits gradients, and here a weight that is being copied must have been copied. Skipped by an iteration "
        "that only accumulates; every= counts steps.",
    ),
    SiteSpec(
        "after_optimizer_step",
        (),
        "The weights have changed and the gradients are still there. Not in MMEngine: the one place to see an update. "
        "every= counts steps.",
    ),
    SiteSpec(
        "after_train_iter",
        _ITER_OUT,
        "Forward, backward and the optimizer's step of a batch are done; outputs is what train_step returned.",
        "iter",
    ),
    SiteSpec(
        "after_train_epoch",
        (),
        "An epoch is complete (by iterations: once, after the last). Not emitted by an epoch that was stopped midway.",
        "epoch",
    ),
    SiteSpec("before_val", (), "A validation is about to begin, within training or by val()."),
    SiteSpec("before_val_epoch", (), "The same moment, once more, for hooks that share code between the modes."),
    SiteSpec("before_val_iter", _ITER, "A validation batch is about to go forward."),
    SiteSpec("after_val_iter", _ITER_OUT, "outputs is what val_step returned; the metrics were updated with it."),
    SiteSpec("after_val_epoch", ("metrics",), "metrics maps each name to a float, in the evaluator's order."),
    SiteSpec("after_val", (), "The validation is over and every submodule is in the mode it had before."),
    SiteSpec(
        "before_save_checkpoint",
        ("checkpoint",),
        "The dict that is about to be saved, on the saving rank; receivers may change it. Nested in the site that "
        "led to the save, after all of that site's receivers, whose state is thus complete in it.",
    ),
    SiteSpec(
        "after_commit_checkpoint",
        ("path", "step"),
        "The checkpoint at path is complete on disk, synced and under its final name; step is the number of "
        "iterations it has completed. Not in MMEngine, where nothing says when a file may be read or uploaded.",
    ),
    SiteSpec(
        "on_log",
        ("scalars", "step"),
        "LoggerHook gathered an interval or a validation: plain floats by key, and the iterations completed. Not in "
        "MMEngine: with it every experiment tracker is a plain receiver.",
    ),
    SiteSpec("after_train", (), "The training is over, for whatever reason: runner.stop_reason says which."),
    SiteSpec("before_test", (), "A test is about to begin."),
    SiteSpec("before_test_epoch", (), "The same moment, once more, for hooks that share code between the modes."),
    SiteSpec("before_test_iter", _ITER, "A test batch is about to go forward."),
    SiteSpec("after_test_iter", _ITER_OUT, "outputs is what val_step returned; the metrics were updated with it."),
    SiteSpec("after_test_epoch", ("metrics",), "metrics maps each name to a float, in the evaluator's order."),
    SiteSpec("after_test", (), "The test is over."),
    SiteSpec(
        "on_exception",
        ("exception",),
        "The run is failing with exception, KeyboardInterrupt included; it will propagate whatever receivers do. Not "
        "in MMEngine, whose hooks never hear of a failure.",
    ),
    SiteSpec(
        "on_receiver_error",
        ("site", "error"),
        "A receiver at site failed with error while the run was already failing, so the error doesn't propagate: the "
        "first failure must not be masked by a later one, and the later one must not be lost.",
    ),
    SiteSpec("after_run", (), "The very last site of train(), val() or test(), emitted on failure too."),
)
"""The sites of a run; each is a method of ``Hook``."""

MODULE_SITES: tuple[SiteSpec, ...] = (
    SiteSpec(
        "before_forward", ("name", "module", "inputs", "kwargs"), "A watched module is about to run on inputs, a tuple."
    ),
    SiteSpec(
        "after_forward", ("name", "module", "inputs", "kwargs", "outputs"), "A watched module has produced outputs."
    ),
    SiteSpec(
        "after_backward",
        ("name", "module", "grad_inputs", "grad_outputs"),
        "The gradients with respect to a watched module's inputs are there; both are tuples.",
    ),
)
"""What :func:`eventrunner.training.modules.watch_modules` emits: PyTorch's module hooks as sites."""

CATALOGUE: tuple[SiteSpec, ...] = RUN_SITES + MODULE_SITES
