"""The order of an epoch: a permutation in two levels, whose prefixes can be counted by blocks."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from octo_megatron.data import epoch as epochs
from octo_megatron.data.epoch import EpochOrder
from octo_megatron.data.order import permutation

_sizes = st.lists(st.integers(1, 9), min_size=1, max_size=60)


def _firsts(sizes: list[int]) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(sizes)])


@pytest.fixture
def small_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(epochs, "GROUP", 4)


@settings(max_examples=60, deadline=None)
@given(sizes=_sizes, seed=st.integers(0, 99), number=st.integers(0, 5), group=st.integers(1, 8))
def test_every_sample_comes_once(sizes: list[int], seed: int, number: int, group: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(epochs, "GROUP", group)
        order = EpochOrder(_firsts(sizes), seed, "web", number)
        assert sorted(order.at(place) for place in range(sum(sizes))) == list(range(sum(sizes)))


@settings(max_examples=60, deadline=None)
@given(sizes=_sizes, group=st.integers(1, 8), data=st.data())
def test_a_prefix_is_whole_blocks_and_some_samples(sizes: list[int], group: int, data: st.DataObject) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(epochs, "GROUP", group)
        firsts = _firsts(sizes)
        order = EpochOrder(firsts, 3, "web", 0)
        n = data.draw(st.integers(0, sum(sizes)))
        blocks, samples = order.prefix(n)
        held = [x for b in blocks.tolist() for x in range(firsts[b], firsts[b + 1])] + samples.tolist()
        assert sorted(held) == sorted(order.at(place) for place in range(n))
        assert len(samples) < max(1, group * max(sizes))


def test_a_set_of_one_group_is_one_permutation_of_all_samples() -> None:
    order = EpochOrder(_firsts([256] * 200), 5, "web", 2)
    plain = permutation(200 * 256, 5, "web", 2)
    assert [order.at(place) for place in range(300)] == [plain(place) for place in range(300)]


def test_epochs_seeds_and_names_have_orders_of_their_own(small_groups: None) -> None:
    firsts = _firsts([3] * 20)
    orders = {
        tuple(EpochOrder(firsts, seed, name, number).at(place) for place in range(60))
        for seed, name, number in ((0, "web", 0), (1, "web", 0), (0, "qa", 0), (0, "web", 1))
    }
    assert len(orders) == 4


def test_is_pinned(small_groups: None) -> None:
    """A change here changes the data of every run that goes on after it."""
    order = EpochOrder(_firsts([2] * 8), 0, "web", 0)
    assert [order.at(place) for place in range(16)] == [15, 12, 13, 14, 11, 8, 9, 10, 6, 1, 2, 5, 3, 4, 7, 0]


def test_a_big_set_is_drawn_from_all_over_and_neighbours_are_parted() -> None:
    blocks = 4000
    order = EpochOrder(_firsts([256] * blocks), 0, "web", 0)
    early = np.array([order.at(place) for place in range(4096)])
    assert np.abs(np.corrcoef(early[:-1], early[1:])[0, 1]) < 0.05
    assert np.abs(np.diff(early)).mean() == pytest.approx(blocks * 256 / 3, rel=0.05)
    assert len(np.unique(early // 256)) == 256  # blocks in the first group: all of them at once
    for half in np.histogram(early, 8, (0, blocks * 256))[0]:
        assert 0.6 < half / 512 < 1.4  # 32 of 256 blocks a bin, by chance


def test_outside_is_refused() -> None:
    with pytest.raises(IndexError):
        EpochOrder(_firsts([4]), 0, "web", 0).at(4)
