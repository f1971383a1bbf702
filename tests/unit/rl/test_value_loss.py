"""The critic's loss against its formula, written as loops in float64."""

import random

import pytest
import torch

from octo_megatron.config.schema import ParallelConfig
from octo_megatron.model.batch import Document, pack
from octo_megatron.rl.losses.value import RETURN, VALUE, ValueLoss, explained_variance


def numbers(seed: int, count: int = 40) -> list[tuple[float, float, float]]:
    """(value now, value before, return); the values often beyond the clip."""
    r = random.Random(seed)
    return [(r.gauss(0, 1), r.gauss(0, 1), r.gauss(0, 1)) for _ in range(count)]


def by_loops(rows: list[tuple[float, float, float]], clip: float) -> tuple[float, list[float], int]:
    """(sum of the loss, its derivative by each value, tokens without one)."""
    total, slopes, held = 0.0, [], 0
    for value, old, goal in rows:
        near = min(max(value, old - clip), old + clip) if clip else value
        free, kept = (value - goal) ** 2, (near - goal) ** 2
        total += 0.5 * max(free, kept)
        slopes.append(value - goal if free >= kept else 0.0)
        held += free < kept
    return total, slopes, held


@pytest.mark.parametrize("clip", [0.0, 0.2, 0.5, 10.0])
def test_loss_and_gradient_are_the_formula(clip):
    rows = numbers(0)
    prompt = [0.0] * 3
    extras = {
        VALUE: torch.tensor(prompt + [old for _, old, _ in rows]),
        RETURN: torch.tensor(prompt + [goal for *_, goal in rows]),
    }
    ids = torch.arange(len(rows) + 3)
    document = Document(ids, ids, torch.tensor(prompt + [1.0] * len(rows)), extras)
    batch = pack([document], ParallelConfig(), total=60)
    now = torch.full((1, batch.length), float("inf"))  # what stands in prompts and padding must not matter
    now[0, 3 : 3 + len(rows)] = torch.tensor([value for value, *_ in rows])
    now.requires_grad_()
    total, tokens, figures = ValueLoss(clip)(now, batch)
    expected, slopes, held = by_loops(rows, clip)
    assert total.item() == pytest.approx(expected, abs=1e-4) and tokens.item() == len(rows)
    total.backward()
    assert now.grad[0, 3 : 3 + len(rows)].tolist() == pytest.approx(slopes, abs=1e-5)
    assert (now.grad[0, :3] == 0).all() and (now.grad[0, 3 + len(rows) :] == 0).all()
    assert int(figures["value_clipped"]) == held
    assert (held > 0) == (clip in (0.2, 0.5))


def test_explained_variance():
    returns = torch.tensor([0.0, 1.0, 1.0, 0.0])
    assert explained_variance(returns, returns) == 1.0
    assert explained_variance(torch.full((4,), 0.3), returns) == pytest.approx(0.0)
    assert explained_variance(returns + 5.0, returns) == pytest.approx(1.0)  # an offset is not variance
    assert explained_variance(1 - returns, returns) == pytest.approx(-3.0)
    assert explained_variance(returns, torch.ones(4)) == 0.0
