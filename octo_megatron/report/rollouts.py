"""The answers of one RL step that are worth reading: best, worst, longest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from octo_megatron.config.errors import UserError
from octo_megatron.report.read import compressed_rows


@dataclass(frozen=True)
class Shown:
    """One answer and why it is shown."""

    why: str
    row: dict[str, Any]


def step_rows(node: Path, step: int) -> list[dict[str, Any]]:
    """All answers of a step.

    Raises:
        UserError: the step left no rollouts; the steps that did are named.
    """
    path = node / "rollouts" / f"step_{step:05d}.jsonl.zst"
    if not path.is_file():
        files = (node / "rollouts").glob("step_*.jsonl.zst")
        steps = sorted(int(p.name.split(".")[0].removeprefix("step_")) for p in files)
        there = f"there are steps {steps[0]} to {steps[-1]}" if steps else "no step has left any yet"
        raise UserError(f"{node.name} has no rollouts of step {step}; {there}")
    return compressed_rows(path)


def chosen(rows: Sequence[dict[str, Any]], each: int) -> list[Shown]:
    """`each` answers with the highest reward, with the lowest, and with most tokens; none twice. Pure.

    Among equal rewards the shorter answer is the better one, and the longer one the worse.
    """
    out: list[Shown] = []
    seen: set[int] = set()
    for why, key in (
        ("best", lambda row: (-row["reward"], row["tokens"])),
        ("worst", lambda row: (row["reward"], -row["tokens"])),
        ("longest", lambda row: (-row["tokens"],)),
    ):
        order = [i for i in sorted(range(len(rows)), key=lambda i: key(rows[i])) if i not in seen]
        for i in order[:each]:
            seen.add(i)
            out.append(Shown(why, rows[i]))
    return out
