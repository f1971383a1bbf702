"""Parts of a reward that depend on length and on distance from the reference."""

from __future__ import annotations

from collections.abc import Sequence


def overlong_penalty(length: int, limit: int, buffer: int, penalty: float = 1.0) -> float:
    """0 up to limit - buffer tokens, then falling in a line to -penalty at the limit.

    DAPO's soft overlong punishment: Yu et al., arXiv 2503.14476, eq. 13. `buffer` 0: always 0.
    """
    if not buffer or length <= limit - buffer:
        return 0.0
    return -penalty * min(1.0, (length - (limit - buffer)) / buffer)


def kl_penalty(estimates: Sequence[float], coefficient: float) -> float:
    """-coefficient x the sum of an answer's KL estimates, to be added to its reward.

    RLHF's per-token penalty (Ouyang et al., arXiv 2203.02155, eq. 2) for rewards that come at the end.
    """
    return -coefficient * sum(estimates)
