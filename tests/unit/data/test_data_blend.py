"""The blend: exact shares at every prefix, counted by hand."""

from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from octo_megatron.config.errors import UserError
from octo_megatron.data.blend import Blend

_weights = st.lists(st.integers(1, 500), min_size=1, max_size=9)


def _shares(weights: list[int]) -> dict[str, float]:
    return {f"s{i}": weight / sum(weights) for i, weight in enumerate(weights)}


@settings(max_examples=100, deadline=None)
@given(weights=_weights)
def test_within_tijdemans_bound_at_every_prefix(weights: list[int]) -> None:
    blend = Blend(_shares(weights))
    exact = [Fraction(weight, sum(weights)) for weight in weights]
    assert [Fraction(weight, blend.period) for weight in blend.weights] == exact
    owners = np.array([int(blend.at(i)[0][1:]) for i in range(blend.period)])
    counts = np.stack([np.cumsum(owners == s) for s in range(len(weights))], axis=1)
    ideal = np.arange(1, blend.period + 1)[:, None] * np.array(weights) / sum(weights)
    bound = 1 - 1 / (2 * len(weights) - 2) if len(weights) > 1 else 0
    assert np.abs(counts - ideal).max() <= bound + 1e-9


@settings(max_examples=100, deadline=None)
@given(weights=_weights, prefixes=st.lists(st.integers(0, 1_000_000), min_size=1, max_size=20))
def test_within_one_sample_of_share_times_n_at_any_prefix(weights: list[int], prefixes: list[int]) -> None:
    blend = Blend(_shares(weights))
    for n in prefixes:
        counts = blend.counts(n)
        assert sum(counts.values()) == n
        assert all(abs(counts[f"s{i}"] - Fraction(a * n, sum(weights))) < 1 for i, a in enumerate(weights))


def test_six_decimals_are_exact() -> None:
    millionths = {"a": 123_457, "b": 300_002, "c": 576_541}
    blend = Blend({name: value / 1_000_000 for name, value in millionths.items()})
    assert blend.period == 1_000_000 and dict(zip(blend.names, blend.weights, strict=True)) == millionths
    for n in range(0, 5_000_000, 9_973):
        counts = blend.counts(n)
        assert all(
            abs(counts[name] - Fraction(value * n, 1_000_000)) < 1 for name, value in millionths.items()
        )


def test_other_shares_are_within_a_millionth() -> None:
    shares = {"a": 0.41421356237, "b": 0.31783724519, "c": 0.26794919244}
    blend = Blend(shares)
    assert blend.period <= 1_000_000
    for name, weight in zip(blend.names, blend.weights, strict=True):
        assert weight / blend.period == pytest.approx(shares[name], abs=1e-6)


@settings(max_examples=50, deadline=None)
@given(weights=_weights, start=st.integers(0, 10**12))
def test_counts_and_positions_agree_anywhere(weights: list[int], start: int) -> None:
    blend = Blend(_shares(weights))
    counts = blend.counts(start)
    for i in range(start, start + 50):
        name, index = blend.at(i)
        assert index == counts[name]
        counts[name] += 1
    assert counts == blend.counts(start + 50)


def test_does_not_depend_on_the_order_of_the_mapping() -> None:
    shares = {"web": 0.25, "general": 0.05, "long": 0.7}
    other = dict(reversed(shares.items()))
    assert [Blend(shares).at(i) for i in range(100)] == [Blend(other).at(i) for i in range(100)]


def test_a_share_of_zero_never_comes_and_a_small_one_comes_evenly() -> None:
    blend = Blend({"web": 0.95, "rare": 0.05, "none": 0.0})
    places = [i for i in range(2000) if blend.at(i)[0] == "rare"]
    assert blend.names == ("rare", "web") and blend.period == 20
    assert {b - a for a, b in pairwise(places)} == {20}


def test_thirds_are_thirds() -> None:
    assert Blend({"a": 0.3333333, "b": 0.3333333, "c": 0.3333333}).period == 3


def test_a_share_too_small_to_be_kept_is_refused() -> None:
    with pytest.raises(UserError, match="share 1e-07 of source 'b'"):
        Blend({"a": 1 - 1e-7, "b": 1e-7})
