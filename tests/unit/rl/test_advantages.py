"""Advantages against their formulas, written as loops in float64."""

import math
import random

import pytest
import torch

from octo_megatron.rl.advantages import GROUP_ADVANTAGES
from octo_megatron.rl.advantages.gae import token_advantages, token_rewards, whitened
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


def test_the_reward_comes_with_the_last_token_and_penalties_with_their_own():
    assert token_rewards(2.0, 3).tolist() == [0.0, 0.0, 2.0]
    assert token_rewards(2.0, 3, [-0.5, 0.25, -0.125]).tolist() == [-0.5, 0.25, 1.875]


def rows(seed: int) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Rewards and values of the tokens of answers of 1 to 17 tokens."""
    r = random.Random(seed)
    lengths = [17, 1, 5, 9]
    rewards = [[r.gauss(0, 0.1) for _ in range(n - 1)] + [r.choice([0.0, 1.0])] for n in lengths]
    values = [[r.gauss(0.5, 1) for _ in range(n)] for n in lengths]
    return [torch.tensor(x).double() for x in rewards], [torch.tensor(x) for x in values]


@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 1.0), (0.99, 0.95), (0.9, 0.0), (1.0, 0.7)])
def test_generalised_advantages_are_the_sum_over_all_later_errors(gamma, lam):
    """Equation 16 as it stands: every token's sum over the rest of its answer, nothing carried backwards."""
    rewards, values = rows(0)
    found = token_advantages(rewards, values, gamma, lam)
    for r, v, a in zip(rewards, values, found, strict=True):
        after = [*v.tolist()[1:], 0.0]
        errors = [
            x + gamma * later - now for x, now, later in zip(r.tolist(), v.tolist(), after, strict=True)
        ]
        expected = [
            sum((gamma * lam) ** n * error for n, error in enumerate(errors[t:])) for t in range(len(errors))
        ]
        assert a.dtype == torch.float64
        assert a.tolist() == pytest.approx(expected, abs=1e-9)


def test_with_lambda_one_the_return_is_the_discounted_rest_whatever_the_values():
    rewards, values = rows(1)
    for r, v, a in zip(rewards, values, token_advantages(rewards, values, 0.9, 1.0), strict=True):
        rest = [sum(0.9**n * x for n, x in enumerate(r.tolist()[t:])) for t in range(len(r))]
        assert (a + v).tolist() == pytest.approx(rest, abs=1e-6)


def test_an_answers_advantages_do_not_depend_on_the_others():
    rewards, values = rows(2)
    together = token_advantages(rewards, values, 0.99, 0.9)
    for n in range(len(rewards)):
        (alone,) = token_advantages(rewards[n : n + 1], values[n : n + 1], 0.99, 0.9)
        assert alone.tolist() == together[n].tolist()


def test_whitening_is_over_all_tokens():
    found = whitened(rows(3)[1])
    every = [x for row in rows(3)[1] for x in row.double().tolist()]
    mean = sum(every) / len(every)
    variance = sum((x - mean) ** 2 for x in every) / (len(every) - 1)
    expected = [(x - mean) / math.sqrt(variance + 1e-8) for x in every]
    assert torch.cat(found).tolist() == pytest.approx(expected, abs=1e-5)
    assert [len(row) for row in found] == [17, 1, 5, 9]
    assert whitened([torch.tensor([0.7])])[0].tolist() == pytest.approx([0.7])
