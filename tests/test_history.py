"""HistoryBuffer and MessageHub: what a run has measured, exactly, without waiting for a device, and bounded."""

from __future__ import annotations

import gc
import json
import math
import statistics
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterator
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny import on_device, same
from torch.utils._python_dispatch import TorchDispatchMode

from eventrunner.checkpoint.codec import decode
from eventrunner.checkpoint.plan import encode
from eventrunner.errors import OptionError, UnknownScalarError
from eventrunner.report.history import HistoryBuffer
from eventrunner.report.hub import MessageHub

FINITE = st.floats(-1e6, 1e6)
ENTRIES = st.lists(st.tuples(FINITE, st.integers(1, 9)), min_size=1, max_size=30)


class Operations(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Records the names of all tensor operations that are really carried out."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.names: list[str] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        self.names.append(func.__name__.split(".")[0])
        return func(*args, **(kwargs or {}))


class Activation:
    """Something large that an autograd graph keeps for its backward."""


def filled(entries: list[tuple[Any, int]], max_length: int = 10_000) -> HistoryBuffer:
    """A history of these values and counts."""
    return HistoryBuffer([value for value, _ in entries], [count for _, count in entries], max_length)


def through_file(state: dict[str, Any]) -> dict[str, Any]:
    """The state as it comes back from a checkpoint."""
    encoded = encode({"state": state})
    back: dict[str, Any] = decode(json.loads(json.dumps(encoded.document)), encoded.tensors)["state"]
    return back


def plain(state: dict[str, Any]) -> dict[str, Any]:
    """The state with lists in place of its tensors."""
    return {key: value.tolist() if isinstance(value, torch.Tensor) else value for key, value in state.items()}


@pytest.fixture(autouse=True)
def no_hubs() -> Iterator[None]:
    """Each test begins and ends with no hub in existence."""
    MessageHub._held.clear()
    MessageHub._instances.clear()
    yield
    MessageHub._held.clear()


# HistoryBuffer: values


def test_a_history_has_its_values_and_counts_in_order() -> None:
    """`data` is MMEngine's pair, as tuples."""
    buffer = HistoryBuffer()
    buffer.update(1.5)
    buffer.update(2, count=3)

    assert buffer.data == ((1.5, 2.0), (1, 3))
    assert len(buffer) == 2


def test_appending_is_updating_by_a_float() -> None:
    """What appends may be kept over looks, aggregating and loading."""
    history = HistoryBuffer()
    append = history.append
    append(1.0)
    history.update(2.0, 3)
    history.aggregate()
    append(4.0)
    assert history.data == ((1.0, 2.0, 4.0), (1, 3, 1))
    history.load_state_dict(HistoryBuffer([5.0], [1]).state_dict())
    append(7.0)
    assert (history.mean(), history.max(), history.current(), len(history)) == (6.0, 7.0, 7.0, 2)


def test_a_history_can_begin_with_values() -> None:
    """The constructor takes histories, as MMEngine's does."""
    assert HistoryBuffer([1, 2], [1, 3]).mean() == 7 / 4


def test_the_mean_is_weighted_by_counts() -> None:
    """A value counts for as many samples as it is the mean of, in a window as over all."""
    buffer = filled([(10.0, 1), (1.0, 1), (4.0, 2)])

    assert buffer.mean() == 19 / 4
    assert buffer.mean(2) == 9 / 3


def test_a_window_looks_at_the_last_updates() -> None:
    """mean, max and min take a window of updates; one larger than the history is the history."""
    buffer = filled([(9.0, 1), (1.0, 1), (2.0, 1), (3.0, 1)])

    assert (buffer.mean(3), buffer.max(3), buffer.min(2)) == (2.0, 3.0, 2.0)
    assert (buffer.mean(99), buffer.max(99), buffer.min(99)) == (15 / 4, 9.0, 1.0)
    assert buffer.current() == 3.0


def test_without_a_window_what_has_dropped_out_still_counts() -> None:
    """Totals cover all updates ever, a window those that are held."""
    buffer = filled([(100.0, 2), (-50.0, 1), (1.0, 1), (2.0, 1), (3.0, 1)], max_length=3)

    assert buffer.data == ((1.0, 2.0, 3.0), (1, 1, 1))
    assert (buffer.mean(), buffer.max(), buffer.min()) == (156 / 6, 100.0, -50.0)
    assert (buffer.mean(5), buffer.max(5), buffer.min(5)) == (2.0, 3.0, 1.0)


@given(entries=ENTRIES, window=st.integers(1, 40), max_length=st.integers(1, 40))
def test_every_answer_is_that_of_the_whole_list(entries: list[tuple[float, int]], window: int, max_length: int) -> None:
    """Random histories agree with a plain computation over lists."""
    buffer = filled(entries, max_length)
    seen = entries[-min(window, max_length) :]

    assert buffer.current() == entries[-1][0]
    assert (buffer.max(), buffer.min()) == (max(entries)[0], min(entries)[0])
    assert (buffer.max(window), buffer.min(window)) == (max(seen)[0], min(seen)[0])
    assert math.isclose(buffer.mean(), statistics.fmean(*zip(*entries, strict=True)), rel_tol=1e-9, abs_tol=1e-6)
    assert math.isclose(buffer.mean(window), statistics.fmean(*zip(*seen, strict=True)), rel_tol=1e-9, abs_tol=1e-6)


@pytest.mark.parametrize("values", [[math.nan, 1.0], [1.0, math.nan], [0.0, math.nan, 2.0]])
def test_nan_stays_nan(values: list[float]) -> None:
    """A loss that was NaN once isn't hidden, wherever it stood."""
    buffer = filled([(value, 1) for value in values])

    answers = [read() for read in (buffer.mean, buffer.max, buffer.min)]
    answers += [read(len(values)) for read in (buffer.mean, buffer.max, buffer.min)]

    assert all(math.isnan(answer) for answer in answers)


# HistoryBuffer: what a value may be


@pytest.mark.parametrize(
    "value",
    [
        3,
        3.0,
        np.float32(3),
        np.int64(3),
        np.array([3.0]),
        torch.tensor(3.0),
        torch.tensor(3),
        torch.tensor([[3.0]]),
        torch.tensor(3.0, dtype=torch.bfloat16),
        torch.nn.Parameter(torch.tensor(3.0)),
        torch.tensor([3.0], requires_grad=True) * 1,
    ],
)
def test_one_number_in_any_wrapping_is_a_value(value: Any) -> None:
    """Python's, NumPy's and torch's single numbers all become the same float."""
    buffer = HistoryBuffer()
    buffer.update(value)

    assert buffer.data == ((3.0,), (1,))
    assert type(buffer.current()) is float


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (True, "a value of type bool"),
        ("3", "a value of type str"),
        (None, "a value of type NoneType"),
        ([3.0], "a value of type list"),
        (1j, "a value of type complex"),
        (Fraction(1, 3), "a value of type Fraction"),
        (10**400, "a value of type int"),
        (float, "a value of type type"),
        (np.float32, "a value of type type"),
        (np.bool_(True), "a bool of shape () and dtype bool"),
        (np.array([1.0, 2.0]), "a ndarray of shape (2,) and dtype float64"),
        (torch.tensor([1.0, 2.0]), "a Tensor of shape (2,) and dtype torch.float32"),
        (torch.tensor([]), "a Tensor of shape (0,) and dtype torch.float32"),
        (torch.tensor(True), "a Tensor of shape () and dtype torch.bool"),
        (torch.tensor(1j), "a Tensor of shape () and dtype torch.complex64"),
    ],
)
def test_what_is_not_one_number_is_refused_by_its_kind(value: Any, kind: str) -> None:
    """The error comes with the update, not with the reading, and the history is as it was."""
    buffer = HistoryBuffer([1.0], [1])

    with pytest.raises(OptionError) as caught:
        buffer.update(value)

    assert str(caught.value) == f"a scalar must be a number or a tensor of one element, not {kind}."
    assert buffer.data == ((1.0,), (1,))


@pytest.mark.parametrize(
    ("action", "message"),
    [
        (lambda buffer: buffer.update(1.0, count=0), "count must be an int of at least 1, not 0."),
        (lambda buffer: buffer.update(1.0, count=1.5), "count must be an int of at least 1, not 1.5."),
        (lambda buffer: buffer.update(1.0, count=True), "count must be an int of at least 1, not True."),
        (lambda buffer: buffer.mean(0), "window_size must be an int of at least 1, not 0."),
        (lambda buffer: buffer.max("2"), "window_size must be an int of at least 1, not '2'."),
        (lambda buffer: buffer.min(-1), "window_size must be an int of at least 1, not -1."),
        (lambda buffer: HistoryBuffer(max_length=0), "max_length must be an int of at least 1, not 0."),
        (lambda buffer: HistoryBuffer([1], []), "a history needs one count for each value, not 0 for 1."),
    ],
)
def test_a_number_out_of_range_is_refused(action: Callable[[HistoryBuffer], object], message: str) -> None:
    """Counts, windows and lengths begin at 1."""
    with pytest.raises(OptionError) as caught:
        action(HistoryBuffer([1.0], [1]))

    assert str(caught.value) == message


@pytest.mark.parametrize("what", ["mean", "max", "min", "current"])
@pytest.mark.parametrize("window", [(), (3,)])
def test_a_history_without_entries_says_so(what: str, window: tuple[int, ...]) -> None:
    """Reading before the first update is an error that names what was read."""
    if what == "current":
        window = ()

    with pytest.raises(OptionError, match=f"^the {what}.* of a history without entries was asked for; update"):
        getattr(HistoryBuffer(), what)(*window)

    assert HistoryBuffer().data == ((), ())
    assert len(HistoryBuffer()) == 0


# HistoryBuffer: tensors


def test_an_update_reads_no_tensor() -> None:
    """Between two reads nothing is fetched from a device; then everything is, in one go."""
    losses = [on_device(float(i)) for i in range(5)]
    buffer = HistoryBuffer()

    with Operations() as at_update:
        for loss in losses:
            buffer.update(loss)
    with Operations() as at_read:
        mean = buffer.mean()

    assert set(at_update.names) == {"detach", "clone"}
    assert at_read.names.count("stack") == 1
    assert "_local_scalar_dense" not in at_read.names
    assert mean == 2.0


def test_a_tensor_on_the_cpu_is_read_at_once() -> None:
    """Nobody is waited for, and it is neither copied nor kept."""
    buffer, loss = HistoryBuffer(), torch.tensor(2.0, requires_grad=True)

    with Operations() as operations:
        buffer.update(loss)

    assert operations.names == ["_local_scalar_dense"]
    assert buffer.current() == 2.0


def test_what_was_read_is_not_read_again() -> None:
    """A second look costs no transfer."""
    buffer = HistoryBuffer([on_device(1.0)], [1])
    buffer.mean()

    with Operations() as operations:
        buffer.mean(), buffer.max(3), buffer.current(), buffer.data, buffer.state_dict()

    assert operations.names == []


def test_tensors_of_different_kinds_and_numbers_keep_their_order() -> None:
    """One transfer per kind, and the history is as it was given."""
    values: list[Any] = [
        on_device(1, torch.int64),
        on_device(2.0),
        3,
        on_device(4, torch.int64).reshape(1),
        on_device(5.0, torch.float64),
        6.0,
    ]
    buffer = HistoryBuffer(values, range(1, 7))

    with Operations() as operations:
        data = buffer.data

    assert data == ((1.0, 2.0, 3.0, 4.0, 5.0, 6.0), (1, 2, 3, 4, 5, 6))
    assert operations.names.count("stack") == 3


def test_a_thousand_unread_tensors_are_read_unasked() -> None:
    """What is pending is bounded."""
    buffer = HistoryBuffer()
    one = on_device(1.0)
    for _ in range(999):
        buffer.update(one)

    with Operations() as operations:
        buffer.update(2.0)

    assert "stack" in operations.names
    assert (len(buffer), buffer.mean()) == (1000, 1.001)


def test_a_tensor_that_its_owner_writes_to_later_keeps_its_value() -> None:
    """A plain tensor, a parameter, a view of one and a result are all safe from what happens next."""
    plain, parameter = torch.tensor(1.0), torch.nn.Parameter(torch.tensor([2.0, 3.0]))
    result = parameter.sum()
    buffer = HistoryBuffer([plain, parameter[0], result], [1, 1, 1])

    with torch.no_grad():
        plain.fill_(99)
        parameter.fill_(99)
        result.fill_(99)

    assert buffer.data[0] == (1.0, 2.0, 5.0)


def test_a_history_holds_no_graph() -> None:
    """What an unread value was computed from can be freed."""
    kept = weakref.WeakSet[Activation]()

    class Double(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
            ctx.activation = Activation()
            kept.add(ctx.activation)
            return x * 2

    loss = Double.apply(torch.tensor(1.0, requires_grad=True))  # type: ignore[no-untyped-call]
    assert len(kept) == 1

    buffer = HistoryBuffer([loss], [1])
    del loss

    assert len(kept) == 0
    assert buffer.current() == 2.0


def test_what_was_computed_in_inference_mode_is_a_value() -> None:
    """Validation scalars mix with those of training."""
    with torch.inference_mode():
        in_inference = torch.tensor(1.0)
    weight = torch.tensor(3.0, requires_grad=True)

    assert HistoryBuffer([in_inference, weight * 1], [1, 1]).mean() == 2.0


def test_unread_tensors_count_into_the_length() -> None:
    """The length is known without reading."""
    buffer = HistoryBuffer([torch.tensor(1.0)] * 5, [1] * 5, max_length=3)

    with Operations() as operations:
        length = len(buffer)

    assert length == 3
    assert operations.names == []


# HistoryBuffer: statistics


@pytest.fixture
def own_statistics() -> Iterator[None]:
    """What a test registers is gone after it."""
    before = dict(HistoryBuffer._statistics)
    yield
    HistoryBuffer._statistics.clear()
    HistoryBuffer._statistics.update(before)


@pytest.mark.parametrize(
    ("name", "arguments", "value"), [("mean", (2,), 2.5), ("max", (), 3.0), ("min", (1,), 2.0), ("current", (), 2.0)]
)
def test_built_in_statistics_are_found_by_name(name: str, arguments: tuple[int, ...], value: float) -> None:
    """`statistics("mean", 2)` is `mean(2)`."""
    assert filled([(1.0, 1), (3.0, 1), (2.0, 1)]).statistics(name, *arguments) == value


@pytest.mark.usefixtures("own_statistics")
def test_a_registered_function_is_a_statistic_of_every_history() -> None:
    """The function gets the history and what `statistics` was called with, and is returned as it was."""

    @HistoryBuffer.register_statistics
    def weighted(buffer: HistoryBuffer, factor: float, offset: float = 0) -> float:
        return buffer.current() * factor + offset

    assert HistoryBuffer([2.0], [1]).statistics("weighted", 3, offset=1) == 7.0
    assert weighted(HistoryBuffer([2.0], [1]), 3) == 6.0


@pytest.mark.usefixtures("own_statistics")
def test_a_statistic_cannot_take_the_name_of_another() -> None:
    """The built-in ones stay what they are."""

    def mean(buffer: HistoryBuffer) -> float:
        return 0.0

    with pytest.raises(OptionError, match=r"^statistics 'mean' can't be registered: the name is taken"):
        HistoryBuffer.register_statistics(mean)

    assert HistoryBuffer([2.0], [1]).statistics("mean") == 2.0


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("meen", "no statistics 'meen' among current, max, mean, min; did you mean 'mean'?"),
        ("variance", "no statistics 'variance' among current, max, mean, min."),
    ],
)
def test_an_unknown_statistic_is_refused_with_the_known_ones(name: str, message: str) -> None:
    """The error lists what there is and says what is near."""
    with pytest.raises(OptionError) as caught:
        HistoryBuffer([2.0], [1]).statistics(name)

    assert str(caught.value) == message


# HistoryBuffer: state


def test_a_state_is_plain_data() -> None:
    """Numbers, and two tensors of them: exact, and cheap for a save to take."""
    state = filled([(torch.tensor(1.5), 2), (2.0, 1)]).state_dict()

    assert (state["values"].dtype, state["counts"].dtype) == (torch.float64, torch.int64)
    filled_up = {"values": [1.5, 2.0] + [0.0] * 14, "counts": [2, 1] + [0] * 14}
    assert plain(state) == {**filled_up, "sum": 5.0, "count": 3, "max": 2.0, "min": 1.5}


def test_the_size_of_a_state_seldom_changes() -> None:
    """A save finds its tensors where they were, and so needn't plan anew."""
    sizes = [len(filled([(1.0, 1)] * count).state_dict()["values"]) for count in range(1, 1_100)]
    assert sorted(set(sizes)) == [16, 32, 64, 128, 256, 512, 1_024]


def test_only_the_last_thousand_entries_are_saved() -> None:
    """A checkpoint doesn't grow with the run."""
    state = filled([(float(i), 1) for i in range(2_500)]).state_dict()

    assert state["values"].tolist() == [float(i) for i in range(1_500, 2_500)] + [0.0] * 24
    assert state["counts"].tolist() == [1] * 1_000 + [0] * 24
    assert (state["sum"], state["count"]) == (sum(range(2_500)), 2_500)


@given(before=ENTRIES, after=ENTRIES, window=st.integers(1, 60))
def test_a_loaded_history_goes_on_exactly(
    before: list[tuple[float, int]], after: list[tuple[float, int]], window: int
) -> None:
    """Interrupted or not, every answer is bit-equal."""
    uninterrupted, resumed = filled(before), HistoryBuffer([7.0], [7])
    resumed.load_state_dict(through_file(uninterrupted.state_dict()))

    for buffer in (uninterrupted, resumed):
        for value, count in after:
            buffer.update(value, count)

    assert resumed.data == uninterrupted.data
    for read in (HistoryBuffer.mean, HistoryBuffer.max, HistoryBuffer.min):
        assert read(resumed) == read(uninterrupted)
        assert read(resumed, window) == read(uninterrupted, window)


def test_a_long_loaded_history_goes_on_exactly() -> None:
    """Beyond what was saved, the totals carry on, and windows of a thousand see the same."""
    uninterrupted, resumed = filled([(math.sin(i), 1 + i % 3) for i in range(3_000)]), HistoryBuffer()
    resumed.load_state_dict(through_file(uninterrupted.state_dict()))

    assert resumed.mean() == uninterrupted.mean()
    assert resumed.mean(1_000) == uninterrupted.mean(1_000)
    assert (resumed.max(), resumed.min()) == (uninterrupted.max(), uninterrupted.min())
    assert len(resumed) == 1_000


def test_loading_forgets_what_was_pending() -> None:
    """A history becomes what was saved, whatever it had in hand."""
    buffer = HistoryBuffer([torch.tensor(9.0)], [1])
    buffer.load_state_dict(filled([(1.0, 1)]).state_dict())

    assert buffer.data == ((1.0,), (1,))


def test_a_shorter_history_loads_what_it_can_hold() -> None:
    """`max_length` stays that of the loading history."""
    buffer = HistoryBuffer(max_length=2)
    buffer.load_state_dict(filled([(1.0, 1), (2.0, 1), (3.0, 1)]).state_dict())
    buffer.update(4.0)

    assert buffer.data[0] == (3.0, 4.0)
    assert buffer.mean() == 2.5


def test_a_history_without_entries_can_be_saved_and_loaded() -> None:
    """Nothing comes back as nothing."""
    buffer = HistoryBuffer([5.0], [1])
    buffer.load_state_dict(through_file(HistoryBuffer().state_dict()))
    assert len(buffer) == 0

    buffer.update(-1.0)
    assert (buffer.max(), buffer.mean()) == (-1.0, -1.0)


def test_a_state_without_entries_may_have_any_extremes() -> None:
    """An older one has zeros, which are no largest and no smallest value of what comes."""
    buffer = HistoryBuffer()
    buffer.load_state_dict(HistoryBuffer().state_dict() | {"max": 0.0, "min": 0.0})
    buffer.update(-2.0)
    buffer.update(-1.0)

    assert (buffer.max(), buffer.min()) == (-1.0, -2.0)


def test_a_state_of_lists_is_loaded_too() -> None:
    """As older checkpoints have it, with nothing to fill it up."""
    buffer = HistoryBuffer()
    buffer.load_state_dict(plain(filled([(1.0, 1), (2.0, 3)]).state_dict()) | {"values": [1.0, 2.0], "counts": [1, 3]})

    assert (buffer.data, buffer.mean()) == (((1.0, 2.0), (1, 3)), 7 / 4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"extra": 1},
            "a history's state holds values, counts, sum, count, max, min, not values, counts, sum, count, max, min, ",
        ),
        ({"values": [1.0]}, "a history needs one count for each value, not 2 for 1."),
        ({"values": [1.0, "2"]}, "a scalar must be a number or a tensor of one element, not a value of type str."),
        ({"values": [1.0, 2.0], "counts": [1, 0]}, "count must be an int of at least 1, not 0."),
        ({"sum": None}, "a scalar must be a number or a tensor of one element, not a value of type NoneType."),
        ({"count": 1}, "a history's total count of 1 doesn't fit its entries' 2."),
        ({"values": [], "counts": []}, "a history's total count of 2 doesn't fit its entries' 0."),
    ],
)
def test_a_state_that_is_none_is_refused_and_changes_nothing(change: dict[str, Any], message: str) -> None:
    """A history is loaded whole or not at all."""
    state = filled([(1.0, 1), (2.0, 1)]).state_dict() | change
    buffer = HistoryBuffer([5.0], [1])

    with pytest.raises(OptionError) as caught:
        buffer.load_state_dict(state)

    assert str(caught.value).startswith(message)
    assert (buffer.data, buffer.mean()) == (((5.0,), (1,)), 5.0)


# MessageHub: scalars


def test_a_scalar_has_a_history() -> None:
    """`get_scalar(key)` is a HistoryBuffer of all updates."""
    hub = MessageHub("run")
    hub.update_scalar("train/loss", torch.tensor(1.0))
    hub.update_scalar("train/loss", 4.0, count=2)

    assert hub.get_scalar("train/loss").mean() == 3.0
    assert list(hub.log_scalars) == ["train/loss"]


def test_several_scalars_are_updated_at_once() -> None:
    """A value may be a dict with a count."""
    hub = MessageHub("run")
    hub.update_scalars({"a": 1, "b": {"value": torch.tensor(2.0), "count": 5}, "c": {"value": 3}})

    assert {key: buffer.data for key, buffer in hub.log_scalars.items()} == {
        "a": ((1.0,), (1,)),
        "b": ((2.0,), (5,)),
        "c": ((3.0,), (1,)),
    }


@pytest.mark.parametrize(
    ("scalars", "message"),
    [
        (
            {"ok": 1, "bad": True},
            "scalar 'bad': a scalar must be a number or a tensor of one element, not a value of type bool.",
        ),
        ({"ok": 1, "bad": {"value": 1, "count": 0}}, "scalar 'bad': count must be an int of at least 1, not 0."),
        ({"ok": 1, "bad": {"count": 2}}, "scalar 'bad' given as a dict holds value and count, not count."),
        (
            {"ok": 1, "bad": {"value": 2, "cuont": 2}},
            "scalar 'bad' given as a dict holds value and count, not value, cuont.",
        ),
        ({"ok": 1, 3: 1}, "the key of scalar must be a str, not 3."),
        ({"ok": 1, "kept": 1}, "scalar 'kept' can't be set with resumed=True: this run has set it otherwise."),
    ],
)
def test_if_one_of_several_scalars_is_refused_none_is_updated(scalars: dict[Any, Any], message: str) -> None:
    """The error names the key, and the hub is as it was."""
    hub = MessageHub("run")
    hub.update_scalar("kept", 1, resumed=False)

    with pytest.raises(OptionError) as caught:
        hub.update_scalars(scalars)

    assert str(caught.value) == message
    assert list(hub.log_scalars) == ["kept"]
    assert len(hub.get_scalar("kept")) == 1


def test_a_refused_first_value_leaves_no_history() -> None:
    """A scalar begins with its first good value, and so does its `resumed`."""
    hub = MessageHub("run")
    with pytest.raises(OptionError, match=r"^scalar 'x': a scalar must be a number"):
        hub.update_scalar("x", "1")  # type: ignore[arg-type]

    hub.update_scalar("x", 1, resumed=False)

    assert hub.get_scalar("x").current() == 1.0


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("train/los", "no scalar 'train/los' in a hub that has train/loss, lr; did you mean 'train/loss'?"),
        ("zzz", "no scalar 'zzz' in a hub that has train/loss, lr."),
    ],
)
def test_an_unknown_scalar_is_a_key_error_in_plain_words(key: str, message: str) -> None:
    """Code that catches KeyError goes on working; the sentence isn't in quotes."""
    hub = MessageHub("run")
    hub.update_scalars({"train/loss": 1, "lr": 2})

    with pytest.raises(KeyError) as caught:
        hub.get_scalar(key)

    assert isinstance(caught.value, UnknownScalarError)
    assert str(caught.value) == message


# MessageHub: info


def test_info_is_kept_as_it_is() -> None:
    """The hub returns the object itself, and a default where there is none."""
    hub, value = MessageHub("run"), {"a": [1, 2]}
    hub.update_info("cfg", value)

    assert hub.get_info("cfg") is value
    assert hub.get_info("none") is None
    assert hub.get_info("none", 3) == 3
    assert dict(hub.runtime_info) == {"cfg": value}


def test_info_can_be_taken_out() -> None:
    """After `pop_info` the key is free again, also to be resumed otherwise."""
    hub = MessageHub("run")
    hub.update_info("eta", 5)

    assert hub.pop_info("eta") == 5
    assert hub.pop_info("eta") is None
    assert hub.pop_info("eta", 7) == 7
    hub.update_info("eta", 6, resumed=False)
    assert hub.state_dict()["runtime_info"] == {}


def test_anything_can_be_info_that_is_not_resumed() -> None:
    """Objects that no checkpoint can hold are welcome as long as nobody wants to save them."""
    hub, module = MessageHub("run"), torch.nn.Linear(1, 1)
    hub.update_info_dict({"module": module, "file": print}, resumed=False)

    assert hub.get_info("module") is module
    assert hub.state_dict() == {"log_scalars": {}, "runtime_info": {}}


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({1, 2}, "info 'x' is a value of type set, "),
        ({"a": [0, object()]}, "info 'x'['a'][1] is a value of type object, "),
        ((1, {"b": {3: 4}}), "info 'x'[1]['b'] is a dict with keys other than str, "),
        (np.zeros(2), "info 'x' is a ndarray of shape (2,) and dtype float64, "),
    ],
)
def test_info_that_cannot_be_saved_is_left_out_of_the_state(value: Any, message: str) -> None:
    """It is an info all the same; the hub says where in the value the trouble is, and what to do."""
    hub = MessageHub("run")
    hub.update_info_dict({"ok": 1, "x": value})

    assert hub.get_info("x") is value
    assert hub.state_dict()["runtime_info"] == {"ok": 1}
    assert hub.left_out == {
        "x": f"{message}which can't be saved with the run: pass resumed=False, or None, bool, int, float, str, "
        "tensors, and lists, tuples and dicts of these."
    }


def test_info_that_was_spoilt_later_is_left_out_too() -> None:
    """The hub keeps the object itself, so it looks again."""
    hub, value = MessageHub("run"), ["good"]
    hub.update_info("x", value)
    assert hub.state_dict()["runtime_info"] == {"x": ["good"]}
    value.append(object())  # type: ignore[arg-type]

    assert hub.state_dict()["runtime_info"] == {}
    assert hub.left_out["x"].startswith("info 'x'[1] is a value of type object")


@pytest.mark.parametrize("kept", [True, False])
def test_a_scalar_is_resumed_or_not_for_good(kept: bool) -> None:
    """The first update decides."""
    hub = MessageHub("run")
    hub.update_scalar("x", 1, resumed=kept)
    hub.update_scalar("x", 1, resumed=kept)

    with pytest.raises(OptionError) as caught:
        hub.update_scalar("x", 1, resumed=not kept)

    assert str(caught.value) == f"scalar 'x' can't be set with resumed={not kept}: this run has set it otherwise."


@pytest.mark.parametrize("kept", [True, False])
def test_an_info_is_resumed_as_its_latest_update_says(kept: bool) -> None:
    """Whoever set it before, a built-in hook for one; also where it was provided."""
    hub = MessageHub("run")
    hub.update_info("x", 1, resumed=not kept)
    hub.update_info("x", 2, resumed=kept)
    hub.provide_info("y", lambda: 3)
    hub.update_info("y", 4, resumed=kept)

    assert hub.state_dict()["runtime_info"] == ({"x": 2, "y": 4} if kept else {})


def test_an_info_of_this_run_alone_stays_where_a_state_has_it() -> None:
    """Loading neither fails by it nor takes its place."""
    saved, hub = MessageHub("saved"), MessageHub("run")
    saved.update_info_dict({"seed": 1, "best": 2})
    hub.update_info("seed", 3, resumed=False)
    hub.load_state_dict(saved.state_dict())

    assert dict(hub.runtime_info) == {"seed": 3, "best": 2}


def test_infos_can_be_written_to_as_a_dict() -> None:
    """MMEngine's users do; a key keeps its ``resumed``, and a new one is saved with the run."""
    hub = MessageHub("run")
    hub.update_info("mine", 1, resumed=False)
    hub.runtime_info["mine"] = 2
    hub.runtime_info.update(new=3, gone=4)
    assert hub.runtime_info.pop("gone") == 4

    assert (hub.get_info("mine"), hub.get_info("new"), "gone" in hub.runtime_info) == (2, 3, False)
    assert hub.state_dict()["runtime_info"] == {"new": 3}
    with pytest.raises(OptionError, match="the key of info must be a str, not 1"):
        hub.runtime_info[1] = 2  # type: ignore[index]


def test_the_view_of_scalars_cannot_be_written_to() -> None:
    """What goes into a history goes through the hub's methods."""
    hub = MessageHub("run")

    with pytest.raises(TypeError, match="does not support item assignment"):
        hub.log_scalars["x"] = HistoryBuffer()  # type: ignore[index]


# MessageHub: state


def filled_hub() -> MessageHub:
    """A hub with something of each kind."""
    hub = MessageHub("saved")
    hub.update_scalars({"loss": torch.tensor(1.0), "acc": 0.5})
    hub.update_scalar("time", 0.1, resumed=False)
    hub.update_info_dict({"best": None, "ids": (1, 2), "nested": OrderedDict(a=[True, "x", 1.5])})
    hub.update_info("logger", print, resumed=False)
    return hub


def test_a_state_has_what_is_resumed() -> None:
    """Scalars and infos that aren't resumed stay out of it."""
    state = filled_hub().state_dict()

    assert list(state["log_scalars"]) == ["loss", "acc"]
    assert state["runtime_info"] == {"best": None, "ids": (1, 2), "nested": {"a": [True, "x", 1.5]}}


def test_a_state_does_not_change_with_the_run() -> None:
    """Containers in it are copies."""
    hub, ids = MessageHub("run"), [1]
    hub.update_info("ids", ids)
    hub.update_scalar("loss", 1)

    state = hub.state_dict()
    ids.append(2)
    hub.update_scalar("loss", 2)

    assert state["runtime_info"] == {"ids": [1]}
    assert state["log_scalars"]["loss"]["values"].tolist() == [1.0] + [0.0] * 15


def test_tensors_are_saved_detached_and_loaded() -> None:
    """A tensor may be info; the state has it without its graph, and shares its memory as torch's states do."""
    hub, weight = MessageHub("run"), torch.ones(2, requires_grad=True)
    hub.update_info("weight", weight)

    saved = hub.state_dict()["runtime_info"]["weight"]
    assert not saved.requires_grad
    assert saved.data_ptr() == weight.data_ptr()

    other = MessageHub("other")
    other.load_state_dict(hub.state_dict())
    assert torch.equal(other.get_info("weight"), torch.ones(2))


def test_a_loaded_hub_goes_on_exactly() -> None:
    """Scalars, infos and what is resumed come back through a checkpoint."""
    hub, saved = MessageHub("run"), filled_hub()
    hub.load_state_dict(through_file(saved.state_dict()))

    for each in (hub, saved):
        each.update_scalar("loss", 3.0)

    assert hub.get_scalar("loss").mean() == saved.get_scalar("loss").mean() == 2.0
    assert hub.get_info("ids", ()) == (1, 2)
    assert list(hub.state_dict()["log_scalars"]) == ["loss", "acc"]


def test_loading_replaces_resumed_histories_and_keeps_the_rest() -> None:
    """What this run alone knows stays; a history that the saved run had not begun goes."""
    hub = MessageHub("run")
    hub.update_scalars({"loss": 9, "stale": 9})
    hub.update_scalar("time", 0.2, resumed=False)
    hub.update_info_dict({"best": 3, "mine": 4})
    hub.update_info("logger", max, resumed=False)

    hub.load_state_dict(filled_hub().state_dict())

    assert set(hub.log_scalars) == {"loss", "acc", "time"}
    assert hub.get_scalar("loss").data == ((1.0,), (1,))
    assert hub.get_scalar("time").current() == 0.2
    assert (hub.get_info("best", "gone"), hub.get_info("mine"), hub.get_info("logger")) == (None, 4, max)
    hub.update_scalar("time", 0.3, resumed=False)


def test_a_loaded_hub_shares_nothing_with_the_state() -> None:
    """The caller's dict can be loaded twice."""
    hub, state = MessageHub("run"), filled_hub().state_dict()
    hub.load_state_dict(state)
    hub.get_info("nested")["a"].append(2)
    hub.update_scalar("loss", 5)

    assert same(state, filled_hub().state_dict())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"more": 1}, "a hub's state holds log_scalars, runtime_info, not log_scalars, runtime_info, more."),
        ({"runtime_info": {"x": {1}}}, "info 'x' is a value of type set, which can't be saved with the run"),
        ({"log_scalars": {"loss": {}}}, "a history's state holds values, counts, sum, count, max, min, not nothing."),
        ({"log_scalars": {"time": {}}}, "scalar 'time' can't be set with resumed=True: this run has set it otherwise."),
    ],
)
def test_a_state_that_does_not_fit_changes_nothing(change: dict[str, Any], message: str) -> None:
    """A hub is loaded whole or not at all."""
    hub = MessageHub("run")
    hub.update_scalar("time", 1, resumed=False)
    hub.update_info("file", print, resumed=False)

    with pytest.raises(OptionError) as caught:
        hub.load_state_dict(filled_hub().state_dict() | change)

    assert str(caught.value).startswith(message)
    assert list(hub.log_scalars) == ["time"]
    assert dict(hub.runtime_info) == {"file": print}


# MessageHub: instances


def test_a_hub_is_found_by_its_name() -> None:
    """`get_instance` returns the one that there is, and makes the one that there isn't."""
    hub = MessageHub("run")
    made = MessageHub.get_instance("other")

    assert MessageHub.get_instance("run") is hub
    assert MessageHub.get_instance("other") is made
    assert (hub.name, made.name) == ("run", "other")


def test_it_can_be_asked_whether_a_hub_exists() -> None:
    """`check_instance_created` makes none."""
    assert not MessageHub.check_instance_created("run")

    hub = MessageHub("run")

    assert MessageHub.check_instance_created(hub.name)


def test_the_current_hub_is_the_latest() -> None:
    """As in MMEngine, the hub made last is the one that models and metrics find."""
    first = MessageHub("first")
    assert MessageHub.get_current_instance() is first

    second = MessageHub("second")
    assert MessageHub.get_current_instance() is second


def test_a_name_that_is_used_again_belongs_to_the_latest_hub() -> None:
    """A second run of the same name is found by it, and is the current one."""
    old, other = MessageHub("run"), MessageHub("other")
    new = MessageHub("run")

    assert MessageHub.get_instance("run") is new
    assert MessageHub.get_current_instance() is new

    del old, new
    assert not MessageHub.check_instance_created("run")
    assert MessageHub.get_current_instance() is other


def test_a_hub_that_nobody_holds_is_gone() -> None:
    """The hub of a run that is over isn't kept alive, and the one before it is current again."""
    outer = MessageHub("outer")
    MessageHub("inner").update_scalar("loss", 1)

    assert not MessageHub.check_instance_created("inner")
    assert MessageHub.get_current_instance() is outer


def test_a_hub_that_was_asked_for_stays() -> None:
    """Several hooks that ask for one of their own by its name share it, though none of them holds it."""
    MessageHub.get_instance("shared").update_info("count", 1)
    gc.collect()

    assert MessageHub.get_instance("shared").get_info("count") == 1
    MessageHub("shared")  # takes the name, and leaves with it
    assert not MessageHub.check_instance_created("shared")


def test_where_there_is_no_hub_a_default_one_is_made_and_stays() -> None:
    """Code that logs outside any run finds its values again."""
    MessageHub.get_current_instance().update_scalar("loss", 1)

    assert MessageHub.get_current_instance().get_scalar("loss").current() == 1.0
    assert MessageHub.get_current_instance().name == "default"


@pytest.mark.parametrize("name", ["", None, 3])
def test_a_hub_needs_a_name(name: Any) -> None:
    """Without one it couldn't be found."""
    with pytest.raises(OptionError, match=r"^a message hub's name must be a str that isn't empty, not "):
        MessageHub(name)
