"""Which steps the guard leaves out, on numbers alone; with real training: tests/parallel/test_guarded_training.py."""

from __future__ import annotations

import json
import math
import random

import pytest

from octo_megatron.train.guard import PATIENCE, Guard


def settled(sigma: float = 6.0, window: int = 128) -> Guard:
    guard, noise = Guard(sigma, window), random.Random(0)
    for _ in range(window):
        assert guard.judge(noise.gauss(2.0, 0.1), noise.gauss(1.0, 0.05)) is None
    return guard


def test_a_spike_of_the_loss_or_of_the_gradient_is_named_with_its_distance() -> None:
    reason = settled().judge(3.0, 1.0)
    assert reason and reason.startswith("loss 3 is ") and "standard deviations above" in reason
    reason = settled().judge(2.0, 2.0)
    assert reason and reason.startswith("gradient norm 2 is ")
    assert "; gradient norm" in (settled().judge(3.0, 2.0) or "")


def test_the_limit_is_sigma_times_the_deviation_above_the_mean() -> None:
    guard = settled()
    mean = sum(guard.losses) / len(guard.losses)
    deviation = math.sqrt(sum((x - mean) ** 2 for x in guard.losses) / (len(guard.losses) - 1))
    assert guard.judge(mean + 5.999 * deviation, 1.0) is None
    assert settled().judge(mean + 6.001 * deviation, 1.0) is not None
    assert settled().judge(mean - 20 * deviation, 0.1) is None  # falling is no spike


def test_early_steps_and_sigma_0_skip_nothing_that_is_finite() -> None:
    early = Guard(6.0)
    assert all(early.judge(2.0 + 0.01 * i, 1.0) is None for i in range(63))
    assert early.judge(50.0, 1.0) is None
    assert settled(sigma=0.0).judge(1e6, 1e6) is None


def test_a_lasting_change_of_level_is_accepted_in_the_end() -> None:
    guard = settled()
    skipped = [guard.judge(4.0, 1.0) is not None for _ in range(20)]
    assert skipped[0] and not skipped[-1]


@pytest.mark.parametrize("pair", [(math.nan, 1.0), (2.0, math.inf), (math.inf, math.nan)])
def test_what_is_not_finite_is_skipped_always_and_leaves_the_window_alone(pair: tuple[float, float]) -> None:
    guard = settled(sigma=0.0)
    before = guard.state()
    for count in range(1, PATIENCE + 1):
        assert not guard.exhausted
        assert "not finite" in (guard.judge(*pair) or "")
        assert guard.not_finite == count
    assert guard.exhausted
    assert guard.judge(2.0, 1.0) is None and not guard.exhausted
    assert list(guard.losses)[-2:] == [before["losses"][-1], 2.0]


def test_a_restored_guard_judges_alike() -> None:
    guard = settled()
    other = Guard(6.0)
    other.restore(json.loads(json.dumps(guard.state())))
    for pair in ((2.05, 1.0), (2.9, 1.01), (2.0, 9.0), (2.0, math.nan)):
        assert other.judge(*pair) == guard.judge(*pair)
    assert other.state() == guard.state()
