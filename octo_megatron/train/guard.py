"""Steps that would hurt the model are left out: loss or gradient norm far from the last ones, or not finite.

The rule (OLMo-core's skip-step optimizer has it too): a step whose loss or gradient norm lies more than `sigma`
standard deviations above the mean of the last `window` steps is not taken. Only above: a loss that falls fast is no
spike. A spike itself enters the window, so a lasting change of level is accepted after some steps.

`judge` is a function of numbers that the trainer has on the host anyway (see `MegatronTrainer.train_step`).
"""

from __future__ import annotations

import math
import statistics
from collections import deque
from dataclasses import dataclass, field
from typing import Any

PATIENCE = 3
"""So many steps in a row without a finite loss and gradient end the run."""


class NotFinite(Exception):
    """Loss or gradient were not finite for `PATIENCE` steps in a row; the weights are those before the first."""


@dataclass
class Guard:
    """Judges one step after the other; `state` goes into checkpoints, so that a resumed run judges alike."""

    sigma: float
    """Standard deviations that a step may lie above the mean; 0: only what is not finite is skipped."""
    window: int = 128
    losses: deque[float] = field(default_factory=deque)
    norms: deque[float] = field(default_factory=deque)
    not_finite: int = 0
    """Steps in a row, up to now."""

    def judge(self, loss: float, grad_norm: float) -> str | None:
        """None to take the step, else why not; a `Verdict` of the trainer."""
        finite = math.isfinite(loss) and math.isfinite(grad_norm)
        self.not_finite = 0 if finite else self.not_finite + 1
        if not finite:
            return f"loss {loss:g}, gradient norm {grad_norm:g}: not finite"
        reasons = [
            self._far("loss", loss, self.losses),
            self._far("gradient norm", grad_norm, self.norms),
        ]
        for values, value in ((self.losses, loss), (self.norms, grad_norm)):
            values.append(value)
            while len(values) > self.window:
                values.popleft()
        return "; ".join(reason for reason in reasons if reason) or None

    @property
    def exhausted(self) -> bool:
        """Whether the run should end."""
        return self.not_finite >= PATIENCE

    def _far(self, name: str, value: float, last: deque[float]) -> str | None:
        # With fewer values the deviation itself is not known yet.
        if not self.sigma or len(last) < max(2, self.window // 2):
            return None
        mean, deviation = statistics.fmean(last), statistics.stdev(last)
        if deviation == 0 or value <= mean + self.sigma * deviation:
            return None
        return (
            f"{name} {value:.4g} is {(value - mean) / deviation:.1f} standard deviations above {mean:.4g}, "
            f"the mean of the last {len(last)} steps"
        )

    def state(self) -> dict[str, Any]:
        """Plain values; JSON keeps every bit of a float."""
        return {"losses": list(self.losses), "norms": list(self.norms), "not_finite": self.not_finite}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from `state()`."""
        self.losses, self.norms = deque(state["losses"]), deque(state["norms"])
        self.not_finite = int(state["not_finite"])
