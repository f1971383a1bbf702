"""The run with the highest number may write; with two real runs: tests/slow/test_training_dies.py."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from octo_megatron.checkpoint.fence import Fence
from octo_megatron.config.errors import UserError

_TAKE = """
import sys
from pathlib import Path
from octo_megatron.checkpoint.fence import Fence
print(*[Fence.take(Path(sys.argv[1])).number for _ in range(20)])
"""


def test_a_later_start_takes_over(tmp_path: Path) -> None:
    first = Fence.take(tmp_path / "fence")
    first.check()
    second = Fence.take(tmp_path / "fence")
    second.check()
    assert (first.number, second.number) == (1, 2)
    with pytest.raises(UserError, match=rf"taken over by another run \(pid {os.getpid()} on .*start 2"):
        first.check()
    assert not list((tmp_path / "fence").glob(".probe*"))


def test_starts_at_the_same_time_get_different_numbers(tmp_path: Path) -> None:
    processes = [
        subprocess.Popen([sys.executable, "-c", _TAKE, str(tmp_path)], stdout=subprocess.PIPE, text=True)
        for _ in range(4)
    ]
    numbers = [int(n) for p in processes for n in p.communicate(timeout=120)[0].split()]
    assert sorted(numbers) == list(range(1, 81))


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "fence").write_text("a file")
    with pytest.raises(UserError, match=f"cannot write {tmp_path}/fence"):
        Fence.take(tmp_path / "fence")
