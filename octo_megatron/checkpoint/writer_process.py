"""The process that writes a rank's part of a checkpoint: a fork, taken for started once it has said so.

A fork copies the locks of all threads as they are at that moment. When one of gloo's threads is just making or deleting
its Python thread state, the new process waits in `PyOS_AfterFork_Child` for a lock that nobody holds any more (CPython
3.11, seen once in several hundred saves). Nothing has been written by then, so another one is forked.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import select
from collections.abc import Callable, Sequence
from multiprocessing.process import BaseProcess
from typing import Any

from octo_megatron.config.errors import UserError
from octo_megatron.parallel.world import World

from megatron.core.dist_checkpointing.strategies.async_utils import AsyncRequest

_ALIVE_SECONDS = (5.0, 15.0, 60.0)
"""How long each try waits; a loaded machine may be slow to run a new process."""


class WriterProcess:
    """One rank's."""

    def __init__(self, request: AsyncRequest, world: World):
        """Copy to the host what is not there, fork, and see the fork run.

        Raises:
            UserError: it did not run, three times.
        """
        arguments = list(request.async_fn_args)
        if request.preload_fn:
            arguments[1] = request.preload_fn()
        assert request.async_fn is not None
        self._world, self._process = world, _start(request.async_fn, arguments, world.rank)

    def done(self, blocking: bool) -> bool:
        """Whether the writers of all ranks have ended; `blocking`: wait for this rank's. Collective."""
        if blocking:
            self._process.join()
        elif self._world.any(self._process.is_alive()):
            return False
        self._process.join()
        return True


def _start(write: Callable[..., None], arguments: Sequence[Any], rank: int) -> BaseProcess:
    for seconds in _ALIVE_SECONDS:
        process = _fork(write, arguments, seconds)
        if process is not None:
            return process
        print(
            f"octo: rank {rank}: a checkpoint's writer did not run within {seconds:g} s; forking another",
            flush=True,
        )
    raise UserError(
        f"rank {rank}: no process that writes the checkpoint began to run within {_ALIVE_SECONDS[-1]:g} s; look at the "
        "machine's load and memory, then run again: it goes on from the newest finished checkpoint"
    )


def _fork(write: Callable[..., None], arguments: Sequence[Any], seconds: float) -> BaseProcess | None:
    """A process that has begun to run; None, and nothing left of it, when it did not within `seconds`."""
    reading, writing = os.pipe()
    process = multiprocessing.get_context("fork").Process(
        target=_say_and_write, args=(writing, write, arguments)
    )
    collecting = gc.isenabled()
    gc.disable()  # in the writer for good: a collection there would touch, and so copy, what it shares with us
    try:
        process.start()
    finally:
        if collecting:
            gc.enable()
        os.close(writing)
    alive = bool(select.select([reading], [], [], seconds)[0])
    os.close(reading)
    if alive:
        return process
    process.kill()
    process.join()
    return None


def _say_and_write(writing: int, write: Callable[..., None], arguments: Sequence[Any]) -> None:
    os.write(writing, b".")
    os.close(writing)
    write(*arguments)
