"""The same script in one process and in several: one run, one folder, the same losses."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics import MeanMetric

from eventrunner import Bus, OptimWrapper, Runner, load_checkpoint
from eventrunner.ranks.deal import per_rank
from eventrunner.ranks.world import join

from world import on_ranks  # isort: skip

SAMPLES, BATCH = 50, 16


class Stepping(nn.Module):
    """Has a step of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 1).double()

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.layer(inputs)

    def train_step(self, batch: Any) -> dict[str, torch.Tensor]:
        return {"loss": (self(batch[0]) - batch[1]).square().mean()}


def make(folder: Path, **changes: Any) -> Runner:
    """A run in float64 over ragged batches, three of 16 and one of 2."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1)).double()
    inputs = torch.arange(SAMPLES * 3, dtype=torch.float64).reshape(SAMPLES, 3).sin()
    data = TensorDataset(inputs, inputs.sum(1, keepdim=True))

    def train_step(model: nn.Module, batch: Any) -> dict[str, torch.Tensor]:
        return {"loss": (model(batch[0]) - batch[1]).square().mean()}

    def val_step(model: nn.Module, batch: Any) -> Any:
        return (model(batch[0]) - batch[1]).square().flatten()

    chosen: dict[str, Any] = {
        "model": model, "work_dir": folder, "bus": Bus(), "device": "cpu", "progress": False, "log_level": "ERROR",
        "train_dataloader": DataLoader(data, BATCH, shuffle=True), "train_step": train_step,
        "optimizer": torch.optim.SGD(model.parameters(), lr=0.05), "train_cfg": {"max_epochs": 2},
        "val_dataloader": DataLoader(data, 7), "val_evaluator": {"error": MeanMetric()}, "val_step": val_step,
        "randomness": {"seed": 7}, **changes,
    }  # fmt: skip
    if chosen["optimizer"] is None:
        chosen["optim_wrapper"] = OptimWrapper(torch.optim.SGD(model.parameters(), lr=0.05), accumulative_counts=3)
    return Runner(**chosen)


def trained(folder: Path, changes: dict[str, Any] | None = None) -> dict[str, Any]:
    """Train, and tell what came of it."""
    runner = make(folder, **(changes or {}))
    seen: list[Any] = []

    @runner.on("before_train_iter")
    def look(data_batch: Any) -> None:
        seen.append(data_batch[0].sum(1).tolist())

    runner.train()
    weights = {name: value.tolist() for name, value in runner.unwrapped.state_dict().items()}
    return {
        "weights": weights, "seen": seen, "folder": str(runner.work_dir), "rank": runner.rank, "iter": runner.iter,
        "metric": runner.val()["error"], "names": sorted(os.listdir(runner.work_dir)), "reason": runner.stop_reason,
    }  # fmt: skip


def flat(weights: dict[str, Any]) -> torch.Tensor:
    return torch.cat([torch.tensor(value, dtype=torch.float64).flatten() for value in weights.values()])


@pytest.mark.parametrize("world", [2, pytest.param(3, marks=pytest.mark.long), 4])
def test_the_same_batches_give_the_same_weights_at_any_number_of_ranks(tmp_path: Path, world: int) -> None:
    """Ragged ones included, of which a rank may have no sample."""
    found = on_ranks(world, trained, tmp_path / "run")
    assert [each["rank"] for each in found] == list(range(world)), found
    assert {each["iter"] for each in found} == {8}
    assert all(each["weights"] == found[0]["weights"] and each["folder"] == found[0]["folder"] for each in found)
    (alone,) = on_ranks(1, trained_in_order, tmp_path / "alone", [each["seen"] for each in found])
    assert (flat(alone) - flat(found[0]["weights"])).abs().max() < 1e-12
    assert len({each["metric"] for each in found}) == 1


def trained_in_order(folder: Path, seen: list[Any]) -> dict[str, Any]:
    """Train one process on the batches that the ranks' shares make up."""
    runner = make(folder)
    rows = {round(row.sum().item(), 9): index for index, row in enumerate(runner.train_dataloader.dataset.tensors[0])}
    batches = []
    for shares in zip(*seen, strict=True):
        found = {rows[round(value, 9)] for share in shares for value in share}
        batches.append(runner.train_dataloader.dataset[sorted(found)])
    losses = []
    for batch in batches:
        loss = runner.train_step(runner.model, batch)["loss"]  # type: ignore[misc]
        losses.append(loss.item())
        runner.optim_wrapper.update_params(loss)
    return {name: value.tolist() for name, value in runner.unwrapped.state_dict().items()}


def test_each_sample_is_trained_on_once_in_an_epoch(tmp_path: Path) -> None:
    """But for those that a rank without one takes part with, which count nothing."""
    found = on_ranks(2, trained, tmp_path / "run")
    rows = [row for each in found for share in each["seen"][:4] for row in share]
    assert len(rows) == SAMPLES
    assert len(set(rows)) == SAMPLES
    assert found[0]["seen"][:4] != found[0]["seen"][4:]  # another order


def test_metrics_are_those_of_each_sample_once(tmp_path: Path) -> None:
    """With more ranks than samples in the last batch, too."""
    found = on_ranks(4, trained, tmp_path / "run", {"train_cfg": {"max_iters": 1}})
    (alone,) = on_ranks(1, validated, tmp_path / "run" / "iter_1")
    assert {round(each["metric"], 12) for each in found} == {round(alone, 12)}


def validated(checkpoint: Path) -> float:
    """Validate one process with the weights of the ranks."""
    runner = make(checkpoint.parent / "alone")
    runner.model.load_state_dict(load_checkpoint(checkpoint)["state_dict"])
    return runner.val()["error"]


def test_accumulation_of_several_ranks_equals_that_of_one(tmp_path: Path) -> None:
    """The last group is incomplete: nobody but the loop reduces what it has."""
    changes = {"optimizer": None, "train_dataloader": whole_batches()}
    first, second = on_ranks(2, trained, tmp_path / "run", changes)
    assert first["weights"] == second["weights"]
    (alone,) = on_ranks(1, accumulated_alone, tmp_path / "alone", [first["seen"], second["seen"]])
    assert (flat(alone) - flat(first["weights"])).abs().max() < 1e-12


def whole_batches() -> Any:
    inputs = torch.arange(80 * 3, dtype=torch.float64).reshape(80, 3).sin()
    return DataLoader(TensorDataset(inputs, inputs.sum(1, keepdim=True)), 16)


def accumulated_alone(folder: Path, seen: list[Any]) -> dict[str, Any]:
    return trained(folder, {"optimizer": None, "train_dataloader": whole_batches()})["weights"]


def test_gradients_are_reduced_once_in_each_group(tmp_path: Path) -> None:
    """Not in each backward."""
    assert on_ranks(2, reductions, tmp_path / "run") == [2, 2]


def reductions(folder: Path) -> int:
    """Count the reductions of six losses in groups of three."""
    inputs = torch.arange(96 * 3, dtype=torch.float64).reshape(96, 3).sin()
    loader = DataLoader(TensorDataset(inputs, inputs.sum(1, keepdim=True)), 16)
    runner = make(folder, optimizer=None, train_dataloader=loader, train_cfg={"max_epochs": 1}, val_dataloader=None,
                  val_evaluator=None)  # fmt: skip
    count = []

    def reduce(state: object, bucket: Any) -> Any:
        count.append(bucket.index())
        work = dist.all_reduce(bucket.buffer(), async_op=True)
        return work.get_future().then(lambda future: future.value()[0] / 2)

    reduce.__annotations__ = {"bucket": dist.GradBucket, "return": torch.futures.Future[torch.Tensor]}
    runner.model.register_comm_hook(None, reduce)
    runner.train()
    return len([index for index in count if index == 0])


def test_one_folder_one_log_and_checkpoints_without_a_wrappers_names(tmp_path: Path) -> None:
    """What a run of several leaves is what a run of one leaves."""
    first, second = on_ranks(2, trained, tmp_path / "run")
    assert first["names"] == second["names"]
    assert {"epoch_1", "epoch_2", "log.jsonl", "run.json"} <= set(first["names"])
    rows = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "val/error" in row] == [4, 8, 8]  # the last is val()'s
    checkpoint = load_checkpoint(tmp_path / "run" / "epoch_2")
    assert not [name for name in checkpoint["state_dict"] if name.startswith("module.")]
    assert len(checkpoint["rng_of_ranks"]) == 2


class Dropping(nn.Module):
    """Has what differs between ranks: dropout and running statistics."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 1)).double()

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.layers(inputs)


def dropping(folder: Path, stop: int | None, resume: bool) -> dict[str, Any]:
    torch.manual_seed(0)
    model = Dropping()
    hook = {"checkpoint": {"by_epoch": False, "interval": 1, "max_keep_ckpts": 2}}
    optimizer, loader = torch.optim.Adam(model.parameters(), lr=0.01), DataLoader(numbers(), 10, shuffle=True)
    runner = make(folder, model=model, optimizer=optimizer, resume=resume, default_hooks=hook, train_dataloader=loader)

    @runner.on("after_train_iter")
    def maybe_stop(runner: Runner) -> None:
        if stop is not None and runner.iter + 1 == stop:
            runner.stop()

    runner.train()
    state = runner.unwrapped.state_dict()
    return {name: value.tolist() for name, value in state.items()}


def numbers() -> TensorDataset:
    inputs = torch.arange(SAMPLES * 3, dtype=torch.float64).reshape(SAMPLES, 3).sin()
    return TensorDataset(inputs, inputs.sum(1, keepdim=True))


@pytest.mark.parametrize("stop", [3, pytest.param(5, marks=pytest.mark.long), pytest.param(7, marks=pytest.mark.long)])
def test_a_resumed_run_of_two_ranks_is_the_run_uninterrupted(tmp_path: Path, stop: int) -> None:
    """With dropout, whose draws are each rank's own."""
    whole = on_ranks(2, dropping, tmp_path / "whole", None, False)
    assert whole[0]["layers.0.weight"] == whole[1]["layers.0.weight"], whole
    on_ranks(2, dropping, tmp_path / "cut", stop, False)
    resumed = on_ranks(2, dropping, tmp_path / "cut", None, True)
    assert resumed[0] == whole[0]


def test_ranks_draw_each_their_own(tmp_path: Path) -> None:
    """Else all would drop out the same units."""
    first, second = on_ranks(2, first_draw, tmp_path / "run")
    assert first != second


def first_draw(folder: Path) -> list[float]:
    make(folder)
    return torch.rand(3).tolist()


def test_a_checkpoint_of_two_ranks_is_resumed_by_one(tmp_path: Path) -> None:
    """And by three; that generators begin afresh is said."""
    on_ranks(2, dropping, tmp_path / "run", 3, False)
    for world in (1, 3):
        found = on_ranks(world, dropping, tmp_path / "run", 4 if world == 1 else None, True)
        assert all(isinstance(each, dict) for each in found), found
    assert "is of 2 ranks and this run has 1: generators begin afresh" in (tmp_path / "run" / "log.txt").read_text()


class Loader:
    """Gives batches, and doesn't say of which rank."""

    def __iter__(self) -> Any:
        return iter([numbers()[:4]])


def refusal(folder: Path, what: str) -> str:
    rank = join().rank
    changes: dict[str, Any] = {
        "batches": {"train_dataloader": DataLoader(numbers(), 10 + 5 * rank)},
        "end": {"train_cfg": {"max_epochs": 2 + rank}},
        "loader": {"train_dataloader": Loader()},
        "metric": {"val_evaluator": {"own": Own()}},
        "folder": {"work_dir": folder},
        "parallel": {"parallel": "dpp"},
    }.get(what, {})
    if what == "model":
        changes["model"] = nn.Linear(3, 1 + rank)
        changes["optimizer"] = torch.optim.SGD(changes["model"].parameters(), lr=0.1)
    make(folder, **changes)
    return "made"


class Own:
    """A metric that knows nothing of ranks."""

    def update(self, value: Any) -> None: ...
    def compute(self) -> float:
        return 0.0

    def reset(self) -> None: ...


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("loader", "OptionError: train_dataloader=Loader: with 2 processes each would train on all of it; give a plain "
         "DataLoader over a dataset with indices, whose batches are dealt out, or say by eventrunner.per_rank(loader) "
         "that it gives each rank its own samples."),
        ("metric", "OptionError: val_evaluator 'own', a Own: with 2 processes it would be computed from the samples of "
         "each alone; use one of torchmetrics', whose compute() gathers all."),
        ("batches", "RankError: the number of batches of the train_dataloader is 5 on rank 0 and 4 on rank 1; give all "
         "ranks the same."),
        ("end", "RankError: train_cfg is TrainSettings(by_epoch=True, maximum=2, val_begin=1, val_interval=1) on rank "
         "0 and TrainSettings(by_epoch=True, maximum=3, val_begin=1, val_interval=1) on rank 1; give all ranks the "
         "same."),
        ("parallel", "OptionError: parallel='dpp' must be 'auto', 'ddp', a dict with one of them as its type, a "
         "function of (model, ranks), or None; did you mean 'ddp'?"),
    ],
)  # fmt: skip
def test_what_would_train_wrong_is_refused_on_every_rank(tmp_path: Path, what: str, message: str) -> None:
    """Before anything is written."""
    assert on_ranks(2, refusal, tmp_path / "run", what) == [message] * 2
    assert not (tmp_path / "run").exists()


def test_a_folder_with_another_run_is_refused_on_every_rank(tmp_path: Path) -> None:
    """Rank 0 looks, and tells."""
    on_ranks(2, trained, tmp_path / "run", {"train_cfg": {"max_iters": 1}})
    found = on_ranks(2, refusal, tmp_path / "run", "folder")
    assert found[0] == found[1]
    assert found[0].startswith(f"RunExistsError: work_dir '{tmp_path / 'run'}' already holds a run")


def own_samples(folder: Path) -> list[Any]:
    ranks = join()
    inputs = torch.full((8, 3), float(ranks.rank), dtype=torch.float64)
    loader = per_rank(DataLoader(TensorDataset(inputs, inputs[:, :1]), 4))
    return trained(folder, {"train_dataloader": loader})["seen"]


def test_a_loader_that_gives_each_rank_its_own_is_left_alone(tmp_path: Path) -> None:
    """As it says so."""
    first, second = on_ranks(2, own_samples, tmp_path / "run")
    assert {value for share in first for value in share} == {0.0}
    assert {value for share in second for value in share} == {3.0}


def stepping(folder: Path) -> dict[str, Any]:
    model = Stepping()
    changes = {"model": model, "train_step": None, "optimizer": torch.optim.SGD(model.parameters(), lr=0.05)}
    return trained(folder, changes)


def test_a_models_own_step_is_reduced_too(tmp_path: Path) -> None:
    """Though it is no forward of the wrapper's."""
    first, second = on_ranks(2, stepping, tmp_path / "run")
    assert first["weights"] == second["weights"], first


def test_a_model_of_another_shape_is_refused_on_every_rank(tmp_path: Path) -> None:
    """Not after the group's half an hour."""
    found = on_ranks(2, refusal, tmp_path / "run", "model")
    assert found == ["RankError: a parameter of the model is weight (1, 3) on rank 0 and weight (2, 3) on rank 1; give "
                     "all ranks the same."] * 2  # fmt: skip


@pytest.mark.parametrize("interval", [1, -1])
def test_the_best_is_marked_once_for_all_ranks(tmp_path: Path, interval: int) -> None:
    """As a twin of the save at that step, or as one of its own."""
    hooks = {"checkpoint": {"save_best": "error", "rule": "less", "interval": interval}}
    first, second = on_ranks(2, trained, tmp_path / "run", {"default_hooks": hooks})
    assert first["names"] == second["names"]
    assert "best_error_epoch_2" in first["names"]
    assert len(load_checkpoint(tmp_path / "run" / "best_error_epoch_2")["rng_of_ranks"]) == 2


def test_rows_have_the_mean_over_ranks(tmp_path: Path) -> None:
    """Of what each has logged of its own share."""
    first, second = on_ranks(2, logged, tmp_path / "run")
    rows = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    found = [row["train/loss"] for row in rows if "train/loss" in row]
    assert first != second
    assert found == pytest.approx([(a + b) / 2 for a, b in zip(first, second, strict=True)])


def logged(folder: Path) -> list[float]:
    """Train with a row at each iteration, and return this rank's own losses."""
    runner, own = make(folder, default_hooks={"logger": {"interval": 1, "window_size": 1}}), list[float]()

    @runner.on("after_train_iter")
    def keep(outputs: Any) -> None:
        own.append(outputs["loss"].item())

    runner.train()
    return own


def sharded(folder: Path, by_runner: bool) -> None:
    """Shard the model, before its optimizer is made or after."""
    join()
    model = nn.Sequential(nn.Linear(3, 8), nn.Linear(8, 1)).double()
    if by_runner:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        make(folder, model=model, optimizer=optimizer, parallel=lambda model, ranks: fully_shard(model)).train()
    else:
        fully_shard(model)
        make(folder, model=model, optimizer=torch.optim.SGD(model.parameters(), lr=0.05)).train()


def test_an_optimizer_of_parameters_that_were_replaced_is_refused(tmp_path: Path) -> None:
    """It would train nothing."""
    found = on_ranks(2, sharded, tmp_path / "run", True)
    assert found[0] == found[1]
    assert found[0].startswith("OptionError: 4 of the 4 parameters of SGD are not those of FSDPSequential")


def test_a_sharded_model_is_refused_before_the_first_batch_as_it_cant_be_saved(tmp_path: Path) -> None:
    """Not after an epoch."""
    found = on_ranks(2, sharded, tmp_path / "run", False)
    assert all("is a DTensor, which a checkpoint can't hold" in each for each in found), found
