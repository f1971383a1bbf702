"""When engine and trainer count as holding different weights."""

from __future__ import annotations

import math

import pytest

from octo_megatron.rl.gap import Gap


@pytest.mark.parametrize(
    ("highest", "tokens", "beyond", "too_large"),
    [
        (9e-5, 9000, 0, False),
        (1.5e-4, 9000, 9, False),  # one in a thousand
        (1.5e-4, 9000, 10, True),
        (1.5e-4, 20, 1, False),  # a small step may have its one improbable token
        (1.5e-4, 20, 2, True),
        (1.1e-3, 9000, 1, True),  # more than rounding moves any token
        (math.inf, 9000, 1, True),  # a log-probability that is not a number
    ],
)
def test_rounding_moves_single_tokens_and_wrong_weights_move_all(
    highest: float, tokens: int, beyond: int, too_large: bool
) -> None:
    assert Gap(highest, 1e-7, tokens, beyond).too_large(1e-4, 0.001) is too_large


def test_without_the_allowance_no_token_may_pass_the_limit() -> None:
    assert not Gap(9e-5, 1e-7, 9000, 0).too_large(1e-4, 0.0)
    assert Gap(1.1e-4, 1e-7, 9000, 1).too_large(1e-4, 0.0)
