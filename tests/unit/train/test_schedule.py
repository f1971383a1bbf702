"""Learning rates, computed by hand."""

from __future__ import annotations

import math
from typing import Any

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


@pytest.mark.parametrize(
    ("kind", "left"),
    [("cosine", [1.0, 0.8535533905932737, 0.5, 0.14644660940672624, 0.0]),
     ("linear", [1.0, 0.75, 0.5, 0.25, 0.0]),
     ("1-sqrt", [1.0, 0.5, 0.2928932188134524, 0.1339745962155614, 0.0])],
)  # fmt: skip
def test_falling_schedules_after_a_warmup(kind: str, left: list[float]) -> None:
    schedule = ScheduleConfig(kind=kind, lr=1.0, min_lr=0.1, warmup_steps=2)
    rates = [learning_rate(schedule, step, 7) for step in range(7)]
    assert rates == pytest.approx([0.5, 1.0, *(0.1 + 0.9 * x for x in left)])


@pytest.mark.parametrize("decay", ["cosine", "linear", "1-sqrt"])
def test_wsd_is_a_stable_node_and_then_a_branch(decay: str) -> None:
    one = ScheduleConfig(kind="wsd", lr=0.3, min_lr=0.03, warmup_steps=3, decay_steps=8, decay=decay)
    stable = ScheduleConfig(kind="constant", lr=0.3, warmup_steps=3)
    branch = ScheduleConfig(kind=decay, lr=0.3, min_lr=0.03)
    two = [learning_rate(stable, s, 20) for s in range(20)] + [learning_rate(branch, s, 8) for s in range(8)]
    assert [learning_rate(one, s, 28) for s in range(28)] == two
    assert two[20] == 0.3 and two[27] == pytest.approx(0.03)


def test_lengths_in_tokens_are_those_in_steps() -> None:
    per_step = 128 * 8
    tokens = {"kind": "wsd", "lr": 0.1, "warmup_tokens": 2 * per_step, "decay_tokens": 5 * per_step}
    by_tokens = node(tokens=20 * per_step, schedule=ScheduleConfig(**tokens))
    by_steps = node(tokens=0, steps=20, schedule=ScheduleConfig("wsd", 0.1, warmup_steps=2, decay_steps=5))
    assert (by_tokens.tokens, by_tokens.steps) == (by_steps.tokens, by_steps.steps) == (20 * per_step, 20)
    for step in range(20):
        assert learning_rate(by_tokens.schedule, step, 20) == learning_rate(by_steps.schedule, step, 20)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 3}, "tokens 8192 and steps 3 contradict each other"),
        ({"tokens": 0}, "less than one step"),
        ({"schedule": ScheduleConfig(warmup_tokens=100)}, "steps of 1024 tokens; use warmup_tokens=1024"),
        ({"schedule": ScheduleConfig(warmup_tokens=2048, warmup_steps=3)}, "contradicts"),
        ({"schedule": ScheduleConfig("wsd", warmup_steps=4, decay_steps=5)}, r"warmup 4 \+ decay 5 steps"),
    ],
)  # fmt: skip
def test_lengths_that_contradict(changes: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        node(**changes)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"kind": "cosin"}, "use constant, cosine, linear, 1-sqrt or wsd"),
        ({"kind": "wsd"}, "wsd needs schedule.decay_steps or schedule.decay_tokens"),
        ({"kind": "cosine", "decay_steps": 5}, "belongs to kind wsd"),
        ({"min_lr": 1.0, "lr": 0.1}, "must lie in"),
    ],
)
def test_schedules_that_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        ScheduleConfig(**fields)


def test_branch_must_continue_its_parents_rate() -> None:
    decay = node(schedule=ScheduleConfig(kind="cosine", lr=3e-3, min_lr=3e-4))
    check_continuity("short", decay, "stable", 3e-3)
    with pytest.raises(
        UserError, match=r"short starts at learning rate 0\.003 but its parent stable ended at 0\.002"
    ):
        check_continuity("short", decay, "stable", 2e-3)
    check_continuity("short", decay, "stable", 3e-3 * (1 + 9e-13))
    with pytest.raises(UserError, match="starts at learning rate"):
        check_continuity("short", decay, "stable", 3e-3 * (1 + 2e-12))


@pytest.mark.parametrize("size", [1, 2, 4])
def test_every_layout_reads_the_same_samples(size: int) -> None:
    per_rank = [sample_positions(node(), 3, rank, size) for rank in range(size)]
    assert len({len(p) for p in per_rank}) == 1
    assert sorted(i for p in per_rank for micro in p for i in micro) == list(range(24, 32))


def test_nodes_draw_in_orders_of_their_own() -> None:
    assert node_seed(0, "short") != node_seed(0, "long")
    assert node_seed(0, "short") != node_seed(1, "short")
    assert node_seed(0, "short") == node_seed(0, "short") < 2**63
