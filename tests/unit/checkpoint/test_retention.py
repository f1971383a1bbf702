"""Which checkpoints stay."""

from __future__ import annotations

from octo_megatron.checkpoint.retention import Retention

LOSSES: dict[int, float | None] = {10: 3.0, 20: None, 30: 1.0, 40: 2.0, 50: 2.5, 60: None}


def kept(retention: Retention) -> list[int]:
    gone = retention.outdated(LOSSES)
    return [step for step in LOSSES if step not in gone]


def test_the_last_ones() -> None:
    assert kept(Retention(last=2)) == [50, 60]
    assert kept(Retention(last=9)) == list(LOSSES)
    assert kept(Retention(last=0)) == list(LOSSES)


def test_every_nth_for_ever() -> None:
    assert kept(Retention(last=1, every=20)) == [20, 40, 60]


def test_the_best_by_validation_loss_of_those_that_have_one() -> None:
    assert kept(Retention(last=1, best=1)) == [30, 60]
    assert kept(Retention(last=1, best=2)) == [30, 40, 60]
    assert Retention(last=1, best=1).outdated({10: float("nan"), 20: 5.0, 30: None}) == [10]


def test_pinned_steps_and_all_rules_together() -> None:
    assert kept(Retention(last=1, pinned=frozenset({10}))) == [10, 60]
    assert kept(Retention(last=1, every=50, best=1, pinned=frozenset({10}))) == [10, 30, 50, 60]
