"""What other frameworks call things, so that an error can say what the thing is called here.

These are hints for messages and nothing else: no name in these tables works as an alias. One table each for names of
sites, for arguments of ``Runner`` and for its methods and attributes. A name that is a site, an
argument or an attribute here as well isn't in them.
"""

from __future__ import annotations

from collections.abc import Mapping

__all__ = [
    "ARGUMENTS",
    "METHODS",
    "PRIVATE",
    "SITES",
    "Hint",
    "argument_hint",
    "method_hint",
    "private_hint",
    "site_hint",
]


Hint = tuple[str, str]
"""Whose name it is, in the possessive; and what completes the sentence *here …*: a clause without a full stop, with
names of sites, and no others, in single quotes."""

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

SITES: Mapping[str, Hint] = {
    # a whole run
    "on_fit_start": (_LIGHTNING, "it is 'before_run'"),
    "on_fit_end": (_LIGHTNING, "it is 'after_run'"),
    "on_init_end": (_HF, "it is 'before_run'"),
    "on_train_start": (_LIGHTNING, "it is 'before_train'"),
    "on_train_begin": (_KERAS_HF, "it is 'before_train'"),
    "on_train_end": (_LIGHTNING_KERAS_HF, "it is 'after_train'"),
    "before_fit": (_FASTAI, "it is 'before_train'"),
    "after_fit": (_FASTAI, "it is 'after_train'"),
    "STARTED": (_IGNITE, "it is 'before_train'"),
    "COMPLETED": (_IGNITE, "it is 'after_train'"),
    "TERMINATE": (_IGNITE, "it is 'after_train', where runner.stop_reason says why the run ends"),
    "EXCEPTION_RAISED": (_IGNITE, "it is 'on_exception', after which the exception propagates"),
    "on_start": (_TNT, "it is 'before_train'"),
    "on_end": (_TNT, "it is 'after_train'"),
    # an epoch
    "on_train_epoch_start": (_LIGHTNING, "it is 'before_train_epoch'"),
    "on_train_epoch_end": (_LIGHTNING, "it is 'after_train_epoch'"),
    "on_epoch_begin": (_KERAS_HF, "it is 'before_train_epoch'"),
    "on_epoch_end": (_KERAS_HF, "it is 'after_train_epoch', or 'after_val_epoch' once it has been validated"),
    "EPOCH_STARTED": (_IGNITE, "it is 'before_train_epoch'"),
    "EPOCH_COMPLETED": (_IGNITE, "it is 'after_train_epoch'"),
    "epoch_start": (_COMPOSER, "it is 'before_train_epoch'"),
    "epoch_end": (_COMPOSER, "it is 'after_train_epoch'"),
    "before_epoch": ("MMCV's and fastai's", "it is 'before_train_epoch', or the method '_before_epoch' for all modes"),
    "after_epoch": ("MMCV's and fastai's", "it is 'after_train_epoch', or the method '_after_epoch' for all modes"),
    # an iteration
    "on_train_batch_start": (_LIGHTNING, "it is 'before_train_iter'"),
    "on_train_batch_begin": (_KERAS, "it is 'before_train_iter'"),
    "on_train_batch_end": (_LIGHTNING_KERAS, "it is 'after_train_iter'"),
    "on_batch_begin": (_KERAS, "it is 'before_train_iter'"),
    "on_batch_end": (_KERAS, "it is 'after_train_iter'"),
    "on_step_begin": (_HF, "it is 'before_train_iter'"),
    "on_step_end": (_HF, "it is 'after_train_iter', or 'after_optimizer_step' where batches accumulate"),
    "on_substep_end": (_HF, "it is 'after_train_iter', which every batch passes"),
    "on_train_step_start": (_TNT, "it is 'before_train_iter'"),
    "on_train_step_end": (_TNT, "it is 'after_train_iter'"),
    "ITERATION_STARTED": (_IGNITE, "it is 'before_train_iter'"),
    "ITERATION_COMPLETED": (_IGNITE, "it is 'after_train_iter'"),
    "batch_start": (_COMPOSER, "it is 'before_train_iter'"),
    "batch_end": (_COMPOSER, "it is 'after_train_iter'"),
    "before_batch": (_FASTAI, "it is 'before_train_iter'"),
    "after_batch": (_FASTAI, "it is 'after_train_iter'"),
    "before_iter": (_MMCV, "it is 'before_train_iter', or the method '_before_iter' for all modes"),
    "after_iter": (_MMCV, "it is 'after_train_iter', or the method '_after_iter' for all modes"),
    # a step
    "on_before_backward": (_LIGHTNING, "backward follows train_step, which can still change its loss"),
    "on_after_backward": (_LIGHTNING, "it is 'before_optimizer_step', where gradients are complete"),
    "on_before_optimizer_step": (_LIGHTNING, "it is 'before_optimizer_step'"),
    "on_before_zero_grad": (_LIGHTNING, "it is 'after_optimizer_step'"),
    "on_pre_optimizer_step": (_HF, "it is 'before_optimizer_step'"),
    "on_optimizer_step": (_HF, "it is 'after_optimizer_step'"),
    "before_step": (_FASTAI, "it is 'before_optimizer_step'"),
    "after_step": (_FASTAI, "it is 'after_optimizer_step'"),
    # validation
    "on_validation_start": (_LIGHTNING, "it is 'before_val'"),
    "on_validation_end": (_LIGHTNING, "it is 'after_val'"),
    "on_validation_epoch_start": (_LIGHTNING, "it is 'before_val_epoch'"),
    "on_validation_epoch_end": (_LIGHTNING, "it is 'after_val_epoch'"),
    "on_validation_batch_start": (_LIGHTNING, "it is 'before_val_iter'"),
    "on_validation_batch_end": (_LIGHTNING, "it is 'after_val_iter'"),
    "on_evaluate": (_HF, "it is 'after_val_epoch'"),
    "on_prediction_step": (_HF, "it is 'after_val_iter'"),
    "on_eval_start": (_TNT, "it is 'before_val'"),
    "on_eval_end": (_TNT, "it is 'after_val'"),
    "on_eval_step_end": (_TNT, "it is 'after_val_iter'"),
    # test
    "on_test_start": (_LIGHTNING, "it is 'before_test'"),
    "on_test_begin": (_KERAS, "it is 'before_test', or 'before_val' within training"),
    "on_test_end": (_LIGHTNING_KERAS, "it is 'after_test', or 'after_val' within training"),
    "on_test_epoch_start": (_LIGHTNING, "it is 'before_test_epoch'"),
    "on_test_epoch_end": (_LIGHTNING, "it is 'after_test_epoch'"),
    "on_test_batch_start": (_LIGHTNING, "it is 'before_test_iter'"),
    "on_test_batch_begin": (_KERAS, "it is 'before_test_iter', or 'before_val_iter' within training"),
    "on_test_batch_end": (_LIGHTNING_KERAS, "it is 'after_test_iter', or 'after_val_iter' within training"),
    # checkpoints
    "on_save_checkpoint": (_LIGHTNING, "it is 'before_save_checkpoint'"),
    "on_load_checkpoint": (_LIGHTNING, "it is 'after_load_checkpoint'"),
    "on_save": (_HF, "it is 'after_commit_checkpoint'"),
}
"""Names of sites; Ignite's without their ``Events.``, Composer's without their ``Event.``."""

ARGUMENTS: Mapping[str, Hint] = {
    "callbacks": (_LIGHTNING_KERAS_HF, "hooks are passed as custom_hooks=[…]"),
    "epochs": (_KERAS, "it is train_cfg=dict(max_epochs=…)"),
    "max_epochs": (_LIGHTNING, "it is train_cfg=dict(max_epochs=…)"),
    "num_train_epochs": (_HF, "it is train_cfg=dict(max_epochs=…)"),
    "max_steps": (_LIGHTNING_HF, "it is train_cfg=dict(by_epoch=False, max_iters=…)"),
    "output_dir": (_HF, "it is work_dir=…"),
    "default_root_dir": (_LIGHTNING, "it is work_dir=…"),
    "resume_from_checkpoint": (_HF, "it is resume=True, or resume=… with a path"),
    "ckpt_path": (_LIGHTNING, "it is resume=True, or resume=… with a path"),
    "seed": ("Hugging Face's and Composer's", "it is randomness=dict(seed=…)"),
    "precision": ("Lightning's and Composer's", "it is optim_wrapper=OptimWrapper(…, dtype=…)"),
    "accumulate_grad_batches": (_LIGHTNING, "it is optim_wrapper=OptimWrapper(…, accumulative_counts=…)"),
    "gradient_accumulation_steps": (_HF, "it is optim_wrapper=OptimWrapper(…, accumulative_counts=…)"),
    "gradient_clip_val": (_LIGHTNING, "it is optim_wrapper=OptimWrapper(…, clip_grad=dict(max_norm=…))"),
    "max_grad_norm": (_HF, "it is optim_wrapper=OptimWrapper(…, clip_grad=dict(max_norm=…))"),
    "metrics": (_KERAS, "metrics are passed by name as val_evaluator={…}"),
    "compute_metrics": (_HF, "metrics are passed by name as val_evaluator={…}"),
    "test_cfg": (_MMENGINE, "what is tested is said by test_dataloader=… and test_evaluator=…"),
    "default_scope": (_MMENGINE, "there are no scopes: classes are imported, hooks are found in HOOKS"),
    "val_cfg": (_MMENGINE, "when to validate is said by train_cfg=dict(val_interval=…)"),
    "visualizer": (_MMENGINE, "what draws scalars is a receiver of 'on_log', given as one of custom_hooks=[…]"),
    "log_processor": (_MMENGINE, "lines and windows are set by default_hooks=dict(logger=dict(…))"),
    "env_cfg": (_MMENGINE, "the environment is the script's own; seeds are set by randomness=dict(seed=…)"),
    "data_preprocessor": (_MMENGINE, "batches go to device=… and train_step=… does the rest"),
    "launcher": (_MMENGINE, "nothing is launched: the script is run as it is"),
    "auto_scale_lr": (_MMENGINE, "the learning rate is the one that optimizer=… was made with"),
}
"""Names of arguments of ``Runner``."""

METHODS: Mapping[str, Hint] = {
    "fit": ("Lightning's, Keras' and Composer's", "training is started with train()"),
    "run": (_IGNITE, "training is started with train()"),
    "validate": (_LIGHTNING, "it is val()"),
    "evaluate": (_KERAS_HF, "it is val()"),
    "predict": (_LIGHTNING_KERAS_HF, "the model is run over test_dataloader by test()"),
    "compile": (_KERAS, "optimizer and train_step are passed to Runner(…), compile=… to it for torch.compile"),
    "terminate": (_IGNITE, "it is stop(reason)"),
    "should_stop": (_LIGHTNING, "a stop is asked for with stop(reason)"),
    "add_event_handler": (_IGNITE, "a function is connected with on(site)"),
    "fire_event": (_IGNITE, "it is call_hook(site)"),
    "add_callback": (_HF, "it is register_hook(hook)"),
    "from_cfg": (_MMENGINE, "objects are passed to Runner(…) themselves"),
    "visualizer": (_MMENGINE, "what draws scalars is a receiver of 'on_log'"),
    "optimizer": (_MMCV, "it is optim_wrapper.optimizer"),
    "load_checkpoint": (_MMENGINE, "weights are loaded by load_from=… when the Runner is made"),
    "current_epoch": (_LIGHTNING, "it is epoch"),
    "global_step": (_LIGHTNING, "it is iter"),
    "inner_iter": (_MMCV, "it is what iteration sites carry as batch_idx"),
    "data_loader": (_MMCV, "it is train_dataloader"),
}
"""Names of methods and attributes of ``Runner``."""


_SAVING = (_MMENGINE, "a save is seen at 'before_save_checkpoint' and 'after_commit_checkpoint'")
_RULE = (_MMENGINE, "whether more is better is said by rule=…")
_TRACING = (_MMENGINE, "traces are said by on_trace_ready=… and json_trace_path=…")

PRIVATE: Mapping[str, Mapping[str, Hint]] = {
    "CheckpointHook": {
        "_save_checkpoint": _SAVING,
        "_save_checkpoint_with_step": _SAVING,
        "_save_best_checkpoint": (_MMENGINE, "the best is found at 'after_val_epoch' by save_best=…"),
        "_publish_model": (_MMENGINE, "what is published is said by published_keys=…"),
        "_init_rule": _RULE,
    },
    "EarlyStoppingHook": {
        "_check_stop_condition": (_MMENGINE, "the score is judged at 'after_val_epoch'"),
        "_init_rule": _RULE,
    },
    "EMAHook": {"_ema_started": (_MMENGINE, "the average begins by begin_iter=… or begin_epoch=…")},
    "LoggerHook": {"_process_tags": (_MMENGINE, "rows are looked at by receivers of 'on_log'")},
    "ProfilerHook": {"_parse_trace_config": _TRACING, "_export_chrome_trace": _TRACING},
}
"""Names of private methods of built-in hooks, which subclasses override there, and which nothing calls here."""


def _hint(table: Mapping[str, Hint], name: str) -> str | None:
    if name not in table:
        return None
    owner, here = table[name]
    return f"that is {owner} name; here {here}"


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
