"""Evaluator: metrics by name, updated with what val_step returns, computed to floats.

A metric is anything with ``update``, ``compute`` and ``reset``; torchmetrics' are, and are not imported here.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping
from typing import Any, Protocol, get_origin

import torch
from torch import Tensor

from eventrunner.errors import OptionError, listed
from eventrunner.lanes.task import inert_kind

__all__ = ["Evaluator", "Metric"]

_METHODS = ("update", "compute", "reset")


class Metric(Protocol):
    """The whole of what an evaluator asks of a metric; ``to(device)`` is called where there is one."""

    def update(self, *args: Any, **kwargs: Any) -> Any:
        """Take in the outputs of one batch."""

    def compute(self) -> Any:
        """Return one number, or a mapping from names to numbers, over all that was taken in."""

    def reset(self) -> Any:
        """Forget it."""


class Evaluator:
    """The metrics of a validation or a test.

    Args:
        metrics: a dict from names to metrics, whose names are the keys of the results; or one metric, which is named
            after its class in snake_case; or one collection of metrics (it has ``keys`` and ``items`` as well, such
            as torchmetrics' ``MetricCollection``), whose own keys are used.

    Raises:
        OptionError: there is no metric, or something that isn't one.
    """

    def __init__(self, metrics: Metric | Mapping[str, Metric]) -> None:
        self._metrics = _by_name(metrics)
        self._names = _flatten_names(self._metrics)

    def names(self) -> tuple[str, ...] | None:
        """Return the keys of ``evaluate``'s results in order, or None where they aren't known before its first call.

        A metric is taken to compute one number, unless it is a collection or ``compute`` is annotated to return a
        mapping, whose keys can't be known. One that returns a mapping without saying so is named here by the part
        before the slash until it was evaluated once.
        """
        return self._names

    def check_ranks(self, mode: str, world: int) -> None:
        """Refuse a metric that would be computed from one rank's samples alone.

        Raises:
            OptionError: it doesn't say how it is gathered, as torchmetrics' do by ``sync``.
        """
        for name, metric in self._metrics.items() if world > 1 else ():
            if not hasattr(metric, "sync"):
                raise OptionError(
                    f"{mode}_evaluator {name!r}, a {type(metric).__name__}: with {world} processes it would be "
                    "computed from the samples of each alone; use one of torchmetrics', whose compute() gathers all."
                )

    def to(self, device: torch.device) -> None:
        """Move the metrics that have ``to``, in place as modules do, to where the outputs will be."""
        for metric in self._metrics.values():
            if hasattr(metric, "to"):
                metric.to(device)

    def reset(self) -> None:
        """Reset every metric."""
        for metric in self._metrics.values():
            metric.reset()

    def process(self, outputs: Any) -> None:
        """Update every metric: with a tuple's items, with a mapping's items by keyword, else with the one object."""
        for name, metric in self._metrics.items():
            try:
                if isinstance(outputs, tuple):
                    metric.update(*outputs)
                elif isinstance(outputs, Mapping):
                    metric.update(**outputs)
                else:
                    metric.update(outputs)
            except TypeError as error:
                error.add_note(_update_note(name, metric, outputs))
                raise

    def evaluate(self, size: int | None = None) -> dict[str, float]:
        """Compute every metric, in order; a result that is a mapping gives ``name/key`` for each of its keys.

        This is where the host waits for the device. *size*, MMEngine's number of samples, is of no use: a metric
        counts its own.

        Raises:
            OptionError: a result is not one number, or two results have one name.
        """
        results: dict[str, float] = {}
        for name, metric in self._metrics.items():
            for key, value in _flatten(name, metric.compute()):
                if key in results:
                    raise OptionError(f"two metrics of the evaluator report {key!r}; each needs a name of its own.")
                results[key] = _to_float(key, value)
        self._names = tuple(results)
        return results


def _by_name(metrics: Any) -> dict[str, Any]:
    if not isinstance(metrics, Mapping):
        name = "" if _is_collection(metrics) else _snake_case(type(metrics).__name__)
        _require_metric("the evaluator", metrics)
        return {name: metrics}
    if not metrics:
        raise OptionError("the evaluator was given an empty dict; it needs at least one metric, by name.")
    if isinstance(metrics.get("type"), str):
        raise OptionError(
            f"the evaluator was given a config dict of type {metrics['type']!r}; pass the objects by name, such as "
            "dict(accuracy=Accuracy(...))."
        )
    for name, metric in metrics.items():
        if not isinstance(name, str) or not name:
            raise OptionError(f"the evaluator's metrics need names that are strings, not {name!r}.")
        _require_metric(f"the evaluator's {name!r}", metric)
    for name, metric in metrics.items():
        others = [other for other, each in metrics.items() if each is metric and other != name]
        if others:
            raise OptionError(
                f"the evaluator has one metric both as {name!r} and as {others[0]!r}, which would take each batch in "
                "twice; give each name an object of its own."
            )
    return dict(metrics)


def _require_metric(where: str, metric: object) -> None:
    missing = [method for method in _METHODS if not callable(getattr(metric, method, None))]
    given = f"the class {metric.__name__}" if isinstance(metric, type) else f"of type {type(metric).__name__}"
    if isinstance(metric, type):
        raise OptionError(f"{where} is {given}, where an object is needed: {metric.__name__}(...).")
    if callable(getattr(metric, "process", None)) and callable(getattr(metric, "evaluate", None)) and missing:
        raise OptionError(
            f"{where} is {given}, with MMEngine's process and evaluate; a metric has update, compute and reset here."
        )
    inert = [method for method in _METHODS if not missing and inert_kind(getattr(metric, method))]
    if inert:
        raise OptionError(
            f"{where} is {given}, whose {listed(inert)} gives a {inert_kind(getattr(metric, inert[0]))}, of which "
            "nothing runs until it is driven; write a plain method."
        )
    if missing:
        raise OptionError(
            f"{where} is {given}, which has no {listed(missing)}; a metric has update, compute and reset."
        )


def _is_collection(metric: object) -> bool:
    return hasattr(metric, "keys") and hasattr(metric, "items")


def _snake_case(name: str) -> str:
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name).lower()


def _join(name: str, key: object) -> str:
    return f"{name}/{key}" if name else str(key)


def _flatten_names(metrics: Mapping[str, Any]) -> tuple[str, ...] | None:
    names: list[str] = []
    for name, metric in metrics.items():
        parts = (
            [(_join(name, key), part) for key, part in metric.items()] if _is_collection(metric) else [(name, metric)]
        )
        if any(_computes_mapping(part) for _, part in parts):
            return None
        names.extend(key for key, _ in parts)
    return tuple(names)


def _computes_mapping(metric: object) -> bool:
    """Return whether ``compute`` is annotated to return a mapping; an annotation may be a string."""
    result = getattr(getattr(metric, "compute", None), "__annotations__", {}).get("return")
    if isinstance(result, str):
        return re.match(r"(\w+\.)*(dict|mapping)\b", result.lower()) is not None
    origin = get_origin(result) or result
    return isinstance(origin, type) and issubclass(origin, Mapping)


def _flatten(name: str, result: Any) -> Iterator[tuple[str, Any]]:
    if not isinstance(result, Mapping):
        yield name, result
        return
    for key, value in result.items():
        yield from _flatten(_join(name, key), value)


def _to_float(name: str, value: Any) -> float:
    if isinstance(value, Tensor) and value.numel() == 1:
        value = value.item()
    if not isinstance(value, (Tensor, str)):
        with contextlib.suppress(TypeError, ValueError):
            return float(value)
    raise OptionError(
        f"metric {name!r} computed {_describe(value)}; it must reduce to one number, or to a dict of numbers by name."
    )


def _update_note(name: str, metric: object, outputs: object) -> str:
    form = (
        "(*outputs)" if isinstance(outputs, tuple) else "(**outputs)" if isinstance(outputs, Mapping) else "(outputs)"
    )
    return (
        f"raised by update{form} of metric {name or type(metric).__name__!r}, where outputs is what val_step returned, "
        f"{_describe(outputs)}: val_step should return what update takes, a tuple for several arguments."
    )


def _describe(outputs: object) -> str:
    if isinstance(outputs, Mapping):
        return f"a mapping with the keys {listed(map(str, outputs))}"
    if isinstance(outputs, Tensor):
        return f"a tensor of shape {tuple(outputs.shape)}"
    return f"a tuple of {len(outputs)}" if isinstance(outputs, tuple) else f"an object of type {type(outputs).__name__}"
