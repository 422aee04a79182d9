"""What other frameworks call things, so that an error can say what the thing is called here.

These are hints for messages and nothing else: no name in these tables works as an alias. One table each for names of
sites, for arguments of ``Runner`` and for its methods and attributes. A name that is a site, an
argument or an attribute here as well isn't in them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

__all__ = [
    "ARGUMENTS",
    "METHODS",
    "PRIVATE",
    "SITES",
    "Foreign",
    "argument_hint",
    "method_hint",
    "private_hint",
    "site_hint",
]


@dataclass(frozen=True, slots=True)
class Foreign:
    """A name from elsewhere.

    ``owner`` says whose it is, in the possessive. ``here`` completes the sentence *here …*: a clause without a full
    stop, with names of sites, and no others, in single quotes.
    """

    owner: str
    here: str


_LIGHTNING = "Lightning's"
_IGNITE = "Ignite's"
_HF = "Hugging Face's"
_KERAS = "Keras'"
_COMPOSER = "Composer's"
_TNT = "torchtnt's"
_FASTAI = "fastai's"
_MMENGINE = "MMEngine's"
_MMCV = "MMCV's"

_LIGHTNING_KERAS = "Lightning's and Keras'"
_LIGHTNING_HF = "Lightning's and Hugging Face's"
_KERAS_HF = "Keras' and Hugging Face's"
_LIGHTNING_KERAS_HF = "Lightning's, Keras' and Hugging Face's"

SITES: Mapping[str, Foreign] = {
    # a whole run
    "on_fit_start": Foreign(_LIGHTNING, "it is 'before_run'"),
    "on_fit_end": Foreign(_LIGHTNING, "it is 'after_run'"),
    "on_init_end": Foreign(_HF, "it is 'before_run'"),
    "on_train_start": Foreign(_LIGHTNING, "it is 'before_train'"),
    "on_train_begin": Foreign(_KERAS_HF, "it is 'before_train'"),
    "on_train_end": Foreign(_LIGHTNING_KERAS_HF, "it is 'after_train'"),
    "before_fit": Foreign(_FASTAI, "it is 'before_train'"),
    "after_fit": Foreign(_FASTAI, "it is 'after_train'"),
    "STARTED": Foreign(_IGNITE, "it is 'before_train'"),
    "COMPLETED": Foreign(_IGNITE, "it is 'after_train'"),
    "TERMINATE": Foreign(_IGNITE, "it is 'after_train', where runner.stop_reason says why the run ends"),
    "EXCEPTION_RAISED": Foreign(_IGNITE, "it is 'on_exception', after which the exception propagates"),
    "on_start": Foreign(_TNT, "it is 'before_train'"),
    "on_end": Foreign(_TNT, "it is 'after_train'"),
    # an epoch
    "on_train_epoch_start": Foreign(_LIGHTNING, "it is 'before_train_epoch'"),
    "on_train_epoch_end": Foreign(_LIGHTNING, "it is 'after_train_epoch'"),
    "on_epoch_begin": Foreign(_KERAS_HF, "it is 'before_train_epoch'"),
    "on_epoch_end": Foreign(_KERAS_HF, "it is 'after_train_epoch', or 'after_val_epoch' once it has been validated"),
    "EPOCH_STARTED": Foreign(_IGNITE, "it is 'before_train_epoch'"),
    "EPOCH_COMPLETED": Foreign(_IGNITE, "it is 'after_train_epoch'"),
    "epoch_start": Foreign(_COMPOSER, "it is 'before_train_epoch'"),
    "epoch_end": Foreign(_COMPOSER, "it is 'after_train_epoch'"),
    "before_epoch": Foreign(
        "MMCV's and fastai's", "it is 'before_train_epoch', or the method '_before_epoch' for all modes"
    ),
    "after_epoch": Foreign(
        "MMCV's and fastai's", "it is 'after_train_epoch', or the method '_after_epoch' for all modes"
    ),
    # an iteration
    "on_train_batch_start": Foreign(_LIGHTNING, "it is 'before_train_iter'"),
    "on_train_batch_begin": Foreign(_KERAS, "it is 'before_train_iter'"),
    "on_train_batch_end": Foreign(_LIGHTNING_KERAS, "it is 'after_train_iter'"),
    "on_batch_begin": Foreign(_KERAS, "it is 'before_train_iter'"),
    "on_batch_end": Foreign(_KERAS, "it is 'after_train_iter'"),
    "on_step_begin": Foreign(_HF, "it is 'before_train_iter'"),
    "on_step_end": Foreign(_HF, "it is 'after_train_iter', or 'after_optimizer_step' where batches accumulate"),
    "on_substep_end": Foreign(_HF, "it is 'after_train_iter', which every batch passes"),
    "on_train_step_start": Foreign(_TNT, "it is 'before_train_iter'"),
    "on_train_step_end": Foreign(_TNT, "it is 'after_train_iter'"),
    "ITERATION_STARTED": Foreign(_IGNITE, "it is 'before_train_iter'"),
    "ITERATION_COMPLETED": Foreign(_IGNITE, "it is 'after_train_iter'"),
    "batch_start": Foreign(_COMPOSER, "it is 'before_train_iter'"),
    "batch_end": Foreign(_COMPOSER, "it is 'after_train_iter'"),
    "before_batch": Foreign(_FASTAI, "it is 'before_train_iter'"),
    "after_batch": Foreign(_FASTAI, "it is 'after_train_iter'"),
    "before_iter": Foreign(_MMCV, "it is 'before_train_iter', or the method '_before_iter' for all modes"),
    "after_iter": Foreign(_MMCV, "it is 'after_train_iter', or the method '_after_iter' for all modes"),
    # a step
    "on_before_backward": Foreign(_LIGHTNING, "backward follows train_step, which can still change its loss"),
    "on_after_backward": Foreign(_LIGHTNING, "it is 'before_optimizer_step', where gradients are complete"),
    "on_before_optimizer_step": Foreign(_LIGHTNING, "it is 'before_optimizer_step'"),
    "on_before_zero_grad": Foreign(_LIGHTNING, "it is 'after_optimizer_step'"),
    "on_pre_optimizer_step": Foreign(_HF, "it is 'before_optimizer_step'"),
    "on_optimizer_step": Foreign(_HF, "it is 'after_optimizer_step'"),
    "before_step": Foreign(_FASTAI, "it is 'before_optimizer_step'"),
    "after_step": Foreign(_FASTAI, "it is 'after_optimizer_step'"),
    # validation
    "on_validation_start": Foreign(_LIGHTNING, "it is 'before_val'"),
    "on_validation_end": Foreign(_LIGHTNING, "it is 'after_val'"),
    "on_validation_epoch_start": Foreign(_LIGHTNING, "it is 'before_val_epoch'"),
    "on_validation_epoch_end": Foreign(_LIGHTNING, "it is 'after_val_epoch'"),
    "on_validation_batch_start": Foreign(_LIGHTNING, "it is 'before_val_iter'"),
    "on_validation_batch_end": Foreign(_LIGHTNING, "it is 'after_val_iter'"),
    "on_evaluate": Foreign(_HF, "it is 'after_val_epoch'"),
    "on_prediction_step": Foreign(_HF, "it is 'after_val_iter'"),
    "on_eval_start": Foreign(_TNT, "it is 'before_val'"),
    "on_eval_end": Foreign(_TNT, "it is 'after_val'"),
    "on_eval_step_end": Foreign(_TNT, "it is 'after_val_iter'"),
    # test
    "on_test_start": Foreign(_LIGHTNING, "it is 'before_test'"),
    "on_test_begin": Foreign(_KERAS, "it is 'before_test', or 'before_val' within training"),
    "on_test_end": Foreign(_LIGHTNING_KERAS, "it is 'after_test', or 'after_val' within training"),
    "on_test_epoch_start": Foreign(_LIGHTNING, "it is 'before_test_epoch'"),
    "on_test_epoch_end": Foreign(_LIGHTNING, "it is 'after_test_epoch'"),
    "on_test_batch_start": Foreign(_LIGHTNING, "it is 'before_test_iter'"),
    "on_test_batch_begin": Foreign(_KERAS, "it is 'before_test_iter', or 'before_val_iter' within training"),
    "on_test_batch_end": Foreign(_LIGHTNING_KERAS, "it is 'after_test_iter', or 'after_val_iter' within training"),
    # checkpoints
    "on_save_checkpoint": Foreign(_LIGHTNING, "it is 'before_save_checkpoint'"),
    "on_load_checkpoint": Foreign(_LIGHTNING, "it is 'after_load_checkpoint'"),
    "on_save": Foreign(_HF, "it is 'after_commit_checkpoint'"),
}
"""Names of sites; Ignite's without their ``Events.``, Composer's without their ``Event.``."""

ARGUMENTS: Mapping[str, Foreign] = {
    "callbacks": Foreign(_LIGHTNING_KERAS_HF, "hooks are passed as custom_hooks=[…]"),
    "epochs": Foreign(_KERAS, "it is train_cfg=dict(max_epochs=…)"),
    "max_epochs": Foreign(_LIGHTNING, "it is train_cfg=dict(max_epochs=…)"),
    "num_train_epochs": Foreign(_HF, "it is train_cfg=dict(max_epochs=…)"),
    "max_steps": Foreign(_LIGHTNING_HF, "it is train_cfg=dict(by_epoch=False, max_iters=…)"),
    "output_dir": Foreign(_HF, "it is work_dir=…"),
    "default_root_dir": Foreign(_LIGHTNING, "it is work_dir=…"),
    "resume_from_checkpoint": Foreign(_HF, "it is resume=True, or resume=… with a path"),
    "ckpt_path": Foreign(_LIGHTNING, "it is resume=True, or resume=… with a path"),
    "seed": Foreign("Hugging Face's and Composer's", "it is randomness=dict(seed=…)"),
    "precision": Foreign("Lightning's and Composer's", "it is optim_wrapper=OptimWrapper(…, dtype=…)"),
    "accumulate_grad_batches": Foreign(_LIGHTNING, "it is optim_wrapper=OptimWrapper(…, accumulative_counts=…)"),
    "gradient_accumulation_steps": Foreign(_HF, "it is optim_wrapper=OptimWrapper(…, accumulative_counts=…)"),
    "gradient_clip_val": Foreign(_LIGHTNING, "it is optim_wrapper=OptimWrapper(…, clip_grad=dict(max_norm=…))"),
    "max_grad_norm": Foreign(_HF, "it is optim_wrapper=OptimWrapper(…, clip_grad=dict(max_norm=…))"),
    "metrics": Foreign(_KERAS, "metrics are passed by name as val_evaluator={…}"),
    "compute_metrics": Foreign(_HF, "metrics are passed by name as val_evaluator={…}"),
    "test_cfg": Foreign(_MMENGINE, "what is tested is said by test_dataloader=… and test_evaluator=…"),
    "default_scope": Foreign(_MMENGINE, "there are no scopes: classes are imported, hooks are found in HOOKS"),
    "val_cfg": Foreign(_MMENGINE, "when to validate is said by train_cfg=dict(val_interval=…)"),
    "visualizer": Foreign(_MMENGINE, "what draws scalars is a receiver of 'on_log', given as one of custom_hooks=[…]"),
    "log_processor": Foreign(_MMENGINE, "lines and windows are set by default_hooks=dict(logger=dict(…))"),
    "env_cfg": Foreign(_MMENGINE, "the environment is the script's own; seeds are set by randomness=dict(seed=…)"),
    "data_preprocessor": Foreign(_MMENGINE, "batches go to device=… and train_step=… does the rest"),
    "launcher": Foreign(_MMENGINE, "nothing is launched: the script is run as it is"),
    "auto_scale_lr": Foreign(_MMENGINE, "the learning rate is the one that optimizer=… was made with"),
}
"""Names of arguments of ``Runner``."""

METHODS: Mapping[str, Foreign] = {
    "fit": Foreign("Lightning's, Keras' and Composer's", "training is started with train()"),
    "run": Foreign(_IGNITE, "training is started with train()"),
    "validate": Foreign(_LIGHTNING, "it is val()"),
    "evaluate": Foreign(_KERAS_HF, "it is val()"),
    "predict": Foreign(_LIGHTNING_KERAS_HF, "the model is run over test_dataloader by test()"),
    "compile": Foreign(_KERAS, "optimizer and train_step are passed to Runner(…), compile=… to it for torch.compile"),
    "terminate": Foreign(_IGNITE, "it is stop(reason)"),
    "should_stop": Foreign(_LIGHTNING, "a stop is asked for with stop(reason)"),
    "add_event_handler": Foreign(_IGNITE, "a function is connected with on(site)"),
    "fire_event": Foreign(_IGNITE, "it is call_hook(site)"),
    "add_callback": Foreign(_HF, "it is register_hook(hook)"),
    "from_cfg": Foreign(_MMENGINE, "objects are passed to Runner(…) themselves"),
    "visualizer": Foreign(_MMENGINE, "what draws scalars is a receiver of 'on_log'"),
    "optimizer": Foreign(_MMCV, "it is optim_wrapper.optimizer"),
    "load_checkpoint": Foreign(_MMENGINE, "weights are loaded by load_from=… when the Runner is made"),
    "current_epoch": Foreign(_LIGHTNING, "it is epoch"),
    "global_step": Foreign(_LIGHTNING, "it is iter"),
    "inner_iter": Foreign(_MMCV, "it is what iteration sites carry as batch_idx"),
    "data_loader": Foreign(_MMCV, "it is train_dataloader"),
}
"""Names of methods and attributes of ``Runner``."""


_SAVING = Foreign(_MMENGINE, "a save is seen at 'before_save_checkpoint' and 'after_commit_checkpoint'")
_RULE = Foreign(_MMENGINE, "whether more is better is said by rule=…")
_TRACING = Foreign(_MMENGINE, "traces are said by on_trace_ready=… and json_trace_path=…")

PRIVATE: Mapping[str, Mapping[str, Foreign]] = {
    "CheckpointHook": {
        "_save_checkpoint": _SAVING,
        "_save_checkpoint_with_step": _SAVING,
        "_save_best_checkpoint": Foreign(_MMENGINE, "the best is found at 'after_val_epoch' by save_best=…"),
        "_publish_model": Foreign(_MMENGINE, "what is published is said by published_keys=…"),
        "_init_rule": _RULE,
    },
    "EarlyStoppingHook": {
        "_check_stop_condition": Foreign(_MMENGINE, "the score is judged at 'after_val_epoch'"),
        "_init_rule": _RULE,
    },
    "EMAHook": {"_ema_started": Foreign(_MMENGINE, "the average begins by begin_iter=… or begin_epoch=…")},
    "LoggerHook": {"_process_tags": Foreign(_MMENGINE, "rows are looked at by receivers of 'on_log'")},
    "ProfilerHook": {"_parse_trace_config": _TRACING, "_export_chrome_trace": _TRACING},
}
"""Names of private methods of built-in hooks, which subclasses override there, and which nothing calls here."""


def _hint(table: Mapping[str, Foreign], name: str) -> str | None:
    found = table.get(name)
    return None if found is None else f"that is {found.owner} name; here {found.here}"


def site_hint(name: str) -> str | None:
    """Return what a foreign site is called here, or None: *that is Lightning's name; here it is 'after_train_epoch'*.

    Ignite's and Composer's are known as attributes (``Events.STARTED``, ``Event.EPOCH_END``) and as bare names too, in
    either case.
    """
    bare = name.removeprefix("Events.").removeprefix("Event.")
    return _hint(SITES, bare) or _hint(SITES, bare.upper()) or _hint(SITES, bare.lower())


def argument_hint(name: str) -> str | None:
    """Return what is passed to ``Runner`` in place of a foreign argument, or None."""
    return _hint(ARGUMENTS, name)


def method_hint(name: str) -> str | None:
    """Return what ``Runner`` has in place of a foreign method or attribute, or None."""
    return _hint(METHODS, name)


def private_hint(hook: str, name: str) -> str | None:
    """Return what there is in place of a foreign private method of a built-in hook, or None."""
    return _hint(PRIVATE.get(hook, {}), name)
