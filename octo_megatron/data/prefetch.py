"""Batches made ahead of time in a background thread; what comes out, and in which order, is as without it.

One thread is enough: reading and converting release Python's lock, and a batch takes far less than a step. Order and
content are those of calling `make` step by step, because that is what the thread does.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Generic, TypeVar

from octo_megatron.config.errors import UserError

T = TypeVar("T")


class LoadingError(RuntimeError):
    """A batch could not be made; says which."""


class Prefetcher(Generic[T]):
    """make(first), make(first + 1), ..., make(end - 1), up to `depth` of them ahead of whoever asks."""

    def __init__(
        self,
        make: Callable[[int], T],
        first: int,
        end: int,
        deadline_seconds: float,
        describe: Callable[[int], str] = lambda step: f"step {step}",
        depth: int = 4,
    ):
        """`describe` names a step and what is in it, for errors."""
        self._make, self._describe = make, describe
        self._next, self._end, self._deadline = first, end, deadline_seconds
        self._made: queue.Queue[tuple[T | None, BaseException | None]] = queue.Queue(depth)
        self._stopped = threading.Event()
        self.waited_seconds = 0.0
        """Time that `next` did not return at once, summed up."""
        self._thread = threading.Thread(target=self._work, args=(first, end), name="prefetch", daemon=True)
        self._thread.start()

    def next(self) -> T:
        """The next batch, waiting for it if need be.

        Raises:
            StopIteration: there are no more.
            UserError, LoadingError: making it failed; both name the step.
            TimeoutError: it took longer than the deadline.
        """
        if self._next >= self._end:
            raise StopIteration
        began = time.perf_counter()
        try:
            made, error = self._made.get(timeout=self._deadline)
        except queue.Empty:
            raise TimeoutError(
                f"no data for {self._describe(self._next)} after {self._deadline:g} s: the file system of the data "
                "does not answer, or reading is far too slow; raise deadline_seconds if that is expected"
            ) from None
        self.waited_seconds += time.perf_counter() - began
        if error is not None:
            where, self._next = self._describe(self._next), self._end
            if isinstance(error, UserError):
                raise UserError(f"{where}: {error}") from error
            raise LoadingError(f"{where}: {type(error).__name__}: {error}") from error
        self._next += 1
        assert made is not None
        return made

    def close(self) -> None:
        """End the thread after the batch that it is making; batches made ahead are dropped."""
        self._stopped.set()
        while True:
            try:
                self._made.get_nowait()
            except queue.Empty:
                return

    def __enter__(self) -> Prefetcher[T]:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _work(self, first: int, end: int) -> None:
        for step in range(first, end):
            try:
                item: tuple[T | None, BaseException | None] = (self._make(step), None)
            except BaseException as error:  # handed to whoever waits, who would wait for ever otherwise
                item = (None, error)
            while not self._stopped.is_set():
                try:
                    self._made.put(item, timeout=0.2)
                    break
                except queue.Full:
                    continue
            if self._stopped.is_set() or item[1] is not None:
                return
