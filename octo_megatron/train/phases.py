"""Where a stage's time goes, and what its heartbeat says meanwhile."""

from __future__ import annotations

import time
from dataclasses import dataclass, field


@dataclass
class Phases:
    """Seconds spent, by phase."""

    seconds: dict[str, float] = field(default_factory=dict)
    _since: float = field(default_factory=time.perf_counter)

    def mark(self, phase: str) -> float:
        """Everything since the last mark was `phase`; returns it."""
        now = time.perf_counter()
        spent, self._since = now - self._since, now
        self.seconds[phase] = self.seconds.get(phase, 0.0) + spent
        return spent
