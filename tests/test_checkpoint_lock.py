"""One writer per folder: whoever comes second is told who is there, and whoever died holds nothing."""

from __future__ import annotations

import multiprocessing
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
import torch

from eventrunner.checkpoint.store import Store
from eventrunner.checkpoint.verify import listing
from eventrunner.errors import CheckpointError, LockedError
from eventrunner.files.lock import LOCK_NAME, FolderLock

FORK = multiprocessing.get_context("fork")
INSTEAD = "let it end first, or save to a folder of your own."


def hold(folder: Path, pipe: Connection) -> None:
    """Take the lock, say so, and keep it until told to end."""
    with FolderLock(folder):
        pipe.send("held")
        pipe.recv()


def hold_with_a_worker(folder: Path, pipe: Connection) -> None:
    """Take the lock and fork, as a loader of data does; the child outlives this process if that is killed."""
    lock = FolderLock(folder)
    lock.acquire()
    worker = os.fork()
    if worker == 0:
        signal.pause()
    pipe.send(worker)
    pipe.recv()


def try_it(folder: Path, pipe: Connection) -> None:
    """Take the lock, and say what came of it."""
    try:
        with FolderLock(folder):
            pipe.send("held")
    except LockedError as error:
        pipe.send(str(error))


Start = Callable[..., tuple[Any, Connection]]


@pytest.fixture
def start() -> Iterator[Start]:
    """``start(work, folder)``: a forked process that does it, and a pipe to it; killed in the end if it still runs."""
    processes = []

    def start_one(work: Callable[[Path, Connection], None], folder: Path) -> tuple[Any, Connection]:
        ours, theirs = FORK.Pipe()
        process = FORK.Process(target=work, args=(folder, theirs))
        process.start()
        processes.append(process)
        return process, ours

    yield start_one
    for process in processes:
        process.kill()
        process.join()


def what_another_finds(start: Start, folder: Path) -> str:
    """What a process that comes now is told."""
    process, pipe = start(try_it, folder)
    found: str = pipe.recv()
    process.join()
    return found


class TestProcesses:
    def test_a_second_process_is_told_who_holds_it(self, tmp_path: Path, start: Start) -> None:
        """Its id and machine, the folder, and what to do."""
        holder, pipe = start(hold, tmp_path)
        pipe.recv()
        message = (
            f"another process (pid {holder.pid} on {socket.gethostname()}) writes checkpoints to {tmp_path}; {INSTEAD}"
        )

        with pytest.raises(LockedError, match=f"^{re.escape(message)}$") as caught:
            FolderLock(tmp_path).acquire()
        assert isinstance(caught.value, CheckpointError)

    def test_it_is_free_when_the_holder_has_let_go(self, tmp_path: Path, start: Start) -> None:
        """The process that held it need not end."""
        with FolderLock(tmp_path):
            assert what_another_finds(start, tmp_path).startswith(f"another process (pid {os.getpid()} on ")

        assert what_another_finds(start, tmp_path) == "held"

    def test_a_killed_holder_holds_nothing(self, tmp_path: Path, start: Start) -> None:
        """Though its file is still there."""
        holder, pipe = start(hold, tmp_path)
        pipe.recv()
        holder.kill()
        holder.join()

        assert (tmp_path / LOCK_NAME).read_text().startswith(f"pid {holder.pid} on ")
        with FolderLock(tmp_path):
            assert (tmp_path / LOCK_NAME).read_text().startswith(f"pid {os.getpid()} on ")

    def test_a_worker_that_outlives_a_killed_holder_holds_nothing(self, tmp_path: Path, start: Start) -> None:
        """A run that is started again needn't wait for the old one's loaders."""
        holder, pipe = start(hold_with_a_worker, tmp_path)
        worker = pipe.recv()
        holder.kill()
        holder.join()
        try:
            os.kill(worker, 0)
            with FolderLock(tmp_path):
                pass
        finally:
            os.kill(worker, signal.SIGKILL)

    def test_a_child_of_the_holder_is_another_process(self, tmp_path: Path, start: Start) -> None:
        """It has a copy of the holder's memory, but no right from it, and takes none away."""
        with FolderLock(tmp_path):
            first = what_another_finds(start, tmp_path)
            second = what_another_finds(start, tmp_path)

            assert first == second
            assert first.startswith(f"another process (pid {os.getpid()} on ")

    @pytest.mark.parametrize("text", ["", "\x00\x1b[2J\n", "\udcff\n"])
    def test_a_holder_that_has_not_signed_is_just_another_process(
        self, tmp_path: Path, start: Start, text: str
    ) -> None:
        """The kernel knows of the lock before anyone reads of it; and nothing strange is shown."""
        _, pipe = start(hold, tmp_path)
        pipe.recv()
        (tmp_path / LOCK_NAME).write_bytes(text.encode(errors="surrogateescape"))

        with pytest.raises(LockedError, match=r"^another process( \(\ufffd\))? writes checkpoints to "):
            FolderLock(tmp_path).acquire()


class TestOneProcess:
    def test_a_second_holder_in_this_process_is_refused(self, tmp_path: Path, start: Start) -> None:
        """The kernel wouldn't refuse it; and the first one's lock holds on."""
        message = f"another run of this process writes checkpoints to {tmp_path}; {INSTEAD}"

        with FolderLock(tmp_path):
            (tmp_path.parent / "alias").symlink_to(tmp_path)
            with pytest.raises(LockedError, match=f"^{re.escape(message)}$"):
                FolderLock(tmp_path).acquire()
            with pytest.raises(LockedError, match=r"^another run of this process writes checkpoints to .*alias; "):
                FolderLock(tmp_path.parent / "alias").acquire()
            assert what_another_finds(start, tmp_path).startswith("another process (pid ")

    def test_a_lock_that_is_held_is_not_taken_again(self, tmp_path: Path) -> None:
        """Two users of one lock would let go of it at different times."""
        lock = FolderLock(tmp_path)
        with lock, pytest.raises(LockedError, match="another run of this process"):
            lock.acquire()

    def test_a_released_lock_can_be_taken_again(self, tmp_path: Path) -> None:
        """By itself and by others; to release it twice does nothing."""
        lock = FolderLock(tmp_path)
        for one in (lock, lock, FolderLock(tmp_path)):
            one.acquire()
            one.release()
            one.release()

    def test_two_folders_have_two_locks(self, tmp_path: Path) -> None:
        """Even one below the other."""
        with FolderLock(tmp_path), FolderLock(tmp_path / "below"):
            assert (tmp_path / "below" / LOCK_NAME).exists()

    def test_of_many_threads_one_gets_it(self, tmp_path: Path) -> None:
        """Taking it is one step."""
        together, got = threading.Barrier(8), []

        def take() -> None:
            lock = FolderLock(tmp_path)
            together.wait()
            try:
                lock.acquire()
            except LockedError:
                return
            got.append(lock)

        threads = [threading.Thread(target=take) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

        assert len(got) == 1
        got[0].release()


class TestFile:
    def test_the_folder_is_made_and_the_file_says_who_and_since_when(self, tmp_path: Path) -> None:
        """For people; it stays when the lock is free."""
        with FolderLock(tmp_path / "a" / "b"):
            pass

        text = (tmp_path / "a" / "b" / LOCK_NAME).read_text()
        assert re.fullmatch(
            rf"pid {os.getpid()} on {re.escape(socket.gethostname())}\nsince \d{{4}}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00\n",
            text,
        )

    def test_stores_pass_it_over(self, tmp_path: Path, start: Start) -> None:
        """It is no checkpoint and no leftover; and nothing that a store does gives the lock up."""
        store = Store(tmp_path)
        with FolderLock(tmp_path):
            store.save("a", {"x": torch.ones(3)}, step=1)
            store.link("b", "a")
            store.delete("a")

            assert store.clean() == []
            assert store.names() == ["b"]
            assert listing(tmp_path).unreadable == ()
            assert store.newest_valid() == tmp_path / "b"
            assert what_another_finds(start, tmp_path).startswith("another process (pid ")
        assert (tmp_path / LOCK_NAME).exists()

    def test_a_failed_attempt_leaves_nothing(
        self, tmp_path: Path, start: Start, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Were another holder a failure like any other: it is reported, and no descriptor stays open."""
        _, pipe = start(hold, tmp_path)
        pipe.recv()
        before = os.listdir("/proc/self/fd")
        monkeypatch.setattr("eventrunner.files.lock._HELD_ELSEWHERE", ())

        with pytest.raises(BlockingIOError):
            FolderLock(tmp_path).acquire()
        assert os.listdir("/proc/self/fd") == before

    def test_a_file_with_another_name_is_locked_and_not_written_to(self, tmp_path: Path) -> None:
        """A hard link in its place, as backups make and attackers might."""
        (tmp_path / "theirs").write_text("theirs")
        os.link(tmp_path / "theirs", tmp_path / LOCK_NAME)

        with FolderLock(tmp_path), pytest.raises(LockedError):
            FolderLock(tmp_path).acquire()

        assert (tmp_path / "theirs").read_text() == "theirs"

    def test_a_link_in_its_place_is_not_followed(self, tmp_path: Path) -> None:
        """The file that it points at isn't this folder's to write to."""
        (tmp_path / "mine").write_text("mine")
        (tmp_path / LOCK_NAME).symlink_to("mine")

        with pytest.raises(OSError, match="symbolic links"):
            FolderLock(tmp_path).acquire()
        assert (tmp_path / "mine").read_text() == "mine"


def can_fail_calls() -> bool:
    """Whether strace is there and may trace, so that it can make a system call fail."""
    tracer = shutil.which("strace")
    return (
        tracer is not None and subprocess.run([tracer, "-qq", "-o", "/dev/null", "true"], check=False).returncode == 0
    )


LOCKING = """
import os, sys
from eventrunner.files.lock import FolderLock

lock, before = FolderLock(sys.argv[1]), os.listdir("/proc/self/fd")
try:
    lock.acquire()
except OSError as error:
    print("refused", error.errno, os.listdir("/proc/self/fd") == before)
else:
    try:
        FolderLock(sys.argv[1]).acquire()
    except Exception as error:
        print(type(error).__name__)
"""


@pytest.mark.skipif(not can_fail_calls(), reason="needs strace, and leave to use it")
class TestFileSystems:
    @staticmethod
    def outcome(folder: Path, error: str) -> str:
        """What a process finds to which every lock fails like that."""
        strace = ["strace", "-qq", "-o", "/dev/null", "-P", folder / LOCK_NAME, "-e", f"inject=fcntl:error={error}"]
        done = subprocess.run(
            [*strace, sys.executable, "-c", LOCKING, folder], capture_output=True, text=True, check=True
        )
        return done.stdout.strip()

    @pytest.mark.parametrize("error", ["ENOLCK", "EOPNOTSUPP"])
    def test_where_there_are_no_locks_a_run_goes_on_without(self, tmp_path: Path, error: str) -> None:
        """Only another holder in the same process is still refused."""
        assert self.outcome(tmp_path, error) == "LockedError"

    def test_any_other_failure_is_the_systems_own(self, tmp_path: Path) -> None:
        """And no descriptor is left open."""
        assert self.outcome(tmp_path, "EIO") == "refused 5 True"
