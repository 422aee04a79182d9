"""The private parts of other packages that eventrunner leans on: each is there, as it is relied upon, and no other is.

Where a new version of torch, blinker or torchdata fails here, the message says what it breaks, and in which file.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import io
import multiprocessing
import re
import time
import weakref
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import blinker
import pytest
import torch
import torchdata.nodes
from blinker import _utilities
from torch import nn
from torch.autograd import profiler
from torch.distributed import distributed_c10d
from torch.optim import lr_scheduler
from torch.utils import _python_dispatch
from torch.utils.data import BatchSampler, DataLoader, IterableDataset, SequentialSampler
from torchdata.stateful_dataloader import StatefulDataLoader

import eventrunner

pytestmark = pytest.mark.filterwarnings("ignore:'set_vital' is deprecated")  # torchdata calls it

PACKAGE = Path(eventrunner.__file__).parent

DOCUMENTED = {"_exit", "_fields", "_getframe"}
"""Python's own, which are documented for all their underscore."""

NAMES_ALONE = {"foreign.py"}
"""Names of other frameworks, which are looked for in what a user wrote and nowhere else."""


class Receiver:
    """One with a method to connect, and a sender."""

    def heard(self, sender: Any) -> None:
        """Do nothing."""


class Stream(IterableDataset[int]):
    """A dataset that has a state while it is iterated over."""

    def __iter__(self) -> Iterator[int]:
        return self.Numbers()

    class Numbers:
        """Its iterator."""

        def __init__(self) -> None:
            self.given = 0

        def __iter__(self) -> Iterator[int]:
            return self

        def __next__(self) -> int:
            self.given += 1
            return self.given

        def state_dict(self) -> dict[str, int]:
            """How many numbers it has given."""
            return {"given": self.given}

        def load_state_dict(self, state: dict[str, int]) -> None:
            """Go on there."""
            self.given = state["given"]


def ids_are_of_functions_and_their_owners() -> bool:
    receiver = Receiver()
    bound, plain = _utilities.make_id(receiver.heard), _utilities.make_id(receiver)
    return bound == (id(Receiver.heard), id(receiver)) and plain == id(receiver)


def references_are_weak_and_call_back() -> bool:
    receiver, ended = Receiver(), list[Any]()
    reference = _utilities.make_ref(receiver.heard, ended.append)
    alive = reference() == receiver.heard and isinstance(reference, weakref.WeakMethod)
    del receiver
    return alive and ended == [reference]


def a_connection_is_in_both_buckets_and_leaves_them() -> bool:
    signal, receiver, sender = blinker.Signal(), Receiver(), Receiver()
    key = _utilities.make_id(receiver.heard), id(sender)
    signal.connect(receiver.heard, sender)
    connected = key[0] in signal._by_sender[key[1]] and key[1] in signal._by_receiver[key[0]]
    signal._disconnect(*key)
    left = signal._by_sender.get(key[1]), signal._by_receiver.get(key[0])
    signal._cleanup_bookkeeping()
    return connected and not any(left) and not signal._by_sender and not signal._by_receiver


def disconnecting_and_clearing_go_through_what_is_overridden() -> bool:
    called = []

    class Overriding(blinker.Signal):
        def _disconnect(self, receiver_id: Any, sender_id: Any) -> None:
            called.append("_disconnect")

        def _clear_state(self) -> None:
            called.append("_clear_state")

        def _make_cleanup_receiver(self, receiver_id: Any) -> Callable[[weakref.ref[Callable[..., Any]]], None]:
            called.append("_make_cleanup_receiver")
            return super()._make_cleanup_receiver(receiver_id)

        def _make_cleanup_sender(self, sender_id: Any) -> Callable[[weakref.ref[Any]], None]:
            called.append("_make_cleanup_sender")
            return super()._make_cleanup_sender(sender_id)

    signal, receiver, sender = Overriding(), Receiver(), Receiver()
    signal.connect(receiver.heard, sender)
    signal.disconnect(receiver.heard, sender)
    signal._clear_state()
    return {*called} == {"_make_cleanup_receiver", "_make_cleanup_sender", "_disconnect", "_clear_state"}


def sends_take_wrappers() -> bool:
    send, send_async = inspect.signature(blinker.Signal.send), inspect.signature(blinker.Signal.send_async)
    return "_async_wrapper" in send.parameters and "_sync_wrapper" in send_async.parameters


def a_guard_compares_what_tensors_look_like() -> bool:
    guards: Any = importlib.import_module("torch._C._dynamo.guards")
    tensor = torch.ones(2, 3)
    guard = guards.TensorGuards(tensor, dynamic_dims_sizes=[[2, 3]], dynamic_dims_strides=[[3, 1]])
    others = torch.ones(3, 2), torch.ones(2, 3, dtype=torch.float64), torch.ones(3, 2).t()
    return guard.check(torch.zeros(2, 3)) and not any(map(guard.check, others))


def many_tensors_are_copied_and_blended_in_one_call() -> bool:
    ours, theirs = [torch.zeros(2), torch.zeros(1)], [torch.ones(2), torch.ones(1)]
    torch._foreach_lerp_(ours, theirs, 0.5)
    blended = [tensor.tolist() for tensor in ours]
    torch._foreach_copy_(ours, theirs)
    return blended == [[0.5, 0.5], [0.5]] and all(map(torch.equal, ours, theirs))


def a_write_in_place_counts() -> bool:
    tensor = torch.zeros(1)
    before: int = tensor._version
    tensor.add_(1)
    return before + 1 == tensor._version


def a_sparse_tensor_that_isnt_coalesced_has_its_parts() -> bool:
    sparse = torch.sparse_coo_tensor([[0, 0]], [1.0, 2.0], (2,), check_invariants=True)
    return sparse._indices().tolist() == [[0, 0]] and sparse._values().tolist() == [1.0, 2.0]


def a_state_dict_has_the_versions_of_its_modules() -> bool:
    versions: Any = getattr(nn.Sequential(nn.BatchNorm1d(1)).state_dict(), "_metadata", None)
    return versions["0"]["version"] == nn.BatchNorm1d(1)._version


def a_module_loads_its_own_part() -> bool:
    module, missing, unexpected = nn.Linear(1, 1, bias=False), list[str](), list[str]()
    module._load_from_state_dict({"a.weight": torch.ones(1, 1)}, "a.", {}, False, missing, unexpected, [])
    return module.weight.item() == 1 and not missing and not unexpected


def modules_keep_tensors_in_tables() -> bool:
    module = nn.BatchNorm1d(1)
    module.register_buffer("kept", torch.ones(1), persistent=False)
    tables = {*module._parameters} == {"weight", "bias"} and {*module._buffers} > {"running_mean", "kept"}
    return tables and module._non_persistent_buffers_set == {"kept"}


def extra_state_has_its_key() -> bool:
    class Extra(nn.Module):
        def get_extra_state(self) -> int:
            return 1

    return list(Extra().state_dict()) == ["_extra_state"]


def a_profile_sets_the_flag() -> bool:
    before = profiler._is_profiler_enabled
    with profiler.profile():
        during = profiler._is_profiler_enabled
    return (before, during) == (False, True)


def a_loader_makes_its_iterators_in_one_place() -> bool:
    plain, persistent = DataLoader([1, 2]), DataLoader([1, 2], num_workers=1, persistent_workers=True)
    owns = all("_get_iterator" in vars(kind) for kind in (DataLoader, StatefulDataLoader))
    return owns and persistent._iterator is None and not list(inspect.signature(plain._get_iterator).parameters)


def indices_are_drawn_without_their_samples() -> bool:
    iterator: Any = iter(DataLoader([10, 20, 30], batch_size=1))
    drawn = iterator._next_index()
    return drawn == [0] and next(iterator).tolist() == [20]


def another_batch_sampler_takes_the_place_of_a_loaders() -> bool:
    loader = DataLoader([10, 20, 30], batch_size=1)
    vars(loader)["batch_sampler"] = BatchSampler(SequentialSampler([0]), 1, drop_last=False)
    return [batch.tolist() for batch in loader] == [[10]]


def a_stateful_loader_says_what_its_dataset_says() -> bool:
    iterator: Any = iter(StatefulDataLoader(Stream(), batch_size=None))
    next(iterator)
    return iterator.state_dict()["fetcher_state"]["dataset_iter_state"] == {"given": 1}


def a_loader_of_nodes_can_stay_at_its_end() -> bool:
    node: Any = torchdata.nodes.IterableWrapper([1, 2])
    return torchdata.nodes.Loader(node, restart_on_stop_iteration=True).restart_on_stop_iteration is True


def schedulers_have_their_parts() -> bool:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
    parts = [lr_scheduler.ConstantLR(optimizer), lr_scheduler.StepLR(optimizer, 2)]
    chained: Any = lr_scheduler.ChainedScheduler(parts, optimizer)
    sequential: Any = lr_scheduler.SequentialLR(optimizer, parts, milestones=[3])
    return [*chained._schedulers] == [*sequential._schedulers] == parts and sequential._milestones == [3]


def a_process_is_ended_by_what_started_it() -> bool:
    process = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,))
    process.start()
    popen: Any = vars(process)["_popen"]
    popen.terminate = popen.kill
    process.terminate()
    process.join()
    return process.exitcode == -9


def tensors_are_rebuilt_by_name() -> bool:
    file = io.BytesIO()
    torch.save([torch.ones(1), torch.ones(1).to_sparse()], file)
    with zipfile.ZipFile(file) as archive:
        pickled = archive.read(next(name for name in archive.namelist() if name.endswith("data.pkl")))
    return b"torch._utils\n_rebuild_tensor_v2" in pickled and b"torch._utils\n_rebuild_sparse_tensor" in pickled


def operations_that_communicate_come_to_a_mode() -> bool:
    seen = list[str]()

    class Seeing(_python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            seen.append(f"{func.namespace}.{func.overloadpacket.__name__}")
            return args[0]

    one = torch.ones(1)
    with Seeing():
        torch.ops._c10d_functional.all_reduce(one, "sum", "nobody")
        torch.ops._c10d_functional.wait_tensor(one)
    named = torch.ops._c10d_functional_autograd.all_to_all_single, torch.ops._dtensor.shard_dim_alltoall
    return all(named) and seen == ["_c10d_functional.all_reduce", "_c10d_functional.wait_tensor"]


def groups_are_made_in_one_place() -> bool:
    makes = "_new_group_with_tag(" in inspect.getsource(distributed_c10d.new_group)
    return makes and callable(distributed_c10d.split_group)


@dataclass(frozen=True)
class Private:
    """What is leaned on: its names in the source, the files that have them, and what fails without."""

    names: tuple[str, ...]
    of: str
    files: tuple[str, ...]
    without: str
    holds: Callable[[], bool]


LEANED_ON = (
    Private(
        ("_utilities",),
        "blinker._utilities.make_id",
        ("bus/site.py",),
        "a connection is found again by no other key than blinker's, so disconnecting and muting would miss it",
        ids_are_of_functions_and_their_owners,
    ),
    Private(
        ("_utilities",),
        "blinker._utilities.make_ref",
        ("bus/site.py",),
        "a receiver that is connected weakly would be kept, or be forgotten without a word to the site",
        references_are_weak_and_call_back,
    ),
    Private(
        ("_by_sender", "_by_receiver", "_cleanup_bookkeeping"),
        "blinker.Signal's buckets",
        ("bus/site.py",),
        "has_receivers_for and receivers_for would disagree with the connections",
        a_connection_is_in_both_buckets_and_leaves_them,
    ),
    Private(
        ("_disconnect", "_clear_state", "_make_cleanup_receiver", "_make_cleanup_sender"),
        "blinker.Signal's way to disconnect",
        ("bus/site.py",),
        "a receiver that was disconnected, or has died, would still be called",
        disconnecting_and_clearing_go_through_what_is_overridden,
    ),
    Private(
        ("_async_wrapper", "_sync_wrapper"),
        "the wrappers of blinker.Signal.send and send_async",
        ("bus/plan.py",),
        "a program that passes them to a blinker signal couldn't to a site",
        sends_take_wrappers,
    ),
    Private(
        ("_C", "_dynamo"),
        "torch._C._dynamo.guards.TensorGuards",
        ("checkpoint/tensors.py",),
        "a save compares the tensors with those of the last one in Python, which blocks a model of many for longer",
        a_guard_compares_what_tensors_look_like,
    ),
    Private(
        ("_foreach_copy_", "_foreach_lerp_"),
        "torch._foreach_copy_ and torch._foreach_lerp_",
        ("checkpoint/copies.py", "training/averaging.py"),
        "a save copies, and an average follows, each tensor by a call of its own",
        many_tensors_are_copied_and_blended_in_one_call,
    ),
    Private(
        ("_version",),
        "torch.Tensor._version",
        ("checkpoint/snapshot.py",),
        "a tensor that was written to while it was copied would be saved torn, without a word",
        a_write_in_place_counts,
    ),
    Private(
        ("_indices", "_values"),
        "torch.Tensor._indices and _values",
        ("checkpoint/tree.py",),
        "a sparse tensor that isn't coalesced couldn't be saved as it is",
        a_sparse_tensor_that_isnt_coalesced_has_its_parts,
    ),
    Private(
        ("_metadata",),
        "_metadata of nn.Module.state_dict()",
        ("checkpoint/codec.py", "checkpoint/tree.py", "checkpoint/pth.py", "training/weights.py"),
        "a module would take a saved state for one of its first version, and convert it once more",
        a_state_dict_has_the_versions_of_its_modules,
    ),
    Private(
        ("_load_from_state_dict",),
        "nn.Module._load_from_state_dict",
        ("training/weights.py",),
        "weights that a module renames while it loads them would be said not to fit",
        a_module_loads_its_own_part,
    ),
    Private(
        ("_parameters", "_buffers", "_non_persistent_buffers_set"),
        "nn.Module's tables",
        ("training/weights.py", "training/averaging.py"),
        "weights are compared with a model's by loading them into its tables; an average gets buffers made later",
        modules_keep_tensors_in_tables,
    ),
    Private(
        ("_extra_state",),
        "the key of nn.Module.get_extra_state()",
        ("training/weights.py",),
        "the extra state of a module would be loaded into it while the weights are only compared",
        extra_state_has_its_key,
    ),
    Private(
        ("_is_profiler_enabled",),
        "torch.autograd.profiler._is_profiler_enabled",
        ("training/optim.py",),
        "a profile would lack the label of zero_grad, or each iteration would pay for it",
        a_profile_sets_the_flag,
    ),
    Private(
        ("_get_iterator", "_iterator"),
        "DataLoader's way to its iterator",
        ("training/workers.py", "training/rewind.py"),
        "workers would die of the signal that asks a run to end; a resumed run would draw otherwise where they persist",
        a_loader_makes_its_iterators_in_one_place,
    ),
    Private(
        ("_next_index",),
        "_next_index of DataLoader's iterator",
        ("training/rewind.py",),
        "a resumed run would load the batches that were used once more, instead of drawing their indices",
        indices_are_drawn_without_their_samples,
    ),
    Private(
        (),
        "the batch_sampler that DataLoader's iterator reads",
        ("training/rewind.py",),
        "going on without the used batches, with workers, would leave no batch behind",
        another_batch_sampler_takes_the_place_of_a_loaders,
    ),
    Private(
        (),
        "dataset_iter_state in a StatefulDataLoader's state",
        ("training/stateful_loader.py",),
        "a resumed run would load a stream's used batches once more",
        a_stateful_loader_says_what_its_dataset_says,
    ),
    Private(
        (),
        "restart_on_stop_iteration of torchdata.nodes.Loader",
        ("training/stateful_loader.py",),
        "a loader of nodes that is resumed between two passes would be one pass ahead",
        a_loader_of_nodes_can_stay_at_its_end,
    ),
    Private(
        ("_schedulers", "_milestones"),
        "the parts of ChainedScheduler and SequentialLR",
        ("training/schedule.py", "training/stepping.py"),
        "a scheduler within another would be stepped twice, and milestones beyond the training's end go unremarked",
        schedulers_have_their_parts,
    ),
    Private(
        ("_popen",),
        "what a multiprocessing.Process is ended by",
        ("training/workers.py",),
        "workers, which outlast SIGTERM during a run, would hang its end",
        a_process_is_ended_by_what_started_it,
    ),
    Private(
        ("_python_dispatch", "_c10d_functional", "_c10d_functional_autograd", "_dtensor", "_wrap_tensor_autograd"),
        "torch's dispatcher, and the namespaces of what communicates there",
        ("ranks/guard.py",),
        "a collective that one rank alone calls would be taken by the others for their next one",
        operations_that_communicate_come_to_a_mode,
    ),
    Private(
        ("_new_group_with_tag",),
        "the ways to make a group of ranks",
        ("ranks/guard.py",),
        "one rank alone would make a group that the others don't know of, and count groups otherwise from then on",
        groups_are_made_in_one_place,
    ),
    Private(
        ("_utils",),
        "the functions of torch._utils by which a .pth rebuilds its tensors",
        ("checkpoint/archive.py",),
        "every .pth would be refused as one that holds something else than tensors",
        tensors_are_rebuilt_by_name,
    ),
)


@pytest.mark.parametrize("private", LEANED_ON, ids=lambda private: private.of)
def test_it_is_there_as_it_is_relied_upon(private: Private) -> None:
    """Else the message names what breaks, and where."""
    message = f"{private.of} isn't what {' and '.join(private.files)} lean on: {private.without}"
    try:
        holds = private.holds()
    except Exception as error:
        raise AssertionError(message) from error
    assert holds, message


def defined(tree: ast.Module) -> set[str]:
    """The names that a file gives to something of its own."""
    names = set()
    for node in ast.walk(tree):
        match node:
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                names.add(name)
            case (
                ast.Name(id=name, ctx=ast.Store())
                | ast.Attribute(value=ast.Name(id="self" | "cls"), attr=name, ctx=ast.Store())
            ):
                names.add(name)
    return names


def mentioned(tree: ast.Module) -> set[str]:
    """The attributes, the parts of imports, and the strings that may be names, such as an argument of getattr."""
    names, in_texts = set[str](), {id(part) for node in ast.walk(tree) for part in _parts_of_a_text(node)}
    for node in ast.walk(tree):
        match node:
            case ast.Attribute(attr=name):
                names.add(name)
            case ast.ImportFrom(module=str(module), names=imported):
                names.update(module.split("."), *(alias.name.split(".") for alias in imported))
            case ast.Import(names=imported):
                names.update(*(alias.name.split(".") for alias in imported))
            case ast.Constant(value=str(text)):
                names.update(*(found.split(".") for found in re.findall(r"(?:torch|torchdata|blinker)[.\w]+", text)))
                names.update({text} if text.isidentifier() and id(node) not in in_texts else ())
    return names


def _parts_of_a_text(node: ast.AST) -> list[ast.expr]:
    return node.values if isinstance(node, ast.JoinedStr) else []


def foreign_privates(path: Path) -> set[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    names = {name for name in mentioned(tree) - defined(tree) if re.match(r"_[a-zA-Z]", name)}
    return {name for name in names if not name.startswith("_eventrunner")} - DOCUMENTED


def test_no_other_private_part_of_another_package_is_used() -> None:
    """A private name that its own file doesn't define is in the table above, with that file."""
    listed = {(file, name) for private in LEANED_ON for file in private.files for name in private.names}
    found = {
        (file.relative_to(PACKAGE).as_posix(), name)
        for file in PACKAGE.rglob("*.py")
        if file.name not in NAMES_ALONE
        for name in foreign_privates(file)
    }
    assert found - listed == set(), "use a public way, or add a row to LEANED_ON that checks it"


def test_each_file_of_the_table_leans_on_it() -> None:
    """Else a row stays behind when what it is about has gone."""
    for private in LEANED_ON:
        for file in private.files:
            tree = ast.parse((PACKAGE / file).read_text(encoding="utf-8"))
            names = mentioned(tree) | defined(tree)  # what overrides a private method defines it
            assert not private.names or names & {*private.names}, f"{file} has no {private.names}: correct its row"
