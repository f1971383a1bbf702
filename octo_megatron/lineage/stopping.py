"""`octo run` is asked to stop: SIGTERM or SIGUSR1 go on to the workers, which save and end; a second one ends all."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from octo_megatron.parallel.stop import EXIT_CODE, SAME_SECONDS, SIGNALS, Stopped

__all__ = ["EXIT_CODE", "Asked", "Stopped", "listening"]


class Asked:
    """Whether a signal came."""

    def __init__(self) -> None:
        self._at: float | None = None

    @property
    def yes(self) -> bool:
        return self._at is not None

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self._at is not None and time.monotonic() - self._at > SAME_SECONDS:
            raise KeyboardInterrupt
        self._at = self._at or time.monotonic()


@contextmanager
def listening() -> Iterator[Asked]:
    """Handle the signals within the block; what handled them before does so again after it."""
    asked = Asked()
    before = {number: signal.signal(number, asked._receive) for number in SIGNALS}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
