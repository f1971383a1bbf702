"""Which checkpoints of a node stay."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Retention:
    """What is kept beside the newest checkpoint."""

    last: int = 0
    """So many newest ones; 0: all of them."""
    every: int = 0
    """Those whose step is a multiple stay for ever; 0: none."""
    best: int = 0
    """So many with the lowest validation loss; 0: none."""
    pinned: frozenset[int] = frozenset()
    """Steps that something else needs, such as a branch that starts there."""

    def outdated(self, losses: Mapping[int, float | None]) -> list[int]:
        """Steps whose checkpoints may go, oldest first.

        Args:
            losses: step -> validation loss at that step (None: not measured) of every checkpoint there is.
        """
        if not self.last:
            return []
        steps = sorted(losses)
        kept = set(steps[-self.last :]) | self.pinned
        kept |= {step for step in steps if self.every and step % self.every == 0}
        measured = sorted((loss, step) for step, loss in losses.items() if loss is not None and loss == loss)
        kept |= {step for _, step in measured[: self.best]}
        return [step for step in steps if step not in kept]
