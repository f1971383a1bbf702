"""Learning rates, computed by hand."""

from __future__ import annotations

import math

import pytest

from octo_megatron.config.errors import UserError
from octo_megatron.config.schema import ScheduleConfig, TrainNode
from octo_megatron.data.mixture import node_seed
from octo_megatron.train.batches import sample_positions
from octo_megatron.train.begin import check_continuity
from octo_megatron.train.schedule import learning_rate


def node(**changes: object) -> TrainNode:
    return TrainNode(
        **{
            "tokens": 128 * 64,
            "global_batch_size": 8,
            "micro_batch_size": 2,
            "mixture": {"a": 1.0},
            **changes,
        }
    )  # type: ignore[arg-type]


def test_constant_with_warmup() -> None:
    schedule = ScheduleConfig(kind="constant", lr=0.4, warmup_steps=4)
    assert [learning_rate(schedule, s, 10) for s in range(6)] == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.4, 0.4])


def test_cosine_ends() -> None:
    schedule = ScheduleConfig(kind="cosine", lr=1.0, min_lr=0.1)
    assert learning_rate(schedule, 0, 11) == 1.0
    assert learning_rate(schedule, 5, 11) == pytest.approx(0.55)
    assert learning_rate(schedule, 10, 11) == pytest.approx(0.1)
    expected = 0.1 + 0.9 * (1 + math.cos(math.pi * 0.3)) / 2
    assert learning_rate(schedule, 3, 11) == pytest.approx(expected)


def test_branch_must_continue_its_parents_rate() -> None:
    decay = node(schedule=ScheduleConfig(kind="cosine", lr=3e-3, min_lr=3e-4))
    check_continuity("short", decay, "stable", 3e-3)
    with pytest.raises(
        UserError, match=r"short starts at learning rate 0\.003 but its parent stable ended at 0\.002"
    ):
        check_continuity("short", decay, "stable", 2e-3)


@pytest.mark.parametrize("size", [1, 2, 4])
def test_every_layout_reads_the_same_samples(size: int) -> None:
    per_rank = [sample_positions(node(), 3, rank, size) for rank in range(size)]
    assert len({len(p) for p in per_rank}) == 1
    assert sorted(i for p in per_rank for micro in p for i in micro) == list(range(24, 32))


def test_nodes_draw_in_orders_of_their_own() -> None:
    assert node_seed(0, "short") != node_seed(0, "long")
    assert node_seed(0, "short") != node_seed(1, "short")
    assert node_seed(0, "short") == node_seed(0, "short") < 2**63
