"""math-verify in a process of its own, with a deadline and a memory limit.

math-verify's own time limit is a signal: it works in the main thread only and cannot interrupt one long
operation of C code such as 10**10**10. A process can be ended, so nothing that an answer asks of sympy can
stop, fill or crash the process that trains.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import selectors
import subprocess
import sys
import threading

from octo_megatron.config.errors import UserError

DEADLINE_SECONDS = 4.0
"""For one comparison; math-verify's own limits inside come first where they can."""
START_SECONDS = 120.0
"""For the process to import sympy on a busy machine."""


class Verifier:
    """Starts its process at the first question, and again after one that had to be ended. Thread-safe."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._owner = 0
        self._lock = threading.Lock()
        self._received = b""

    def equal(self, found: str, answer: str) -> bool:
        """Whether math-verify takes `found` for `answer`; False too when it crashes or exceeds its limits.

        Raises:
            UserError: the process does not come up (math-verify is missing or broken).
        """
        with self._lock:
            process = self._started()
            try:
                assert process.stdin is not None
                process.stdin.write(json.dumps([found, answer]).encode() + b"\n")
                process.stdin.flush()
                reply = self._line(process, DEADLINE_SECONDS)
            except BrokenPipeError:
                reply = None
            if reply is None:
                self._end()
                return False
            return bool(json.loads(reply))

    def close(self) -> None:
        """End the process."""
        with self._lock:
            self._end()

    def _started(self) -> subprocess.Popen[bytes]:
        # after a fork the pipes belong to the parent
        if self._process is not None and self._owner == os.getpid() and self._process.poll() is None:
            return self._process
        self._process = subprocess.Popen(
            [sys.executable, "-m", "octo_megatron.grade.verifier_process"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        self._owner, self._received = os.getpid(), b""
        atexit.register(self._end)
        if self._line(self._process, START_SECONDS) != b"ready":
            self._end()
            raise UserError(
                "math-verify does not start: `python -m octo_megatron.grade.verifier_process` shows why, "
                "`make env` installs it"
            )
        return self._process

    def _line(self, process: subprocess.Popen[bytes], seconds: float) -> bytes | None:
        """The next line of output, None when the process ended or the time is over."""
        assert process.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(process.stdout, selectors.EVENT_READ)
            while b"\n" not in self._received:
                if not selector.select(seconds):
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
