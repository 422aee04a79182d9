"""The three weight averages against their formulas, written out by hand in float64."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.optim.swa_utils import AveragedModel

from eventrunner.errors import OptionError
from eventrunner.training.averaging import (
    ExponentialMovingAverage,
    MomentumAnnealingEMA,
    StochasticWeightAverage,
    WeightAverage,
)

KINDS = [ExponentialMovingAverage, StochasticWeightAverage, MomentumAnnealingEMA]


class OneWeight(nn.Module):
    """A model that is one number."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros((), dtype=torch.float64))


def feed(average: WeightAverage, model: OneWeight, values: list[float]) -> list[float]:
    """Let the model take each value in turn; what the average was after each."""
    seen = []
    for value in values:
        model.weight.data.fill_(value)
        average.update_parameters(model)
        seen.append(float(average.module.weight))
    return seen


def by_hand(values: list[float], interval: int, weight: Callable[[int], float]) -> list[float]:
    """The same with Python's floats: copy the first, then every interval-th moves the average by weight(steps)."""
    average, seen = 0.0, []
    for steps, value in enumerate(values):
        if steps == 0:
            average = value
        elif steps % interval == 0:
            average += weight(steps) * (value - average)
        seen.append(average)
    return seen


def step_weights(model: nn.Module) -> None:
    """Change every parameter and floating-point buffer, and count in the integer ones."""
    with torch.no_grad():
        for tensor in [*model.parameters(), *model.buffers()]:
            tensor.add_(1)


VALUES = st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=12)
INTERVALS = st.integers(1, 4)


@given(values=VALUES, interval=INTERVALS, momentum=st.floats(0.01, 0.5))
def test_an_ema_moves_by_momentum(values: list[float], interval: int, momentum: float) -> None:
    """At every interval-th update, average += momentum * (value - average)."""
    model = OneWeight()
    average = ExponentialMovingAverage(model, momentum=momentum, interval=interval)

    assert feed(average, model, values) == pytest.approx(by_hand(values, interval, lambda _: momentum), abs=1e-9)


@given(values=VALUES, interval=INTERVALS)
def test_an_swa_is_the_mean_of_what_it_took_in(values: list[float], interval: int) -> None:
    """After n values, the (n + 1)-th moves the average by 1 / (n + 1): the plain mean."""
    model = OneWeight()
    seen = feed(StochasticWeightAverage(model, interval=interval), model, values)
    taken = values[::interval]

    assert seen == pytest.approx(by_hand(values, interval, lambda steps: 1 / (steps // interval + 1)), abs=1e-9)
    assert seen[-1] == pytest.approx(sum(taken) / len(taken), abs=1e-9)


@given(values=VALUES, interval=INTERVALS, gamma=st.integers(1, 20))
def test_an_annealing_ema_starts_close_and_slows_down(values: list[float], interval: int, gamma: int) -> None:
    """The momentum is gamma / (gamma + steps) until it has fallen to the one given."""
    model = OneWeight()
    average = MomentumAnnealingEMA(model, momentum=0.25, gamma=gamma, interval=interval)
    expected = by_hand(values, interval, lambda steps: max(0.25, gamma / (gamma + steps)))

    assert feed(average, model, values) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_the_first_update_copies_whatever_the_average_was_built_from(kind: type[WeightAverage]) -> None:
    """A model that trained on between construction and first update is taken over whole, bit for bit."""
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    average = kind(model)
    step_weights(model)
    average.update_parameters(model)

    for ours, theirs in zip(average.module.state_dict().values(), model.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs)


def test_the_model_is_left_alone_and_the_average_needs_no_gradient() -> None:
    """The average is a copy: updating the model doesn't move it, updating it doesn't move the model."""
    model = nn.Linear(2, 2)
    average = ExponentialMovingAverage(model, momentum=0.5)
    before = copy.deepcopy(model.state_dict())
    average.update_parameters(model)
    average.module.weight.fill_(7.0)

    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), before.values(), strict=True))
    assert all(p.requires_grad for p in model.parameters())
    assert not any(p.requires_grad for p in average.module.parameters())


def test_parameters_come_in_the_models_order() -> None:
    """Two zipped lists are enough to swap the weights, ties included, and the average stays in its tensors."""
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 2))
    model[1].weight = model[0].weight
    average = ExponentialMovingAverage(model, momentum=0.25)
    tensors = list(average.module.parameters())
    average.update_parameters(model)
    step_weights(model)
    average.update_parameters(model)

    assert average.module[1].weight is average.module[0].weight
    assert [n for n, _ in average.module.named_parameters()] == [n for n, _ in model.named_parameters()]
    for ours, theirs, tensor in zip(average.module.parameters(), model.parameters(), tensors, strict=True):
        assert ours is tensor
        torch.testing.assert_close(theirs - ours, torch.full_like(ours, 0.75))


def test_a_model_without_parameters_has_an_average_too() -> None:
    """There is nothing to average, and the calls are counted."""
    average = StochasticWeightAverage(nn.ReLU())
    average.update_parameters(nn.ReLU())
    average.update_parameters(nn.ReLU())

    assert average.steps == 2


class TestBuffers:
    def make(self) -> nn.BatchNorm1d:
        """A module with two floating-point buffers and an integer one."""
        return nn.BatchNorm1d(2)

    def test_buffers_are_copied_where_they_are_not_averaged(self) -> None:
        """By default statistics are the model's latest, while parameters lag behind."""
        model = self.make()
        average = ExponentialMovingAverage(model, momentum=0.25)
        average.update_parameters(model)
        step_weights(model)
        average.update_parameters(model)

        assert average.module.running_mean.tolist() == [1.0, 1.0]
        assert int(average.module.num_batches_tracked) == 1
        assert average.module.bias.tolist() == [0.25, 0.25]

    def test_floating_point_buffers_are_averaged_on_request(self) -> None:
        """Integer ones are copied all the same: a quarter of a batch can't be counted."""
        model = self.make()
        average = ExponentialMovingAverage(model, momentum=0.25, update_buffers=True)
        average.update_parameters(model)
        step_weights(model)
        average.update_parameters(model)

        assert average.module.running_mean.tolist() == [0.25, 0.25]
        assert average.module.running_var.tolist() == [1.25, 1.25]
        assert int(average.module.num_batches_tracked) == 1

    def test_between_averages_buffers_follow_the_model(self) -> None:
        """What isn't averaged is never older than the last call, whatever the interval."""
        model = self.make()
        average = ExponentialMovingAverage(model, momentum=0.25, interval=2)
        average.update_parameters(model)
        step_weights(model)
        average.update_parameters(model)

        assert average.module.running_mean.tolist() == [1.0, 1.0]
        assert average.steps == 2

    def test_a_buffer_that_the_model_makes_or_resizes_is_taken_over(self) -> None:
        """As a cache of positions that grows with the longest sequence so far."""
        model = nn.Module()
        model.register_buffer("cache", None)
        model.register_buffer("table", torch.zeros(2), persistent=False)
        average = ExponentialMovingAverage(model, momentum=0.25)
        model.cache, model.table = torch.ones(3), torch.ones(4)
        average.update_parameters(model)
        model.table = torch.full((6,), 2.0)
        average.update_parameters(model)

        assert average.module.cache.tolist() == [1.0] * 3
        assert average.module.table.tolist() == [2.0] * 6
        assert list(average.module.state_dict()) == ["cache"]

    def test_buffers_that_share_memory_are_averaged_once(self) -> None:
        """One memory under two names moves by the momentum, not by it twice."""
        model = nn.Module()
        model.register_buffer("a", torch.zeros(2))
        model.register_buffer("b", model.a.view(2))
        average = ExponentialMovingAverage(model, momentum=0.25, update_buffers=True)
        average.update_parameters(model)
        model.a.fill_(1.0)
        average.update_parameters(model)

        assert average.module.a.tolist() == average.module.b.tolist() == [0.25, 0.25]

    def test_a_sparse_buffer_is_copied(self) -> None:
        """It has no average."""
        model = nn.Module()
        model.register_buffer("graph", torch.eye(2).to_sparse())
        average = ExponentialMovingAverage(model, momentum=0.25, update_buffers=True)
        average.update_parameters(model)
        model.graph = (2 * torch.eye(2)).to_sparse()
        average.update_parameters(model)

        assert average.module.graph.to_dense().tolist() == [[2.0, 0.0], [0.0, 2.0]]


class TestKinds:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.complex64])
    def test_every_type_of_number_is_averaged(self, dtype: torch.dtype) -> None:
        """Mixed in one model, each is averaged in its own type."""
        model = nn.Module()
        model.register_parameter("a", nn.Parameter(torch.zeros(3, dtype=dtype)))
        model.register_parameter("b", nn.Parameter(torch.zeros(2, dtype=torch.float64)))
        average = ExponentialMovingAverage(model, momentum=0.25)
        average.update_parameters(model)
        step_weights(model)
        average.update_parameters(model)

        assert average.module.a.dtype is dtype
        assert average.module.a.tolist() == [0.25] * 3
        assert average.module.b.tolist() == [0.25] * 2

    def test_an_average_in_another_type_follows_the_model(self) -> None:
        """Kept in float32, the average of a bfloat16 model moves by less than bfloat16 can tell apart."""
        model = nn.Linear(1, 1, bias=False).to(torch.bfloat16)
        model.weight.data.fill_(1.0)
        average = ExponentialMovingAverage(model, momentum=0.0002)
        average.module.float()
        average.update_parameters(model)
        step_weights(model)
        average.update_parameters(model)

        assert average.module.weight.dtype is torch.float32
        assert float(average.module.weight) == pytest.approx(1.0002, abs=1e-6)

    def test_an_average_elsewhere_is_updated_there(self) -> None:
        """device= says where the average lives; the counter stays on the host."""
        model = nn.BatchNorm1d(2)
        average = ExponentialMovingAverage(model, momentum=0.5, device="meta")
        average.update_parameters(model)
        average.update_parameters(model)

        assert {t.device.type for t in [*average.module.parameters(), *average.module.buffers()]} == {"meta"}
        assert average.n_averaged.device.type == "cpu"
        assert average.steps == 2

    @pytest.mark.skipif(not torch.cuda.is_available(), reason="needs two devices that hold numbers")
    def test_an_average_on_the_host_follows_a_model_on_the_accelerator(self) -> None:
        """What crosses the bus has arrived when the update returns."""
        model = nn.BatchNorm1d(2).cuda()
        average = ExponentialMovingAverage(model, momentum=0.25, device="cpu")
        average.update_parameters(model)
        step_weights(model)
        average.update_parameters(model)

        assert average.module.bias.tolist() == [0.25, 0.25]
        assert average.module.running_mean.tolist() == [1.0, 1.0]


class TestState:
    @pytest.mark.parametrize("kind", KINDS)
    def test_an_average_goes_on_from_its_state(self, kind: type[WeightAverage]) -> None:
        """Saved and loaded between updates, it ends bit-equal to the one that was never interrupted."""
        model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
        whole, first, second = (kind(model, interval=2) for _ in range(3))
        for turn in range(6):
            step_weights(model)
            whole.update_parameters(model)
            (first if turn < 3 else second).update_parameters(model)
            if turn == 2:
                second.load_state_dict(copy.deepcopy(first.state_dict()))

        assert second.steps == 6
        for ours, theirs in zip(second.state_dict().values(), whole.state_dict().values(), strict=True):
            assert torch.equal(ours, theirs)

    def test_the_keys_are_torchs(self) -> None:
        """A state of torch's own AveragedModel loads, and the other way round."""
        model = nn.Linear(2, 1)
        ours, theirs = ExponentialMovingAverage(model), AveragedModel(model)
        theirs.update_parameters(model)
        ours.load_state_dict(theirs.state_dict())

        assert set(ours.state_dict()) == {"n_averaged", "module.weight", "module.bias"}
        assert ours.steps == 1

    def test_it_is_called_like_the_model(self) -> None:
        """The averaged weights do the forward pass."""
        model = nn.Linear(2, 1)
        batch = torch.ones(1, 2)

        assert torch.equal(ExponentialMovingAverage(model)(batch), model(batch))


class TestErrors:
    @pytest.mark.parametrize(
        ("make", "message"),
        [
            (
                lambda m: ExponentialMovingAverage(m, momentum=1),
                "momentum, the weight of the new value, must be a float between 0 and 1, not 1.",
            ),
            (
                lambda m: ExponentialMovingAverage(m, momentum=0.0),
                "momentum, the weight of the new value, must be a float between 0 and 1, not 0.0.",
            ),
            (
                lambda m: MomentumAnnealingEMA(m, momentum=float("nan")),
                "momentum, the weight of the new value, must be a float between 0 and 1, not nan.",
            ),
            (lambda m: MomentumAnnealingEMA(m, gamma=0), "gamma=0: give an int of 1 or more."),
            (lambda m: MomentumAnnealingEMA(m, gamma=1.5), "gamma=1.5: give an int of 1 or more."),
            (lambda m: StochasticWeightAverage(m, interval=0), "interval=0: give an int of 1 or more."),
            (lambda m: StochasticWeightAverage(m, interval=True), "interval=True: give an int of 1 or more."),
        ],
    )
    def test_bad_arguments_fail_at_construction(self, make: Callable[[nn.Module], Any], message: str) -> None:
        """The error says what is allowed."""
        with pytest.raises(OptionError, match=f"^{re.escape(message)}$"):
            make(nn.Linear(1, 1))

    def test_a_decay_passed_as_momentum_is_pointed_out(self) -> None:
        """0.999 is legal and nearly always a decay; the warning has the momentum to pass and the caller's line."""
        with pytest.warns(UserWarning, match=r"where a decay of 0\.999 is meant, pass momentum=0\.001\.$") as caught:
            ExponentialMovingAverage(nn.Linear(1, 1), momentum=0.999)

        assert caught[0].filename == __file__

    @pytest.mark.parametrize(
        ("other", "message"),
        [
            (
                nn.BatchNorm1d(2, affine=False),
                "averaging a model of 0 parameters, where its average has 2: make the average when the model has them "
                "all, after one forward pass if that makes them.",
            ),
            (
                nn.BatchNorm1d(2, track_running_stats=False),
                "averaging a model of 0 buffers, where its average has 3: make the average when the model has them "
                "all, after one forward pass if that makes them.",
            ),
        ],
    )
    def test_another_model_is_refused(self, other: nn.Module, message: str) -> None:
        """Nothing is averaged and nothing counted."""
        average = ExponentialMovingAverage(nn.BatchNorm1d(2))
        with pytest.raises(OptionError, match=f"^{re.escape(message)}$"):
            average.update_parameters(other)

        assert average.steps == 0

    def test_a_model_without_shapes_is_refused(self) -> None:
        """There is nothing to average before a lazy module has seen a batch."""
        message = (
            "StochasticWeightAverage was given a model whose 0.weight, 0.bias have no shape yet; run one forward pass "
            "first, with a batch as those of the training."
        )
        with pytest.raises(OptionError, match=f"^{re.escape(message)}$"):
            StochasticWeightAverage(nn.Sequential(nn.LazyLinear(1)))

    def test_the_shared_part_alone_has_no_formula(self) -> None:
        """WeightAverage is there to be subclassed."""
        model = OneWeight()
        with pytest.raises(NotImplementedError):
            feed(WeightAverage(model), model, [1.0, 2.0])
