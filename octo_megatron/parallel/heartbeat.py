"""Every rank says every few seconds in which phase it is; the first to miss a deadline names who is behind.

RUN/nodes/<node>/heartbeat/00003.json   {rank, host, pid, phase, count, since, time, follows}, rewritten by a thread

`since` is when the phase began, `time` when the file was written. A rank that waits for another in a collective keeps
writing, but its phase grows old; one that is stopped, swapped out or gone no longer writes. A rank that follows (it
samples for others) may be in a phase for as long as they like. No torch here: `octo run` reads the same files.
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

INTERVAL_SECONDS = 2.0
"""Between two beats."""
GRACE_SECONDS = 10.0
"""Ranks wait so much longer than `octo run`, which ends them with their stacks, where there is one."""


@dataclass(frozen=True)
class Beat:
    """What one rank said last."""

    rank: int
    host: str
    pid: int
    phase: str
    count: int
    """Phases begun so far: ranks that work alike count alike, and the one that is behind counts less."""
    since: float
    time: float
    follows: bool = False
    """It does what other ranks ask: behind only where it shows no sign of life."""


class Heartbeat:
    """This rank's beats, and its watch over the others."""

    def __init__(
        self,
        folder: Path,
        rank: int,
        deadline_seconds: float,
        on_miss: Callable[[str], None],
        grace_seconds: float = GRACE_SECONDS,
        follows: bool = False,
    ):
        """`on_miss`: called in a thread with the message when this rank's phase outlives deadline and grace; never
        where it `follows`."""
        self._folder, self._rank, self._deadline, self._on_miss = folder, rank, deadline_seconds, on_miss
        self._grace, self._follows = grace_seconds, follows
        self._phase, self._count, self._since = "start", 0, time.time()
        self._ended = threading.Event()
        folder.mkdir(parents=True, exist_ok=True)
        self._write()
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)
        self._thread.start()

    def enter(self, phase: str) -> None:
        """This rank begins a phase. Costs nothing: the thread writes it with its next beat."""
        self._phase, self._count, self._since = phase, self._count + 1, time.time()

    def close(self) -> None:
        """The stage is over."""
        self._ended.set()
        self._thread.join()
        _path(self._folder, self._rank).unlink(missing_ok=True)

    def _run(self) -> None:
        while not self._ended.wait(min(INTERVAL_SECONDS, self._deadline / 4)):
            self._write()
            waited = time.time() - self._since
            if not self._follows and waited > self._deadline + self._grace:
                behind = describe(self._folder, time.time()) or "no rank has left a heartbeat"
                self._on_miss(
                    f"rank {self._rank} has been in phase {self._phase} for {waited:.0f} s (deadline_seconds is "
                    f"{self._deadline:g}); {behind}"
                )
                return

    def _write(self) -> None:
        host, pid, now = socket.gethostname(), os.getpid(), time.time()
        beat = Beat(self._rank, host, pid, self._phase, self._count, self._since, now, self._follows)
        path = _path(self._folder, self._rank)
        temporary = path.with_suffix(".tmp")
        with contextlib.suppress(OSError):  # a full disk ends the run elsewhere, with a better message
            temporary.write_text(json.dumps(asdict(beat)))
            temporary.replace(path)


def clear(folder: Path) -> None:
    """Forget an earlier run's beats."""
    for path in folder.glob("*.json"):
        path.unlink(missing_ok=True)


def describe(folder: Path, now: float) -> str | None:
    """Which rank is behind, in which phase; None where nobody left a heartbeat.

    Behind is who has begun the fewest phases; among those equal, who has been silent for longest.
    """
    beats = []
    for path in folder.glob("*.json"):
        with contextlib.suppress(OSError, ValueError, TypeError):
            beats.append(Beat(**json.loads(path.read_text())))
    silent = 3 * INTERVAL_SECONDS
    beats = [b for b in beats if not b.follows or now - b.time > silent]
    if not beats:
        return None
    last = min(beats, key=lambda b: (b.count, b.time if now - b.time > silent else now, b.rank))
    who = f"rank {last.rank}{' (samples)' if last.follows else ''} is behind (pid {last.pid} on {last.host})"
    where = f"{who}: in phase {last.phase} for {now - last.since:.0f} s"
    quiet = now - last.time
    return where + (f", no sign of life for {quiet:.0f} s" if quiet > silent else "")


def end_process(report: Callable[[str], None]) -> Callable[[str], None]:
    """An `on_miss` that leaves the message and this process's stacks, and ends it with code 1.

    `report`: writes the message where the runner looks for it.
    """

    def end(message: str) -> None:
        print(f"octo: {message}", file=sys.stderr, flush=True)
        report(message)
        faulthandler.dump_traceback(all_threads=True)
        os._exit(1)

    return end


def _path(folder: Path, rank: int) -> Path:
    return folder / f"{rank:05d}.json"
