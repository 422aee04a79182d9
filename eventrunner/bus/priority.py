"""Priority: who goes first at a site."""

from __future__ import annotations

import enum

from eventrunner.errors import OptionError, did_you_mean

__all__ = ["Priority", "get_priority"]


class Priority(enum.IntEnum):
    """Nine named levels between 0 (first) and 100 (last); any int between them is a priority too.

    Names and numbers are MMEngine's (``mmengine/runner/priority.py``), so that its hooks keep their order here.
    """

    HIGHEST = 0
    VERY_HIGH = 10
    HIGH = 30
    ABOVE_NORMAL = 40
    NORMAL = 50
    BELOW_NORMAL = 60
    LOW = 70
    VERY_LOW = 90
    LOWEST = 100


def get_priority(value: int | str | Priority) -> int:
    """Return the number of a priority given as number, name (in any case) or member.

    Raises:
        OptionError: not an int between 0 and 100 and not one of the nine names; a bool is not an int here.
    """
    if isinstance(value, str):
        try:
            return int(Priority[value.upper()])
        except KeyError:
            near = did_you_mean(value.upper(), Priority.__members__)
            raise OptionError(
                f"priority {value!r} is not one of {', '.join(Priority.__members__)}{near or '.'}"
            ) from None
    if isinstance(value, bool) or not isinstance(value, int):
        raise OptionError(f"priority must be an int from 0 to 100 or a name such as 'NORMAL', not {value!r}.")
    if not 0 <= value <= 100:
        raise OptionError(f"priority {value} is not between 0 (runs first) and 100 (runs last).")
    return int(value)
