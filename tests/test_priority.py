"""Priorities: names, numbers, and what is neither."""

from __future__ import annotations

import re
from typing import Any

import pytest

from eventrunner.bus.priority import Priority, get_priority
from eventrunner.errors import OptionError

NAMES = "HIGHEST, VERY_HIGH, HIGH, ABOVE_NORMAL, NORMAL, BELOW_NORMAL, LOW, VERY_LOW, LOWEST"


def test_the_nine_levels_have_mmengines_numbers() -> None:
    """Its users' hooks keep their order."""
    levels = {level.name: level.value for level in Priority}
    assert levels == dict(zip(NAMES.split(", "), (0, 10, 30, 40, 50, 60, 70, 90, 100), strict=True))


@pytest.mark.parametrize("level", Priority)
def test_a_level_is_given_as_member_or_as_name_in_any_case(level: Priority) -> None:
    """All spellings come to the same int."""
    spellings: list[Any] = [level, level.name, level.name.lower(), level.name.title(), level.value]
    assert [get_priority(spelling) for spelling in spellings] == [level.value] * 5


def test_what_is_returned_is_a_plain_int() -> None:
    """A plan and a log print the number, not the member."""
    assert type(get_priority(Priority.LOW)) is int


@pytest.mark.parametrize("number", [0, 1, 55, 99, 100])
def test_any_int_between_the_ends_is_a_priority(number: int) -> None:
    """The names are a convenience."""
    assert get_priority(number) == number


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (-1, "priority -1 is not between 0 (runs first) and 100 (runs last)."),
        (101, "priority 101 is not between 0 (runs first) and 100 (runs last)."),
        ("HIHG", f"priority 'HIHG' is not one of {NAMES}; did you mean 'HIGH'?"),
        ("very low", f"priority 'very low' is not one of {NAMES}; did you mean 'VERY_LOW'?"),
        ("xyz", f"priority 'xyz' is not one of {NAMES}."),
        ("", f"priority '' is not one of {NAMES}."),
        (True, "priority must be an int from 0 to 100 or a name such as 'NORMAL', not True."),
        (50.0, "priority must be an int from 0 to 100 or a name such as 'NORMAL', not 50.0."),
        (None, "priority must be an int from 0 to 100 or a name such as 'NORMAL', not None."),
    ],
)
def test_anything_else_is_refused(value: Any, message: str) -> None:
    """The message has the value, what is allowed, and the nearest name."""
    with pytest.raises(OptionError, match=f"^{re.escape(message)}$"):
        get_priority(value)
