"""What a step's answers look like in numbers. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence

from octo_megatron.rl.rollout import Sample


def answer_figures(samples: Sequence[Sample], group_size: int) -> dict[str, float]:
    """Rewards with their parts, groups, lengths and entropy of the answers that a step trains on.

    `entropy`: mean of -log p over the sampled tokens under the engine, nats; an estimate without bias of the mean
    entropy of the distributions they came from.
    """
    rewards, lengths = [s.reward for s in samples], [len(s.token_ids) for s in samples]
    names = sorted({name for s in samples for name in s.parts})
    groups = [rewards[i : i + group_size] for i in range(0, len(rewards), group_size)]
    tokens = sum(lengths)
    return {
        "reward": mean(rewards),
        **{f"reward_{name}": mean([s.parts.get(name, 0.0) for s in samples]) for name in names},
        "group_std": mean([_std(group) for group in groups]),
        "groups_all_right": mean([min(group) >= 1.0 for group in groups]),
        "groups_all_wrong": mean([max(group) <= 0.0 for group in groups]),
        "response_length": mean(lengths),
        "response_length_p50": quantile(lengths, 0.5),
        "response_length_p95": quantile(lengths, 0.95),
        "truncated": mean([not s.finished for s in samples]),
        "entropy": -math.fsum(p for s in samples for p in s.logprobs) / max(1, tokens),
    }


def idle_share(seconds: Sequence[float]) -> float:
    """Share of the time of all ranks that they waited for the slowest of them."""
    longest = max(seconds)
    return 1.0 - sum(seconds) / (len(seconds) * longest) if longest > 0 else 0.0


def quantile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least `share` of all values do not exceed."""
    return float(sorted(values)[max(0, math.ceil(share * len(values)) - 1)])


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _std(values: Sequence[float]) -> float:
    centre = mean(values)
    return math.sqrt(sum((v - centre) ** 2 for v in values) / len(values))
