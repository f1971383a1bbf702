"""SIGTERM and SIGUSR1 ask a run to stop: it finishes its step, saves, ends with code 75. A second one ends it at once.

75 is EX_TEMPFAIL of sysexits.h: nothing is wrong, start it again. SLURM sends one of the two before a time limit
(`--signal`) or a preemption. No torch here: the workers' entry point installs the handlers before it loads anything.
"""

from __future__ import annotations

import os
import signal
import time
from types import FrameType

EXIT_CODE = 75
"""Stopped by a signal; started again, it goes on."""

SAME_SECONDS = 2.0
"""Signals that come so soon after the first are the same wish: SLURM may send one to the command and its workers."""

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


class Stopped(Exception):
    """A stage has saved and ends because a signal asked for it; the text says where it stands."""


class StopRequest:
    """What this process was asked. Until a stage calls `listen` there is nothing to save: a signal ends it at once."""

    def __init__(self) -> None:
        self._asked_at: float | None = None
        self._listening = False

    def install(self) -> None:
        """Handle the signals from now on (main thread only)."""
        for number in SIGNALS:
            signal.signal(number, self._receive)

    def listen(self) -> None:
        """The stage looks at `asked` after every step from now on."""
        self._listening = True

    @property
    def asked(self) -> bool:
        """Whether this process got a signal; others of the run may have got none."""
        return self._asked_at is not None

    def _receive(self, number: int, frame: FrameType | None) -> None:
        first, now = self._asked_at is None, time.monotonic()
        self._asked_at = now if self._asked_at is None else self._asked_at
        if not self._listening:
            os._exit(EXIT_CODE)
        if not first and now - self._asked_at > SAME_SECONDS:
            os._exit(128 + number)


STOP = StopRequest()
"""Of this process."""
