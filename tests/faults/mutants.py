"""Ways to break what keeps checkpoints whole, each with the tests that must notice."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Mutant:
    """One change to one file of eventrunner.

    Attributes:
        name: What the change does.
        file: Below ``eventrunner/``.
        old: Text that stands in the file once.
        new: What is put in its place.
        tests: Which must fail then: pytest's names.
    """

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]


_FILES, _READER, _STORE = "files/disk.py", "files/reader.py", "checkpoint/store.py"
_CUTS = ("tests/faults/test_power_cut.py",)
_FAULTS = ("tests/faults/test_disk_faults.py",)
_KILLS = ("tests/faults/test_kill_points.py",)
_TRACES = ("tests/faults/test_strace.py",)
_KILLED = ("tests/faults/test_killed_training.py",)
_ROT = ("tests/faults/test_rot.py",)
_HOSTILE = ("tests/faults/test_hostile.py",)
_OVERLAP = ("tests/test_overlap.py",)
_LANES = ("tests/test_runner_lanes.py",)
_EXACT = ("tests/test_resume_exact.py",)
_HOOK = ("tests/test_hook_checkpoint.py",)
_THREADS = ("tests/faults/test_bus_threads.py",)
_MACHINE = ("tests/faults/test_bus_machine.py",)

_SYNCS = (
    Mutant(
        "tensors are not synced",
        _FILES,
        "            _write(descriptor, data[begin:end])\n        os.fsync(descriptor)",
        "            _write(descriptor, data[begin:end])",
        _CUTS,
    ),
    Mutant(
        "a file of torch.save is not synced",
        _FILES,
        "            raise sink.error\n        os.fsync(descriptor)",
        "            raise sink.error",
        _CUTS,
    ),
    Mutant(
        "the manifest is not synced",
        "checkpoint/manifest.py",
        "    disk.fsync_file(folder / MANIFEST_NAME)\n",
        "",
        _CUTS,
    ),
    Mutant("the temporary folder is not synced", _STORE, "                disk.fsync_folder(temp)\n", "", _CUTS),
    Mutant(
        "the folder of checkpoints is not synced after the rename",
        _STORE,
        'may not survive a power cut", needed):\n                disk.fsync_folder(self.folder)',
        'may not survive a power cut", needed):\n                pass',
        _CUTS,
    ),
    Mutant(
        "the hint is not synced before it takes the old one's place",
        _STORE,
        "            disk.fsync_file(temp)\n            disk.rename(temp, self.folder / HINT_NAME)",
        "            disk.rename(temp, self.folder / HINT_NAME)",
        _CUTS,
    ),
    Mutant(
        "the folder gets its name before it is synced",
        _STORE,
        "                yield temp\n                disk.fsync_folder(temp)",
        "                yield temp\n                undo.callback(disk.fsync_folder, final)",
        _CUTS,
    ),
    Mutant(
        "no sync is believed to have failed",
        _FILES,
        "    descriptor = os.open(path, flags | os.O_CLOEXEC)\n    try:\n        os.fsync(descriptor)\n    finally:",
        "    descriptor = os.open(path, flags | os.O_CLOEXEC)\n    try:\n        os.fsync(descriptor)\n"
        "    except OSError:\n        pass\n    finally:",
        _FAULTS,
    ),
)

_FOLDERS = (
    Mutant(
        "the folder's own name is not synced",
        _STORE,
        "            disk.fsync_parents(self.folder)\n",
        "",
        _CUTS,
    ),
    Mutant(
        "what is cleared away was renamed for nobody but the kernel",
        _STORE,
        "            disk.fsync_folder(self.folder)\n        for name in sorted(",
        "            pass\n        for name in sorted(",
        _CUTS,
    ),
    Mutant(
        "time goes back with the clock",
        _STORE,
        "max(datetime.datetime.now(datetime.UTC), min(self._newest, _FAR_AHEAD) + _TICK)",
        "datetime.datetime.now(datetime.UTC)",
        ("tests/test_checkpoint_store.py::TestListing",),
    ),
)

_WRITES = (
    Mutant(
        "short writes are taken for whole ones",
        _FILES,
        "data = data[os.write(descriptor, data) :]",
        "data = data[max(len(data), os.write(descriptor, data)) :]",
        _FAULTS,
    ),
    Mutant(
        "a failed write is passed over",
        _FILES,
        "or not _past_cache(descriptor, False):\n                raise",
        "or not _past_cache(descriptor, False):\n                return",
        _FAULTS,
    ),
    Mutant(
        "a failed write of torch.save is passed over",
        _FILES,
        "        if sink.error is not None:\n            raise sink.error\n",
        "",
        _FAULTS,
    ),
    Mutant(
        "an error of the disk is noted and not raised",
        _STORE,
        "        error.add_note(note)\n        raise\n",
        "        error.add_note(note)\n",
        _FAULTS,
    ),
    Mutant(
        "a file that is there is written over",
        _FILES,
        "os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC",
        "os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC",
        ("tests/test_checkpoint_store.py::TestFailingDisk",),
    ),
)

_ORDER = (
    Mutant(
        "the manifest is written first",
        _STORE,
        "        with self._committing(name, contents.nbytes) as temp:\n",
        "        with self._committing(name, contents.nbytes) as temp:\n"
        "            import shutil\n"
        "            contents.write(temp)\n"
        "            shutil.copytree(temp, self.folder / name, dirs_exist_ok=True)\n"
        "            [file.unlink() for file in temp.iterdir()]\n",
        _KILLS,
    ),
    Mutant(
        "what was half written stays under its hidden name",
        _STORE,
        "                undo.callback(_discard, temp)\n                disk.make_folder(temp)",
        "                disk.make_folder(temp)",
        _FAULTS,
    ),
    Mutant(
        "an older checkpoint is removed before the new one has its name",
        _STORE,
        "                    undo.push(_putting_back(old, final))\n                    disk.rename(final, old)\n",
        "                    disk.remove_tree(final)\n                    disk.make_folder(old)\n",
        _KILLS,
    ),
    Mutant(
        "a checkpoint that was being replaced is not put back",
        _STORE,
        "            if whole:\n",
        "            if False:\n",
        _KILLS,
    ),
    Mutant(
        "a checkpoint is deleted where it stands",
        _STORE,
        "                disk.rename(path, trash)",
        "                trash = path",
        _KILLS,
    ),
    Mutant(
        "older saves are deleted when a new one is asked for",
        "hooks/checkpoint.py",
        "        self._asked[name] = asked\n        optimizer,",
        "        self._asked[name] = asked\n        self._delete(runner, asked.doomed)\n        optimizer,",
        _KILLED + _HOOK,
    ),
    Mutant(
        "one less is kept",
        "session/retention.py",
        "        after, doomed = self.retire(names[:-keep])",
        "        keep = max(keep - 1, 1)\n        after, doomed = self.retire(names[:-keep])",
        _KILLED + _HOOK,
    ),
    Mutant(
        "saves are told of when they are asked for",
        "checkpoint/saver.py",
        "        save.background = True\n        try:\n",
        "        save.background = True\n        save.path = self.store.folder / save.name\n"
        "        self._arrived.append(save)\n        self._deliver(self.collect)\n        try:\n",
        ("tests/test_runner_lanes.py::test_a_save_is_told_of_when_it_is_committed_and_not_before",),
    ),
)

_COPIES = (
    Mutant(
        "an optimizer's step doesn't wait for the copy",
        "checkpoint/saver.py",
        "        if self._copying is not None:\n            self.wait_for_copies()\n        with",
        "        with",
        ("tests/test_overlap.py::test_an_optimizer_that_the_run_doesnt_know_waits_too",),
    ),
    Mutant(
        "no optimizer is watched while a copy is under way",
        "checkpoint/saver.py",
        "                watch_steps(self._on_step)\n",
        "",
        ("tests/test_overlap.py::test_an_optimizer_that_the_run_doesnt_know_waits_too",),
    ),
    Mutant(
        "receivers that may write don't wait for the copy",
        "checkpoint/saver.py",
        "            self._guards.append(self.wait_for_copies)",
        "            self._guards.append(lambda: None)",
        ("tests/test_overlap.py::test_a_hook_that_clips_weights_waits_for_the_copy",),
    ),
    Mutant(
        "a tensor is held and not copied",
        "checkpoint/copies.py",
        "            torch._foreach_copy_(list(targets), list(sources))",
        "            torch._foreach_copy_(list(targets)[1:], list(sources)[1:])",
        (*_OVERLAP, "tests/test_snapshot.py"),
    ),
    Mutant(
        "the memory of a save is given to the next before it is written",
        "checkpoint/saver.py",
        "        return commit(staged, meta=",
        "        snapshot.release()\n        return commit(staged, meta=",
        ("tests/test_overlap.py", "tests/test_checkpointer.py"),
    ),
    Mutant(
        "gradients that accumulate are copied late",
        "session/saves.py",
        "        for hook in run.hooks:\n            yield from hook.own_tensors()",
        "        yield from gradients_of(run.unwrapped).values()\n"
        "        for hook in run.hooks:\n            yield from hook.own_tensors()",
        ("tests/test_overlap.py::test_gradients_that_accumulate_are_copied_at_the_site",),
    ),
)

_LOADS = (
    Mutant(
        "a damaged file is loaded",
        _READER,
        "if self._hasher is not None and self._hasher.hexdigest() != digest:",
        "if self._hasher is not None and not digest:",
        _ROT,
    ),
    Mutant(
        "a resume takes the newest without looking at its bytes",
        "checkpoint/verify.py",
        "            content = read(path)\n",
        "            content = verify_checkpoint(path, digests=False)\n",
        _ROT,
    ),
    Mutant(
        "files that nobody has listed are let pass",
        "checkpoint/verify.py",
        "    if extra := present - set(manifest.files):",
        "    if extra := present - present:",
        _ROT,
    ),
    Mutant(
        "a pickle is run",
        "checkpoint/pth.py",
        "            tree = _untagged(torch.load(file, map_location=device, weights_only=True), {})",
        "            tree = _untagged(torch.load(file, map_location=device, weights_only=False), {})",
        _HOSTILE,
    ),
    Mutant(
        "a pickle may make as much as it likes",
        "checkpoint/pth.py",
        "        check_pickle(check_archive(file))\n        with torch.sparse",
        "        with torch.sparse",
        _HOSTILE,
    ),
    Mutant(
        "the indices of a sparse tensor in a pickle may lead out of it",
        "checkpoint/pth.py",
        "check_sparse_tensor_invariants():",
        "check_sparse_tensor_invariants(False):",
        _HOSTILE,
    ),
    Mutant(
        "the indices of a sparse tensor may lead out of it",
        "checkpoint/codec.py",
        '"check_invariants": True',
        '"check_invariants": False',
        ("tests/test_checkpoint_codec.py",),
    ),
    Mutant(
        "a state is looked at when it is saved",
        "hooks/checkpoint.py",
        "        check_tree(gather(runner, hook.save_optimizer, hook.save_param_scheduler), hook.format)",
        "        gather(runner, hook.save_optimizer, hook.save_param_scheduler)",
        ("tests/test_saveable.py",),
    ),
    Mutant(
        "links are followed out of the folder",
        _READER,
        "os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC",
        "os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC",
        (*_HOSTILE, "tests/test_checkpoint_store.py"),
    ),
    Mutant(
        "a manifest may name any path",
        "checkpoint/manifest.py",
        "    if not is_plain_name(name) or name == MANIFEST_NAME:",
        "    if name == MANIFEST_NAME:",
        _HOSTILE,
    ),
    Mutant(
        "any number of bytes is parsed",
        _READER,
        "        if reader.size > limit:",
        "        if reader.size < 0:",
        (*_HOSTILE, "tests/test_checkpoint_store.py::TestHostile"),
    ),
)

_RUNS = (
    Mutant(
        "a resumed run draws other numbers",
        "session/resume.py",
        "    run.session.pending_rng, remark = rng_for(run.ranks, checkpoint, seed)\n",
        "    _, remark = rng_for(run.ranks, checkpoint, seed)\n",
        _EXACT,
    ),
    Mutant(
        "a resumed run keeps the rows that it writes again",
        "report/rows.py",
        'return bool(row["step"] <= step and not repeated)',
        "return True",
        _KILLED,
    ),
    Mutant(
        "the rows of a step may be lost though its save is told of",
        "session/saves.py",
        'after=("log",), ',
        "",
        ("tests/test_runner_lanes.py::test_log_rows_are_on_the_disk_before_the_save_of_their_step_is",),
    ),
    Mutant(
        "a failed save is kept silent",
        "lanes/lane.py",
        '        if task.on_error == "raise":\n            self.state.add_failure(error)\n            return\n',
        '        if task.on_error == "raise":\n            return\n',
        ("tests/test_runner_lanes.py::test_a_failing_write_is_raised_at_the_next_iteration_and_deletes_nothing",),
    ),
    Mutant(
        "jobs that wait when the lanes are closed are dropped",
        "lanes/lanes.py",
        "            gives_up = not self._drain(until)\n            if gives_up:",
        "            if not gives_up:",
        ("tests/test_lanes.py::test_leaving_by_an_exception_does_all_queued_jobs_first",),
    ),
    Mutant(
        "a lane runs its newest job first",
        "lanes/lane.py",
        "                job = self.jobs.popleft()\n            except IndexError:  # a token too many",
        "                job = self.jobs.pop()\n            except IndexError:  # a token too many",
        _MACHINE,
    ),
    Mutant(
        "a barrier isn't waited for",
        "lanes/lane.py",
        "        if self.passed >= number:\n            return\n",
        "        if self.passed >= number or label:\n            return\n",
        _MACHINE,
    ),
    Mutant(
        "a lane that goes on is taken for one that hangs",
        "lanes/lane.py",
        "                if (now := self._finished()) != done:",
        "                if (now := self._finished()) < done:",
        ("tests/faults/test_hanging.py::test_a_lane_that_goes_on_is_waited_for_beyond_the_deadline",),
    ),
    Mutant(
        "a plan of receivers that are gone may stay",
        "bus/emissions.py",
        "            way.plans = _Plans(self._first(mode))",
        "            way.plans.clear()",
        _THREADS,
    ),
    Mutant(
        "connections are changed by several threads at once",
        "bus/freeze.py",
        "        self._lock.acquire()\n        self._depth += 1",
        "        self._lock.acquire(blocking=False)\n        self._depth += 1",
        _THREADS,
    ),
    Mutant(
        "two processes may write to one folder",
        "files/lock.py",
        "        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)",
        "        fcntl.lockf(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)",
        ("tests/test_checkpoint_lock.py",),
    ),
    Mutant(
        "a run that was asked to end saves nothing",
        "hooks/checkpoint.py",
        "hooks = [hook] if hook.save_last else _hooks_of(runner) if _is_asked(runner) else []",
        "hooks = [hook] if hook.save_last and not _is_asked(runner) else []",
        ("tests/test_runner_lanes.py::test_a_signal_ends_the_run_with_everything_saved",),
    ),
    Mutant(
        "a resume takes weights that are no numbers",
        "checkpoint/verify.py",
        "        if manifest.meta.get(FINITE) is False:",
        "        if False:",
        ("tests/test_not_a_number.py",),
    ),
    Mutant(
        "weights that are no numbers displace the last that are",
        "checkpoint/saver.py",
        "        if self._is_broken and name == self._newest_finite():",
        "        if False:",
        ("tests/test_not_a_number.py",),
    ),
)

MUTANTS = (*_SYNCS, *_FOLDERS, *_WRITES, *_ORDER, *_COPIES, *_LOADS, *_RUNS)
