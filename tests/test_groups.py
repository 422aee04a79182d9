"""Groups of accumulation in a run: which gradients a group has, which losses it is scaled by, and when it ends."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import MakeRunner
from tiny import MeanSquaredError, batches, linear, same, train_step, weights
from torch import Tensor, nn

from eventrunner import load_checkpoint
from eventrunner.runner import Runner
from eventrunner.training.optim import OptimWrapper
from eventrunner.training.optim_dict import OptimWrapperDict

COUNT = 50
"""The batches of a training of several optimizers; neither a multiple of 3 nor of 2 × 3."""


class Gan(nn.Module):
    """A generator whose loss goes through the discriminator, and a scale that both optimizers may have."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.g, self.d = nn.Linear(2, 2), nn.Linear(2, 1)
        self.scale = nn.Parameter(torch.ones(()))

    def loss_of(self, name: str, x: Tensor) -> Tensor:
        """The loss of one of the two."""
        fake = self.scale * self.g(x)
        if name == "g":
            return -self.d(fake).mean() + self.g.weight.square().sum()
        return (self.scale * self.d(fake.detach())).mean() - self.d(x).mean() + self.d.weight.square().sum()


class Tasks(nn.Module):
    """Two heads on one trunk, which is trained with each."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.trunk, self.a, self.b = nn.Linear(2, 3), nn.Linear(3, 1), nn.Linear(3, 1)

    def loss_of(self, name: str, x: Tensor) -> Tensor:
        """The loss of one task."""
        head = self.a if name == "a" else self.b
        return (head(self.trunk(x).tanh()) - x.sum(1, keepdim=True)).square().mean()


def gan(shared: bool) -> tuple[nn.Module, dict[str, list[nn.Parameter]]]:
    """A GAN, and which parameters are whose."""
    model = Gan()
    common = [model.scale] if shared else []
    return model, {"g": [*model.g.parameters(), *common], "d": [*model.d.parameters(), *common]}


def tasks(shared: bool) -> tuple[nn.Module, dict[str, list[nn.Parameter]]]:
    """A model of two tasks; the trunk is trained by both, or has an optimizer of its own, which follows task b."""
    model = Tasks()
    trunk = list(model.trunk.parameters())
    heads = {"a": list(model.a.parameters()), "b": list(model.b.parameters())}
    return model, {name: [*head, *(trunk if shared or name == "b" else ())] for name, head in heads.items()}


def adam(owned: dict[str, list[nn.Parameter]]) -> dict[str, torch.optim.Optimizer]:
    """An optimizer for each."""
    return {name: torch.optim.Adam(params, lr=0.01) for name, params in owned.items()}


def updating(*order: str) -> Callable[..., dict[str, Tensor]]:
    """A train_step that updates each optimizer once, in this order."""

    def step(model: Any, batch: Any, optim_wrapper: OptimWrapperDict) -> dict[str, Tensor]:
        for name in order:
            optim_wrapper[name].update_params(model.loss_of(name, batch[0]))
        return {}

    return step


def by_hand(model: Any, owned: dict[str, list[nn.Parameter]], order: Sequence[str], size: int) -> None:
    """Train with nothing in ``.grad`` but what is stepped with: sums of torch.autograd.grad of the losses alone."""
    optimizers = adam(owned)
    sums: dict[str, list[Tensor]] = {}
    for index, (x, _) in enumerate(batches(COUNT)):
        begun = index - index % size
        for name in order:
            loss = model.loss_of(name, x) / min(size, COUNT - begun)
            gradients = torch.autograd.grad(loss, owned[name])
            sums[name] = [a + b for a, b in zip(sums[name], gradients, strict=True)] if index > begun else [*gradients]
            if index + 1 == min(begun + size, COUNT):
                for parameter, gradient in zip(owned[name], sums[name], strict=True):
                    parameter.grad = gradient
                optimizers[name].step()


@pytest.mark.parametrize("shared", [False, True], ids=["apart", "shared"])
@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize(("make", "order"), [(gan, "dg"), (gan, "gd"), (tasks, "ab"), (tasks, "ba")])
@pytest.mark.slow
def test_several_optimizers_train_as_a_loop_by_hand_does(
    make: Callable[[bool], Any], order: str, size: int, shared: bool, make_runner: MakeRunner
) -> None:
    """To the bit: none has a gradient that another's loss left, in a parameter of both neither."""
    theirs, theirs_owned = make(shared)
    by_hand(theirs, theirs_owned, order, size)

    ours, owned = make(shared)
    wrappers = {name: OptimWrapper(each, size) for name, each in adam(owned).items()}
    make_runner(
        model=ours, train_step=updating(*order), optim_wrapper=wrappers, train_dataloader=batches(COUNT), epochs=1
    ).train()

    assert same(weights(ours), weights(theirs))


@pytest.mark.parametrize("order", ["dg", "gd"])
def test_a_gan_trains_as_the_classic_loop_does(order: str, make_runner: MakeRunner) -> None:
    """That is zero_grad, backward and step for one after the other."""
    theirs, theirs_owned = gan(shared=True)
    optimizers = adam(theirs_owned)
    for x, _ in batches(COUNT):
        for name in order:
            optimizers[name].zero_grad()
            theirs.loss_of(name, x).backward()  # type: ignore[operator]
            optimizers[name].step()

    ours, owned = gan(shared=True)
    make_runner(
        model=ours, train_step=updating(*order), optim_wrapper=adam(owned), train_dataloader=batches(COUNT), epochs=1
    ).train()

    assert same(weights(ours), weights(theirs))


def test_two_optimizers_can_follow_one_loss(make_runner: MakeRunner) -> None:
    """The second steps with the gradients that the first one's backward left."""
    theirs, ours = Tasks(), Tasks()
    optimizer = torch.optim.Adam(theirs.parameters(), lr=0.01)
    for x, _ in batches(4):
        optimizer.zero_grad()
        theirs.loss_of("a", x).backward()
        optimizer.step()

    def step(model: Tasks, batch: Any, optim_wrapper: OptimWrapperDict) -> None:
        optim_wrapper["head"].update_params(model.loss_of("a", batch[0]))
        optim_wrapper["trunk"].step()
        optim_wrapper["trunk"].zero_grad()

    parts = adam({"head": list(ours.a.parameters()), "trunk": list(ours.trunk.parameters())})
    make_runner(model=ours, train_step=step, optim_wrapper=parts, train_dataloader=batches(4), epochs=1).train()

    assert same(weights(ours), weights(theirs))


# Gradients that somebody left.


def leave_gradients(model: nn.Module) -> None:
    """What a saliency map, an attack or a cell of a notebook leaves behind."""
    with torch.enable_grad():
        model(torch.ones(1, 2)).sum().mul(100).backward()


def reference(size: int, count: int = 7) -> dict[str, Tensor]:
    """The weights after a loop by hand over as many batches."""
    model = linear()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for begun in range(0, count, size):
        group = batches(count)[begun : begun + size]
        optimizer.zero_grad()
        for batch in group:
            (train_step(model, batch)["loss"] / len(group)).backward()
        optimizer.step()
    return weights(model)


def run(make_runner: MakeRunner, size: int, **options: Any) -> Runner:
    """A run of one epoch of 7 batches."""
    model = linear()
    wrapper = OptimWrapper(torch.optim.SGD(model.parameters(), lr=0.1), size)
    given = {"model": model, "optim_wrapper": wrapper, "train_dataloader": batches(7), "epochs": 1}
    return make_runner(**{**given, **options})


def own_step(model: nn.Module, batch: Any, optim_wrapper: OptimWrapper) -> dict[str, Tensor]:
    """Updates the weights itself."""
    loss = train_step(model, batch)["loss"]
    optim_wrapper.update_params(loss)
    return {"loss": loss.detach()}


@pytest.mark.parametrize("step", [train_step, own_step])
@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize("where", ["before_train", "before_train_epoch", "before_train_iter", "after_train_iter"])
def test_gradients_that_a_receiver_left_are_in_no_group(
    where: str, size: int, step: Callable[..., Any], make_runner: MakeRunner
) -> None:
    """Before a group, or amid it."""
    runner = run(make_runner, size, train_step=step)
    runner.on(where)(lambda runner: leave_gradients(runner.model))
    runner.train()

    assert same(weights(runner.model), reference(size))


@pytest.mark.parametrize("step", [train_step, own_step])
@pytest.mark.parametrize("size", [1, 3])
def test_gradients_that_a_validation_left_are_in_no_group(
    size: int, step: Callable[..., Any], make_runner: MakeRunner
) -> None:
    """An attack on the model is validated amid a group."""

    def attack(model: nn.Module, batch: Any) -> Any:
        leave_gradients(model)
        return model(batch[0]), batch[1]

    evaluation = {"val_dataloader": batches(1), "val_step": attack, "val_evaluator": {"mse": MeanSquaredError()}}
    runner = run(make_runner, size, train_step=step, train_cfg={"max_iters": 7, "val_interval": 1}, **evaluation)
    runner.train()

    assert same(weights(runner.model), reference(size))


@pytest.mark.parametrize("step", [train_step, own_step])
@pytest.mark.parametrize("size", [1, 3])
def test_gradients_that_the_caller_left_between_two_trainings_are_in_no_group(
    size: int, step: Callable[..., Any], make_runner: MakeRunner
) -> None:
    """Nor are those of the group lost that the training was stopped in, though the caller has cleared all."""
    runner = run(make_runner, size, train_step=step)
    runner.on("after_train_iter", start=5, once=True)(lambda runner: runner.stop("half"))
    leave_gradients(runner.model)
    runner.train()
    assert runner.iter == 5
    runner.model.zero_grad()
    leave_gradients(runner.model)
    runner.train()

    assert same(weights(runner.model), reference(size))


@pytest.mark.parametrize("size", [1, 3])
def test_a_train_step_may_call_backward_itself(size: int, make_runner: MakeRunner) -> None:
    """Half of the loss went backward in it, to save memory; what it returns is added to that."""

    def halves(model: nn.Module, batch: Any) -> dict[str, Tensor]:
        runner_size = min(size, 6 - runner.iter // size * size)
        (train_step(model, batch)["loss"] / 2 / runner_size).backward()
        return {"loss": train_step(model, batch)["loss"] / 2}

    runner = run(make_runner, size, train_step=halves, train_dataloader=batches(6))
    runner.train()

    for name, weight in reference(size, 6).items():
        assert torch.allclose(weights(runner.model)[name], weight)


# Interrupted, and trained on.


def interrupting(where: str, at: int) -> Callable[..., Any]:
    """A train_step that is interrupted once, in batch *at*, in its forward or its backward."""
    begun: list[int] = []

    def step(model: nn.Module, batch: Any) -> dict[str, Tensor]:
        first = at not in begun
        index = next(i for i, each in enumerate(batches(7)) if torch.equal(each[0], batch[0]))
        begun.append(index)
        loss = train_step(model, batch)["loss"]
        if index == at and first:
            if where == "own backward":
                train_step(model, batch)["loss"].backward()
            if where == "backward":
                loss.register_hook(_interrupt)
            if where in ("forward", "own backward"):
                raise KeyboardInterrupt
        return {"loss": loss}

    return step


def _interrupt(gradient: Tensor) -> None:
    raise KeyboardInterrupt


def interrupting_receiver(at: int) -> Callable[[Runner], None]:
    """A receiver that is interrupted once, in iteration *at*."""
    left = [at]

    def receive(runner: Runner) -> None:
        if runner.iter in left:
            left.clear()
            raise KeyboardInterrupt

    return receive


@pytest.mark.parametrize("where", ["forward", "backward", "own backward", "before_optimizer_step", "after_train_iter"])
def test_an_interrupted_run_that_is_trained_on_is_the_run(where: str, make_runner: MakeRunner) -> None:
    """The batch that was interrupted is trained on again, with no gradients of its first try."""
    runner = run(make_runner, 1, train_step=interrupting(where, 3))
    if where in runner.bus:
        runner.on(where)(interrupting_receiver(3))
    with pytest.raises(KeyboardInterrupt):
        runner.train()
    runner.train()

    assert runner.iter == 7
    assert same(weights(runner.model), reference(1))


def test_a_run_interrupted_amid_a_group_goes_on_with_it(make_runner: MakeRunner) -> None:
    """The batch that was interrupted had added nothing to it yet."""
    runner = run(make_runner, 3, train_step=interrupting("forward", 4))
    with pytest.raises(KeyboardInterrupt):
        runner.train()
    runner.train()

    assert same(weights(runner.model), reference(3))


def test_a_group_that_was_interrupted_in_a_backward_is_begun_anew(make_runner: MakeRunner) -> None:
    """What its gradients are is not known: the next step has the mean of the losses since, and a note says so."""
    runner = run(make_runner, 3, train_step=interrupting("backward", 4))
    with pytest.raises(KeyboardInterrupt) as caught:
        runner.train()
    assert caught.value.__notes__ == ["the group of accumulation under way is dropped, with 1 losses so far"]
    runner.train()

    model = linear()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for group in (slice(0, 3), slice(4, 7)):
        optimizer.zero_grad()
        for batch in batches(7)[group]:
            (train_step(model, batch)["loss"] / 3).backward()
        optimizer.step()
    assert same(weights(runner.model), weights(model))


@pytest.mark.parametrize("where", ["backward", "before_optimizer_step"])
def test_float16_goes_on_after_an_interrupt(where: str, make_runner: MakeRunner, tmp_path: Path) -> None:
    """The scaler, which had unscaled gradients for a step that never came, does so anew."""
    model = linear()
    wrapper = OptimWrapper(torch.optim.SGD(model.parameters(), lr=0.1), dtype="float16", loss_scale=8.0)
    runner = run(make_runner, 1, model=model, optim_wrapper=wrapper, train_step=interrupting(where, 3))
    if where in runner.bus:
        runner.on(where)(interrupting_receiver(3))
    with pytest.raises(KeyboardInterrupt):
        runner.train()
    runner.train()
    assert wrapper.loss_scaler is not None
    assert wrapper.loss_scaler.get_scale() == 8.0

    plain = linear()
    uninterrupted = OptimWrapper(torch.optim.SGD(plain.parameters(), lr=0.1), dtype="float16", loss_scale=8.0)
    run(make_runner, 1, model=plain, optim_wrapper=uninterrupted, work_dir=tmp_path / "uninterrupted").train()
    assert same(weights(model), weights(plain))


# Where a group ends, and what it is scaled by.


class Unsized:
    """Batches without a length."""

    def __init__(self, count: int) -> None:
        self.batches = batches(count)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.batches)


class Missized(Unsized):
    """Batches whose length isn't what it says."""

    def __init__(self, count: int, length: int) -> None:
        super().__init__(count)
        self.length = length

    def __len__(self) -> int:
        return self.length


def slope(model: nn.Module, batch: Any) -> dict[str, Tensor]:
    """A loss whose gradient in the bias is always 1, so that the mean of any group's is."""
    return {"loss": model.bias.sum() + 0 * model(batch[0]).sum()}


def slope_by_itself(model: nn.Module, batch: Any, optim_wrapper: OptimWrapper) -> None:
    """The same, as a step that updates the weights itself."""
    optim_wrapper.update_params(slope(model, batch)["loss"])


def slope_twice(model: nn.Module, batch: Any, optim_wrapper: OptimWrapper) -> None:
    """Two losses for each batch."""
    slope_by_itself(model, batch, optim_wrapper)
    slope_by_itself(model, batch, optim_wrapper)


def slope_in_parts(model: nn.Module, batch: Any, optim_wrapper: OptimWrapper) -> None:
    """What update_params does, by its parts."""
    optim_wrapper.backward(optim_wrapper.scale_loss(slope(model, batch)["loss"]))
    if optim_wrapper.should_update():
        optim_wrapper.step()
        optim_wrapper.zero_grad()


Steps = list[tuple[int, float]]


def note_steps(runner: Runner, steps: Steps | None = None) -> Steps:
    """The losses that had gone backward at each step, and the gradient that it had; added to *steps*."""
    steps = [] if steps is None else steps

    @runner.on("before_optimizer_step")
    def note(runner: Runner) -> None:
        gradient = next(iter(runner.optim_wrapper.param_groups[0]["params"][1].grad))
        steps.append((runner.optim_wrapper.inner_count, round(float(gradient), 5)))

    return steps


LOADERS: dict[str, Callable[[], Any]] = {
    "known": lambda: batches(5),
    "unknown": lambda: Unsized(5),
    "too long": lambda: Missized(5, 8),
    "too short": lambda: Missized(5, 3),
}


@pytest.mark.parametrize("step", [slope, slope_by_itself, slope_twice, slope_in_parts])
@pytest.mark.parametrize("size", [2, 3, 4, 100])
@pytest.mark.parametrize("loader", LOADERS)
@pytest.mark.slow
def test_the_last_group_steps_with_the_losses_that_it_has(
    loader: str, size: int, step: Callable[..., Any], make_runner: MakeRunner
) -> None:
    """Whatever the loader says of its length, and be the group larger than the training."""
    runner = run(make_runner, size, train_step=step, train_dataloader=LOADERS[loader](), epochs=2)
    steps = note_steps(runner)
    runner.train()

    assert [gradient for _, gradient in steps] == [1.0] * len(steps)
    total = 20 if step is slope_twice else 10
    assert steps[-1][0] == total
    first_is_last = size > total and step is slope_twice  # before anybody knows that a batch has two losses
    if loader != "too short" and not first_is_last:  # which end a group where the training should have ended
        assert [losses for losses, _ in steps] == [*range(size, total, size), total]
    assert all(parameter.grad is None for parameter in runner.model.parameters())


@pytest.mark.parametrize("step", [slope, slope_by_itself, slope_twice])
@pytest.mark.parametrize("size", [3, 100])
def test_the_last_group_by_iterations_steps(size: int, step: Callable[..., Any], make_runner: MakeRunner) -> None:
    """Within the last iteration, so that a save at its end has it."""
    runner = run(make_runner, size, train_step=step, train_cfg={"max_iters": 10}, train_dataloader=Unsized(7))
    steps = note_steps(runner)
    losses: list[int] = []
    runner.on("after_train_iter")(lambda runner: losses.append(steps[-1][0] if steps else 0))
    runner.train()

    assert {gradient for _, gradient in steps} == {1.0}
    assert losses[-1] == (20 if step is slope_twice else 10)


@pytest.mark.parametrize("step", [slope, slope_by_itself])
@pytest.mark.parametrize("count", [2, 6])
def test_a_loader_that_was_replaced_ends_the_last_group(
    count: int, step: Callable[..., Any], make_runner: MakeRunner
) -> None:
    """Groups of four: of 5 batches of the first loader, and then of fewer or more than those."""
    runner = run(make_runner, 4, train_step=step, train_dataloader=batches(5), epochs=2)
    steps = note_steps(runner)

    @runner.on("before_train_epoch", start=2)
    def replace(runner: Runner) -> None:
        runner.train_loop.dataloader = batches(count)

    runner.train()

    total = 5 + count
    assert steps == [(4, 1.0), *([(8, 1.0)] if total > 8 else []), (total, 1.0)]


def test_a_count_that_is_changed_amid_a_training_holds_from_the_next_group(make_runner: MakeRunner) -> None:
    """The group under way has the size that it was begun with."""
    runner = run(make_runner, 2, train_step=slope)
    steps = note_steps(runner)
    runner.on("after_train_iter", start=3, once=True)(
        lambda runner: setattr(runner.optim_wrapper, "accumulative_counts", 3)
    )
    runner.train()

    assert steps == [(2, 1.0), (4, 1.0), (7, 1.0)]


# Saved and resumed amid a group.


def resumable(make_runner: MakeRunner, work: Path, **options: Any) -> Runner:
    """A run that logs to its folder and can be resumed."""
    return make_runner(work_dir=work, default_hooks={"logger": None}, **options)


@pytest.mark.parametrize("form", ["safetensors", "pth"])
@pytest.mark.parametrize("stop", [1, 7, 16, 24])
@pytest.mark.parametrize("sizes", [(2, 3), (1, 4)])
@pytest.mark.slow
def test_several_groups_are_resumed_exactly(
    sizes: tuple[int, int], stop: int, form: str, make_runner: MakeRunner, tmp_path: Path
) -> None:
    """Each optimizer's own gradients are saved, in a parameter of both too, and how many losses they are of."""

    def make(work: str, resume: bool = False) -> Runner:
        model, owned = gan(shared=True)
        wrappers = {name: OptimWrapper(each, n) for (name, each), n in zip(adam(owned).items(), sizes, strict=True)}
        hooks = {"logger": None, "checkpoint": {"format": form}}
        data = {"train_dataloader": batches(13), "epochs": 2}
        step = {"train_step": updating("d", "g"), "optim_wrapper": wrappers}
        return make_runner(model=model, work_dir=tmp_path / work, default_hooks=hooks, resume=resume, **data, **step)

    whole = make("whole")
    whole.train()
    first = make("parts")
    first.on("after_train_iter", start=stop, once=True)(lambda runner: runner.stop("half"))
    first.train()
    resumed = make("parts", resume=True)
    resumed.train()

    assert resumed.iter == 26
    assert same(weights(resumed.model), weights(whole.model))
    assert same(resumed.optim_wrapper.state_dict(), whole.optim_wrapper.state_dict())


@pytest.mark.parametrize("step", [slope, slope_by_itself])
@pytest.mark.parametrize(("before", "after"), [(4, 2), (2, 4), (4, 1), (1, 4), (3, 4), (100, 3)])
def test_a_resume_with_another_count_scales_each_group_by_its_losses(
    before: int, after: int, step: Callable[..., Any], make_runner: MakeRunner, tmp_path: Path
) -> None:
    """The group under way is ended as it was begun."""
    first = resumable(make_runner, tmp_path / "run", **accumulating(before, step, epochs=1))
    steps = note_steps(first)
    first.on("after_train_iter", start=3, once=True)(lambda runner: runner.stop("half"))
    first.train()
    resumed = resumable(make_runner, tmp_path / "run", resume=True, **accumulating(after, step, epochs=2))
    note_steps(resumed, steps)
    resumed.train()

    assert {gradient for _, gradient in steps} == {1.0}
    assert steps[-1][0] == 14


def accumulating(size: int, step: Callable[..., Any], epochs: int) -> dict[str, Any]:
    """The options of a run of 7 batches an epoch."""
    model = linear()
    wrapper = OptimWrapper(torch.optim.SGD(model.parameters(), lr=0.1), size)
    loader = batches(7)
    return {"model": model, "optim_wrapper": wrapper, "train_step": step, "train_dataloader": loader, "epochs": epochs}


def test_a_resume_says_that_the_count_changed(
    make_runner: MakeRunner, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With both counts, and what becomes of the group under way; nothing where it is the same."""
    first = make_runner(work_dir=tmp_path / "run", **accumulating(4, slope, epochs=1))
    first.on("after_train_iter", start=3, once=True)(lambda runner: runner.stop("half"))
    first.train()
    for size, said in (
        (4, ""),
        (2, "accumulative_counts is 2 and was 4; the group under way, of 3 losses so far, is still"),
    ):
        resumed = make_runner(work_dir=tmp_path / "run", resume=True, log_level="INFO", **accumulating(size, slope, 1))
        resumed.on("before_train")(lambda runner: runner.stop("enough"))
        resumed.train()
        output = capsys.readouterr().out
        assert said in output
        assert ("accumulative_counts" in output) == bool(said)


def test_a_run_that_is_extended_begins_a_group_after_its_last_step(make_runner: MakeRunner, tmp_path: Path) -> None:
    """Groups of four losses of 7: the second epoch's first group has four again."""
    first = resumable(make_runner, tmp_path / "run", **accumulating(4, slope, epochs=1))
    steps = note_steps(first)
    first.train()
    extended = resumable(make_runner, tmp_path / "run", resume=True, **accumulating(4, slope, epochs=2))
    note_steps(extended, steps)
    extended.train()

    assert steps == [(4, 1.0), (7, 1.0), (11, 1.0), (14, 1.0)]


def test_a_run_stopped_at_its_last_batch_ends_the_group_when_resumed(make_runner: MakeRunner, tmp_path: Path) -> None:
    """Where nobody knew that it was the last: no batch is left, but the group's step."""

    def make(resume: bool) -> Runner:
        options = {**accumulating(4, slope, epochs=1), "train_dataloader": Unsized(7)}
        return resumable(make_runner, tmp_path / "run", resume=resume, **options)

    first = make(resume=False)
    steps = note_steps(first)
    first.on("after_train_iter", start=7)(lambda runner: runner.stop("half"))
    first.train()
    assert steps == [(4, 1.0)]
    resumed = make(resume=True)
    note_steps(resumed, steps)
    resumed.train()

    assert steps == [(4, 1.0), (7, 1.0)]


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_the_last_group_steps_in_mixed_precision(dtype: str, make_runner: MakeRunner) -> None:
    """Losses that are scaled against underflow are so by their step's own scale."""
    model = linear()
    wrapper = OptimWrapper(torch.optim.SGD(model.parameters(), lr=0.1), 4, dtype=dtype)
    runner = run(make_runner, 4, model=model, optim_wrapper=wrapper, train_step=slope, train_dataloader=Unsized(7))
    steps = note_steps(runner)
    runner.train()

    assert steps == [(4, 1.0), (7, 1.0)]


def test_a_group_of_sparse_gradients_is_resumed_exactly(make_runner: MakeRunner, tmp_path: Path) -> None:
    """They are held, saved and scaled as others are."""

    def make(work: str, **options: Any) -> Runner:
        torch.manual_seed(0)
        model = nn.Embedding(5, 2, sparse=True)
        wrapper = OptimWrapper(torch.optim.SparseAdam(model.parameters(), lr=0.1), 3)
        tokens = [torch.tensor([index % 5, 2]) for index in range(8)]
        return resumable(
            make_runner,
            tmp_path / work,
            model=model,
            optim_wrapper=wrapper,
            train_dataloader=tokens,
            train_step=lambda model, batch: {"loss": (model(batch) - batch.unsqueeze(1)).square().mean()},
            epochs=2,
            **options,
        )

    whole = make("whole")
    whole.train()
    first = make("parts")
    first.on("after_train_iter", start=5, once=True)(lambda runner: runner.stop("half"))
    first.train()
    resumed = make("parts", resume=True)
    resumed.train()

    assert resumed.iter == 16
    assert same(weights(resumed.model), weights(whole.model))


@pytest.mark.parametrize("interval", [1, 7, 100])
def test_a_step_after_the_last_iteration_is_in_the_last_checkpoint(
    interval: int, make_runner: MakeRunner, tmp_path: Path
) -> None:
    """And in the best one: what was saved at the last iteration, whose group wasn't complete, is saved again."""
    model = linear()
    wrapper = OptimWrapper(torch.optim.SGD(model.parameters(), lr=0.1), 4)
    runner = make_runner(
        model=model,
        work_dir=tmp_path / "run",
        optim_wrapper=wrapper,
        train_dataloader=Unsized(7),
        epochs=1,
        val=True,
        default_hooks={"checkpoint": {"by_epoch": False, "interval": interval, "save_best": "mse", "rule": "less"}},
    )
    runner.train()

    for name in ("iter_7", "best_mse_iter_7"):
        assert same(load_checkpoint(tmp_path / "run" / name)["state_dict"], weights(model))
