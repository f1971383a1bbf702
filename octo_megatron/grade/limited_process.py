"""A process that answers questions one JSON line at a time, with a deadline for each; ended when it does not.

Nothing that a question makes it do can stop, fill or crash the process that trains.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import selectors
import subprocess
import threading
import time
from typing import Any

from octo_megatron.config.errors import UserError

START_SECONDS = 120.0
"""For the process to import what it needs on a busy machine."""


class LimitedProcess:
    """Starts at the first question, and again after a process that had to be ended. Thread-safe."""

    def __init__(self, command: list[str], deadline_seconds: float, help_text: str):
        """`help_text`: for the error when the process does not come up. It must print "ready" first."""
        self._command, self._deadline, self._help = command, deadline_seconds, help_text
        self._process: subprocess.Popen[bytes] | None = None
        self._owner = 0
        self._lock = threading.Lock()
        self._received = b""

    @property
    def pid(self) -> int | None:
        """Of the running process, None where there is none."""
        return self._process.pid if self._process else None

    def ask(self, question: Any) -> Any:
        """The reply, None when the process crashed on the question or took longer than the deadline.

        Raises:
            UserError: the process does not come up.
        """
        with self._lock:
            process = self._started()
            try:
                assert process.stdin is not None
                process.stdin.write(json.dumps(question).encode() + b"\n")
                process.stdin.flush()
                reply = self._line(process, self._deadline)
            except BrokenPipeError:
                reply = None
            if reply is None:
                self._end()
                return None
            return json.loads(reply)

    def close(self) -> None:
        """End the process."""
        with self._lock:
            self._end()

    def _started(self) -> subprocess.Popen[bytes]:
        # after a fork the pipes belong to the parent
        if self._process is not None and self._owner == os.getpid() and self._process.poll() is None:
            return self._process
        self._process = subprocess.Popen(
            self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        self._owner, self._received = os.getpid(), b""
        atexit.register(self._end)
        first = self._line(self._process, START_SECONDS)
        if first != b"ready":
            self._end()
            said = f" ({first.decode(errors='replace')})" if first else ""
            raise UserError(self._help + said)
        return self._process

    def _line(self, process: subprocess.Popen[bytes], seconds: float) -> bytes | None:
        """The next line of output, None when the process ended or the time is over."""
        assert process.stdout is not None
        until = time.monotonic() + seconds
        with selectors.DefaultSelector() as selector:
            selector.register(process.stdout, selectors.EVENT_READ)
            while b"\n" not in self._received:
                # output in drops must not stretch the deadline
                if not selector.select(max(0.0, until - time.monotonic())):
                    return None
                part = os.read(process.stdout.fileno(), 1 << 16)
                if not part:
                    return None
                self._received += part
        line, _, self._received = self._received.partition(b"\n")
        return line

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is None or self._owner != os.getpid():
            return
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()
