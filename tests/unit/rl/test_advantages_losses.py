"""Advantages and loss against the formulas, written as loops in float64."""

import math
import random

import pytest
import torch

from octo_megatron.config.schema import ParallelConfig, RLNode
from octo_megatron.model.batch import Document, pack
from octo_megatron.rl.advantages import group_normalised
from octo_megatron.rl.losses import ADVANTAGE, ENGINE, OLD, ClippedLoss


def test_advantages_are_the_formula():
    r = random.Random(0)
    for size in (2, 5, 8):
        rewards = [r.choice([0.0, 1.0, 0.5]) for _ in range(size * 7)]
        expected = []
        for start in range(0, len(rewards), size):
            group = rewards[start : start + size]
            mean = sum(group) / size
            std = math.sqrt(sum((x - mean) ** 2 for x in group) / (size - 1))
            expected += [0.0 if len(set(group)) == 1 else (x - mean) / (std + 1e-4) for x in group]
        found = group_normalised(rewards, size)
        assert found.dtype == torch.float32
        assert found.tolist() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("value", [0.0, 1.0, 0.1, 1 / 3])
def test_a_group_without_contrast_is_exactly_zero(value):
    assert group_normalised([value] * 7, 7).tolist() == [0.0] * 7


def by_hand(new, old, engine, advantage, low, high, cap):
    total = 0.0
    for n, o, e, a in zip(new, old, engine, advantage, strict=True):
        ratio = math.exp(n - o)
        clipped = min(max(ratio, 1 - low), 1 + high)
        total -= min(math.exp(o - e), cap) * min(ratio * a, clipped * a)
    return total


def sequences(seed):
    """Two answers: (log-probabilities now, old, engine's, advantage) of 5 and 9 tokens, float64."""
    g = torch.Generator().manual_seed(seed)
    for n in (5, 9):
        new = -3 * torch.rand(n, generator=g, dtype=torch.float64)
        old = new + 0.5 * torch.randn(n, generator=g, dtype=torch.float64)
        engine = old + 0.8 * torch.randn(n, generator=g, dtype=torch.float64)
        yield new, old, engine, torch.randn(n, generator=g, dtype=torch.float64)


@pytest.mark.parametrize("bounds", [(0.2, 0.2, 2.0), (0.2, 0.28, 1.5), (0.1, 0.5, 100.0)])
def test_loss_is_the_formula(bounds):
    loss = ClippedLoss(*bounds)
    documents, hand, news, clipped = [], 0.0, [], 0
    for new, old, engine, advantage in sequences(1):
        prompt = torch.zeros(3, dtype=torch.float64)
        mask = torch.cat([prompt, torch.ones_like(new)]).float()
        full = {
            name: torch.cat([prompt, x]).float()
            for name, x in ((OLD, old), (ENGINE, engine), (ADVANTAGE, advantage))
        }
        ids = torch.arange(len(mask))
        documents.append(Document(ids, ids, mask, full))
        news.append(torch.cat([prompt - 50.0, new]))
        hand += by_hand(new.tolist(), old.tolist(), engine.tolist(), advantage.tolist(), *bounds)
        ratio = (new - old).exp()
        clipped += int(
            ((advantage > 0) & (ratio > 1 + bounds[1])).sum()
            + ((advantage < 0) & (ratio < 1 - bounds[0])).sum()
        )
    batch = pack(documents, ParallelConfig(), total=40)
    logprobs = torch.cat([*news, torch.full((batch.length - 20,), -1e30)])[None].float().requires_grad_()
    total, tokens, figures = loss(logprobs, batch)
    assert total.item() == pytest.approx(hand, abs=1e-5)
    assert tokens.item() == 14
    assert figures["clipped"].item() == clipped
    total.backward()
    assert torch.isfinite(logprobs.grad).all()
    assert (logprobs.grad[batch.loss_mask == 0] == 0).all()


def test_gradient_is_advantage_times_score_at_the_first_update():
    """With new == old == engine the gradient of the loss is -A a token: plain policy gradient."""
    loss, a = ClippedLoss(0.2, 0.2, 2.0), torch.tensor([1.5, -0.5])
    new = torch.tensor([-1.0, -2.0], requires_grad=True)
    loss.per_token(new, new.detach(), new.detach(), a).sum().backward()
    assert new.grad.tolist() == pytest.approx((-a).tolist())


def test_the_loss_takes_its_numbers_from_the_node():
    assert ClippedLoss.of(RLNode(clip_ratio_low=0.1, clip_ratio_high=0.3, importance_cap=5.0)) == ClippedLoss(
        0.1, 0.3, 5.0
    )
