"""What is read from a receiver's signature, and how its call is made of it."""

from __future__ import annotations

import functools
import inspect
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import rich
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from eventrunner.bus.signature import Wants, is_async, label, read_wants, short_path, where
from eventrunner.errors import SignatureError

SENDER = object()
PAYLOAD = {"batch_idx": 3, "data_batch": "data", "outputs": "out"}
NAMES = tuple(PAYLOAD)
HERE = "tests/test_signature.py"


def call(receiver: Callable[..., Any], payload: dict[str, Any] | None = None, names: Any = NAMES) -> Any:
    """What *receiver* returns when it is called as it wants."""
    given_payload = PAYLOAD if payload is None else payload
    wants = read_wants(receiver, "site", names)
    source = wants.source("receiver_", "sender_", list(given_payload))
    return eval(source, {"receiver_": receiver, "sender_": SENDER, **given_payload})


def line(function: Callable[..., Any]) -> str:
    """``file:line`` of a function of this file."""
    return f"{HERE}:{function.__code__.co_firstlineno}"


class Methods:
    """Receivers of the kinds that a class can have."""

    def bound(self, runner: Any, outputs: Any) -> Any:
        return runner, outputs

    @classmethod
    def of_class(cls, runner: Any, outputs: Any) -> Any:
        return runner, outputs

    @staticmethod
    def static(runner: Any, outputs: Any) -> Any:
        return runner, outputs

    def __call__(self, runner: Any, outputs: Any) -> Any:
        return runner, outputs


def both(runner: Any, outputs: Any) -> Any:
    """Take the sender and one payload."""
    return runner, outputs


def wrapped(function: Callable[..., Any]) -> Callable[..., Any]:
    """A decorator of the usual kind."""

    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    return wrapper


@pytest.mark.parametrize(
    "receiver",
    [
        both,
        lambda runner, outputs: (runner, outputs),
        lambda sender, outputs: (sender, outputs),
        lambda engine, outputs: (engine, outputs),
        lambda engine, /, outputs: (engine, outputs),
        lambda runner, outputs, /: (runner, outputs),
        lambda outputs, runner, /: (runner, outputs),
        lambda outputs, runner: (runner, outputs),
        lambda outputs, /, runner: (runner, outputs),
        lambda outputs, *, runner: (runner, outputs),
        lambda *, outputs, runner: (runner, outputs),
        lambda *args, outputs: (*args, outputs),
        lambda *args, outputs, runner: (runner, outputs, *args),
        lambda runner, *args, outputs: (runner, outputs, *args),
        lambda runner, **rest: (runner, rest["outputs"]),
        lambda *args, **rest: (*args, rest["outputs"]),
        lambda runner=None, outputs=None: (runner, outputs),
        lambda i=1, runner=None, outputs=None: (runner, outputs),
        Methods().bound,
        Methods.of_class,
        Methods.static,
        Methods(),
        functools.partial(both),
        wrapped(both),
        wrapped(Methods().bound),
        functools.partial(wrapped(both)),
        torch.no_grad()(both),
        functools.lru_cache(both),
    ],
)
def test_a_receiver_gets_the_sender_and_the_payload_that_it_names(receiver: Callable[..., Any]) -> None:
    """Whatever kind of callable it is, and whatever kinds its parameters are."""
    assert call(receiver) == (SENDER, "out")


@pytest.mark.parametrize(
    ("receiver", "result"),
    [
        (lambda: "nothing", "nothing"),
        (lambda runner: runner, SENDER),
        (lambda anything: anything, SENDER),
        (lambda *args: args, (SENDER,)),
        (lambda **rest: rest, PAYLOAD),
        (lambda *args, **rest: (args, rest), ((SENDER,), PAYLOAD)),
        (lambda outputs, *args: (outputs, args), ("out", ())),
        (lambda batch_idx, /, **rest: (batch_idx, rest), (3, {"data_batch": "data", "outputs": "out"})),
        (lambda outputs, batch_idx: (outputs, batch_idx), ("out", 3)),
        (lambda outputs, batch_idx, /: (outputs, batch_idx), ("out", 3)),
        (lambda runner, outputs=None: (runner, outputs), (SENDER, "out")),
    ],
)
def test_a_receiver_gets_no_more_than_it_names(receiver: Callable[..., Any], result: Any) -> None:
    """Its order of parameters is its own."""
    assert call(receiver) == result


@pytest.mark.parametrize(
    ("receiver", "result"),
    [
        (lambda i=5: i, 5),
        (lambda runner, i=5: (runner, i), (SENDER, 5)),
        (lambda runner, outputs, *, i=5: (runner, outputs, i), (SENDER, "out", 5)),
        (lambda runner, i=5, /: (runner, i), (SENDER, 5)),
        (lambda runner, i=5, outputs=None, /: (runner, i, outputs), (SENDER, 5, None)),
        (lambda i=5, runner=None, /: (i, runner), (5, None)),
        (lambda runner, sender="mine": (runner, sender), (SENDER, "mine")),
    ],
)
def test_a_parameter_with_a_default_of_its_own_is_left_alone(receiver: Callable[..., Any], result: Any) -> None:
    """So the closure idiom ``i=i`` works, as the first parameter too, and no payload is taken for it."""
    assert call(receiver) == result


def test_the_closure_idiom_binds_each_receiver_to_its_own_value() -> None:
    """Receivers made in a loop."""
    assert [call(receiver) for receiver in [lambda i=i: i for i in range(3)]] == [0, 1, 2]


@pytest.mark.parametrize(
    ("receiver", "result"),
    [
        (functools.partial(lambda path, runner: (path, runner), "log.txt"), ("log.txt", SENDER)),
        (functools.partial(lambda runner, outputs: (runner, outputs), outputs="mine"), (SENDER, "mine")),
        (functools.partial(lambda runner, outputs: (runner, outputs), runner="mine"), ("mine", "out")),
        (functools.partial(lambda runner, **rest: rest["outputs"], outputs="mine"), "mine"),
        (functools.partial(functools.partial(both, outputs="mine")), (SENDER, "mine")),
        (functools.partial(lambda level, runner, outputs: (level, runner, outputs), level=2), (2, SENDER, "out")),
    ],
)
def test_what_a_partial_binds_stays_bound(receiver: Callable[..., Any], result: Any) -> None:
    """A payload of the same name doesn't replace it."""
    assert call(receiver) == result


def test_a_receiver_may_go_without_what_an_emission_lacks() -> None:
    """A default stands in for a payload that isn't given."""
    assert call(lambda runner, batch_idx=0, outputs=None: (batch_idx, outputs), {"outputs": 1}) == (0, 1)


def test_a_missing_positional_payload_isnt_replaced_by_the_next() -> None:
    """What only goes by position stops at the first that isn't given."""
    assert call(lambda runner, batch_idx=0, outputs=None, /: (batch_idx, outputs), {"outputs": 1}) == (0, None)


def test_what_has_no_default_is_required() -> None:
    """And named where an emission lacks it."""
    wants = read_wants(lambda runner, outputs, data_batch, batch_idx=0: None, "site", NAMES)
    assert wants.missing(["batch_idx"]) == {"data_batch", "outputs"}


def test_a_site_may_declare_a_payload_called_sender() -> None:
    """Blinker's own ``receiver_connected`` does; the sender then goes by position."""
    assert call(lambda site, sender: (site, sender), {"sender": "theirs"}, ("sender",)) == (SENDER, "theirs")


@pytest.mark.parametrize(
    ("receiver", "wants"),
    [
        (print, Wants(rest=False)),
        ([].append, Wants(rest=False)),
        ({}.update, Wants()),
        (dict, Wants()),
    ],
)
def test_a_built_in_gets_what_its_signature_says_or_everything(receiver: Any, wants: Wants) -> None:
    """Where there is no signature to read, the sender by position and the whole payload by name."""
    assert read_wants(receiver, "site", NAMES) == wants


@pytest.mark.parametrize("receiver", [print, rich.print])
def test_printing_a_log_prints_its_sender(receiver: Any) -> None:
    """The ``sep`` of print is no misspelt ``step``."""
    assert read_wants(receiver, "on_log", ("scalars", "step")) == Wants(rest=False)


def test_appending_to_a_list_collects_senders() -> None:
    """The shortest of receivers."""
    seen: list[Any] = []
    call(seen.append)
    assert seen == [SENDER]


@pytest.mark.parametrize(
    ("receiver", "name", "near"),
    [
        (lambda runner, output: None, "output", "; did you mean 'outputs'?"),
        (lambda output: None, "output", "; did you mean 'outputs'?"),
        (lambda output=None: None, "output", "; did you mean 'outputs'?"),
        (lambda runner, *, bath_idx=0: None, "bath_idx", "; did you mean 'batch_idx'?"),
        (lambda outputs, runer: None, "runer", "; did you mean 'runner'?"),
        (lambda runner, metrics: None, "metrics", "."),
        (lambda runner, metrics, /: None, "metrics", "."),
        (lambda engine, runner: None, "engine", "."),
        (lambda *, engine: None, "engine", "."),
    ],
)
def test_a_name_that_the_site_doesnt_offer_is_refused(receiver: Callable[..., Any], name: str, near: str) -> None:
    """The message names the receiver, its file and line, what is offered, and the nearest name."""
    message = f"<lambda> in {line(receiver)} asks for {name!r}; 'site' offers runner, {', '.join(NAMES)}{near}"
    with pytest.raises(SignatureError, match=f"^{re.escape(message)}$"):
        read_wants(receiver, "site", NAMES)


def test_at_a_site_without_payload_only_the_runner_is_offered() -> None:
    """And said to be."""
    with pytest.raises(SignatureError, match=r"asks for 'outputs'; 'site' offers runner\.$"):
        read_wants(both, "site", ())


def test_a_default_near_a_payload_that_is_named_too_is_no_misspelling() -> None:
    """A receiver of ``metrics`` may have a ``metric`` of its own."""
    receiver = lambda runner, metrics, metric="accuracy": metrics[metric]  # noqa: E731
    assert call(receiver, {"metrics": {"accuracy": 0.5}}, ("metrics",)) == 0.5


@settings(deadline=None)
@given(
    st.lists(st.sampled_from(["runner", *NAMES, "own"]), unique=True, max_size=5),
    st.integers(0, 5),
    st.integers(0, 5),
    st.booleans(),
    st.sets(st.sampled_from(NAMES)),
)
def test_any_signature_that_is_read_can_be_called(
    names: list[str], slash: int, star: int, rest: bool, lacking: set[str]
) -> None:
    """Every mix of kinds of parameters gets each thing under its own name, whatever the emission carries."""
    star, slash = min(star, len(names)), min(slash, star, len(names))
    parts = [f"{name}={name!r}" for name in names]
    text = [*parts[:slash], *["/"][: slash > 0], *parts[slash:star], *["*"][: star < len(names)], *parts[star:]]
    space: dict[str, Any] = {}
    exec(f"def receiver({', '.join(text + ['**rest'][:rest])}): return {{**locals()}}", space)
    carried = {name: value for name, value in PAYLOAD.items() if name not in lacking}
    offered: dict[str, Any] = {**carried, "runner": SENDER}
    got = call(space["receiver"], carried)
    reachable = [name in offered for name in names[:slash]].index(False) if set(names[:slash]) - set(offered) else slash
    expected: dict[str, Any] = {name: name for name in names}  # the defaults
    expected.update((name, offered[name]) for name in [*names[:reachable], *names[slash:]] if name in offered)
    if rest:
        expected["rest"] = {name: value for name, value in carried.items() if name not in names}
    assert got == expected


@pytest.mark.parametrize(
    ("receiver", "name"),
    [
        (both, "both"),
        (lambda: None, "<lambda>"),
        (Methods().bound, "Methods.bound"),
        (Methods.of_class, "Methods.of_class"),
        (Methods.static, "Methods.static"),
        (Methods(), "Methods"),
        (Methods, "Methods"),
        (functools.partial(both, outputs=1), "both"),
        (functools.partial(Methods().bound), "Methods.bound"),
        (wrapped(both), "both"),
        (torch.no_grad()(both), "both"),
        (functools.lru_cache(both), "both"),
        (print, "print"),
        ([].append, "list.append"),
        (torch.nn.ReLU(), "ReLU"),
    ],
)
def test_a_receiver_has_a_short_name(receiver: Any, name: str) -> None:
    """That of the function or class that the user wrote."""
    assert label(receiver) == name


def test_a_local_function_is_named_without_its_surroundings() -> None:
    """``test_….<locals>.inner`` is ``inner``."""

    def inner() -> None:
        """Do nothing."""

    assert label(inner) == "inner"


@pytest.mark.parametrize(
    ("receiver", "place"),
    [
        (both, line(both)),
        (Methods().bound, line(Methods.bound)),
        (Methods.of_class, line(Methods.of_class.__func__)),  # type: ignore[attr-defined]
        (Methods(), line(Methods.__call__)),
        (functools.partial(both), line(both)),
        (wrapped(both), line(both)),
        (torch.no_grad()(both), line(both)),
        (functools.lru_cache(both), line(both)),
        (print, "builtins"),
        ([].append, "builtins"),
        (Methods, "test_signature"),
    ],
)
def test_a_receiver_is_placed_where_its_code_is(receiver: Any, place: str) -> None:
    """Behind decorators, partials and bound methods; a built-in in its module."""
    assert where(receiver).removeprefix("tests.") == place


def test_a_path_below_the_working_directory_is_relative_to_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As one would type it."""
    monkeypatch.chdir(tmp_path)
    assert short_path(str(tmp_path / "a" / "b.py")) == os.path.join("a", "b.py")


def test_a_path_elsewhere_stays_absolute(tmp_path: Path) -> None:
    """It couldn't be found otherwise."""
    assert short_path(str(tmp_path.parent / "b.py")) == str(tmp_path.parent / "b.py")


def test_places_are_told_where_the_working_directory_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Connecting doesn't need one."""
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    assert where(both) == line(both)
    monkeypatch.chdir(tmp_path)


class Awaited:
    """An object whose call is awaited."""

    async def __call__(self) -> None:
        """Do nothing."""

    async def method(self) -> None:
        """Do nothing."""


@pytest.mark.parametrize("receiver", [Awaited(), Awaited().method, functools.partial(Awaited())])
def test_an_async_receiver_is_known_as_one(receiver: Any) -> None:
    """Function, method, callable object and partial."""
    assert is_async(receiver)


@pytest.mark.parametrize("receiver", [both, Methods(), Methods, print, functools.partial(both), Awaited])
def test_a_plain_receiver_isnt_async(receiver: Any) -> None:
    """A class neither, whatever its objects are."""
    assert not is_async(receiver)


def test_annotations_are_never_evaluated() -> None:
    """A receiver may be annotated with a name that exists for type checkers only."""

    def receiver(runner: NoSuchName, outputs: AlsoNone) -> None:  # type: ignore[name-defined]  # noqa: F821
        """Do nothing."""

    assert inspect.signature(receiver)
    assert read_wants(receiver, "site", NAMES).names == {"outputs"}


class Meal:
    def eat(self, runner: Any, batch_idx: int, outputs: Any) -> None:
        """A method whose parameters could go by position."""


@pytest.mark.parametrize("kind", ["signature", "wraps", "partial"])
def test_what_wraps_a_receiver_gets_its_payload_by_keyword(kind: str) -> None:
    """The signature is another function's, whose parameters the wrapper itself needn't have."""

    def wrapper(runner: Any, **payload: Any) -> Any:
        return payload

    receiver: Any = {
        "signature": wrapper,
        "wraps": functools.wraps(Meal().eat)(wrapper),
        "partial": functools.partial(wrapper),
    }[kind]
    if kind == "signature":
        wrapper.__signature__ = inspect.signature(Meal().eat)  # type: ignore[attr-defined]
    got = call(receiver, {"batch_idx": 3, "outputs": "out"}, ("batch_idx", "outputs"))
    assert got == {"batch_idx": 3, "outputs": "out"}
