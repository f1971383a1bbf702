"""Processes of a node: what they are told, and that they end together, whoever dies first."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from octo_megatron.config.errors import UserError
from octo_megatron.lineage.launch import ProcessGroup, environment
from octo_megatron.lineage.lock import FolderLock


def _wait(group: ProcessGroup) -> None:
    deadline = time.monotonic() + 30
    while not group.finished():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def _gone(pid: int) -> bool:
    """Whether the process has ended (a zombie that nobody has reaped has)."""
    try:
        return (Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def _wait_gone(pids: list[int], seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not all(map(_gone, pids)):
        assert time.monotonic() < deadline, f"still there: {[pid for pid in pids if not _gone(pid)]}"
        time.sleep(0.05)


def _pids(log: Path, count: int) -> list[int]:
    deadline = time.monotonic() + 30
    # written by `os.write`, in one piece: with PYTHONUNBUFFERED `print` writes word by word, and ranks mix
    while not log.is_file() or len(log.read_text().split()) < count:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return [int(word) for word in log.read_text().split()]


def test_ranks_are_told_apart_as_by_torchrun(tmp_path: Path) -> None:
    names = "RANK LOCAL_RANK WORLD_SIZE LOCAL_WORLD_SIZE MASTER_ADDR OMP_NUM_THREADS"
    code = f"import os; os.write(1, (' '.join(os.environ[n] for n in '{names}'.split()) + chr(10)).encode())"
    group = ProcessGroup(["-c", code], 2, tmp_path / "log.txt", environment(3, has_gpu=False))
    _wait(group)
    assert group.failure() is None
    group.end()
    lines = (tmp_path / "log.txt").read_text().splitlines()
    assert sorted(lines) == ["0 0 2 2 127.0.0.1 3", "1 1 2 2 127.0.0.1 3"]


def test_the_first_bad_rank_is_named_and_the_others_are_ended(tmp_path: Path) -> None:
    code = (
        "import os, time; os.write(1, f'{os.getpid()} '.encode());"
        "time.sleep(0.5 if os.environ['RANK'] == '1' else 60); exit(7)"
    )
    group = ProcessGroup(["-c", code], 2, tmp_path / "log.txt", {})
    pids = _pids(tmp_path / "log.txt", 2)
    while group.failure() is None:
        time.sleep(0.05)
    failure = group.failure()
    assert failure is not None and failure.describe() == "rank 1 ended with code 7"
    assert group.alive_ranks() == [0]
    group.end()
    _wait_gone(pids)


def test_what_the_workers_started_is_ended_too(tmp_path: Path) -> None:
    """Also processes that ignore SIGTERM."""
    code = (
        "import os, signal, subprocess, time; signal.signal(signal.SIGTERM, signal.SIG_IGN);"
        "child = subprocess.Popen(['sleep', '60']); os.write(1, f'{os.getpid()} {child.pid} '.encode()); time.sleep(60)"
    )
    group = ProcessGroup(["-c", code], 1, tmp_path / "log.txt", {})
    pids = _pids(tmp_path / "log.txt", 2)
    group.end()
    _wait_gone(pids)


_RUNNER = """
import sys, time
from pathlib import Path
from octo_megatron.lineage.launch import ProcessGroup
from octo_megatron.lineage.lock import FolderLock
folder = Path(sys.argv[1])
child = (
    "import os, subprocess as s, time; child = s.Popen(['sleep', '60']);"
    "os.write(1, f'{os.getpid()} {child.pid} '.encode()); time.sleep(60)"
)
with FolderLock(folder / "lock", "octo run") as lock:
    group = ProcessGroup(["-c", child], 2, folder / "log.txt", {}, (lock.descriptor,))
    time.sleep(60)
"""


def test_kill_9_of_the_runner_ends_workers_and_grandchildren_and_frees_the_lock(tmp_path: Path) -> None:
    runner = subprocess.Popen([sys.executable, "-c", _RUNNER, str(tmp_path)])
    try:
        pids = _pids(tmp_path / "log.txt", 4)
        with pytest.raises(UserError, match=f"pid {runner.pid} "), FolderLock(tmp_path / "lock", "second"):
            pass
    finally:
        runner.send_signal(signal.SIGKILL)
        runner.wait()
    with FolderLock(tmp_path / "lock", "second"):
        _wait_gone(pids[:2], 2)  # a dying process gives the lock back just before it is seen as dead
    _wait_gone(pids)


def test_a_lock_is_kept_by_the_workers_of_a_dead_runner(tmp_path: Path) -> None:
    """A worker that outlives its runner by a moment must not meet the next runner's worker."""
    with FolderLock(tmp_path / "lock", "octo run") as lock:
        code = "import time; time.sleep(1.5)"
        group = ProcessGroup(["-c", code], 1, tmp_path / "log.txt", {}, (lock.descriptor,))
    start = time.monotonic()
    # The holder named in the file is this process, alive: so it is refused at once.
    with pytest.raises(UserError, match=f"pid {os.getpid()} "), FolderLock(tmp_path / "lock", "second"):
        pass
    with FolderLock(tmp_path / "lock", "second", wait_seconds=20):
        assert time.monotonic() - start > 0.5
    _wait(group)
    group.end()
