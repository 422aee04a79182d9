"""What a checkpoint can hold is saved and comes back to the bit; what it can't is refused before the first batch."""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import MakeRunner
from tiny import batches, same
from torch import Tensor, nn

from eventrunner.bus.bus import Bus
from eventrunner.checkpoint import Store, load_checkpoint
from eventrunner.checkpointer import Checkpointer
from eventrunner.errors import CheckpointError, OptionError, ResumeError
from eventrunner.hook import Hook
from eventrunner.hooks import EMAHook
from eventrunner.runner import Runner
from eventrunner.training.optim import OptimWrapper
from eventrunner.training.optim_dict import OptimWrapperDict

FORMATS = ["safetensors", "pth"]
both_formats = pytest.mark.parametrize("tree_format", FORMATS)


class Holding(nn.Module):
    """A linear model that has a buffer, or an extra state, besides."""

    def __init__(self, buffer: Tensor | None = None, extra: Any = None) -> None:
        super().__init__()
        self.linear, self.extra = nn.Linear(2, 1), extra
        self.register_buffer("held", buffer)

    def forward(self, x: Tensor) -> Any:
        """Train the linear part, and write to the buffer."""
        if self.training and self.held is not None:
            self.held = (self.held + self.held).coalesce()
        return self.linear(x)

    def get_extra_state(self) -> Any:
        """Whatever it was given."""
        return self.extra

    def set_extra_state(self, state: Any) -> None:
        """Take it back."""
        self.extra = state


class Remembering(Hook):
    """A hook whose state is a value of the caller's."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def state_dict(self) -> dict[str, Any]:
        return {"value": self.value}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.value = state["value"]


class Tagged(Tensor):
    """A tensor of a class of its own."""


def compressed() -> Tensor:
    """A sparse tensor of another layout than a checkpoint takes."""
    return torch.eye(2).to_sparse_csr()


def quantized() -> Tensor:
    """A tensor with a scale."""
    return torch._empty_affine_quantized([2], scale=1.0, zero_point=0, dtype=torch.qint8)


def dense(state: Any) -> Any:
    """A tree with sparse tensors as what they consist of."""
    if isinstance(state, Tensor) and state.is_sparse:
        return [state._indices(), state._values(), tuple(state.shape), state.is_coalesced()]
    return {key: dense(value) for key, value in state.items()} if isinstance(state, dict) else state


def started(runner: Runner) -> list[int]:
    """The iterations that the run has begun, as it goes."""
    begun: list[int] = []
    runner.on("before_train_iter")(lambda runner: begun.append(runner.iter))
    return begun


def stop_after(count: int) -> Hook:
    """A hook that ends the training behind that many iterations."""

    class Stop(Hook):
        def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
            if runner.iter + 1 == count:
                runner.stop("enough")

    return Stop()


# What is saved


@both_formats
@pytest.mark.parametrize("hooks", [[], [EMAHook]], ids=["", "EMA"])
def test_a_sparse_buffer_is_saved_and_resumed(
    make_runner: MakeRunner, tmp_path: Path, tree_format: str, hooks: list[Any]
) -> None:
    """As it is at each save, entries and all."""

    def run(folder: str, **options: Any) -> dict[str, Any]:
        runner = make_runner(
            work_dir=tmp_path / folder,
            model=Holding(torch.eye(2).to_sparse()),
            custom_hooks=[hook() for hook in hooks],
            default_hooks={"logger": None, "checkpoint": {"format": tree_format}},
            bus=Bus(),
            **options,
        )
        return dense(runner.train().state_dict())  # type: ignore[no-any-return]

    torch.manual_seed(0)
    whole = run("whole", epochs=3)
    torch.manual_seed(0)
    run("parts", epochs=1)
    saved = load_checkpoint(tmp_path / "parts" / "epoch_1")["state_dict"]["held"]
    assert saved.to_dense().tolist() == [[4.0, 0.0], [0.0, 4.0]]
    assert same(run("parts", epochs=3, resume=True), whole)


class Words(nn.Module):
    """An embedding with sparse gradients in front of a linear part."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.words, self.linear = nn.Embedding(50, 3, sparse=True), nn.Linear(3, 1)

    def forward(self, x: Tensor) -> Any:
        """Some words of each row."""
        return self.linear(self.words((x.abs() * 10).long()).sum(1))


def by_hand(model: nn.Module, batch: Any, optim_wrapper: OptimWrapperDict) -> dict[str, Tensor]:
    """The loop that everybody knows: the gradients of a step are there until the next."""
    for wrapper in optim_wrapper.values():
        wrapper.zero_grad()
    loss = (model(batch[0]) - batch[1]).square().mean()
    loss.backward()  # type: ignore[no-untyped-call]
    for wrapper in optim_wrapper.values():
        wrapper.step()
    return {"loss": loss.detach()}


def accumulated(model: nn.Module, batch: Any, optim_wrapper: OptimWrapperDict) -> dict[str, Tensor]:
    """Both optimizers step at every third batch."""
    loss = (model(batch[0]) - batch[1]).square().mean()
    first, second = optim_wrapper.values()
    (loss / 3).backward()
    first.inner_count, second.inner_count = first.inner_count + 1, second.inner_count + 1
    for wrapper in (first, second) if first.inner_count % 3 == 0 else ():
        wrapper.step()
        wrapper.zero_grad()
    return {"loss": loss.detach()}


@both_formats
@pytest.mark.parametrize("step", [by_hand, accumulated])
@pytest.mark.parametrize("end", [2, 4, 5])
@pytest.mark.slow
def test_sparse_gradients_are_saved_and_resumed(
    make_runner: MakeRunner, tmp_path: Path, tree_format: str, step: Callable[..., Any], end: int
) -> None:
    """Amid an accumulation too: a resumed run is the run uninterrupted, to the bit."""

    def run(folder: str, *hooks: Hook, resume: bool = False) -> dict[str, Tensor]:
        model = Words()
        optimizers = {
            "words": OptimWrapper(torch.optim.SparseAdam(model.words.parameters(), lr=0.1)),
            "linear": OptimWrapper(torch.optim.AdamW(model.linear.parameters(), lr=0.1)),
        }
        return make_runner(
            work_dir=tmp_path / folder,
            model=model,
            train_dataloader=[(torch.randn(4, 2, generator=torch.Generator().manual_seed(i)), 1.0) for i in range(7)],
            epochs=2,
            train_step=step,
            optim_wrapper=OptimWrapperDict(**optimizers),
            custom_hooks=list(hooks),
            default_hooks={"logger": None, "checkpoint": {"format": tree_format}},
            bus=Bus(),
            resume=resume,
        ).train().state_dict()  # fmt: skip

    whole = run("whole")
    run("parts", stop_after(end))
    assert same(run("parts", resume=True), whole)


@both_formats
@pytest.mark.parametrize(
    "value",
    [np.float32(0.5), np.int64(3), np.arange(4.0), {"best": [np.float64(1.5), np.ones((2, 2))]}],
    ids=["scalar", "integer", "array", "nested"],
)
def test_numpys_values_in_a_hooks_state_are_resumed(
    make_runner: MakeRunner, tmp_path: Path, tree_format: str, value: Any
) -> None:
    """In either format, as what they were."""
    chosen = {"default_hooks": {"logger": None, "checkpoint": {"format": tree_format}}, "work_dir": tmp_path / "run"}
    make_runner(custom_hooks=[Remembering(value)], epochs=1, **chosen).train()
    hook = Remembering(None)
    make_runner(custom_hooks=[hook], epochs=2, resume=True, bus=Bus(), **chosen).train()

    assert type(hook.value) is type(value)
    assert repr(hook.value) == repr(value)


@both_formats
def test_a_folder_whose_name_is_no_text_holds_a_run_like_any_other(
    make_runner: MakeRunner, tmp_path: Path, tree_format: str
) -> None:
    """Log, checkpoints and resume; where the name is shown, its bytes are spelt out."""
    folder = tmp_path / os.fsdecode(b"run \xff\xfe")
    options = {
        "work_dir": folder,
        "val": True,
        "log_level": "INFO",
        "default_hooks": {"checkpoint": {"format": tree_format, "save_best": "mse", "rule": "less"}},
    }
    make_runner(epochs=1, **options).train()
    assert make_runner(epochs=2, resume=True, bus=Bus(), **options).train() is not None
    assert {"epoch_1", "epoch_2"} <= set(Store(folder).names())
    assert "run \\udcff\\udcfe" in (folder / "log.txt").read_text(encoding="utf-8")


# What is refused


@both_formats
@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support:UserWarning", "ignore:torch.quantize:UserWarning")
@pytest.mark.parametrize(
    ("held", "message"),
    [
        (lambda: {"model": Holding(compressed())}, r"\['state_dict'\]\['held'\] is a tensor of layout sparse_csr"),
        (lambda: {"model": Holding(quantized())}, r"\['state_dict'\]\['held'\] is a quantized tensor"),
        (lambda: {"model": Holding(torch.ones(2).as_subclass(Tagged))}, r"\['state_dict'\]\['held'\] is a Tagged"),
        (lambda: {"model": Holding(extra=io.BytesIO(b"x"))}, r"\['state_dict'\]\['_extra_state'\] is a BytesIO"),
        (lambda: {"model": Holding(extra=[object()])}, r"\['state_dict'\]\['_extra_state'\]\[0\] is an object"),
        (lambda: {"custom_hooks": [Remembering(print)]}, r"\['hooks'\]\['Remembering'\]\['value'\] is a builtin"),
        (lambda: {"custom_hooks": [Remembering(np.array([None]))]}, r"\['value'\] is a numpy array of dtype object"),
    ],
)  # fmt: skip
def test_what_no_checkpoint_holds_is_refused_before_the_first_batch(
    make_runner: MakeRunner, tmp_path: Path, tree_format: str, held: Callable[[], dict[str, Any]], message: str
) -> None:
    """By one check, wherever it lies: not at the first save, which may be hours away."""
    runner = make_runner(
        work_dir=tmp_path / "run", default_hooks={"logger": None, "checkpoint": {"format": tree_format}}, **held()
    )
    begun = started(runner)
    with pytest.raises(CheckpointError, match=rf"^checkpoint.*{message}.*, which a checkpoint can't hold; it takes"):
        runner.train()
    assert begun == []
    assert Store(tmp_path / "run").names() == []


@pytest.mark.parametrize("value", [frozenset({1}), {np.int64(1): 2}], ids=["frozenset", "key"])
def test_what_only_one_format_holds_is_refused_by_the_other_alone(make_runner: MakeRunner, value: Any) -> None:
    """Before the first batch as well."""
    checkpoint = {"logger": None, "checkpoint": {"format": "pth"}}
    runner = make_runner(custom_hooks=[Remembering(value)], default_hooks=checkpoint)
    begun = started(runner)
    with pytest.raises(CheckpointError, match=r"^checkpoint\['hooks'\].* that format='pth' can't hold"):
        runner.train()
    assert begun == []


class Noting(torch.optim.SGD):
    """An optimizer that keeps something odd from its first step on."""

    def step(self, closure: Any = None) -> Any:
        """Keep it."""
        self.state[self.param_groups[0]["params"][0]]["odd"] = object()
        return super().step(closure)


def test_what_an_optimizer_makes_at_its_first_step_is_refused_behind_it(make_runner: MakeRunner) -> None:
    """Before that there is nothing to see."""
    model = nn.Linear(2, 1)
    runner = make_runner(model=model, optimizer=Noting(model.parameters(), lr=0.1))
    begun = started(runner)
    with pytest.raises(CheckpointError, match=r"^checkpoint\['optimizer'\].*\['odd'\] is an object"):
        runner.train()
    assert begun == [0]


def test_a_receiver_that_may_mend_the_state_makes_it_a_warning(
    make_runner: MakeRunner, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What it leaves out is saved by nobody, and the rest is."""

    class Prune(Hook):
        def before_save_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
            del checkpoint["state_dict"]["_extra_state"]

    runner = make_runner(
        work_dir=tmp_path / "run", model=Holding(extra=object()), custom_hooks=[Prune()], epochs=1, log_level="WARNING"
    )
    runner.train()
    assert Store(tmp_path / "run").names() == ["epoch_1"]
    warning = "unless a receiver of before_save_checkpoint changes it, checkpoint['state_dict']"
    assert capsys.readouterr().out.count(warning) == 1


def test_a_receiver_that_is_offloaded_mends_nothing(make_runner: MakeRunner) -> None:
    """It has a copy of what is saved."""
    runner = make_runner(model=Holding(extra=object()))
    runner.on("before_save_checkpoint", offload=True)(lambda runner: None)
    with pytest.raises(CheckpointError, match=r"^checkpoint\['state_dict'\]\['_extra_state'\] is an object"):
        runner.train()


class Graph(nn.Module):
    """A model one of whose parameters is sparse."""

    def __init__(self) -> None:
        super().__init__()
        self.graph, self.linear = nn.Parameter(torch.eye(2).to_sparse()), nn.Linear(2, 1)

    def forward(self, x: Tensor) -> Any:
        """Go by the graph."""
        return self.linear(torch.sparse.mm(self.graph, x.t()).t())


@pytest.mark.parametrize("mode", ["lazy", "eager"])
def test_a_sparse_parameter_is_saved_and_resumed(make_runner: MakeRunner, tmp_path: Path, mode: str) -> None:
    """It is copied at once, as there is no one memory that a step changes."""

    def run(folder: str, **options: Any) -> Any:
        torch.manual_seed(0)
        checkpoint = {"logger": None, "checkpoint": {"mode": mode, "verify": True}}
        options = {"model": Graph(), "default_hooks": checkpoint, "bus": Bus(), **options}
        return dense(make_runner(work_dir=tmp_path / folder, **options).train().state_dict())

    whole = run("whole", epochs=3)
    run("parts", epochs=1)
    assert same(run("parts", epochs=3, resume=True), whole)


def lazy() -> nn.Module:
    """A model whose first batch gives it its shapes."""
    return nn.Sequential(nn.LazyLinear(3), nn.LazyBatchNorm1d(), nn.Linear(3, 1))


SHAPELESS = (
    " was given a model whose 0.weight, 0.bias, 1.weight, 1.bias, 1.running_mean have no shape yet; run one forward "
    "pass first, with a batch as those of the training."
)


def test_a_model_without_shapes_is_refused_when_the_run_is_made(make_runner: MakeRunner) -> None:
    """And taken after a forward pass."""
    with pytest.raises(OptionError) as caught:
        make_runner(model=lazy())
    assert str(caught.value) == f"CheckpointHook{SHAPELESS}"


def test_a_model_whose_shapes_were_made_by_hand_trains_and_resumes(make_runner: MakeRunner, tmp_path: Path) -> None:
    """As any other."""

    def model() -> nn.Module:
        made = lazy()
        made(torch.zeros(2, 2))
        return made

    make_runner(work_dir=tmp_path / "run", model=model(), epochs=1).train()
    make_runner(work_dir=tmp_path / "run", model=model(), epochs=2, resume=True, bus=Bus()).train()
    assert "epoch_2" in Store(tmp_path / "run").names()


def test_weights_give_a_lazy_model_its_shapes_where_it_only_predicts(make_runner: MakeRunner, tmp_path: Path) -> None:
    """Nothing is trained, so nothing need be run first."""
    trained = lazy()
    trained(torch.zeros(2, 2))
    make_runner(work_dir=tmp_path / "run", model=trained, epochs=1).train()
    model = lazy()
    make_runner(work_dir=tmp_path / "val", model=model, val=True, load_from=tmp_path / "run" / "epoch_1", bus=Bus(),
                train_dataloader=None, train_cfg=None, train_step=None, optimizer=None).val()  # fmt: skip
    assert same(model.state_dict(), trained.state_dict())


def test_a_sparse_buffer_is_no_dense_one(make_runner: MakeRunner, tmp_path: Path) -> None:
    """Where the model has another kind than the checkpoint, the names of both are said."""
    make_runner(work_dir=tmp_path / "run", model=Holding(torch.eye(2).to_sparse()), epochs=1).train()
    runner = make_runner(work_dir=tmp_path / "run", model=Holding(torch.eye(2)), epochs=2, resume=True, bus=Bus())
    message = r"'held' has layout torch\.sparse_coo in the checkpoint and torch\.strided in the model\.$"
    with pytest.raises(ResumeError, match=message):
        runner.train()


# A loop of one's own


def a_checkpointer(folder: Path, model: nn.Module, **options: Any) -> Checkpointer:
    """One of a model and its optimizer."""
    return Checkpointer(folder, model=model, optimizer=torch.optim.SGD(model.parameters(), lr=0.1), **options)


@both_formats
def test_a_checkpointer_refuses_what_it_cant_save_when_its_block_is_entered(tmp_path: Path, tree_format: str) -> None:
    """By the same check; the folder is free for the next."""
    with pytest.raises(CheckpointError, match=r"^checkpoint\['state_dict'\]\['_extra_state'\] is a BytesIO"):  # noqa: SIM117
        with a_checkpointer(tmp_path / "run", Holding(extra=io.BytesIO()), format=tree_format):
            raise AssertionError
    with a_checkpointer(tmp_path / "run", Holding(torch.eye(2).to_sparse()), format=tree_format) as ckpt:
        ckpt.save(1)


def test_a_checkpointer_refuses_a_model_without_shapes(tmp_path: Path) -> None:
    """At construction: torch takes no state of it."""
    with pytest.raises(OptionError) as caught:
        a_checkpointer(tmp_path / "run", lazy())
    assert str(caught.value) == f"Checkpointer{SHAPELESS}"


def test_sparse_gradients_are_kept_by_a_checkpointer(tmp_path: Path) -> None:
    """For a loop that saves amid an accumulation."""
    model = Words()
    with a_checkpointer(tmp_path / "run", model, gradients=True) as ckpt:
        for x, y in batches(2):
            (model(x) - y).square().mean().backward()
        ckpt.save(1)
    again = Words()
    with a_checkpointer(tmp_path / "run", again, gradients=True, resume=True):
        found, expected = again.words.weight.grad, model.words.weight.grad
    assert same(dense({"grad": found}), dense({"grad": expected}))
