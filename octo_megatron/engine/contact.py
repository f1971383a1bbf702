"""What a training rank has of the rank that samples for it: its presence there, and engines on demand."""

from __future__ import annotations

import time
from pathlib import Path

from octo_megatron.config.errors import WorkFailed
from octo_megatron.engine import address
from octo_megatron.engine.messages import Channel

_ANSWER_SECONDS = 60.0
"""For a rank that samples to end an engine."""
_RETRY_SECONDS = 0.2


class Contact:
    """Lets the sampling rank know that this training rank lives, for as long as it is open."""

    def __init__(self, folder: Path, sampling_rank: int, rank: int, seconds: float):
        """Wait until the rank is there.

        Args:
            folder: the node's `samplers`.
            sampling_rank, rank: the other's and our own number in the launch.

        Raises:
            WorkFailed: it did not come within `seconds`.
        """
        self._rank = rank
        deadline = time.monotonic() + seconds
        while True:
            try:
                self._address = address.read(folder, sampling_rank)
                self._control = address.connect(self._address, rank, address.ATTEND)
                break
            except (OSError, ValueError, TypeError) as error:  # not there yet, or an earlier start's
                if time.monotonic() > deadline:
                    raise WorkFailed(
                        f"rank {sampling_rank}, which samples for rank {rank}, did not come within {seconds:.0f} s "
                        f"({error})"
                    ) from error
            time.sleep(_RETRY_SECONDS)
        self._control.deadline(_ANSWER_SECONDS)

    def __str__(self) -> str:
        return str(self._address)

    def new_engine(self) -> Channel:
        """A connection to a process that waits for its engine's config; the one before is ended.

        Raises:
            WorkFailed: the rank does not answer.
        """
        try:
            return address.connect(self._address, self._rank, address.ENGINE)
        except (OSError, ValueError) as error:
            raise self._gone(error) from error

    def end_engine(self, grace_seconds: float) -> int | None:
        """End our engine's process; its exit code if it ended by itself within `grace_seconds`, else None.

        Raises:
            WorkFailed: the rank does not answer.
        """
        try:
            self._control.send({"end_within": grace_seconds})
            code = self._control.receive()["code"]
        except (OSError, ValueError) as error:
            raise self._gone(error) from error
        return None if code is None else int(code)

    def close(self) -> None:
        """We are done; our engine ends there."""
        self._control.close()

    def _gone(self, error: Exception) -> WorkFailed:
        return WorkFailed(
            f"{self._address} is gone ({error}); its last words are in the log; run again: it goes on from the newest "
            "checkpoint"
        )
