"""Which way a metric counts, told from its name, and the comparison itself."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eventrunner.errors import OptionError
from eventrunner.training.rules import GREATER_WORDS, LESS_WORDS, check_monitor, infer_rule, is_better, worst

GREATER = (
    "acc accuracy val/acc testAcc top-1 top1 acc5 accuracy/top5 loss_accuracy recall precision IoU mIoU IoU@0.5 mAP "
    "mAP50 bbox_mAP_50 coco/bbox_mAP AP AP50 AR@100 mDice aAcc mAcc AUC AUROC F1 f1_score R2 r2 PSNR SSIM SI-SDR bleu4 "
    "rougeL ndcg@10 kappa"
)
LESS = (
    "loss val/loss valLoss stop_loss precision_loss dice_loss_v2 loss2 desktop_error error_rate word_error_rate WER "
    "MAE rmse perplexity nll FID LPIPS"
)
UNTOLD = "desktop topology weight maps rate 42 @ neg_loss neg_mean_squared_error negative_accuracy negAcc"


@pytest.mark.parametrize("key", GREATER.split())
def test_more_is_better_for_names_of_scores(key: str) -> None:
    """Whole words are looked for, the last known one first."""
    assert infer_rule(key) == "greater"


@pytest.mark.parametrize("key", LESS.split())
def test_less_is_better_for_names_of_losses(key: str) -> None:
    """A ``top`` inside ``stop`` or ``desktop`` is no word."""
    assert infer_rule(key) == "less"


@pytest.mark.parametrize("key", UNTOLD.split())
def test_a_name_without_a_known_word_is_an_error(key: str) -> None:
    """So is one that begins with ``neg``, which turns a word into its opposite."""
    with pytest.raises(OptionError) as caught:
        infer_rule(key)
    assert str(caught.value) == (
        f"whether more of {key!r} is better can't be told from its name; pass rule='greater' or 'less'."
    )


def test_an_explicit_rule_comes_before_all_else() -> None:
    """It comes before key lists, too."""
    assert infer_rule("accuracy", "less", greater_keys=["accuracy"]) == "less"


def test_key_lists_come_before_words() -> None:
    """They are compared whole and without case."""
    assert infer_rule("Weight", greater_keys=["weight"]) == "greater"
    assert infer_rule("accuracy", less_keys=["ACCURACY"]) == "less"
    assert infer_rule("accuracy_2", less_keys=["accuracy"]) == "greater"


@pytest.mark.parametrize(
    ("rule", "end"), [("grater", "; did you mean 'greater'?"), ("max", "."), (3, ".")], ids=["near", "far", "no name"]
)
def test_another_rule_is_refused(rule: str, end: str) -> None:
    """The nearest of the two is named where one is near."""
    with pytest.raises(OptionError) as caught:
        infer_rule("accuracy", rule)
    assert str(caught.value) == f"rule={rule!r} for 'accuracy' must be 'greater' or 'less'{end}"


@given(st.sampled_from(sorted(GREATER_WORDS | LESS_WORDS)), st.sampled_from(["{}", "val/{}", "x_{}", "{}-5", "{}@10"]))
def test_every_known_word_is_found_in_lower_upper_and_title_case(word: str, form: str) -> None:
    """Whatever stands around it."""
    expected = "greater" if word in GREATER_WORDS else "less"
    for spelt in (word, word.upper(), word.title()):
        assert infer_rule(form.format(spelt)) == expected


def test_no_word_is_in_both_sets() -> None:
    """Else the order of the sets would decide."""
    assert not GREATER_WORDS & LESS_WORDS


@given(st.floats(allow_nan=False), st.floats(allow_nan=False))
def test_one_of_two_different_scores_is_better(one: float, other: float) -> None:
    """And the rules are each other's mirror image."""
    assert is_better("greater", one, other) == (one > other)
    assert is_better("less", one, other) == is_better("greater", other, one)


@pytest.mark.parametrize("rule", ["greater", "less"])
def test_a_nan_beats_nothing(rule: str) -> None:
    """Not even the worst."""
    assert not is_better(rule, math.nan, worst(rule))
    assert is_better(rule, 0.0, worst(rule))


def test_a_margin_must_be_exceeded() -> None:
    """A score that is better by just the margin doesn't count."""
    assert not is_better("greater", 1.5, 1.0, margin=0.5)
    assert is_better("greater", 1.625, 1.0, margin=0.5)
    assert is_better("less", 0.375, 1.0, margin=0.5)


@pytest.mark.parametrize("key", ["accuracy", "val/accuracy", "f1/macro"])
def test_a_monitor_is_found_with_or_without_its_prefix(key: str) -> None:
    """A metric that computes a dict is known by the part before the slash."""
    assert check_monitor("monitor", key, ("accuracy", "f1")) == key.removeprefix("val/")


def test_any_monitor_passes_while_names_are_unknown() -> None:
    """They may be known only after the first validation."""
    assert check_monitor("monitor", "val/whatever", None) == "whatever"


@pytest.mark.parametrize(
    ("key", "end"), [("acuracy", "; did you mean 'accuracy'?"), ("bleu", ".")], ids=["near", "far"]
)
def test_an_unknown_monitor_is_refused_with_the_names_there_are(key: str, end: str) -> None:
    """The message begins with what was attempted."""
    with pytest.raises(OptionError) as caught:
        check_monitor("Hook(monitor=…)", key, ("accuracy", "loss"))
    assert str(caught.value) == f"Hook(monitor=…): the evaluator reports 'accuracy', 'loss'{end}"
