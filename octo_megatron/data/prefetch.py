"""Batches made ahead of time in background threads; what comes out, and in which order, is as without them.

Threads are enough: reading and converting release Python's lock, and a batch takes far less than a step.
"""

from __future__ import annotations

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
        workers: int = 1,
    ):
        """`describe` names a step and what is in it, for errors; `make` is called by `workers` threads at once."""
        self._make, self._describe = make, describe
        self._next, self._end, self._claimed = first, end, first
        self._deadline, self._depth = deadline_seconds, depth
        self._made: dict[int, tuple[T | None, BaseException | None]] = {}
        self._changed = threading.Condition()
        self._stopped = False
        self.waited_seconds = 0.0
        """Time that `next` did not return at once, summed up."""
        self._threads = [
            threading.Thread(target=self._work, name=f"prefetch-{i}", daemon=True) for i in range(workers)
        ]
        for thread in self._threads:
            thread.start()

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
        with self._changed:
            if not self._changed.wait_for(lambda: self._next in self._made, self._deadline):
                raise TimeoutError(
                    f"no data for {self._describe(self._next)} after {self._deadline:g} s: the file system of the "
                    "data does not answer, or reading is far too slow; raise deadline_seconds if that is expected"
                )
            made, error = self._made.pop(self._next)
            step, self._next = self._next, self._next + 1
            self._changed.notify_all()
        self.waited_seconds += time.perf_counter() - began
        if error is None:
            return made  # type: ignore[return-value]  # what `make` returned
        self.close()
        if isinstance(error, UserError):
            raise UserError(f"{self._describe(step)}: {error}") from error
        raise LoadingError(f"{self._describe(step)}: {type(error).__name__}: {error}") from error

    def close(self) -> None:
        """End the threads after the batches that they are making; batches made ahead are dropped."""
        with self._changed:
            self._stopped, self._end = True, self._next
            self._made.clear()
            self._changed.notify_all()

    def __enter__(self) -> Prefetcher[T]:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(self._may_go_on)
                if self._stopped or self._claimed >= self._end:
                    return
                step, self._claimed = self._claimed, self._claimed + 1
            try:
                item: tuple[T | None, BaseException | None] = (self._make(step), None)
            except BaseException as error:  # handed to whoever waits, who would wait for ever otherwise
                item = (None, error)
            with self._changed:
                if not self._stopped:
                    self._made[step] = item
                self._changed.notify_all()

    def _may_go_on(self) -> bool:
        """Whether a thread has something to do: a batch within `depth`, or to end."""
        return self._stopped or self._claimed >= self._end or self._claimed < self._next + self._depth
