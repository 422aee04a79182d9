"""What a Runner is given, checked before a run is made of it: settings as dicts, and parts that must fit together."""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from eventrunner.errors import OptionError, did_you_mean, listed
from eventrunner.lanes.lanes import BACKENDS
from eventrunner.training.dataloader import batch_count, check_loader, no_batch
from eventrunner.training.evaluator import Evaluator
from eventrunner.training.optim import OptimWrapper
from eventrunner.training.optim_dict import OptimWrapperDict, build_optim
from eventrunner.training.schedule import Schedules, all_schedules, build_schedules
from eventrunner.training.stepping import Planned, check_steps, unit_remarks
from eventrunner.training.steps import Step, check_step, takes_optimizer

__all__ = [
    "Offloading",
    "Randomness",
    "Sources",
    "TrainSettings",
    "Training",
    "check_model",
    "check_parameters",
    "compile_options",
    "parse_evaluation",
]

_SEEDS = 2**64  # torch takes no larger one


@dataclass(frozen=True, slots=True)
class TrainSettings:
    """``train_cfg``: the unit, the end, and when to validate."""

    by_epoch: bool
    maximum: int
    val_begin: int
    """The first count at which a validation may run; 0 validates before the training."""
    val_interval: int
    """Validate at each multiple of this, and at the end."""

    @classmethod
    def parse(cls, given: Any) -> TrainSettings:
        """Check ``train_cfg``; ``by_epoch`` follows from ``max_epochs`` or ``max_iters`` where it isn't given.

        Raises:
            OptionError: no dict, an unknown key, both ends or none, or a number that can't be.
        """
        allowed = ("by_epoch", "max_epochs", "max_iters", "val_begin", "val_interval")
        config = _checked_keys("train_cfg", given, allowed)
        ends = [name for name in ("max_epochs", "max_iters") if config.get(name) is not None]
        if len(ends) != 1:
            raise OptionError(f"train_cfg={dict(given)!r} must have one of max_epochs and max_iters.")
        by_epoch = ends[0] == "max_epochs"
        if config.get("by_epoch", by_epoch) is not by_epoch:
            raise OptionError(f"train_cfg={dict(given)!r}: by_epoch={config['by_epoch']} doesn't go with {ends[0]}.")
        return cls(
            by_epoch,
            _count(f"train_cfg[{ends[0]!r}]", config[ends[0]], 1),
            _count("train_cfg['val_begin']", config.get("val_begin", 1), 0),
            _count("train_cfg['val_interval']", config.get("val_interval", 1 if by_epoch else 1000), 1),
        )


@dataclass(frozen=True, slots=True)
class Randomness:
    """``randomness``: the seed, drawn where none is given, and whether torch must be deterministic."""

    seed: int
    deterministic: bool
    diff_rank_seed: bool

    @classmethod
    def parse(cls, given: Any, known: int | None = None) -> Randomness:
        """Check ``randomness``; without a seed, it is *known*'s, that of the run which is to go on.

        Raises:
            OptionError: no dict, an unknown key, a seed that can't be one, or a flag that isn't True or False.
        """
        config = _checked_keys("randomness", {} if given is None else given, cls.__slots__)
        seed = known if config.get("seed") is None else config["seed"]
        if seed is None:
            # Not the global generator: a run must not move it by being made.
            seed = random.SystemRandom().randrange(2**31)
        if _count("randomness['seed']", seed, 0) >= _SEEDS:
            raise OptionError(f"randomness['seed']={seed} must be below 2**64.")
        return cls(
            seed,
            _flag("randomness['deterministic']", config.get("deterministic", False)),
            _flag("randomness['diff_rank_seed']", config.get("diff_rank_seed", False)),
        )


@dataclass(frozen=True, slots=True)
class Sources:
    """``resume`` and ``load_from``: where a run goes on, or begins, and how much of that must fit."""

    resume: Any
    load_from: Any
    skips_data: bool
    """Whether the batches that a resumed pass has used are left out unloaded, exact or not."""
    load_strict: bool
    """Whether the weights of ``load_from`` must be exactly those of the model."""

    @classmethod
    def parse(cls, resume: Any, load_from: Any) -> Sources:
        """Check both; each may be a dict with its options, of which the path is taken as it is.

        Raises:
            OptionError: an unknown key, no path, or a value that can't be.
        """
        go_on, begin = {"path": resume}, {"path": load_from}
        if isinstance(resume, Mapping):
            go_on = _checked_keys("resume", resume, ("path", "data"))
        if isinstance(load_from, Mapping):
            begin = _checked_keys("load_from", load_from, ("path", "strict"))
            if begin.get("path") is None:
                raise OptionError(
                    f"load_from={dict(load_from)!r} has no 'path' of a checkpoint or of a file with weights."
                )
        if go_on.get("data", "load") not in ("load", "skip"):
            raise OptionError(f"resume['data']={go_on['data']!r} must be 'load', which is exact, or 'skip'.")
        strict = _flag("load_from['strict']", begin.get("strict", True))
        return cls(go_on.get("path", True), begin["path"], go_on.get("data") == "skip", strict)


@dataclass(frozen=True, slots=True)
class Training:
    """All that a training is made of, and that it fits together."""

    dataloader: Any
    settings: TrainSettings
    optim: OptimWrapper | OptimWrapperDict
    schedules: Schedules
    updates_itself: bool
    """Whether the step takes the optimizer and updates the weights."""
    remarks: tuple[tuple[str, str], ...] = ()
    """What may well be a mistake, each with the argument that it is about."""

    @classmethod
    def parse(cls, model: nn.Module, validation: Evaluator | None, given: Mapping[str, Any]) -> Training | None:
        """Check the parts, named as the Runner's arguments are; None where there is no training at all.

        Args:
            model: What is to be trained.
            validation: The metrics of the validations within the training, if there are any.
            given: ``train_dataloader``, ``train_cfg``, ``train_step``, ``optimizer``, ``optim_wrapper`` and
                ``param_scheduler``.

        Raises:
            OptionError: a part is missing, can't be, or doesn't go with the others.
        """
        if not _is_whole(given):
            return None
        check_loader("train_dataloader", given["train_dataloader"])
        settings = TrainSettings.parse(given["train_cfg"])
        optim = build_optim(given["optim_wrapper"], given["optimizer"])
        wrappers = dict(optim.items()) if isinstance(optim, OptimWrapperDict) else {"": optim}
        optimizers = {name: wrapper.optimizer for name, wrapper in wrappers.items()}
        check_parameters(model, optimizers.values())
        updates_itself = _check_train_step(given["train_step"], model, several=isinstance(optim, OptimWrapperDict))
        names = None if validation is None else validation.names()
        schedules = build_schedules(given["param_scheduler"], settings.by_epoch, optimizers, names)
        if validation is None and any(schedule.needs_metric for schedule in all_schedules(schedules)):
            raise OptionError(
                "param_scheduler ReduceLROnPlateau follows a metric of the validation: give val_dataloader and "
                "val_evaluator."
            )
        planned = Planned.of(settings.by_epoch, settings.maximum, batch_count(given["train_dataloader"]))
        check_steps(schedules, planned)
        remarks = [("param_scheduler", remark) for remark in unit_remarks(schedules, planned)]
        if left_out := _left_out(model, optimizers.values()):
            remarks.append(("optimizer", left_out))
        if validation is not None and settings.val_begin > settings.maximum:
            remarks.append(
                ("train_cfg", f"nothing is validated: the training ends before val_begin={settings.val_begin}.")
            )
        return cls(given["train_dataloader"], settings, optim, schedules, updates_itself, tuple(remarks))


def parse_evaluation(
    model: nn.Module, step: Step | None, loaders: Sequence[Any], metrics: Sequence[Any]
) -> tuple[Evaluator | None, Evaluator | None]:
    """Return the evaluators of validation and test; the test's metrics are the validation's where it has none.

    Args:
        model: What is evaluated.
        step: The ``val_step``, if not the model's own.
        loaders: ``val_dataloader`` and ``test_dataloader``.
        metrics: ``val_evaluator`` and ``test_evaluator``.

    Raises:
        OptionError: a part is missing, or can't be.
    """
    val, test = metrics
    if test is None and loaders[1] is not None:
        val, test = (None if loaders[0] is None else val), val
    first = _check_evaluation("val", model, loaders[0], val, step)
    return first, _check_evaluation("test", model, loaders[1], test, step)


def _check_evaluation(
    mode: str, model: nn.Module, dataloader: Any, metrics: Any, step: Step | None
) -> Evaluator | None:
    """Return the evaluator of a validation or test whose parts are all there; None where there is none of them.

    Raises:
        OptionError: a part is missing, or can't be.
    """
    if dataloader is None:
        if metrics is not None:
            raise OptionError(f"{mode}_evaluator is given without {mode}_dataloader: there is nothing to evaluate.")
        return None
    check_loader(f"{mode}_dataloader", dataloader)
    if batch_count(dataloader) == 0:
        raise no_batch(mode)
    if metrics is None:
        raise OptionError(f"{mode}_dataloader is given without {mode}_evaluator, as in {{'accuracy': metric}}.")
    if step is None and not callable(getattr(model, "val_step", None)):
        raise OptionError(
            f"{mode}_dataloader is given without val_step: pass val_step=f(model, batch) that returns what the "
            f"metrics' update takes, or give {type(model).__name__} a val_step(batch) method."
        )
    check_step(step, model, "val_step")
    return Evaluator(metrics)


def check_model(model: Any) -> nn.Module:
    """Return the model itself.

    Raises:
        OptionError: it isn't a module.
    """
    if isinstance(model, nn.Module):
        return model
    if isinstance(model, type):
        raise OptionError(f"Runner(model=…) was given the class {model.__name__}; pass an object: {model.__name__}(…).")
    raise OptionError(f"Runner(model={model!r}): the model must be a torch.nn.Module.")


def check_parameters(model: nn.Module, optimizers: Iterable[torch.optim.Optimizer]) -> None:
    """Refuse an optimizer that trains what is no part of the model: nobody would save it.

    Raises:
        OptionError: it has such parameters, mostly because it was made for another model.
    """
    own = {id(parameter) for parameter in model.parameters()}
    for optimizer in optimizers:
        trained = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        strange = sum(id(parameter) not in own for parameter in trained)
        if strange:
            raise OptionError(
                f"{strange} of the {len(trained)} parameters of {type(optimizer).__name__} are not those of "
                f"{type(model).__name__}, and wouldn't be saved with it; make the optimizer of model.parameters(), and "
                "whatever else is trained a part of the model."
            )


def _left_out(model: nn.Module, optimizers: Iterable[torch.optim.Optimizer]) -> str:
    """Say which parameters require gradients and are no optimizer's; empty where there are none."""
    held = {id(each) for optimizer in optimizers for group in optimizer.param_groups for each in group["params"]}
    wanted = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    names = [name for name, parameter in wanted if id(parameter) not in held]
    if not names:
        return ""
    return (
        f"{len(names)} of the {len(wanted)} parameters of {type(model).__name__} that require gradients are in no "
        f"optimizer and stay as they are ({listed(names[:3])}{', …' if len(names) > 3 else ''}); where that is meant, "
        "requires_grad_(False) says so."
    )


def compile_options(given: Any) -> dict[str, Any] | None:
    """Return what ``compile=`` asks ``torch.compile`` for; None where nothing is to be compiled.

    Raises:
        OptionError: it is no flag, mode or dict of options.
    """
    if given is None or given is False:
        return None
    if given is True:
        return {}
    if isinstance(given, str):
        return {"mode": given}
    if isinstance(given, Mapping):
        return dict(given)
    raise OptionError(f"compile={given!r} must be True, False, a mode or a dict of torch.compile's options.")


@dataclass(frozen=True, slots=True)
class Offloading:
    """``offload``: how background work is run, and how long is waited for it, in seconds."""

    backend: str = "asyncio"
    deadline: float = 600.0
    grace: float = 30.0

    @classmethod
    def parse(cls, given: Any) -> Offloading:
        """Check ``offload``.

        Raises:
            OptionError: no dict, an unknown key, a backend that there isn't, or a time that can't be.
        """
        config = {} if given is None else _checked_keys("offload", given, ("backend", "deadline", "grace"))
        if config.get("backend", "asyncio") not in BACKENDS:
            near = did_you_mean(str(config["backend"]), BACKENDS) or "."
            raise OptionError(f"offload['backend']={config['backend']!r} must be one of {listed(BACKENDS)}{near}")
        for name in ("deadline", "grace"):
            value = config.get(name, 1)
            if isinstance(value, bool) or not isinstance(value, int | float) or value <= 0:
                raise OptionError(f"offload[{name!r}]={value!r} must be a number of seconds above 0.")
        return cls(**config)


def _is_whole(given: Mapping[str, Any]) -> bool:
    """Return whether the parts of a training are all there; False where none is."""
    stepped = given["optimizer"] if given["optim_wrapper"] is None else given["optim_wrapper"]
    parts = {"train_dataloader": given["train_dataloader"], "train_cfg": given["train_cfg"], "optimizer": stepped}
    missing = [name for name, part in parts.items() if part is None]
    if missing and (len(missing) < len(parts) or given["param_scheduler"] is not None):
        there = [name for name in parts if name not in missing] or ["param_scheduler"]
        raise OptionError(f"{listed(there)} given without {listed(missing)}: training needs all three.")
    return not missing


def _check_train_step(function: Step | None, model: nn.Module, several: bool) -> bool:
    """Return whether the step takes the optimizer and updates the weights itself; refuse one that can't be."""
    step = getattr(model, "train_step", None) if function is None else function
    if not callable(step):
        raise OptionError(
            "training needs train_step=f(model, batch) that returns a dict with 'loss', or a model with a "
            f"train_step(batch) method, which {type(model).__name__} doesn't have."
        )
    check_step(function, model, "train_step")
    if several and not takes_optimizer(step):
        raise OptionError(
            "several optimizers need a train_step(model, batch, optim_wrapper) that calls "
            "optim_wrapper[name].update_params(loss) for each."
        )
    return takes_optimizer(step)


def _checked_keys(what: str, given: Any, allowed: tuple[str, ...]) -> dict[str, Any]:
    if not isinstance(given, Mapping):
        raise OptionError(f"{what}={given!r} is not a dict; it takes {listed(allowed)}.")
    for key in given:
        if key not in allowed:
            near = did_you_mean(str(key), allowed)
            raise OptionError(f"{what} has no key {key!r}; it takes {listed(allowed)}{near or '.'}")
    return dict(given)


def _flag(what: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise OptionError(f"{what}={value!r} must be True or False.")
    return value


def _count(what: str, value: Any, least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise OptionError(f"{what}={value!r} must be an int of {least} or more.")
    return value
