"""The best scores so far: which metrics are watched, which way each counts, and what was best."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from typing import Any

from eventrunner.errors import OptionError, did_you_mean, listed
from eventrunner.training.rules import RULES, check_monitor, infer_rule, is_better, known_rule, metric_name

__all__ = ["BestScores", "best_name", "name_list"]

_MOST_BYTES, _DIGEST = 80, 8
# A metric's share of the 200 bytes that a checkpoint's name may have; the other parts are the template's and numbers.


class BestScores:
    """Watches the metrics *keys*, or with ``'auto'`` the first one that a validation reports.

    Raises:
        OptionError: keys or rules that can't be, or a rule that can't be told from a key's words.
    """

    def __init__(
        self,
        keys: str | Sequence[str] | None,
        rule: str | Sequence[str] | None = None,
        greater_keys: str | Sequence[str] | None = None,
        less_keys: str | Sequence[str] | None = None,
    ) -> None:
        self.keys = name_list("save_best", keys)
        self.greater_keys, self.less_keys = name_list("greater_keys", greater_keys), name_list("less_keys", less_keys)
        self.best: dict[str, tuple[float, str]] = {}
        """Score and checkpoint's name, by metric."""
        self._rules = self._checked_rules(name_list("rule", rule))
        self._given = self.keys, dict(self._rules)

    def check(self, names: tuple[str, ...] | None) -> None:
        """Refuse keys that the evaluator doesn't report, where its *names* are known, and keys without a rule."""
        for key in self.keys:
            if key != "auto":
                check_monitor(f"CheckpointHook(save_best={key!r})", key, names)
                self._rule(key)

    def forget(self) -> None:
        """Begin as if nothing had been reported yet; ``'auto'`` is open again."""
        keys, rules = self._given
        self.keys, self._rules, self.best = keys, dict(rules), {}

    def _rule(self, key: str) -> str:
        return self._rules[key] or infer_rule(key, None, self.greater_keys, self.less_keys)

    def improvements(self, metrics: Mapping[str, float]) -> list[tuple[str, float]]:
        """Return the watched metrics that beat their best, each with its score; :attr:`best` is the caller's to change.

        Raises:
            OptionError: a watched metric isn't there.
        """
        if self.keys == ["auto"]:
            self._resolve(next(iter(metrics)))
        found = []
        for key in self.keys:
            name = metric_name(key, metrics)
            if name not in metrics:
                near = did_you_mean(name, metrics)
                raise OptionError(
                    f"CheckpointHook(save_best={key!r}): the validation gave {listed(metrics)}{near or '.'}"
                )
            rule, score = self._rule(key), metrics[name]
            if not math.isnan(score) and (name not in self.best or is_better(rule, score, self.best[name][0])):
                found.append((name, score))
        return found

    def state_dict(self) -> dict[str, Any]:
        """Return the keys and what was best."""
        return {"keys": list(self.keys), "best": dict(self.best)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on comparing; what ``'auto'`` became stays what it is, and what isn't watched any more is dropped."""
        if self.keys == ["auto"] and state["keys"] not in ([], ["auto"]):
            self._resolve(state["keys"][0])
        watched = {metric_name(key, state["best"]) for key in self.keys}
        self.best = {name: (score, where) for name, (score, where) in state["best"].items() if name in watched}

    def _resolve(self, key: str) -> None:
        self._rules[key] = infer_rule(key, self._rules.pop("auto"), self.greater_keys, self.less_keys)
        self.keys = [key]

    def _checked_rules(self, rules: list[str]) -> dict[str, str | None]:
        if len({_in_names(key) for key in self.keys}) != len(self.keys):
            raise OptionError(f"CheckpointHook(save_best={self.keys!r}) names a metric twice.")
        if "auto" in self.keys and len(self.keys) > 1:
            raise OptionError("CheckpointHook(save_best=…): 'auto' stands alone, not in a list with other keys.")
        if rules and not self.keys:
            raise OptionError(f"CheckpointHook(rule={rules!r}) needs save_best.")
        if len(rules) not in (0, 1, len(self.keys)):
            raise OptionError(f"CheckpointHook(rule={rules!r}): give one rule, or one for each key of save_best.")
        for rule in rules:
            if rule not in RULES:
                near = did_you_mean(rule, RULES)
                raise OptionError(f"CheckpointHook(rule={rule!r}): the rule is 'greater' or 'less'{near or '.'}")
        every = dict.fromkeys(self.keys, rules[-1]) if len(rules) == 1 else dict(zip(self.keys, rules, strict=False))
        return {
            key: every.get(key) if key == "auto" else known_rule(key, every.get(key), self.greater_keys, self.less_keys)
            for key in self.keys
        }


def best_name(metric: str, where: str) -> str:
    """Return the name of the best checkpoint by *metric*, of the state that would else be saved as *where*."""
    return f"best_{_in_names(metric)}_{where}"


def _in_names(key: str) -> str:
    """Return a metric's name as a part of a folder's: of a long one the beginning, and a digest."""
    name = "".join(sign if sign.isprintable() and sign not in "/\\" else "_" for sign in key.removeprefix("val/"))
    encoded = name.encode()
    if len(encoded) <= _MOST_BYTES:
        return name
    digest = hashlib.sha256(encoded).hexdigest()[:_DIGEST]
    return f"{encoded[: _MOST_BYTES - _DIGEST - 1].decode(errors='ignore')}-{digest}"


def name_list(option: str, given: str | Sequence[str] | None) -> list[str]:
    """Return an option that takes a name, a list of names or None, as a list.

    Raises:
        OptionError: it is something else.
    """
    names = [] if given is None else [given] if isinstance(given, str) else given
    if not isinstance(names, Sequence) or not all(isinstance(name, str) and name for name in names):
        raise OptionError(f"CheckpointHook({option}={given!r}): give a name, a list of names, or None.")
    return list(names)
