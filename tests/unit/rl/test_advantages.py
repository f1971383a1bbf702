"""Advantages against their formulas, written as loops in float64."""

import math
import random

import pytest
import torch

from octo_megatron.rl.advantages import GROUP_ADVANTAGES
from octo_megatron.rl.shaping import kl_penalty, overlong_penalty


def by_loops(kind: str, rewards: list[float], size: int) -> list[float]:
    groups = [rewards[i : i + size] for i in range(0, len(rewards), size)]
    out: list[float] = []
    for group in groups:
        mean = sum(group) / size
        std = math.sqrt(sum((x - mean) ** 2 for x in group) / (size - 1))
        for i, x in enumerate(group):
            if len(set(group)) == 1:
                out.append(0.0)
            elif kind == "grpo":
                out.append((x - mean) / (std + 1e-4))
            elif kind == "rloo":
                out.append(x - sum(y for j, y in enumerate(group) if j != i) / (size - 1))
            else:
                out.append(x - mean)
    if kind == "reinforce++":
        centre = sum(out) / len(out)
        spread = math.sqrt(sum((x - centre) ** 2 for x in out) / len(out))
        out = [x / (spread + 1e-8) for x in out]
    return out


@pytest.mark.parametrize("kind", GROUP_ADVANTAGES)
def test_advantages_are_the_formula(kind):
    r = random.Random(0)
    for size in (2, 5, 8):
        rewards = [r.choice([0.0, 1.0, 0.5]) for _ in range(size * 7)]
        found = GROUP_ADVANTAGES[kind](rewards, size)
        assert found.dtype == torch.float32
        assert found.tolist() == pytest.approx(by_loops(kind, rewards, size), abs=1e-6)


@pytest.mark.parametrize("value", [0.0, 1.0, 0.1, 1 / 3])
@pytest.mark.parametrize("kind", GROUP_ADVANTAGES)
def test_a_group_without_contrast_is_exactly_zero(kind, value):
    assert GROUP_ADVANTAGES[kind]([value] * 7 + [0.0, 1.0] * 7, 7).tolist()[:7] == [0.0] * 7


def test_overlong_punishment_is_dapos():
    """Limit 100, buffer 20: nothing to 80 tokens, half at 90, all at 100 and beyond."""
    found = [overlong_penalty(n, 100, 20) for n in (1, 80, 85, 90, 100, 120)]
    assert found == [0.0, 0.0, -0.25, -0.5, -1.0, -1.0]
    assert overlong_penalty(100, 100, 0) == 0.0
    assert overlong_penalty(90, 100, 20, penalty=0.5) == -0.25


def test_kl_penalty_adds_up_an_answer():
    assert kl_penalty([0.5, -0.25, 1.0], 0.1) == pytest.approx(-0.125)
