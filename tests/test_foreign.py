"""Names from other frameworks: what the hints say, and that what they point to exists."""

from __future__ import annotations

import re
from collections.abc import Mapping

import pytest

from eventrunner import hooks
from eventrunner.bus.sites import CATALOGUE
from eventrunner.foreign import (
    ARGUMENTS,
    METHODS,
    PRIVATE,
    SITES,
    Hint,
    argument_hint,
    method_hint,
    private_hint,
    site_hint,
)

OWNERS = {
    "Lightning's",
    "Ignite's",
    "Hugging Face's",
    "Keras'",
    "Composer's",
    "torchtnt's",
    "fastai's",
    "MMEngine's",
    "MMCV's",
}
FAN_IN = {"_before_epoch", "_after_epoch", "_before_iter", "_after_iter"}
REAL_SITES = {site.name for site in CATALOGUE}
RUNNER_ARGUMENTS = {
    "model", "work_dir", "train_dataloader", "val_dataloader", "test_dataloader", "train_cfg", "optim_wrapper",
    "optimizer", "param_scheduler", "val_evaluator", "test_evaluator", "default_hooks", "custom_hooks", "load_from",
    "resume", "randomness", "device", "compile", "train_step", "val_step", "bus", "experiment_name", "cfg", "log_level",
    "progress",
}  # fmt: skip
NESTED_ARGUMENTS = {
    "by_epoch", "max_epochs", "max_iters", "val_interval", "seed", "logger", "dtype", "accumulative_counts",
    "clip_grad", "max_norm", "save_best", "rule", "published_keys", "begin_iter", "begin_epoch", "on_trace_ready",
    "json_trace_path",
}  # fmt: skip
RUNNER_METHODS = {"train", "val", "test", "stop", "on", "register_hook", "call_hook"}
RUNNER_ATTRIBUTES = RUNNER_METHODS | {
    "watch", "hooks", "epoch", "iter", "max_epochs", "max_iters", "model", "optim_wrapper", "param_schedulers",
    "message_hub", "logger", "work_dir", "train_loop", "stop_reason", "save_checkpoint", "train_dataloader",
    "val_dataloader", "test_dataloader",
}  # fmt: skip
TABLES = {"site": SITES, "argument": ARGUMENTS, "method": METHODS, **PRIVATE}


@pytest.mark.parametrize("table", TABLES.values(), ids=TABLES)
def test_every_quoted_name_is_a_site_or_a_fan_in_method(table: Mapping[str, Hint]) -> None:
    """A hint never points to a site that isn't there."""
    quoted = {quote for _, here in table.values() for quote in re.findall(r"'(\w+)'", here)}

    assert quoted <= REAL_SITES | FAN_IN


@pytest.mark.parametrize("table", TABLES.values(), ids=TABLES)
def test_every_argument_and_call_of_a_hint_exists(table: Mapping[str, Hint]) -> None:
    """A hint never points to an argument of Runner or of its parts, or to a method, that isn't there."""
    hints = " ".join(here for _, here in table.values())

    assert set(re.findall(r"(\w+)=", hints)) <= RUNNER_ARGUMENTS | NESTED_ARGUMENTS
    assert set(re.findall(r"(\w+)\(", hints)) <= RUNNER_METHODS | {"Runner", "OptimWrapper", "dict"}
    assert set(re.findall(r"runner\.(\w+)", hints)) <= RUNNER_ATTRIBUTES


@pytest.mark.parametrize("table", TABLES.values(), ids=TABLES)
def test_every_owner_is_a_framework_in_the_possessive(table: Mapping[str, Hint]) -> None:
    """An owner is one of the frameworks meant, or several of them in a list."""
    owners = {owner for several, _ in table.values() for owner in re.split(", | and ", several)}

    assert owners <= OWNERS


@pytest.mark.parametrize("table", TABLES.values(), ids=TABLES)
def test_every_clause_fits_into_a_sentence(table: Mapping[str, Hint]) -> None:
    """A clause begins with a small letter and leaves the full stop to whoever ends the sentence."""
    misfits = [name for name, (_, here) in table.items() if not re.fullmatch(r"[a-z].*[^.\s]", here)]

    assert misfits == []


def test_every_hint_of_a_site_names_a_site_except_where_there_is_none() -> None:
    """Only backward has no site to be sent to."""
    without = {name for name, (_, here) in SITES.items() if not re.search(r"'\w+'", here)}

    assert without == {"on_before_backward"}


@pytest.mark.parametrize(
    ("table", "real"),
    [(SITES, REAL_SITES | FAN_IN), (ARGUMENTS, RUNNER_ARGUMENTS), (METHODS, RUNNER_ATTRIBUTES)],
    ids=("site", "argument", "method"),
)
def test_no_name_of_ours_is_called_foreign(table: Mapping[str, Hint], real: set[str]) -> None:
    """What works here has no hint against it."""
    assert not set(table) & real


@pytest.mark.parametrize("site", sorted(REAL_SITES))
def test_no_site_of_ours_is_foreign_in_another_case_or_with_a_prefix(site: str) -> None:
    """The lookup in either case doesn't catch a site that exists."""
    assert site_hint(site) is site_hint(site.upper()) is site_hint(f"Event.{site}") is None


def test_the_tables_have_the_size_that_was_meant() -> None:
    """About ninety names: what people bring along, not all that there is."""
    assert 85 <= sum(map(len, (SITES, ARGUMENTS, METHODS))) <= 125


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("on_train_epoch_end", "that is Lightning's name; here it is 'after_train_epoch'"),
        ("on_train_end", "that is Lightning's, Keras' and Hugging Face's name; here it is 'after_train'"),
        ("EPOCH_COMPLETED", "that is Ignite's name; here it is 'after_train_epoch'"),
        ("Events.EPOCH_COMPLETED", "that is Ignite's name; here it is 'after_train_epoch'"),
        ("epoch_completed", "that is Ignite's name; here it is 'after_train_epoch'"),
        ("epoch_end", "that is Composer's name; here it is 'after_train_epoch'"),
        ("Event.EPOCH_END", "that is Composer's name; here it is 'after_train_epoch'"),
        ("on_save", "that is Hugging Face's name; here it is 'after_commit_checkpoint'"),
        (
            "before_epoch",
            "that is MMCV's and fastai's name; here it is 'before_train_epoch', or the method '_before_epoch' for all "
            "modes",
        ),
        ("before_breakfast", None),
        ("after_train_epoch", None),
        ("", None),
    ],
)
def test_a_site_hint_is_the_piece_of_a_sentence(name: str, hint: str | None) -> None:
    """A known name gives owner and replacement, an unknown one nothing."""
    assert site_hint(name) == hint


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        (
            "callbacks",
            "that is Lightning's, Keras' and Hugging Face's name; here hooks are passed as custom_hooks=[…]",
        ),
        ("epochs", "that is Keras' name; here it is train_cfg=dict(max_epochs=…)"),
        ("val_cfg", "that is MMEngine's name; here when to validate is said by train_cfg=dict(val_interval=…)"),
        ("model", None),
    ],
)
def test_an_argument_hint_is_the_piece_of_a_sentence(name: str, hint: str | None) -> None:
    """Arguments have a table of their own."""
    assert argument_hint(name) == hint


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("fit", "that is Lightning's, Keras' and Composer's name; here training is started with train()"),
        ("terminate", "that is Ignite's name; here it is stop(reason)"),
        ("global_step", "that is Lightning's name; here it is iter"),
        ("train", None),
    ],
)
def test_a_method_hint_is_the_piece_of_a_sentence(name: str, hint: str | None) -> None:
    """Methods and attributes have a table of their own."""
    assert method_hint(name) == hint


@pytest.mark.parametrize("hook", PRIVATE)
def test_a_private_method_of_the_table_is_none_of_the_hook_here(hook: str) -> None:
    """Else it would be called, and no error; and the hint is asked for by both names."""
    assert all(not hasattr(getattr(hooks, hook), name) for name in PRIVATE[hook])
    assert private_hint(hook, next(iter(PRIVATE[hook]))).startswith("that is MMEngine's name; here ")
    assert private_hint(hook, "_save") is private_hint("Hook", "_init_rule") is None
