"""What a user reads who got something wrong: every message whole, from every way to get there."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from eventrunner.bus.bus import Bus, Site
from eventrunner.bus.sites import CATALOGUE
from eventrunner.errors import EventRunnerError, HookError, OptionError, SignatureError, UnknownSiteError
from eventrunner.hook import Hook, connect_hook, options

SITES = [spec.name for spec in CATALOGUE]
HERE = "tests/test_bus_messages.py"


def slips(name: str) -> Iterator[str]:
    """The name with each letter left out, doubled, or swapped with the next."""
    for index, letter in enumerate(name):
        yield name[:index] + name[index + 1 :]
        yield name[:index] + letter + name[index:]
        yield name[:index] + name[index + 1 : index + 2] + letter + name[index + 2 :]


MISSPELT = sorted({(site, slip) for site in SITES for slip in slips(site)} - {(site, site) for site in SITES})


def test_there_are_slips_of_every_site_and_none_is_a_site() -> None:
    """The ground of what follows."""
    assert {site for site, _ in MISSPELT} == set(SITES)
    assert len(SITES) == 31
    assert not {slip for _, slip in MISSPELT} & set(SITES)


@pytest.fixture(scope="module")
def bus() -> Bus:
    """Nothing is ever connected to it."""
    return Bus()


def message_of(error: type[Exception], act: Callable[[], Any]) -> str:
    """What *act* says when it is refused."""
    with pytest.raises(error) as caught:
        act()
    assert isinstance(caught.value, EventRunnerError)
    return str(caught.value)


@pytest.mark.parametrize("site", SITES)
@pytest.mark.slow
def test_a_slip_in_a_sites_name_is_an_error_with_the_right_name(bus: Bus, site: str) -> None:
    """Pitfall: MMEngine and its like never call what is misspelt, and nobody says so.

    By decorator, as an attribute of the bus, and as a method of a hook.
    """
    for slip in (slip for name, slip in MISSPELT if name == site):
        near = f"no such site; did you mean {site!r}?"
        place = rf"{re.escape(HERE)}:\d+"
        decorated = message_of(UnknownSiteError, lambda slip=slip: bus.on(slip))
        assert re.fullmatch(rf"@on\('{slip}'\) in {place}: {re.escape(near)}", decorated)
        assert message_of(UnknownSiteError, lambda slip=slip: getattr(bus, slip)) == f"bus.{slip}: {near}"
        hook = type("Mine", (Hook,), {slip: lambda self, runner: None})()
        refused = message_of(HookError, lambda hook=hook: connect_hook(bus, hook, "run"))
        assert re.fullmatch(
            rf"hook Mine has a method '{slip}' \({place}\) that no site calls, and no site of that name is declared; "
            rf"did you mean '{site}'\?",
            refused,
        )
    assert len(bus.describe()) == 0


def receiver(runner: Any) -> None:
    """The receiver of the messages below."""


RECEIVER = f"receiver in {HERE}:{receiver.__code__.co_firstlineno}"
LEVELS = "HIGHEST, VERY_HIGH, HIGH, ABOVE_NORMAL, NORMAL, BELOW_NORMAL, LOW, VERY_LOW, LOWEST"
NAMES = (
    "priority, every, start, once, when, label, offload, lane, barrier, max_pending, on_full, on_error, retries, "
    "worker, mutates, ranks, collective"
)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"priority": "HIHG"}, f"priority 'HIHG' is not one of {LEVELS}; did you mean 'HIGH'?"),
        ({"priority": 101}, "priority 101 is not between 0 (runs first) and 100 (runs last)."),
        ({"priority": True}, "priority must be an int from 0 to 100 or a name such as 'NORMAL', not True."),
        ({"every": 0}, "every=0: give an int of 1 or more, or a time such as '10min'."),
        ({"every": "soon"}, "every='soon' is not a time; write a number and ms, s, min or h, as in '10min'."),
        ({"start": -1}, "start=-1: give an int of 0 or more."),
        ({"once": "yes"}, "once='yes': give True or False."),
        ({"when": "always"}, "when='always': give a plain function that returns True where it should run."),
        ({"label": 1}, "label=1: give a str."),
        ({"ranks": "rank 0"}, "ranks='rank 0': give one of all, main, local_main."),
        ({"priorty": 10}, f"there is no option 'priorty', only {NAMES}; did you mean 'priority'?"),
        ({"event_filter": receiver}, f"there is no option 'event_filter', only {NAMES}."),
    ],
)
def test_a_bad_option_is_an_error_with_the_receiver_and_its_place(
    bus: Bus, given: dict[str, Any], message: str
) -> None:
    """At each of the three ways to connect, and nothing is connected."""
    connecting = f"connecting {RECEIVER} to 'after_run': {message}"
    assert message_of(OptionError, lambda: bus.on("after_run", **given)(receiver)) == connecting
    assert message_of(OptionError, lambda: bus.after_run.connect(receiver, **given)) == connecting
    assert message_of(OptionError, lambda: options(**given)(receiver)) == f"@options on {RECEIVER}: {message}"
    assert len(bus.describe()) == 0


class Mine(Hook):
    """A hook whose method asks for what there isn't."""

    def after_train_iter(self, runner: Any, batch_idx: int, output: Any) -> None:  # type: ignore[override]
        """Ask for *output*."""


def asks(runner: Any, batch_idx: int, output: Any) -> None:
    """Ask for *output*."""


@pytest.mark.parametrize(
    ("connect", "name", "function"),
    [
        (lambda bus: bus.on("after_train_iter")(asks), "asks", asks),
        (lambda bus: bus.after_train_iter.connect(asks), "asks", asks),
        (lambda bus: connect_hook(bus, Mine(), "run"), "Mine.after_train_iter", Mine.after_train_iter),
    ],
    ids=["on", "connect", "hook"],
)
def test_a_wrong_payload_name_is_an_error_with_the_receiver_and_its_place(
    bus: Bus, connect: Callable[[Bus], Any], name: str, function: Any
) -> None:
    """What the site offers, and the nearest of it."""
    assert message_of(SignatureError, lambda: connect(bus)) == (
        f"{name} in {HERE}:{function.__code__.co_firstlineno} asks for 'output'; "
        "'after_train_iter' offers runner, batch_idx, data_batch, outputs; did you mean 'outputs'?"
    )
    assert len(bus.describe()) == 0


@pytest.mark.parametrize("emission", [Site.emit, Site.send, Site.emit_all], ids=["emit", "send", "emit_all"])
@pytest.mark.parametrize(
    ("site", "payload", "message"),
    [
        ("after_run", {"reason": 1}, "an emission of 'after_run' carries 'reason'; the site declares nothing."),
        (
            "after_val_epoch",
            {"metric": 1},
            "an emission of 'after_val_epoch' carries 'metric'; the site declares metrics; did you mean 'metrics'?",
        ),
        (
            "on_log",
            {"scalars": {}, "epoch": 1},
            "an emission of 'on_log' carries 'epoch'; the site declares scalars, step.",
        ),
    ],
)
def test_an_emission_with_a_wrong_payload_is_an_error(
    bus: Bus, emission: Any, site: str, payload: dict[str, Any], message: str
) -> None:
    """Though nobody listens."""
    assert message_of(SignatureError, lambda: emission(bus.find(site, site), None, **payload)) == message


@pytest.mark.parametrize(
    ("payload", "message"),
    [
        ({}, "after_val_epoch.emit() missing 1 required positional argument: 'metrics'"),
        ({"metrics": 1, "step": 2}, "after_val_epoch.emit() got an unexpected keyword argument 'step'"),
    ],
)
def test_a_compiled_emission_with_a_wrong_payload_is_a_typeerror_with_the_sites_name(
    payload: dict[str, Any], message: str
) -> None:
    """The first time and every time."""
    bus = Bus()
    bus.after_val_epoch.connect(receiver)
    emitters = bus.emitters("run")
    for _ in range(2):
        assert emitters.after_val_epoch
        with pytest.raises(TypeError, match=f"^{re.escape(message)}$"):
            emitters.after_val_epoch("run", **payload)


@pytest.mark.parametrize(
    ("name", "ending"),
    [
        ("on_train_epoch_end", "that is Lightning's name; here it is 'after_train_epoch'."),
        ("EPOCH_COMPLETED", "that is Ignite's name; here it is 'after_train_epoch'."),
        ("Events.ITERATION_STARTED", "that is Ignite's name; here it is 'before_train_iter'."),
        ("breakfast", "no such site is declared."),
    ],
)
def test_a_name_from_elsewhere_is_an_error_that_says_what_it_is_called_here(bus: Bus, name: str, ending: str) -> None:
    """And one from nowhere that there is no such site."""
    decorated = message_of(UnknownSiteError, lambda: bus.on(name))
    assert re.fullmatch(rf"@on\('{re.escape(name)}'\) in {re.escape(HERE)}:\d+: {re.escape(ending)}", decorated)
    assert message_of(UnknownSiteError, lambda: bus.find(name, "call_hook()")) == f"call_hook(): {ending}"


def test_on_says_where_it_stands(bus: Bus) -> None:
    """The line of the decorator itself."""
    line = message_of.__code__.co_firstlineno
    with pytest.raises(UnknownSiteError) as caught:
        bus.on("after_runn")
    line = caught.traceback[0].lineno + 1
    assert str(caught.value) == f"@on('after_runn') in {HERE}:{line}: no such site; did you mean 'after_run'?"


def test_on_without_its_parentheses_is_an_error(bus: Bus) -> None:
    """``@on`` is given the function as a site."""
    message = message_of(OptionError, lambda: bus.on(receiver))  # type: ignore[arg-type]
    assert re.fullmatch(
        rf"@on\(<function receiver at \w+>\) in {re.escape(HERE)}:\d+: <function receiver at \w+> is not the name of a "
        r"site, as in @on\('after_train'\)\.",
        message,
    )


def test_an_unknown_site_is_a_missing_attribute(bus: Bus) -> None:
    """``hasattr`` and ``getattr`` with a default work on a bus."""
    assert not hasattr(bus, "after_lunch")
    assert getattr(bus, "after_lunch", None) is None
