"""What a lineage with RL from its base and from its branches can show, checked against thresholds."""

from __future__ import annotations

from typing import Any

BASE_BELOW = 0.05
"""RL from the base counts as flat when its sampled reward ends below this."""
CLIMB_AT_LEAST = 0.1
"""RL from a branch counts as climbing when its sampled reward gains at least this."""
END_ABOVE = 0.5
"""... and as useful when it ends above this."""


def check_claim(rl: dict[str, dict[str, Any]], roots: list[str], branches: list[str]) -> dict[str, Any]:
    """Which parts of the claim hold; only finished RL nodes count.

    Args:
        rl: by the node that RL started from: {"state", "reward": [start, end], "length": [start, end], ..}.
        roots: nodes without a parent; RL from the first of them is the comparison.
        branches: nodes at the ends of mid-training.

    Returns:
        base_flat, long_is_longest, holds: True, False, or None where the run holds nothing to tell from;
        branches_climb, branches_end_above_half: {branch: bool}; highest, longest: branch names or None.
        `holds` needs the base and every branch that the lineage declares RL for, at least one.
    """
    ended = {
        name: entry for name, entry in rl.items() if entry["state"] == "done" and None not in entry["reward"]
    }
    base = next((name for name in roots if name in ended), None)
    mine = [name for name in branches if name in ended]
    climb = {name: _gain(ended[name]["reward"]) >= CLIMB_AT_LEAST for name in mine}
    above = {name: ended[name]["reward"][1] > END_ABOVE for name in mine}
    longest = max(mine, key=lambda name: ended[name]["length"][1], default=None)
    base_flat = None if base is None else ended[base]["reward"][1] < BASE_BELOW
    long_is_longest = longest == "long" if "long" in mine and len(mine) > 1 else None
    complete = base is not None and mine and all(name in ended for name in branches if name in rl)
    parts = [base_flat, long_is_longest, *climb.values(), *above.values()]
    return {
        "base": base,
        "base_flat": base_flat,
        "branches_climb": climb,
        "branches_end_above_half": above,
        "long_is_longest": long_is_longest,
        "highest": max(mine, key=lambda name: ended[name]["reward"][1], default=None),
        "longest": longest,
        "holds": all(part is not False for part in parts) if complete else None,
        "thresholds": {"base_below": BASE_BELOW, "climb_at_least": CLIMB_AT_LEAST, "end_above": END_ABOVE},
    }


def _gain(pair: list[float]) -> float:
    # rounded, so that a gain of exactly the threshold is not lost to the last bit of a subtraction
    return round(pair[1] - pair[0], 9)
