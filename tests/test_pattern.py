"""The pattern itself, without any training: places before and after a piece of code, and what is called there."""

from __future__ import annotations

import functools

import pytest

from eventrunner import Bus


def test_code_between_two_sites_needs_no_change_to_do_more(capsys: pytest.CaptureFixture[str]) -> None:
    """Functions with arguments of their own are connected from outside and called in order."""
    bus = Bus(())
    before, after = bus.site("before_main"), bus.site("after_main")

    def main() -> None:
        before.emit()
        print("do something here")
        after.emit()

    for word in ("hello", "how are you"):
        before.connect(functools.partial(lambda word: print(word), word=word))
    after.connect(lambda: print("goodbye"))
    main()
    assert capsys.readouterr().out.splitlines() == ["hello", "how are you", "do something here", "goodbye"]
