"""The best scores so far: what improves, what is refused, and what survives a resume."""

from __future__ import annotations

import math
from typing import Any

import pytest

from eventrunner.errors import OptionError
from eventrunner.session.best import BestScores, best_name, name_list


def told(best: BestScores, **metrics: float) -> list[str]:
    """The names of the metrics that improve, noted as the best so far."""
    found = best.improvements(metrics)
    best.best.update({name: (score, f"at_{score}") for name, score in found})
    return [name for name, _ in found]


def test_the_first_score_is_the_best_and_a_better_one_takes_its_place() -> None:
    """An equal one doesn't."""
    best = BestScores("accuracy")
    assert [told(best, accuracy=score) for score in (0.5, 0.5, 0.4, 0.6)] == [["accuracy"], [], [], ["accuracy"]]


def test_less_is_better_for_a_loss() -> None:
    """As its name says."""
    best = BestScores("val/loss")
    assert [told(best, loss=score) for score in (0.5, 0.6, 0.4)] == [["loss"], [], ["loss"]]


def test_a_nan_is_never_the_best() -> None:
    """Not at the first validation either, and nothing is compared with it later."""
    best = BestScores("accuracy")
    assert [told(best, accuracy=score) for score in (math.nan, 0.1, math.nan, 0.2)] == [
        *([], ["accuracy"]),
        *([], ["accuracy"]),
    ]


def test_several_metrics_are_compared_each_by_its_own_rule() -> None:
    """One rule holds for all, several hold one for each, and without any the names tell."""
    for rule in (None, ["greater", "less"]):
        best = BestScores(["accuracy", "loss"], rule)
        assert told(best, accuracy=0.5, loss=0.5) == ["accuracy", "loss"]
        assert told(best, accuracy=0.6, loss=0.6) == ["accuracy"]
        assert told(best, accuracy=0.1, loss=0.1) == ["loss"]
    best = BestScores(["accuracy", "loss"], "less")
    assert told(best, accuracy=0.5, loss=0.5) == ["accuracy", "loss"]
    assert told(best, accuracy=0.4, loss=0.6) == ["accuracy"]


def test_auto_becomes_the_first_metric_and_stays_it() -> None:
    """Even if a later validation reports its metrics in another order."""
    best = BestScores("auto")
    assert told(best, accuracy=0.5, loss=0.5) == ["accuracy"]
    assert best.keys == ["accuracy"]
    assert told(best, loss=0.1, accuracy=0.6) == ["accuracy"]


def test_auto_takes_an_explicit_rule() -> None:
    """For a first metric whose name tells nothing."""
    best = BestScores("auto", "less")
    assert [told(best, weight=score) for score in (0.5, 0.6, 0.4)] == [["weight"], [], ["weight"]]


def test_auto_uses_the_key_lists() -> None:
    """They stand in for words."""
    best = BestScores("auto", less_keys=["weight"])
    assert [told(best, weight=score) for score in (0.5, 0.6, 0.4)] == [["weight"], [], ["weight"]]


def test_auto_without_a_rule_for_the_first_metric_is_an_error() -> None:
    """Rather than a guess."""
    with pytest.raises(OptionError, match="whether more of 'weight' is better can't be told"):
        BestScores("auto").improvements({"weight": 1.0})


def test_a_metric_that_is_missing_is_an_error_that_names_those_there_are() -> None:
    """Where they weren't known before."""
    with pytest.raises(OptionError) as caught:
        BestScores("val/acuracy", "greater").improvements({"accuracy": 1.0, "loss": 2.0})
    assert str(caught.value) == (
        "CheckpointHook(save_best='val/acuracy'): the validation gave accuracy, loss; did you mean 'accuracy'?"
    )


def test_without_keys_nothing_improves() -> None:
    """And nothing is asked of the metrics."""
    assert BestScores(None).improvements({"accuracy": 1.0}) == []


def test_the_best_survives_being_saved() -> None:
    """Also through JSON's lists in place of tuples."""
    best = BestScores("auto")
    told(best, accuracy=0.5)
    state = best.state_dict()
    assert state == {"keys": ["accuracy"], "best": {"accuracy": (0.5, "at_0.5")}}
    resumed = BestScores("auto")
    resumed.load_state_dict({"keys": ["accuracy"], "best": {"accuracy": [0.5, "at_0.5"]}})
    assert resumed.keys == ["accuracy"]
    assert resumed.best == {"accuracy": (0.5, "at_0.5")}
    assert told(resumed, loss=9.0, accuracy=0.4) == []


def test_an_unresolved_auto_is_saved_as_such() -> None:
    """A run that is killed before its first validation resolves it when it has one."""
    resumed = BestScores("auto")
    resumed.load_state_dict(BestScores("auto").state_dict())
    assert told(resumed, loss=1.0) == ["loss"]


def test_a_resumed_run_lets_go_of_what_it_no_longer_watches() -> None:
    """Its best would be shown and published for ever."""
    resumed = BestScores(["val/loss"])
    resumed.load_state_dict({"keys": ["accuracy"], "best": {"accuracy": (0.5, "a"), "loss": (0.2, "b")}})
    assert resumed.best == {"loss": (0.2, "b")}


def test_the_state_is_a_copy() -> None:
    """What improves later doesn't change what was saved."""
    best = BestScores("accuracy")
    state = best.state_dict()
    told(best, accuracy=0.5)
    assert state["best"] == {}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(keys=["a", "a"]), "CheckpointHook(save_best=['a', 'a']) names a metric twice."),
        (dict(keys=["acc", "val/acc"]), "CheckpointHook(save_best=['acc', 'val/acc']) names a metric twice."),
        (dict(keys=["a/b", "a_b"]), "CheckpointHook(save_best=['a/b', 'a_b']) names a metric twice."),
        (
            dict(keys=["auto", "a"]),
            "CheckpointHook(save_best=…): 'auto' stands alone, not in a list with other keys.",
        ),
        (dict(keys=None, rule="less"), "CheckpointHook(rule=['less']) needs save_best."),
        (
            dict(keys=["a", "b", "c"], rule=["less", "less"]),
            "CheckpointHook(rule=['less', 'less']): give one rule, or one for each key of save_best.",
        ),
        (
            dict(keys="acc", rule="les"),
            "CheckpointHook(rule='les'): the rule is 'greater' or 'less'; did you mean 'less'?",
        ),
        (dict(keys="acc", rule="max"), "CheckpointHook(rule='max'): the rule is 'greater' or 'less'."),
        (dict(keys=True), "CheckpointHook(save_best=True): give a name, a list of names, or None."),
        (dict(keys=[""]), "CheckpointHook(save_best=['']): give a name, a list of names, or None."),
        (dict(keys="a", rule=3), "CheckpointHook(rule=3): give a name, a list of names, or None."),
        (
            dict(keys="acc", greater_keys=[1]),
            "CheckpointHook(greater_keys=[1]): give a name, a list of names, or None.",
        ),
        (dict(keys="acc", less_keys=2), "CheckpointHook(less_keys=2): give a name, a list of names, or None."),
    ],
)
def test_what_cannot_be_is_refused_at_construction(options: dict[str, Any], message: str) -> None:
    """In one sentence that says what is allowed."""
    with pytest.raises(OptionError) as caught:
        BestScores(**options)
    assert str(caught.value) == message


@pytest.mark.parametrize(("given", "names"), [(None, []), ("a", ["a"]), (["a", "b"], ["a", "b"]), (("a",), ["a"])])
def test_a_name_a_list_of_names_or_none_is_a_list(given: Any, names: list[str]) -> None:
    """A list of its own."""
    assert name_list("save_best", given) == names


def test_the_best_has_a_name_that_a_folder_can_have() -> None:
    """A metric with a slash in its name too."""
    assert best_name("val/coco/bbox_mAP", "epoch_3") == "best_coco_bbox_mAP_epoch_3"


def test_keys_are_checked_against_the_evaluator_names() -> None:
    """'auto' is checked when it is resolved."""
    BestScores("auto").check(("accuracy",))
    BestScores("val/accuracy").check(("accuracy",))
    BestScores("bleu").check(None)
    with pytest.raises(OptionError, match="can't be told from its name; pass rule"):
        BestScores("weight").check(None)
    with pytest.raises(OptionError, match="the evaluator reports 'accuracy'; did you mean"):
        BestScores("acuracy").check(("accuracy",))
    with pytest.raises(
        OptionError, match=r"^CheckpointHook\(save_best='acuracy'\): the evaluator reports 'accuracy'; "
    ):
        BestScores("acuracy", "greater").check(("accuracy",))
