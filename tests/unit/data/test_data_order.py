"""The keyed permutation."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from octo_megatron.data.order import permutation


@settings(max_examples=150, deadline=None)
@given(n=st.integers(1, 3000), seed=st.integers(0, 2**31), epoch=st.integers(0, 9))
def test_is_a_bijection(n: int, seed: int, epoch: int) -> None:
    image = permutation(n, seed, "web", epoch).many(np.arange(n))
    assert sorted(image.tolist()) == list(range(n))


@settings(max_examples=100, deadline=None)
@given(n=st.integers(1, 2**62), data=st.data())
def test_one_by_one_is_the_same_as_many(n: int, data: st.DataObject) -> None:
    order = permutation(n, 3, "web", 0)
    xs = data.draw(st.lists(st.integers(0, n - 1), min_size=1, max_size=10, unique=True))
    image = [order(x) for x in xs]
    assert order.many(np.array(xs, dtype=np.uint64)).tolist() == image
    assert len(set(image)) == len(xs) and all(0 <= y < n for y in image)


def test_differs_by_epoch_seed_and_name() -> None:
    def order(seed: int = 0, name: str = "web", epoch: int = 0) -> tuple[int, ...]:
        return tuple(permutation(50, seed, name, epoch).many(np.arange(50)).tolist())

    assert order() == order()
    assert len({order(), order(seed=1), order(name="general"), order(epoch=1), order(epoch=2)}) == 5


def test_is_pinned() -> None:
    """A change here changes the data of every run that goes on after it."""
    assert permutation(10, 0, "web", 0).many(np.arange(10)).tolist() == [6, 5, 9, 1, 2, 3, 8, 7, 0, 4]


def test_every_element_comes_first_equally_often() -> None:
    n, epochs = 7, 3500
    first = Counter(permutation(n, 0, "web", epoch)(0) for epoch in range(epochs))
    chi_square = sum((first[x] - epochs / n) ** 2 / (epochs / n) for x in range(n))
    assert chi_square < 22.5  # 6 degrees of freedom, p = 0.001


def test_neighbours_do_not_stay_together() -> None:
    image = permutation(100_000, 0, "web", 0).many(np.arange(100_000)).astype(np.int64)
    assert abs(np.corrcoef(image[:-1], image[1:])[0, 1]) < 0.01
    assert np.abs(np.diff(image)).mean() == pytest.approx(100_000 / 3, rel=0.02)


def test_outside_is_refused() -> None:
    with pytest.raises(IndexError):
        permutation(10, 0, "web", 0)(10)
