"""Checks of options: each raises one sentence in one wording, ``Owner(name=value): give …``.

*owner* is the call that the options are of; it may be empty. An option that may also be None is checked where it isn't.
"""

from __future__ import annotations

import math
import os
from collections.abc import Collection
from typing import TypeGuard

from eventrunner.errors import OptionError, did_you_mean, listed

__all__ = [
    "check_bools",
    "check_choices",
    "check_folders",
    "check_ints",
    "check_numbers",
    "check_seconds",
    "is_int",
    "is_number",
    "refusal",
]


def refusal(owner: str, name: str, value: object, allowed: str) -> OptionError:
    """Return the error of an option; *allowed* goes on behind "give"."""
    what = f"{owner}({name}={value!r})" if owner else f"{name}={value!r}"
    return OptionError(f"{what}: give {allowed}{'' if allowed.endswith('?') else '.'}")


def is_int(value: object, least: float = -math.inf, most: float = math.inf) -> TypeGuard[int]:
    """Return whether a value is an int, and no bool, within limits."""
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


def is_number(value: object) -> TypeGuard[float]:
    """Return whether a value is a finite int or float, and no bool."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def check_bools(owner: str, **options: object) -> None:
    """Refuse an option that is neither True nor False."""
    for name, value in options.items():
        if not isinstance(value, bool):
            raise refusal(owner, name, value, "True or False")


def check_ints(owner: str, least: int, most: int | None = None, **options: object) -> None:
    """Refuse an option that is no int, or not within the limits."""
    allowed = f"an int of {least} or more" if most is None else f"an int from {least} to {most:,}"
    for name, value in options.items():
        if not is_int(value, least, math.inf if most is None else most):
            raise refusal(owner, name, value, allowed)


def check_numbers(owner: str, *, above: float | None = None, least: float = -math.inf, **options: object) -> None:
    """Refuse an option that is no finite number, or not *above* one, or not one of at *least* so much."""
    limited = least > -math.inf
    allowed = f"a number of {least:g} or more" if limited else "a finite number"
    allowed = allowed if above is None else f"a number above {above:g}"
    for name, value in options.items():
        if not is_number(value) or value < least or (above is not None and value <= above):
            raise refusal(owner, name, value, allowed)


def check_seconds(owner: str, **options: object) -> None:
    """Refuse an option that is no number of seconds above 0; it may be infinite."""
    for name, value in options.items():
        if value != math.inf and (not is_number(value) or value <= 0):
            raise refusal(owner, name, value, "a number of seconds above 0")


def check_choices(owner: str, allowed: Collection[str], **options: object) -> None:
    """Refuse an option that is not one of *allowed*, with the nearest of them."""
    for name, value in options.items():
        if value not in allowed:
            raise refusal(owner, name, value, f"one of {listed(allowed)}{did_you_mean(str(value), allowed)}")


def check_folders(owner: str, **options: object) -> None:
    """Refuse an option that is no path, or an empty one."""
    for name, value in options.items():
        if not isinstance(value, str | os.PathLike) or not str(value):
            raise refusal(owner, name, value, "a folder's path")
