"""What a part of the gate found."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from octo_megatron.config.errors import UserError

PASSED, FAILED, LEFT_OUT = "passed", "failed", "not run"


class GateError(UserError):
    """A part of the gate found a difference; one line that names the tensor, field, file or position."""


@dataclass(frozen=True)
class PartResult:
    """One part of the gate."""

    name: str
    status: str
    """passed, failed or not run."""
    line: str
    """What was compared and how far apart it was; why it failed or was not run."""
    figures: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0


@dataclass(frozen=True)
class GateReport:
    """All parts."""

    parts: list[PartResult]

    @property
    def passed(self) -> bool:
        """No part failed. Parts that were not run are for the reader to judge: `left_out` names them."""
        return all(part.status != FAILED for part in self.parts)

    @property
    def left_out(self) -> list[str]:
        names = [part.name for part in self.parts if part.status == LEFT_OUT]
        return [*names, "vllm"] if self.figure("asked_vllm") is False else names

    def figure(self, name: str) -> Any:
        """A figure of any part, None where no part has it."""
        return next((part.figures[name] for part in self.parts if name in part.figures), None)
