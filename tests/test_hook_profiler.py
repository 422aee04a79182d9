"""ProfilerHook with torch's own profiler on a CPU: how much is recorded, and where the recording goes."""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.profiler import profile

from eventrunner.bus.bus import Bus
from eventrunner.errors import OptionError
from eventrunner.hooks import ProfilerHook
from eventrunner.runner import Runner

OPERATOR = "aten::addmm"
"""What a linear layer calls once in its forward pass, and nothing else does."""


def train_step(model: nn.Module, batch: Tensor) -> dict[str, Tensor]:
    """Anything that can be trained."""
    return {"loss": model(batch).square().mean()}


def make(folder: Path, *hooks: Any, **options: Any) -> Runner:
    """Two epochs with three batches each."""
    model = nn.Linear(2, 1)
    return Runner(
        model=model,
        work_dir=folder,
        train_dataloader=[torch.ones(1, 2)] * 3,
        train_step=train_step,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
        custom_hooks=list(hooks),
        default_hooks={"logger": None, "checkpoint": None},
        bus=Bus(),
        device="cpu",
        **{"train_cfg": {"max_epochs": 2}, **options},
    )


class Calls:
    """A function for on_trace_ready: how often the operator was called in each recording."""

    def __init__(self) -> None:
        self.counts: list[int] = []

    def __call__(self, recorded: profile) -> None:
        self.counts.append(sum(event.count for event in recorded.key_averages() if event.key == OPERATOR))


def calls_in(path: Path) -> int:
    """The same of a trace file."""
    raw = path.read_bytes()
    events = json.loads(gzip.decompress(raw) if path.suffix == ".gz" else raw)["traceEvents"]
    return sum(event.get("name") == OPERATOR for event in events)


def profiling() -> bool:
    """Whether a profiler is on in this thread."""
    return bool(torch._C._autograd._profiler_enabled())


@pytest.mark.parametrize(
    ("options", "cfg", "count"),
    [
        ({}, {"max_epochs": 2}, 3),
        ({"profile_times": 2}, {"max_epochs": 2}, 6),
        ({"by_epoch": False}, {"max_epochs": 2}, 1),
        ({"by_epoch": False, "profile_times": 4}, {"max_epochs": 2}, 4),
        ({"by_epoch": False, "profile_times": 2}, {"max_iters": 5}, 2),
        ({}, {"max_iters": 5}, 5),
    ],
)
def test_so_many_epochs_or_iterations_are_recorded(
    tmp_path: Path, options: dict[str, Any], cfg: dict[str, int], count: int
) -> None:
    """Counted by the operator that each iteration calls once; then the profiler is off."""
    calls = Calls()
    make(tmp_path / "run", ProfilerHook(on_trace_ready=calls, **options), train_cfg=cfg).train()
    assert calls.counts == [count]
    assert not profiling()


def test_a_resumed_training_counts_from_where_it_goes_on(tmp_path: Path) -> None:
    """The beginning that is profiled is this training's; a second train() has one of its own."""
    calls = Calls()
    runner = make(tmp_path / "run", ProfilerHook(on_trace_ready=calls, by_epoch=False, profile_times=2))
    runner.on("after_train_epoch", once=True)(lambda runner: runner.stop("for now"))
    runner.train()
    runner.train()
    assert calls.counts == [2, 2]


def test_each_cycle_of_a_schedule_is_reported(tmp_path: Path) -> None:
    """In iterations, over the epoch's end, and without torch's warning that a cycle forgets the one before."""
    calls = Calls()
    schedule = {"wait": 1, "warmup": 1, "active": 1, "repeat": 2}
    make(tmp_path / "run", ProfilerHook(profile_times=2, schedule=schedule, on_trace_ready=calls)).train()
    assert calls.counts == [1, 1]


def test_a_schedule_that_never_became_active_is_said(tmp_path: Path) -> None:
    """One warning, and no empty file."""
    hook = ProfilerHook(schedule={"wait": 9, "warmup": 1, "active": 1}, json_trace_path="trace.json")
    make(tmp_path / "run", hook).train()
    last = (tmp_path / "run" / "log.txt").read_text().splitlines()[-1].split()
    assert " ".join(last) == "warning profile nothing was recorded: it ended before the schedule became active"
    assert not (tmp_path / "run" / "trace.json").exists()


def test_a_training_that_ends_early_is_reported_as_far_as_it_went(tmp_path: Path) -> None:
    """The second of six iterations was its last; the report is made at the end of the training."""
    calls, reported = Calls(), []
    runner = make(tmp_path / "run", ProfilerHook(profile_times=2, on_trace_ready=calls))
    runner.on("after_train_iter", every=2)(lambda runner: runner.stop())
    runner.on("after_train", priority="LOWEST")(lambda: reported.extend(calls.counts))
    runner.train()
    assert calls.counts == reported == [2]
    assert not profiling()


@pytest.mark.parametrize("site", ["after_train_iter", "after_train"])
def test_a_failure_leaves_the_profiler_stopped(tmp_path: Path, site: str) -> None:
    """Wherever it comes from; what was recorded is reported, and the next run in the process is profiled as well."""
    calls = Calls()
    runner = make(tmp_path / "a", ProfilerHook(profile_times=2, on_trace_ready=calls), train_cfg={"max_epochs": 3})

    @runner.on(site, priority="HIGHEST")
    def fail() -> None:
        raise FloatingPointError("halfway")

    runner.on("after_train_iter", start=4)(lambda runner: runner.stop())
    with pytest.raises(FloatingPointError, match="halfway"):
        runner.train()
    assert not profiling()
    assert calls.counts == [1 if site == "after_train_iter" else 4]

    make(tmp_path / "b", ProfilerHook(on_trace_ready=calls)).train()
    assert calls.counts[1:] == [3]


def test_a_report_that_fails_leaves_the_profiler_stopped(tmp_path: Path) -> None:
    """Its exception is the run's."""

    def fail(recorded: profile) -> None:
        raise OSError("no space left")

    with pytest.raises(OSError, match="no space left"):
        make(tmp_path / "run", ProfilerHook(on_trace_ready=fail)).train()
    assert not profiling()


def test_by_default_the_log_file_gets_a_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """At debug level, so the terminal doesn't."""
    make(tmp_path / "run", ProfilerHook()).train()
    text = (tmp_path / "run" / "log.txt").read_text()
    assert OPERATOR in text
    assert "Self CPU" in text
    assert OPERATOR not in capsys.readouterr().out


def test_log_trace_shows_a_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With torch's arguments: two rows, sorted by count."""
    trace = {"type": "log_trace", "sort_by": "count", "row_limit": 2}
    make(tmp_path / "run", ProfilerHook(on_trace_ready=trace)).train()
    shown = capsys.readouterr().out
    assert "Self CPU" in shown
    assert shown.count("aten::") == 2
    assert trace == {"type": "log_trace", "sort_by": "count", "row_limit": 2}


@pytest.mark.parametrize(
    ("options", "folder"), [({}, "run/tf_tracing_logs"), ({"dir_name": "here"}, "run/here"), ({"dir_name": ""}, "run")]
)
def test_tb_trace_writes_a_trace_into_a_folder_of_the_run(tmp_path: Path, options: dict[str, str], folder: str) -> None:
    """Under the name that TensorBoard's plugin looks for; the package isn't needed."""
    make(tmp_path / "run", ProfilerHook(on_trace_ready={"type": "tb_trace", **options})).train()
    (trace,) = (tmp_path / folder).glob("*.pt.trace.json")
    assert calls_in(trace) == 3


def test_tb_trace_may_go_to_any_folder(tmp_path: Path) -> None:
    """An absolute path is taken as it is."""
    trace = {"type": "tb_trace", "dir_name": str(tmp_path / "traces"), "worker_name": "me"}
    make(tmp_path / "run", ProfilerHook(on_trace_ready=trace)).train()
    (file,) = (tmp_path / "traces").iterdir()
    assert file.name.startswith("me.")


@pytest.mark.parametrize("name", ["trace.json", "profile/trace.json", "trace.json.gz"])
def test_the_trace_file_is_in_the_runs_folder(tmp_path: Path, name: str) -> None:
    """Beside the report, which is made as well; the log says where."""
    calls = Calls()
    make(tmp_path / "run", ProfilerHook(json_trace_path=name, on_trace_ready=calls)).train()
    assert calls_in(tmp_path / "run" / name) == 3
    assert calls.counts == [3]
    last = (tmp_path / "run" / "log.txt").read_text().splitlines()[-1].split()
    assert last == ["profile", f"run/{name}"]


def test_the_trace_file_may_be_anywhere(tmp_path: Path) -> None:
    """Where its folder exists."""
    make(tmp_path / "run", ProfilerHook(json_trace_path=tmp_path / "trace.json")).train()
    assert calls_in(tmp_path / "trace.json") == 3


def test_with_a_schedule_the_trace_file_has_the_last_cycle(tmp_path: Path) -> None:
    """One iteration, and not the four before."""
    hook = ProfilerHook(
        profile_times=2,
        schedule={"wait": 0, "warmup": 1, "active": 2},
        json_trace_path="trace.json",
    )
    make(tmp_path / "run", hook).train()
    assert calls_in(tmp_path / "run" / "trace.json") == 2


def test_shapes_memory_stacks_and_flops_are_recorded_on_request(tmp_path: Path) -> None:
    """The options are torch's."""
    recordings: list[Any] = []
    hook = ProfilerHook(
        record_shapes=True,
        profile_memory=True,
        with_stack=True,
        with_flops=True,
        on_trace_ready=recordings.append,
        json_trace_path=tmp_path / "trace.json",
    )
    make(tmp_path / "run", hook).train()
    events = recordings[0].events()
    first = next(event for event in events if event.name == OPERATOR)
    assert first.input_shapes[1] == [1, 2]
    assert first.flops > 0
    assert any(event.cpu_memory_usage for event in events)
    stacks = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    assert any("train_step" in event["name"] for event in stacks if event.get("cat") == "python_function")


def test_only_the_first_rank_profiles(tmp_path: Path) -> None:
    """The others would write the same files."""
    calls = Calls()
    runner = make(tmp_path / "run", ProfilerHook(on_trace_ready=calls))
    runner.is_main = False
    runner.train()
    assert calls.counts == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"by_epoch": 1}, "ProfilerHook(by_epoch=1): give True or False."),
        ({"profile_times": 0}, "ProfilerHook(profile_times=0): give an int of 1 or more."),
        ({"profile_times": 1.5}, "ProfilerHook(profile_times=1.5): give an int of 1 or more."),
        ({"profile_times": True}, "ProfilerHook(profile_times=True): give an int of 1 or more."),
        ({"activity_with_cpu": "yes"}, "ProfilerHook(activity_with_cpu='yes'): give True or False."),
        (
            {"activity_with_cpu": False},
            "ProfilerHook(activity_with_cpu=False): nothing is recorded without activity_with_cuda=True.",
        ),
        ({"record_shapes": None}, "ProfilerHook(record_shapes=None): give True or False."),
        ({"with_flops": 0}, "ProfilerHook(with_flops=0): give True or False."),
        ({"schedule": 3}, "ProfilerHook(schedule=3): give a dict of torch.profiler.schedule's arguments."),
        (
            {"schedule": {"wait": 1, "warm_up": 1, "active": 1}},
            "ProfilerHook(schedule={'wait': 1, 'warm_up': 1, 'active': 1}) has no 'warm_up'; did you mean 'warmup'?",
        ),
        (
            {"schedule": {"wait": 1.5, "warmup": 1, "active": 1}},
            "ProfilerHook(schedule={'wait': 1.5, 'warmup': 1, 'active': 1}): 'wait' must be an int.",
        ),
        (
            {"schedule": {"wait": 1, "active": 1}},
            "ProfilerHook(schedule={'wait': 1, 'active': 1}) needs wait and warmup of 0 or more and active of 1 or "
            "more.",
        ),
        (
            {"schedule": {"wait": 1, "warmup": 1, "active": 0}},
            "ProfilerHook(schedule={'wait': 1, 'warmup': 1, 'active': 0}) needs wait and warmup of 0 or more and "
            "active of 1 or more.",
        ),
        (
            {"on_trace_ready": "log_trace"},
            "ProfilerHook(on_trace_ready='log_trace'): give a function, or a dict whose type is log_trace or tb_trace.",
        ),
        (
            {"on_trace_ready": {"type": "print"}},
            "ProfilerHook(on_trace_ready={'type': 'print'}): give a function, or a dict whose type is log_trace or "
            "tb_trace.",
        ),
        (
            {"on_trace_ready": {"type": "log_trace", "sort": "count"}},
            "ProfilerHook: log_trace has no option 'sort'; did you mean 'sort_by'?",
        ),
        ({"on_trace_ready": {"type": "tb_trace", "xyz": 1}}, "ProfilerHook: tb_trace has no option 'xyz'."),
        (
            {"on_trace_ready": {"type": "tb_trace"}, "json_trace_path": "a.json"},
            "ProfilerHook: torch writes a trace once, so give tb_trace or json_trace_path and not both.",
        ),
        ({"json_trace_path": 3}, "ProfilerHook(json_trace_path=3): give a path."),
        ({"json_trace_path": ""}, "ProfilerHook(json_trace_path=''): give a file in a folder that exists."),
        (
            {"json_trace_path": os.sep},
            f"ProfilerHook(json_trace_path={os.sep!r}): give a file in a folder that exists.",
        ),
        (
            {"json_trace_path": "/no/such/folder/trace.json"},
            "ProfilerHook(json_trace_path='/no/such/folder/trace.json'): give a file in a folder that exists.",
        ),
    ],
)
def test_an_option_that_cant_be_is_refused_at_once(options: dict[str, Any], message: str) -> None:
    """When the hook is made, before there is a run."""
    with pytest.raises(OptionError) as caught:
        ProfilerHook(**options)
    assert str(caught.value) == message


def test_an_unknown_key_to_sort_by_is_refused_at_once() -> None:
    """Torch would say so only when it prints the table; the nearest key is named."""
    with pytest.raises(
        OptionError, match=r"sort_by='cpu_time_totl' is none of count, .*; did you mean 'cpu_time_total'\?$"
    ):
        ProfilerHook(on_trace_ready={"type": "log_trace", "sort_by": "cpu_time_totl"})


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a CUDA device")
def test_cuda_without_a_device_is_refused_at_once() -> None:
    """Torch would warn and record nothing."""
    with pytest.raises(OptionError) as caught:
        ProfilerHook(activity_with_cuda=True)
    assert str(caught.value) == "ProfilerHook(activity_with_cuda=True) needs a CUDA device, and torch finds none."


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"profile_times": 3}, "ProfilerHook(by_epoch=True, profile_times=3): the training has 2 epochs."),
        (
            {"by_epoch": False, "profile_times": 7},
            "ProfilerHook(by_epoch=False, profile_times=7): the training has 6 iterations.",
        ),
    ],
)
def test_more_than_there_is_is_refused_when_the_hook_is_registered(
    tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    """A profile that would never be complete is a mistake."""
    with pytest.raises(OptionError) as caught:
        make(tmp_path / "run", ProfilerHook(**options))
    assert str(caught.value) == message
