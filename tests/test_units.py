"""Times and sizes, as people write and read them."""

from __future__ import annotations

import pytest

from eventrunner.units import clock, duration, pace, parse_duration, size


@pytest.mark.parametrize(
    ("text", "seconds"), [("10min", 600.0), (" 1.5 h ", 5400.0), ("30s", 30.0), ("250 ms", 0.25), ("0.001ms", 1e-6)]
)
def test_a_time_is_read(text: str, seconds: float) -> None:
    """A number and a unit, with or without blanks."""
    assert parse_duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "10", "min", "0s", "-1s", "1m", "1e3 s", "ten min", "1s 2ms"])
def test_what_is_no_time_is_refused(text: str) -> None:
    """Saying what one is."""
    with pytest.raises(ValueError, match=r"is not a time; write a number and ms, s, min or h, as in '10min'\.$"):
        parse_duration(text)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        *[(0.0, "0 ms"), (0.0031, "3 ms"), (0.0095, "0.01 s"), (0.214, "0.21 s"), (9.994, "9.99 s"), (9.996, "10 s")],
        *[(12.4, "12 s"), (59.4, "59 s"), (59.6, "1:00"), (185, "3:05"), (3599.6, "1:00:00"), (7385, "2:03:05")],
    ],
)
def test_durations_are_short(seconds: float, text: str) -> None:
    """Rounded once, so that no minute has sixty seconds."""
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0:00"), (7.4, "0:07"), (59.6, "1:00"), (185, "3:05"), (7385, "2:03:05")]
)
def test_what_is_left_reads_like_a_clock(seconds: float, text: str) -> None:
    """With hours only where there are any."""
    assert clock(seconds) == text


@pytest.mark.parametrize(
    ("count", "text"),
    [
        *[(0, "0 B"), (999, "999 B"), (1000, "1 kB"), (3_400, "3.4 kB"), (999_499, "999 kB"), (999_600, "1 MB")],
        *[(1_218_238, "1.22 MB"), (2.5e9, "2.5 GB"), (3e12, "3 TB"), (4e15, "4e+03 TB")],
    ],
)
def test_sizes_have_three_digits(count: float, text: str) -> None:
    """In powers of 1,000."""
    assert size(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.0015321, "1.53 ms/it"), (0.9994, "999 ms/it"), (0.9996, "1 s/it"), (12.34, "12.3 s/it")]
)
def test_the_pace_is_a_time_per_iteration(seconds: float, text: str) -> None:
    """In milliseconds below a second."""
    assert pace(seconds) == text
