"""Processes that the kernel ends when another one is gone, however that one died. No torch here."""

from __future__ import annotations

import fcntl
import os
import signal


def kill_on_hangup(read_end: int, pid: int) -> None:
    """SIGKILL for process `pid` (negative: for the group -pid) when the last write end of the pipe is closed.

    Somebody among them must keep `read_end` open. One pipe serves one process or group.
    """
    fcntl.fcntl(read_end, fcntl.F_SETOWN, pid)
    fcntl.fcntl(read_end, fcntl.F_SETSIG, signal.SIGKILL)
    fcntl.fcntl(read_end, fcntl.F_SETFL, fcntl.fcntl(read_end, fcntl.F_GETFL) | os.O_ASYNC)
