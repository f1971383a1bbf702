"""SIGTERM and SIGUSR1 ask a run to stop: it finishes its step, saves, ends with code 75. A second one ends it at once.

75 is EX_TEMPFAIL of sysexits.h: nothing is wrong, start it again. SLURM sends one of the two before a time limit
(`--signal`) or a preemption. No torch here: the workers' entry point installs the handlers before it loads anything.
"""

from __future__ import annotations

import os
import signal
import threading
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
        self._patience: float | None = None

    def install(self) -> None:
        """Handle the signals from now on (main thread only)."""
        for number in SIGNALS:
            signal.signal(number, self._receive)

    def listen(self, patience: float | None = None) -> None:
        """The stage looks at `asked` after every step from now on.

        Args:
            patience: seconds after a signal in which the stage must have called `arrived`; then it is ended where it
                is. For stages whose steps are long and leave records on the way.
        """
        self._listening, self._patience = True, patience

    def arrived(self) -> None:
        """The stage is where it can save and end, however long saving takes."""
        self._patience = None

    def rest(self) -> None:
        """There is nothing to save any more: a signal, and one that has come already, ends this process at once."""
        self._listening = False
        if self.asked:
            os._exit(EXIT_CODE)

    @property
    def asked(self) -> bool:
        """Whether this process got a signal; others of the run may have got none."""
        return self._asked_at is not None

    def _receive(self, number: int, frame: FrameType | None) -> None:
        first, now = self._asked_at is None, time.monotonic()
        self._asked_at = now if self._asked_at is None else self._asked_at
        if not self._listening:
            os._exit(EXIT_CODE)
        if first and self._patience is not None:
            timer = threading.Timer(self._patience, self._lose_patience)
            timer.daemon = True
            timer.start()
        if not first and now - self._asked_at > SAME_SECONDS:
            os._exit(128 + number)

    def _lose_patience(self) -> None:
        if self._patience is not None:
            os._exit(EXIT_CODE)


STOP = StopRequest()
"""Of this process."""
