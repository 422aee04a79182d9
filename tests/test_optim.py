"""OptimWrapper against loops written by hand in plain torch."""

from __future__ import annotations

import copy
import functools
import re
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from eventrunner.errors import OptionError, ResumeError
from eventrunner.training.optim import OptimWrapper
from eventrunner.training.optim_dict import OptimWrapperDict, build_optim

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


def make_model(seed: int = 0, device: str = "cpu") -> nn.Module:
    """A small network, the same for the same seed."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1)).to(device)


def make_batches(count: int, device: str = "cpu") -> list[Tensor]:
    """The same batches on every call."""
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(5, 4, generator=generator).to(device) for _ in range(count)]


def loss_of(model: nn.Module, batch: Tensor) -> Tensor:
    """The loss that every test here trains on."""
    return model(batch).square().mean()


def sgd(model: nn.Module, lr: float = 0.1) -> torch.optim.SGD:
    """An optimizer with state."""
    return torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)


def weights(model: nn.Module) -> list[Tensor]:
    """Copies of the parameters."""
    return [p.detach().clone() for p in model.parameters()]


def train(wrapper: OptimWrapper, model: nn.Module, batches: list[Tensor]) -> None:
    """One update_params per batch, forward under autocast, as a train loop does it."""
    for batch in batches:
        with wrapper.autocast(batch.device.type):
            loss = loss_of(model, batch)
        wrapper.update_params(loss)


def assert_equal(ours: list[Tensor], theirs: list[Tensor]) -> None:
    """Bit for bit, one by one."""
    for a, b in zip(ours, theirs, strict=True):
        assert torch.equal(a, b)


class TestStep:
    @pytest.mark.parametrize(
        "make",
        [
            sgd,
            lambda m: torch.optim.AdamW(m.parameters(), lr=0.01, fused=True),
            lambda m: torch.optim.Adagrad(m.parameters()),
            lambda m: torch.optim.Rprop(m.parameters()),
        ],
        ids=["SGD", "AdamW", "Adagrad", "Rprop"],
    )
    def test_training_is_bit_equal_to_a_loop_by_hand(self, make: Callable[[nn.Module], torch.optim.Optimizer]) -> None:
        """Without options, update_params is backward, step and zero_grad for any optimizer."""
        ours, theirs = make_model(), make_model()
        train(OptimWrapper(make(ours)), ours, make_batches(4))
        optimizer = make(theirs)
        for batch in make_batches(4):
            loss_of(theirs, batch).backward()
            optimizer.step()
            optimizer.zero_grad()

        assert_equal(weights(ours), weights(theirs))

    def test_gradients_are_given_back_after_the_step(self) -> None:
        """No gradient outlives its step."""
        model = make_model()
        train(OptimWrapper(sgd(model)), model, make_batches(1))

        assert all(p.grad is None for p in model.parameters())

    def test_zero_grad_can_keep_the_memory(self) -> None:
        """With set_to_none=False the gradients are zeros."""
        model = make_model()
        wrapper = OptimWrapper(sgd(model))
        wrapper.backward(loss_of(model, make_batches(1)[0]))
        wrapper.zero_grad(set_to_none=False)

        assert all(p.grad is not None and not p.grad.any() for p in model.parameters())

    def test_zero_grad_reaches_groups_that_were_added_later(self) -> None:
        """The groups are the optimizer's at each step, not those that it began with."""
        model, later = make_model(), nn.Linear(1, 1)
        wrapper = OptimWrapper(sgd(model))
        wrapper.optimizer.add_param_group({"params": later.parameters()})
        later(torch.ones(1, 1)).sum().backward()
        wrapper.zero_grad()

        assert all(p.grad is None for p in later.parameters())

    @pytest.mark.parametrize("where", ["class", "instance", "torch"])
    def test_an_own_zero_grad_is_called(self, where: str, monkeypatch: pytest.MonkeyPatch) -> None:
        """Be it a subclass's, one that was put on the optimizer, or one that was put in torch's place."""
        called: list[bool] = []

        def own(self: torch.optim.Optimizer, set_to_none: bool = True) -> None:
            called.append(set_to_none)

        model = make_model()
        kind = type("Own", (torch.optim.SGD,), {"zero_grad": own} if where == "class" else {})
        optimizer = kind(model.parameters(), lr=0.01)
        if where == "instance":
            monkeypatch.setattr(optimizer, "zero_grad", functools.partial(own, optimizer))
        elif where == "torch":
            monkeypatch.setattr(torch.optim.Optimizer, "zero_grad", own)
        OptimWrapper(optimizer).zero_grad()

        assert called == [True]

    @pytest.mark.slow
    def test_a_zero_grad_that_took_torchs_place_before_is_called(self) -> None:
        """Whether it was put there before or after this package was imported."""
        code = (
            "import torch\n"
            "torch.optim.Optimizer.zero_grad = lambda self, set_to_none=True: print('called')\n"
            "from eventrunner import OptimWrapper\n"
            "OptimWrapper(torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)).zero_grad()\n"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert done.stdout == "called\n"

    def test_a_profiler_of_all_threads_sees_zero_grad(self) -> None:
        """Though it was begun by another one."""
        wrapper = OptimWrapper(sgd(make_model()))
        every = torch.profiler._ExperimentalConfig(profile_all_threads=True)
        cpu = [torch.profiler.ProfilerActivity.CPU]
        with torch.profiler.profile(activities=cpu, experimental_config=every) as profiler:
            thread = threading.Thread(target=wrapper.zero_grad)
            thread.start()
            thread.join()

        assert "Optimizer.zero_grad#SGD.zero_grad" in [event.key for event in profiler.key_averages()]

    def test_a_profiler_sees_zero_grad(self) -> None:
        """Under its own name, as in any other loop."""
        model = make_model()
        wrapper = OptimWrapper(sgd(model))
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
            train(wrapper, model, make_batches(1))

        assert "Optimizer.zero_grad#SGD.zero_grad" in [event.key for event in profiler.key_averages()]

    def test_calls_come_in_order_around_the_step(self) -> None:
        """before_step sees whole gradients and old weights; after_step sees clipped gradients and new weights."""
        model = make_model()
        wrapper = OptimWrapper(sgd(model), clip_grad={"max_norm": 1e-3})
        old, seen = weights(model), []

        def look(when: str) -> None:
            norm = torch.nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None])
            is_old = all(torch.equal(a, b) for a, b in zip(old, weights(model), strict=True))
            seen.append((when, bool(norm > 2e-3), is_old))

        wrapper.before_step, wrapper.after_step = functools.partial(look, "before"), functools.partial(look, "after")
        train(wrapper, model, make_batches(1))

        assert seen == [("before", True, True), ("after", False, False)]

    def test_the_parts_can_be_called_by_hand(self) -> None:
        """scale_loss, backward, should_update, step and zero_grad are what update_params is made of."""
        ours, theirs = make_model(), make_model()
        by_hand, at_once = OptimWrapper(sgd(ours), 2), OptimWrapper(sgd(theirs), 2)
        for batch in make_batches(4):
            by_hand.backward(by_hand.scale_loss(loss_of(ours, batch)))
            if by_hand.should_update():
                by_hand.step()
                by_hand.zero_grad()
        train(at_once, theirs, make_batches(4))

        assert_equal(weights(ours), weights(theirs))

    def test_backward_passes_its_options_on(self) -> None:
        """A graph that is retained can go backward twice."""
        model = make_model()
        wrapper = OptimWrapper(sgd(model))
        loss = loss_of(model, make_batches(1)[0])
        wrapper.backward(loss, retain_graph=True)
        once = [p.grad.clone() for p in model.parameters() if p.grad is not None]
        wrapper.backward(loss)

        assert_equal([p.grad for p in model.parameters() if p.grad is not None], [2 * g for g in once])

    def test_a_loss_of_one_element_in_a_shape_is_taken(self) -> None:
        """A loss of shape (1,) goes backward as it does in torch."""
        model = make_model()
        OptimWrapper(sgd(model)).update_params(loss_of(model, make_batches(1)[0]).reshape(1))

        assert not torch.equal(weights(model)[0], weights(make_model())[0])

    @pytest.mark.parametrize(
        ("loss", "what"),
        [
            (0.5, "an object of type float"),
            ({"loss": torch.ones(())}, "an object of type dict"),
            (Tensor, "the class Tensor"),
            (torch.ones(3, requires_grad=True), "a tensor of shape (3,)"),
            (
                torch.ones(()),
                "a tensor that doesn't require grad (detached, made under no_grad, or of frozen parameters only)",
            ),
        ],
        ids=["float", "dict", "class", "vector", "no-grad"],
    )
    def test_what_is_no_loss_is_refused_before_anything_happens(self, loss: Any, what: str) -> None:
        """The error says what train_step should return, and the count stays."""
        wrapper = OptimWrapper(sgd(make_model()))
        with pytest.raises(OptionError) as caught:
            wrapper.update_params(loss)

        assert str(caught.value) == (
            f"update_params was given {what} as loss; train_step should return a dict whose 'loss' is a tensor of "
            "one element that requires grad."
        )
        assert wrapper.inner_count == 0


class TestAccumulation:
    @pytest.mark.parametrize("total", [6, 7, 8])
    def test_groups_are_means_and_the_last_one_has_its_own_size(self, total: int) -> None:
        """With three losses per step, 7 losses make steps of 3, 3 and 1, each following its mean."""
        ours, theirs = make_model(), make_model()
        batches = make_batches(total)
        wrapper = OptimWrapper(sgd(ours), accumulative_counts=3)
        wrapper.initialize_count_status(0, total)
        train(wrapper, ours, batches)
        optimizer = sgd(theirs)
        for start in range(0, total, 3):
            group = batches[start : start + 3]
            for batch in group:
                (loss_of(theirs, batch) / len(group)).backward()
            optimizer.step()
            optimizer.zero_grad()

        assert_equal(weights(ours), weights(theirs))

    def test_without_a_known_end_an_incomplete_group_waits(self) -> None:
        """Five losses in groups of two make two steps, and the fifth loss's gradients stay."""
        model = make_model()
        wrapper = OptimWrapper(sgd(model), accumulative_counts=2)
        steps: list[int] = []
        wrapper.after_step = lambda: steps.append(wrapper.inner_count)
        train(wrapper, model, make_batches(5))

        assert steps == [2, 4]
        assert all(p.grad is not None for p in model.parameters())

    def test_a_loop_that_did_not_know_its_end_ends_the_last_group(self) -> None:
        """Two groups of two, and the fifth loss by itself: it isn't halved; then there is nothing to end."""
        ours, theirs = make_model(), make_model()
        wrapper = OptimWrapper(sgd(ours), accumulative_counts=2)
        train(wrapper, ours, make_batches(5))
        ended = wrapper.end_group(), wrapper.end_group()
        whole = OptimWrapper(sgd(theirs), accumulative_counts=2)
        whole.initialize_count_status(0, 5)
        train(whole, theirs, make_batches(5))

        assert ended == (True, False)
        assert_equal(weights(ours), weights(theirs))

    def test_a_stated_count_changes_nothing_of_a_group_that_is_held(self) -> None:
        """Who states the iterations of a run in which each has two losses ends the group of three as it was begun."""
        ours, theirs = make_model(), make_model()
        for model in (ours, theirs):
            wrapper = OptimWrapper(sgd(model), accumulative_counts=3)
            wrapper.holds_gradients = True
            train(wrapper, model, make_batches(5)[:2])
            if model is ours:
                wrapper.initialize_count_status(1, None)
            train(wrapper, model, make_batches(5)[2:3])

        assert all(param.grad is None for param in ours.parameters())
        assert_equal(weights(ours), weights(theirs))

    @pytest.mark.parametrize("counts", [1, 2])
    def test_a_group_begins_with_no_gradients(self, counts: int) -> None:
        """Those that are there before its first loss are in no step; those of its own losses stay."""
        ours, theirs = make_model(), make_model()
        wrapper = OptimWrapper(sgd(ours), counts)
        for index, batch in enumerate(make_batches(4)):
            if index % counts == 0:
                loss_of(ours, batch.exp()).backward()
            wrapper.update_params(loss_of(ours, batch))
        train(OptimWrapper(sgd(theirs), counts), theirs, make_batches(4))

        assert_equal(weights(ours), weights(theirs))

    def test_a_loop_that_begins_groups_itself_may_call_backward(self) -> None:
        """What it calls after begin_loss counts, as what a train_step calls does in a run."""
        ours, theirs = make_model(), make_model()
        wrapper = OptimWrapper(sgd(ours))
        wrapper.begins_groups = False
        optimizer = sgd(theirs)
        for batch in make_batches(3):
            wrapper.begin_loss()
            loss_of(ours, batch).backward()
            wrapper.update_params(loss_of(ours, batch))
            optimizer.zero_grad()
            loss_of(theirs, batch).backward()
            loss_of(theirs, batch).backward()
            optimizer.step()

        assert_equal(weights(ours), weights(theirs))

    def test_losses_past_the_stated_end_form_whole_groups_again(self) -> None:
        """Who updates more often than was said gets the ordinary factor, not a division by nothing."""
        wrapper = OptimWrapper(sgd(make_model()), accumulative_counts=4)
        wrapper.initialize_count_status(6, 6)

        assert float(wrapper.scale_loss(torch.ones(()))) == 0.25

    def test_a_count_taken_up_midway_keeps_the_cadence(self) -> None:
        """Started at 3 of 8 with groups of two, steps come at 4, 6 and 8."""
        model = make_model()
        wrapper = OptimWrapper(sgd(model), accumulative_counts=2)
        wrapper.initialize_count_status(3, 8)
        steps: list[int] = []
        wrapper.before_step = lambda: steps.append(wrapper.inner_count)
        train(wrapper, model, make_batches(5))

        assert steps == [4, 6, 8]

    def test_a_group_of_one_leaves_the_loss_alone(self) -> None:
        """Without accumulation, scaling allocates nothing: the same tensor comes back."""
        loss = torch.ones(())

        assert OptimWrapper(sgd(make_model())).scale_loss(loss) is loss

    @pytest.mark.parametrize(("init", "total"), [(-1, None), (0, -1)])
    def test_negative_counts_are_refused(self, init: int, total: int | None) -> None:
        """MMEngine's -1 for an unknown end is None here."""
        with pytest.raises(OptionError, match=rf"can't be negative, as init_counts={init}, max_counts={total} are\.$"):
            OptimWrapper(sgd(make_model())).initialize_count_status(init, total)

    @pytest.mark.parametrize("counts", [0, -2, 1.0, True, "2"])
    def test_a_group_has_at_least_one_loss(self, counts: Any) -> None:
        """accumulative_counts is an int from 1."""
        with pytest.raises(
            OptionError, match=rf"^OptimWrapper\(accumulative_counts={counts!r}\): give an int of 1 or more\.$"
        ):
            OptimWrapper(sgd(make_model()), counts)


class TestClipping:
    def test_clipping_by_norm_is_torchs(self) -> None:
        """Gradients are clipped as clip_grad_norm_ does, and its norm is kept as a tensor."""
        ours, theirs = make_model(), make_model()
        wrapper = OptimWrapper(sgd(ours), clip_grad={"max_norm": 0.01, "norm_type": 1})
        train(wrapper, ours, make_batches(1))
        optimizer = sgd(theirs)
        loss_of(theirs, make_batches(1)[0]).backward()
        norm = torch.nn.utils.clip_grad_norm_(theirs.parameters(), 0.01, norm_type=1)
        optimizer.step()

        assert isinstance(wrapper.grad_norm, Tensor)
        assert torch.equal(wrapper.grad_norm, norm)
        assert_equal(weights(ours), weights(theirs))

    def test_clipping_by_value_is_torchs(self) -> None:
        """Gradients are clamped, and there is no norm to keep."""
        ours, theirs = make_model(), make_model()
        wrapper = OptimWrapper(sgd(ours), clip_grad={"type": "value", "clip_value": 0.01})
        train(wrapper, ours, make_batches(1))
        optimizer = sgd(theirs)
        loss_of(theirs, make_batches(1)[0]).backward()
        torch.nn.utils.clip_grad_value_(theirs.parameters(), 0.01)
        optimizer.step()

        assert wrapper.grad_norm is None
        assert_equal(weights(ours), weights(theirs))

    def test_an_infinite_limit_measures_only(self) -> None:
        """max_norm=inf records the norm and trains as if there were no clipping."""
        ours, theirs = make_model(), make_model()
        wrapper = OptimWrapper(sgd(ours), clip_grad={"type": "norm", "max_norm": float("inf")})
        train(wrapper, ours, make_batches(2))
        train(OptimWrapper(sgd(theirs)), theirs, make_batches(2))

        assert wrapper.grad_norm is not None
        assert_equal(weights(ours), weights(theirs))

    def test_error_if_nonfinite_reaches_torch(self) -> None:
        """A loss of infinity fails at the clip when that was asked for, before a weight has changed."""
        model = make_model()
        wrapper = OptimWrapper(sgd(model), clip_grad={"max_norm": 1.0, "error_if_nonfinite": True})
        with pytest.raises(RuntimeError, match="non-finite"):
            wrapper.update_params(loss_of(model, make_batches(1)[0]) * float("inf"))

        assert_equal(weights(model), weights(make_model()))

    @pytest.mark.parametrize(
        ("clip", "message"),
        [
            (1.0, "clip_grad must be None or a dict such as dict(max_norm=1.0), not 1.0."),
            ({"type": "l2", "max_norm": 1}, "clip_grad has the type 'norm' or 'value', not 'l2'."),
            (
                {"max_nrom": 1.0},
                "clip_grad of type 'norm' takes max_norm, norm_type, error_if_nonfinite, not 'max_nrom'; "
                "did you mean 'max_norm'?",
            ),
            ({"type": "value", "max_norm": 1}, "clip_grad of type 'value' takes clip_value, not 'max_norm'."),
            ({"max_norm": -1}, "clip_grad(max_norm=-1): give a number above 0."),
            ({"max_norm": True}, "clip_grad(max_norm=True): give a number above 0."),
            (
                {"max_norm": float("nan")},
                "clip_grad(max_norm=nan): give a number above 0.",
            ),
            (
                {"max_norm": 1, "error_if_nonfinite": 1},
                "clip_grad(error_if_nonfinite=1): give True or False.",
            ),
            ({"norm_type": 2}, "clip_grad of type 'norm' needs max_norm=, which was not given."),
            ({"type": "value"}, "clip_grad of type 'value' needs clip_value=, which was not given."),
        ],
    )
    def test_bad_clipping_fails_at_construction(self, clip: Any, message: str) -> None:
        """Misspelt, missing and impossible options are told apart."""
        with pytest.raises(OptionError, match=f"^{re.escape(message)}$"):
            OptimWrapper(sgd(make_model()), clip_grad=clip)

    def test_the_callers_dict_is_not_changed(self) -> None:
        """The options are read from a copy."""
        clip = {"type": "norm", "max_norm": 1.0}
        OptimWrapper(sgd(make_model()), clip_grad=clip)

        assert clip == {"type": "norm", "max_norm": 1.0}


class TestMixedPrecision:
    def test_autocast_is_off_by_default(self) -> None:
        """Without dtype, amp_dtype says so, and the context computes in float32."""
        wrapper = OptimWrapper(sgd(make_model()))
        with wrapper.autocast("cpu"):
            out = make_model()(make_batches(1)[0])

        assert wrapper.amp_dtype is None
        assert out.dtype is torch.float32

    @pytest.mark.parametrize("device", DEVICES)
    @pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
    def test_forward_computes_in_the_dtype(self, dtype: str, device: str) -> None:
        """A name and torch's own object mean the same."""
        model, batch = make_model(device=device), make_batches(1, device)[0]
        wrapper = OptimWrapper(sgd(model), dtype=dtype)
        with wrapper.autocast(device):
            out = model(batch)

        assert out.dtype is wrapper.amp_dtype is OptimWrapper(sgd(model), dtype=getattr(torch, dtype)).amp_dtype

    @pytest.mark.parametrize("device", DEVICES)
    def test_bfloat16_trains_as_plain_autocast_does(self, device: str) -> None:
        """There is no loss scaling with bfloat16: the weights are those of a loop by hand."""
        ours, theirs = make_model(device=device), make_model(device=device)
        train(OptimWrapper(sgd(ours), dtype="bfloat16"), ours, make_batches(3, device))
        optimizer = sgd(theirs)
        for batch in make_batches(3, device):
            with torch.autocast(device, dtype=torch.bfloat16):
                loss = loss_of(theirs, batch)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()

        assert_equal(weights(ours), weights(theirs))

    @pytest.mark.parametrize("device", DEVICES)
    @pytest.mark.parametrize("fused", [False, True])
    def test_float16_trains_as_torchs_scaler_does(self, fused: bool, device: str) -> None:
        """Scaling, accumulation, unscaling, clipping and the scaler's own step are those of a loop by hand."""
        ours, theirs = make_model(device=device), make_model(device=device)
        make = functools.partial(torch.optim.AdamW, lr=0.01, fused=fused)
        wrapper = OptimWrapper(make(ours.parameters()), 2, {"max_norm": 0.1}, "float16", {"init_scale": 1024.0})
        train(wrapper, ours, make_batches(4, device))
        optimizer, scaler = make(theirs.parameters()), torch.amp.GradScaler(device, init_scale=1024.0)
        for index, batch in enumerate(make_batches(4, device)):
            with torch.autocast(device, dtype=torch.float16):
                loss = loss_of(theirs, batch)
            scaler.scale(loss / 2).backward()
            if index % 2:
                scaler.unscale_(optimizer)
                torch.nn.utils.clip_grad_norm_(theirs.parameters(), 0.1)
                scaler.step(optimizer)
                scaler.update()
                optimizer.zero_grad()

        assert_equal(weights(ours), weights(theirs))

    @pytest.mark.parametrize("device", DEVICES)
    def test_before_step_sees_unscaled_gradients(self, device: str) -> None:
        """The scale of 1024 is gone when before_step looks."""
        model, batch = make_model(device=device), make_batches(1, device)[0]
        plain = torch.autograd.grad(loss_of(model, batch), list(model.parameters()))
        wrapper, seen = OptimWrapper(sgd(model), dtype="float16", loss_scale=1024), []
        wrapper.before_step = lambda: seen.extend(p.grad.clone() for p in model.parameters() if p.grad is not None)
        train(wrapper, model, [batch])

        for ours, theirs in zip(seen, plain, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=0.02, atol=1e-3)

    def test_an_overflow_leaves_the_step_out_and_lowers_a_dynamic_scale(self) -> None:
        """The weights stay, and the next losses are scaled by half."""
        model = make_model()
        wrapper = OptimWrapper(sgd(model), dtype="float16", loss_scale={"init_scale": 8.0})
        wrapper.update_params(loss_of(model, make_batches(1)[0]) * float("inf"))

        assert_equal(weights(model), weights(make_model()))
        assert wrapper.state_dict()["scaler"]["scale"] == 4.0

    def test_the_scaler_can_be_reached(self) -> None:
        """As MMEngine's loss_scaler; there is none but for float16."""
        scaler = OptimWrapper(sgd(make_model()), dtype="float16", loss_scale=4.0).loss_scaler

        assert scaler is not None
        assert scaler.get_scale() == 4.0
        assert OptimWrapper(sgd(make_model()), dtype="bfloat16").loss_scaler is None

    def test_a_number_as_scale_stays(self) -> None:
        """An overflow leaves the step out and the scale as it was."""
        model = make_model()
        wrapper = OptimWrapper(sgd(model), dtype="float16", loss_scale=8)
        wrapper.update_params(loss_of(model, make_batches(1)[0]) * float("inf"))

        assert wrapper.state_dict()["scaler"]["scale"] == 8.0

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (
                {"dtype": "bflaot16"},
                "OptimWrapper(dtype='bflaot16') must be None, 'bfloat16' or 'float16'; did you mean 'bfloat16'?",
            ),
            (
                {"dtype": torch.float64},
                "OptimWrapper(dtype=torch.float64) must be None, 'bfloat16' or 'float16'.",
            ),
            ({"dtype": 16}, "OptimWrapper(dtype=16) must be None, 'bfloat16' or 'float16'."),
            (
                {"loss_scale": 8.0},
                "loss_scale=8.0 is of use with dtype='float16' only, here dtype is None.",
            ),
            (
                {"dtype": "float16", "loss_scale": "dynamc"},
                "loss_scale must be 'dynamic', a number or a dict of options, not 'dynamc'.",
            ),
            (
                {"dtype": "float16", "loss_scale": -1.0},
                "loss_scale(init_scale=-1.0): give a number above 0.",
            ),
            (
                {"dtype": "float16", "loss_scale": {"init_scal": 1}},
                "loss_scale takes init_scale, growth_factor, backoff_factor, growth_interval, not 'init_scal'; "
                "did you mean 'init_scale'?",
            ),
            (
                {"dtype": "float16", "loss_scale": {"backoff_factor": 2}},
                "loss_scale needs growth_factor above 1 and backoff_factor below 1, not {'backoff_factor': 2}.",
            ),
        ],
    )
    def test_bad_precision_fails_at_construction(self, options: dict[str, Any], message: str) -> None:
        """The error says what is allowed."""
        with pytest.raises(OptionError, match=f"^{re.escape(message)}$"):
            OptimWrapper(sgd(make_model()), **options)


class TestClosure:
    def test_an_optimizer_that_evaluates_the_model_steps_with_a_closure(self) -> None:
        """LBFGS through step(closure) gives LBFGS by hand; before_step comes before the first evaluation."""
        ours, theirs = make_model(), make_model()
        batch = make_batches(1)[0]
        wrapper, calls = OptimWrapper(torch.optim.LBFGS(ours.parameters(), max_iter=3)), []
        wrapper.before_step, wrapper.after_step = lambda: calls.append("before"), lambda: calls.append("after")

        def closure() -> Tensor:
            calls.append("evaluate")
            wrapper.zero_grad()
            loss = loss_of(ours, batch)
            wrapper.backward(loss)
            return loss

        wrapper.step(closure)
        optimizer = torch.optim.LBFGS(theirs.parameters(), max_iter=3)

        def plain_closure() -> Tensor:
            optimizer.zero_grad()
            loss = loss_of(theirs, batch)
            loss.backward()
            return loss

        optimizer.step(plain_closure)

        assert calls == ["before", "evaluate", "evaluate", "evaluate", "after"]
        assert_equal(weights(ours), weights(theirs))

    def test_gradients_are_clipped_after_each_evaluation(self) -> None:
        """A closure's gradients reach the optimizer clipped."""
        model = make_model()
        wrapper = OptimWrapper(torch.optim.SGD(model.parameters(), lr=1.0), clip_grad={"max_norm": 1e-4})

        def closure() -> Tensor:
            loss = loss_of(model, make_batches(1)[0])
            wrapper.backward(loss)
            return loss

        wrapper.step(closure)
        moved = [a - b for a, b in zip(weights(model), weights(make_model()), strict=True)]

        assert 0.9e-4 < float(torch.nn.utils.get_total_norm(moved)) < 1.1e-4

    def test_update_params_says_how_to_step_it(self) -> None:
        """The hint comes before the backward."""
        model = make_model()
        wrapper = OptimWrapper(torch.optim.LBFGS(model.parameters()))
        message = (
            "^update_params can't step LBFGS, which needs a closure: write a train_step that takes optim_wrapper and "
            r"calls optim_wrapper\.step\(closure\)\.$"
        )
        with pytest.raises(OptionError, match=message):
            wrapper.update_params(loss_of(model, make_batches(1)[0]))

        assert wrapper.inner_count == 0

    def test_loss_scaling_and_closures_exclude_each_other(self) -> None:
        """Known at construction where the optimizer needs a closure, else at the call."""
        model = make_model()
        with pytest.raises(OptionError, match=r"^LBFGS steps with a closure, for which dtype='float16' has no loss"):
            OptimWrapper(torch.optim.LBFGS(model.parameters()), dtype="float16")
        with pytest.raises(OptionError, match=r"^step\(closure\) was called, which dtype='float16' has no loss"):
            OptimWrapper(sgd(model), dtype="float16").step(lambda: None)


class TestReading:
    def test_learning_rates_come_per_group(self) -> None:
        """get_lr follows the groups, tensors included."""
        first, second = make_model().parameters(), make_model().parameters()
        groups = [{"params": first, "lr": 0.5}, {"params": second, "lr": torch.tensor(0.25)}]

        assert OptimWrapper(torch.optim.SGD(groups, lr=0.1)).get_lr() == {"lr": [0.5, 0.25]}

    @pytest.mark.parametrize(
        ("make", "momentum"),
        [
            (lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.75), 0.75),
            (lambda p: torch.optim.AdamW(p, betas=(0.5, 0.9)), 0.5),
            (torch.optim.Adagrad, 0.0),
        ],
        ids=["momentum", "betas", "neither"],
    )
    def test_momentum_is_found_where_the_optimizer_keeps_it(self, make: Any, momentum: float) -> None:
        """momentum, the first beta, or 0."""
        assert OptimWrapper(make(make_model().parameters())).get_momentum() == {"momentum": [momentum]}

    def test_groups_and_defaults_are_the_optimizers_own(self) -> None:
        """A change through the wrapper is a change of the optimizer."""
        optimizer = sgd(make_model())
        wrapper = OptimWrapper(optimizer)

        assert wrapper.param_groups is optimizer.param_groups
        assert wrapper.defaults is optimizer.defaults

    @pytest.mark.parametrize(
        ("given", "what"),
        [
            (torch.optim.SGD, "the class SGD"),
            ({"type": "SGD", "lr": 0.1}, "an object of type dict"),
            (None, "an object of type NoneType"),
        ],
    )
    def test_what_is_no_optimizer_is_refused(self, given: Any, what: str) -> None:
        """The error says what was given and what to write."""
        with pytest.raises(OptionError) as caught:
            OptimWrapper(given)

        assert str(caught.value) == (
            "OptimWrapper(optimizer=…) takes an optimizer such as torch.optim.SGD(model.parameters(), lr=0.01), "
            f"not {what}."
        )


class TestState:
    @pytest.mark.parametrize("dtype", [None, "float16"])
    def test_training_goes_on_from_a_state_as_if_never_interrupted(self, dtype: str | None) -> None:
        """Weights and wrapper state saved after two of four losses lead to the same weights."""
        options: dict[str, Any] = {"dtype": dtype, "loss_scale": {"growth_interval": 1}} if dtype else {}
        ours, theirs = make_model(), make_model()
        batches = make_batches(4)
        whole = OptimWrapper(sgd(ours), **options)
        train(whole, ours, batches)
        first = OptimWrapper(sgd(theirs), **options)
        train(first, theirs, batches[:2])
        saved = copy.deepcopy((theirs.state_dict(), first.state_dict()))
        resumed_model = make_model(seed=5)
        resumed = OptimWrapper(sgd(resumed_model), **options)
        resumed_model.load_state_dict(saved[0])
        resumed.load_state_dict(saved[1])
        train(resumed, resumed_model, batches[2:])

        assert_equal(weights(resumed_model), weights(ours))
        assert resumed.inner_count == 4

    def test_the_state_has_the_optimizer_and_the_count(self) -> None:
        """A scaler is in it only where there is one."""
        plain, scaled = OptimWrapper(sgd(make_model())), OptimWrapper(sgd(make_model()), dtype="float16")

        assert list(plain.state_dict()) == ["optimizer", "inner_count"]
        assert list(scaled.state_dict()) == ["optimizer", "inner_count", "scaler"]

    def test_a_state_with_other_parts_is_refused(self) -> None:
        """Float16 on one side only is not the same run."""
        plain, scaled = OptimWrapper(sgd(make_model())), OptimWrapper(sgd(make_model()), dtype="float16")
        message = (
            r"^OptimWrapper has the state optimizer, inner_count, the saved one is optimizer, inner_count, scaler\.$"
        )
        with pytest.raises(ResumeError, match=message):
            plain.load_state_dict(scaled.state_dict())
        with pytest.raises(ResumeError, match="has the state optimizer, inner_count, scaler, the saved one is"):
            scaled.load_state_dict(plain.state_dict())

    @pytest.mark.parametrize(
        ("counts", "losses", "change"),
        [
            (1, 0, "accumulative_counts is 1 and was 3."),
            (
                4,
                2,
                "accumulative_counts is 4 and was 3; the group under way, of 2 losses so far, is still one of 3.",
            ),
            (3, 2, None),
        ],
    )
    def test_a_count_that_changed_is_told(self, counts: int, losses: int, change: str | None) -> None:
        """With what becomes of the group under way."""
        model = make_model()
        saved = OptimWrapper(sgd(model), 3)
        train(saved, model, make_batches(losses))

        assert OptimWrapper(sgd(make_model()), counts).changed_count(saved.state_dict()) == change

    def test_a_state_of_other_groups_is_refused(self) -> None:
        """Groups are compared by their numbers of parameters."""
        one = OptimWrapper(sgd(make_model()))
        two = OptimWrapper(
            torch.optim.SGD([{"params": make_model().parameters()}, {"params": [torch.ones(1)]}], lr=0.1)
        )
        with pytest.raises(
            ResumeError, match=r"^OptimWrapper has parameter groups of \[4\] .* the saved one of \[4, 1\]"
        ):
            one.load_state_dict(two.state_dict())


def two_wrappers(**options: Any) -> OptimWrapperDict:
    """Two optimizers with learning rates of their own."""
    return OptimWrapperDict(
        gen=OptimWrapper(sgd(make_model(1), lr=0.5), **options),
        disc=OptimWrapper(sgd(make_model(2), lr=0.25), **options),
    )


class TestSeveral:
    def test_wrappers_are_reached_by_name_in_order(self) -> None:
        """It reads like a dict."""
        wrappers = two_wrappers()

        assert list(wrappers.keys()) == ["gen", "disc"]
        assert [name for name, _ in wrappers.items()] == ["gen", "disc"]
        assert wrappers["disc"] is list(wrappers.values())[1]
        assert "gen" in wrappers
        assert "critic" not in wrappers
        assert wrappers.param_groups == {"gen": wrappers["gen"].param_groups, "disc": wrappers["disc"].param_groups}

    def test_readings_are_keyed_by_name(self) -> None:
        """Each key says whose it is."""
        assert two_wrappers().get_lr() == {"gen.lr": [0.5], "disc.lr": [0.25]}
        assert two_wrappers().get_momentum() == {"gen.momentum": [0.9], "disc.momentum": [0.9]}

    def test_calls_are_set_on_all(self) -> None:
        """Whichever optimizer steps, the same calls are made."""
        first, second = make_model(1), make_model(2)
        wrappers = OptimWrapperDict(gen=OptimWrapper(sgd(first)), disc=OptimWrapper(sgd(second)))
        calls: list[str] = []
        before, after = functools.partial(calls.append, "before"), functools.partial(calls.append, "after")
        wrappers.before_step, wrappers.after_step = before, after
        train(wrappers["gen"], first, make_batches(1))
        train(wrappers["disc"], second, make_batches(1))

        assert calls == ["before", "after"] * 2
        assert wrappers.before_step is before
        assert wrappers.after_step is after

    def test_zero_grad_reaches_all(self) -> None:
        """No gradient is left in any of them."""
        wrappers = two_wrappers()
        for wrapper in wrappers.values():
            wrapper.param_groups[0]["params"][0].sum().backward()
        wrappers.zero_grad()

        assert all(p.grad is None for w in wrappers.values() for g in w.param_groups for p in g["params"])

    def test_the_dtype_is_one_for_all(self) -> None:
        """It is that of each, and autocast enters it; unlike ones are refused."""
        wrappers = two_wrappers(dtype="bfloat16")
        with wrappers.autocast("cpu"):
            out = make_model()(make_batches(1)[0])

        assert out.dtype is wrappers.amp_dtype is torch.bfloat16
        with pytest.raises(OptionError, match=r"must have one dtype, not \{'gen': torch.bfloat16, 'disc': None\}\.$"):
            OptimWrapperDict(gen=wrappers["gen"], disc=OptimWrapper(sgd(make_model())))

    def test_one_loss_for_all_is_refused(self) -> None:
        """The error says what train_step has to do."""
        with pytest.raises(OptionError) as caught:
            two_wrappers().update_params(torch.ones((), requires_grad=True))

        assert str(caught.value) == (
            "update_params can't tell which of gen, disc a loss is for: several optimizers need a train_step that "
            "takes optim_wrapper and calls optim_wrapper[name].update_params(loss) for each."
        )

    def test_counts_stay_each_wrappers_own(self) -> None:
        """The run's own count says nothing of how often each is updated."""
        wrappers = two_wrappers()
        wrappers.initialize_count_status(3, 9)

        assert [w.inner_count for w in wrappers.values()] == [0, 0]

    def test_states_are_kept_by_name(self) -> None:
        """What one pair of wrappers saved, another takes over."""
        first = make_model(1)
        wrappers = OptimWrapperDict(gen=OptimWrapper(sgd(first)), disc=OptimWrapper(sgd(make_model(2))))
        train(wrappers["gen"], first, make_batches(2))
        other = two_wrappers()
        other.load_state_dict(wrappers.state_dict())

        assert [w.inner_count for w in other.values()] == [2, 0]
        assert other.get_lr() == {"gen.lr": [0.1], "disc.lr": [0.1]}

    def test_other_names_are_refused(self) -> None:
        """Names are compared both ways."""
        state = two_wrappers().state_dict()
        state["critic"] = state.pop("disc")
        with pytest.raises(ResumeError, match=r"^the optimizers are gen, disc, the saved ones gen, critic\.$"):
            two_wrappers().load_state_dict(state)

    def test_a_state_amid_groups_has_their_gradients(self) -> None:
        """Of two optimizers of one model, each a group under way, which another pair goes on with."""

        def pair(model: nn.Module) -> OptimWrapperDict:
            return OptimWrapperDict(a=OptimWrapper(sgd(model), 2), b=OptimWrapper(sgd(model, lr=0.01), 4))

        def go_on(model: nn.Module, wrappers: OptimWrapperDict, batches: list[Tensor]) -> None:
            for batch in batches:
                for wrapper in wrappers.values():
                    wrapper.update_params(loss_of(model, batch))

        whole, ours = make_model(), make_model()
        go_on(whole, pair(whole), make_batches(8))
        first = pair(ours)
        go_on(ours, first, make_batches(8)[:3])
        assert all(param.grad is None for param in ours.parameters())
        state = copy.deepcopy(first.state_dict())
        second = pair(ours)
        second.load_state_dict(state)
        go_on(ours, second, make_batches(8)[3:])

        assert_equal(weights(ours), weights(whole))

    def test_a_state_that_fits_one_wrapper_only_loads_nothing(self) -> None:
        """All are checked before the first is loaded."""
        state = two_wrappers().state_dict()
        state["gen"]["inner_count"] = 7
        del state["disc"]["inner_count"]
        wrappers = two_wrappers()
        with pytest.raises(ResumeError, match=r"^OptimWrapper 'disc' has the state"):
            wrappers.load_state_dict(state)

        assert wrappers["gen"].inner_count == 0

    def test_it_holds_wrappers_and_at_least_one(self) -> None:
        """Something else is named by its key."""
        with pytest.raises(OptionError, match=r"^OptimWrapperDict\(\) needs at least one OptimWrapper, by name\.$"):
            OptimWrapperDict()
        with pytest.raises(OptionError, match=r"^OptimWrapperDict\(gen=…\) takes an OptimWrapper, not .* type SGD\.$"):
            OptimWrapperDict(gen=sgd(make_model()))  # type: ignore[arg-type]


class TestBuild:
    def test_an_optimizer_is_wrapped(self) -> None:
        """optimizer= is the short form."""
        optimizer = sgd(make_model())
        built = build_optim(None, optimizer)

        assert isinstance(built, OptimWrapper)
        assert built.optimizer is optimizer

    def test_wrappers_are_taken_as_they_are(self) -> None:
        """Nothing is copied."""
        one, several = OptimWrapper(sgd(make_model())), two_wrappers()

        assert build_optim(one, None) is one
        assert build_optim(several, None) is several

    def test_a_dict_of_wrappers_or_optimizers_is_several(self) -> None:
        """Both kinds may stand side by side."""
        wrapper, optimizer = OptimWrapper(sgd(make_model())), sgd(make_model())
        built = build_optim({"gen": wrapper, "disc": optimizer}, None)

        assert isinstance(built, OptimWrapperDict)
        assert built["gen"] is wrapper
        assert built["disc"].optimizer is optimizer

    @pytest.mark.parametrize(
        ("optim_wrapper", "optimizer", "message"),
        [
            (None, None, "a training takes either optim_wrapper= or optimizer=; neither was given."),
            (1, 2, "a training takes either optim_wrapper= or optimizer=; both were given."),
            (
                {"type": "OptimWrapper", "optimizer": {"type": "SGD"}},
                None,
                "optim_wrapper= was given a config dict of type 'OptimWrapper'; pass the object, such as "
                "OptimWrapper(torch.optim.SGD(model.parameters(), lr=0.01)).",
            ),
            (
                {"gen": {"type": "SGD"}},
                None,
                "optim_wrapper['gen'] was given a config dict of type 'SGD'; pass the object, such as "
                "OptimWrapper(torch.optim.SGD(model.parameters(), lr=0.01)).",
            ),
            (
                None,
                "adam",
                "optimizer= takes an optimizer such as torch.optim.SGD(model.parameters(), lr=0.01), "
                "not an object of type str.",
            ),
        ],
    )
    def test_what_is_neither_is_refused(self, optim_wrapper: Any, optimizer: Any, message: str) -> None:
        """MMEngine's config form gets a hint of its own."""
        with pytest.raises(OptionError, match=f"^{re.escape(message)}$"):
            build_optim(optim_wrapper, optimizer)


class Listening(OptimWrapper):
    """Has a say in each part of an update."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        super().__init__(optimizer)
        self.called: list[str] = []

    def scale_loss(self, loss: Tensor) -> Tensor:
        self.called.append("scale_loss")
        return super().scale_loss(loss)

    def backward(self, loss: Tensor, **kwargs: Any) -> None:
        self.called.append("backward")
        super().backward(loss, **kwargs)

    def should_update(self) -> bool:
        self.called.append("should_update")
        return super().should_update()

    def step(self, closure: Callable[[], Any] | None = None) -> None:
        self.called.append("step")
        super().step(closure)

    def zero_grad(self, set_to_none: bool = True) -> None:
        self.called.append("zero_grad")
        super().zero_grad(set_to_none)


def test_a_subclass_has_its_say_in_an_update() -> None:
    """Whoever overrides backward to change gradients would else train without that."""
    model = nn.Linear(1, 1)
    wrapper = Listening(torch.optim.SGD(model.parameters(), lr=0.1))
    wrapper.update_params(model(torch.ones(1, 1)).sum())
    assert wrapper.called == ["scale_loss", "backward", "should_update", "step", "zero_grad"]


def test_a_loss_that_is_refused_is_refused_in_one_sentence() -> None:
    """What torch said of it isn't the reason that a reader needs."""
    model = nn.Linear(1, 2)
    wrapper = OptimWrapper(torch.optim.SGD(model.parameters(), lr=0.1))
    with pytest.raises(OptionError) as caught:
        wrapper.update_params(model(torch.ones(1, 1)))
    assert caught.value.__suppress_context__
