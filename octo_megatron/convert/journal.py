"""Parts of a conversion: shared among ranks, remembered on disk, so that a killed conversion goes on where it was.

A part is done when its file in the journal is there; that file is written after the part's data. Ranks need no
process group: they share the folder.
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, CancelledError, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from octo_megatron.config.errors import UserError
from octo_megatron.config.run_folder import read_json

PARTS_FOLDER = "octo_parts"
"""In the folder while it is made; whoever publishes the folder removes it."""
OnBytes = Callable[[int, int], None]
"""Called with (bytes that this rank has moved, bytes that it has to move)."""
_MOST_THREADS = 8
"""Of a process: more wait for the memory's bandwidth, and each holds a piece."""
_TELL_SECONDS = 0.5
"""How far it is is told so often, also in the middle of a part."""
_SILENCE_SECONDS = 1800.0
"""Without a new part for so long, the ranks that it waits for are taken to be gone."""


@dataclass(frozen=True)
class Share:
    """Which of the processes that do a conversion together this is."""

    rank: int = 0
    size: int = 1
    check: Callable[[], None] = field(default=lambda: None, compare=False)
    """Called now and then; raises when one of the others has failed."""

    @property
    def is_first(self) -> bool:
        return self.rank == 0


class Journal:
    """The parts of one conversion in its folder, `.NAME.partial` beside the target."""

    def __init__(
        self, folder: Path, key: dict[str, Any], share: Share, begin: Callable[[], None] = lambda: None
    ):
        """Open or begin; what another conversion left there is deleted.

        Args:
            key: what the result depends on; a folder with another key is no beginning of this conversion.
            begin: makes what parts are written into, in the empty folder.
        """
        self.folder, self.share, self._journal = folder, share, folder / PARTS_FOLDER
        file = self._journal / "key.json"
        plain = json.loads(json.dumps(key))
        if share.is_first:
            if not (file.is_file() and read_json(file) == plain):
                shutil.rmtree(folder, ignore_errors=True)
                self._journal.mkdir(parents=True)
                begin()
                _write(file, plain)
        else:
            _wait(
                lambda: file.is_file() and read_json(file) == plain,
                "rank 0 has not begun the conversion",
                share,
            )

    def done(self, part: int) -> dict[str, Any] | None:
        """What `finish` noted about a part, None while it is not done."""
        file = self._journal / f"{part:06d}.json"
        return dict(read_json(file)) if file.is_file() else None

    def finish(self, part: int, facts: dict[str, Any]) -> None:
        """Note that a part's data is written."""
        _write(self._journal / f"{part:06d}.json", facts)

    def _is_done(self, part: int) -> bool:
        return self.done(part) is not None

    def mine(self, parts: int) -> list[int]:
        """Parts that this rank still has to do."""
        return [i for i in range(self.share.rank, parts, self.share.size) if self.done(i) is None]

    def wait(self, parts: int) -> list[dict[str, Any]]:
        """Until every part is done; returns their facts.

        Raises:
            UserError: no part came for half an hour (one may be a large file on a slow disk); the rank is named.
        """
        for part in range(parts):
            owner = part % self.share.size
            _wait(
                partial(self._is_done, part),
                f"rank {owner} did not finish part {part}",
                self.share,
            )
        return [self.done(part) or {} for part in range(parts)]


def do_parts(
    journal: Journal,
    sizes: Sequence[int],
    work: Callable[[int, Callable[[int], None]], dict[str, Any]],
    on_bytes: OnBytes,
) -> None:
    """Do this rank's parts that are not done yet, on a few threads: what they do is reading, hashing and writing,
    which leaves the interpreter free.

    Args:
        sizes: of all parts, in bytes.
        work: does one part, and says how many bytes it has moved since it last did; returns the part's facts. Where
            another part has failed, that raises: the pool waits for its threads, and a part may be a large file.
        on_bytes: called in this thread, and only when something has moved.

    Raises:
        What the first part that fails raises, or another rank's failure; parts that were not begun are left.
    """
    mine = journal.mine(len(sizes))
    waiting, left, running = iter(mine), len(mine), set[Future[None]]()
    threads = max(1, min(_MOST_THREADS, len(os.sched_getaffinity(0)) // journal.share.size))
    total, moved, said = sum(sizes[part] for part in mine), 0, 0
    lock, failed = threading.Lock(), threading.Event()

    def move(count: int) -> None:
        nonlocal moved
        if failed.is_set():
            raise CancelledError
        with lock:
            moved += count

    def one(part: int) -> None:
        journal.finish(part, work(part, move))

    with ThreadPoolExecutor(threads) as pool:
        try:
            while left:
                for part in itertools.islice(waiting, threads - len(running)):
                    running.add(pool.submit(one, part))
                finished, running = wait(running, _TELL_SECONDS, FIRST_COMPLETED)
                for future in finished:
                    future.result()
                    left -= 1
                if moved != said:
                    said = moved
                    on_bytes(said, total)
                journal.share.check()
        except BaseException:  # Ctrl-C too
            failed.set()
            raise


def _write(path: Path, value: Any) -> None:
    """Whole or not at all for whoever is killed; unlike `write_json` it does not wait for the disk."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(json.dumps(value), encoding="utf-8")
    temporary.replace(path)


def _wait(until: Callable[[], bool], problem: str, share: Share) -> None:
    deadline = time.monotonic() + _SILENCE_SECONDS
    while not until():
        if time.monotonic() > deadline:
            raise UserError(f"{problem} within {_SILENCE_SECONDS:.0f} s; see the output of that rank")
        share.check()
        time.sleep(0.02)
