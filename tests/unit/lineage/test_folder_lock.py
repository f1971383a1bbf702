"""The lock is the kernel's: it names its holder and goes with it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from octo_megatron.config.errors import UserError
from octo_megatron.lineage.lock import FolderLock

_HOLD = """
import sys, time
from pathlib import Path
from octo_megatron.lineage.lock import FolderLock
with FolderLock(Path(sys.argv[1]), "octo run", shared=sys.argv[2] == "shared"):
    print("held", flush=True)
    time.sleep(60)
"""


def _holder(path: Path, mode: str) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", _HOLD, str(path), mode], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    return process


def test_the_second_is_told_who_the_first_is(tmp_path: Path) -> None:
    path = tmp_path / "run" / "lock"
    first = _holder(path, "exclusive")
    try:
        with (
            pytest.raises(UserError, match=rf"in use by `octo run` \(pid {first.pid} on "),
            FolderLock(path, "x"),
        ):
            pass
    finally:
        first.send_signal(signal.SIGKILL)
        first.wait()
    with FolderLock(path, "second"):
        assert f'"pid": {os.getpid()}' in path.read_text()


def test_shared_holders_get_along_and_keep_an_exclusive_one_out(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    first = _holder(path, "shared")
    try:
        with FolderLock(path, "octo run --stage b", shared=True):
            pass
        with pytest.raises(UserError, match="is in use by"), FolderLock(path, "octo run"):
            pass
    finally:
        first.kill()
        first.wait()
