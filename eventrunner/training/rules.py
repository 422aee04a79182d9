"""Which of two scores is the better one, and how that is inferred from a metric's name."""

from __future__ import annotations

import math
import re
from collections.abc import Container, Iterable, Iterator

from eventrunner.errors import OptionError, did_you_mean, listed

__all__ = [
    "GREATER_WORDS",
    "LESS_WORDS",
    "RULES",
    "check_monitor",
    "infer_rule",
    "is_better",
    "known_rule",
    "metric_name",
    "worst",
]

RULES = ("greater", "less")
# fmt: off
GREATER_WORDS = frozenset(
    {
        "acc", "accuracy", "aacc", "macc", "top", "auc", "auroc", "auprc", "ap", "ar", "map", "iou", "miou", "jaccard",
        "dice", "mdice", "f1", "f2", "fscore", "fbeta", "precision", "recall", "sensitivity", "specificity", "ndcg",
        "mrr", "psnr", "ssim", "snr", "sdr", "pesq", "stoi", "bleu", "rouge", "meteor", "cider", "r2", "kappa", "mcc",
        "pearson", "spearman", "score", "reward",
    }
)
LESS_WORDS = frozenset(
    {
        "loss", "error", "err", "mae", "mse", "rmse", "mape", "smape", "perplexity", "ppl", "wer", "cer", "eer", "ece",
        "fid", "lpips", "nll", "bpc", "bpb", "brier", "distance", "latency",
    }
)
# fmt: on

_PARTS = re.compile(r"[A-Za-z0-9]+")
_WORDS = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|\d+")


def infer_rule(
    key: str, rule: str | None = None, greater_keys: Iterable[str] = (), less_keys: Iterable[str] = ()
) -> str:
    """Return ``greater`` or ``less``, whichever is better for metric *key*.

    An explicit *rule* counts; then *key* itself among *greater_keys* and *less_keys*; then the whole words of the
    key, the last known one first, because the last word is what a name names: ``stop_loss`` is a loss and
    ``loss_accuracy`` an accuracy, while ``desktop`` has no word ``top``. A ``neg_…`` is left to the caller.

    Raises:
        OptionError: the rule is neither, or isn't known.
    """
    known = known_rule(key, rule, greater_keys, less_keys)
    if known is None:
        reason = f"whether more of {key!r} is better can't be told from its name"
        raise OptionError(f"{reason}; pass rule='greater' or 'less'.")
    return known


def known_rule(
    key: str, rule: str | None = None, greater_keys: Iterable[str] = (), less_keys: Iterable[str] = ()
) -> str | None:
    """Infer the rule, or None where it isn't known: a name that may be misspelt is checked for that first.

    Raises:
        OptionError: the rule is neither.
    """
    if rule is not None:
        if rule not in RULES:
            near = did_you_mean(str(rule), RULES)
            raise OptionError(f"rule={rule!r} for {key!r} must be 'greater' or 'less'{near or '.'}")
        return rule
    lowered = key.lower()
    if lowered in {name.lower() for name in greater_keys}:
        return "greater"
    if lowered in {name.lower() for name in less_keys}:
        return "less"
    words = list(_words(key))
    for word in [] if {"neg", "negative"}.intersection(words) else words:
        if word in GREATER_WORDS or word in LESS_WORDS:
            return "greater" if word in GREATER_WORDS else "less"
    return None


def _words(key: str) -> Iterator[str]:
    """Yield the words of a key in lower case, the last first: as it is, without its number, cut at capitals."""
    for part in reversed(_PARTS.findall(key)):
        yield part.lower()
        yield part.lower().rstrip("0123456789")
        yield from (word.lower() for word in reversed(_WORDS.findall(part)))


def worst(rule: str) -> float:
    """Return what every score is better than."""
    return -math.inf if rule == "greater" else math.inf


def is_better(rule: str, score: float, best: float, margin: float = 0.0) -> bool:
    """Return whether *score* beats *best* by more than *margin*; a nan beats nothing."""
    return score > best + margin if rule == "greater" else score < best - margin


def metric_name(key: str, names: Container[str]) -> str:
    """Return the name of a metric that may be given as in the log, ``val/…``: itself where it is one of *names*."""
    return key if key in names else key.removeprefix("val/")


def check_monitor(attempt: str, key: str, names: tuple[str, ...] | None) -> str:
    """Return the metric's name as the evaluator reports it, checked against its *names* where they are known.

    Raises:
        OptionError: the evaluator reports no such metric; *attempt* says what was being set.
    """
    name = metric_name(key, names or ())
    # A metric that computes a dict reports name/key for each of its keys, which aren't known before it has.
    if names is not None and name not in names and name.partition("/")[0] not in names:
        near = did_you_mean(name, names)
        raise OptionError(f"{attempt}: the evaluator reports {listed(map(repr, names))}{near or '.'}")
    return name
