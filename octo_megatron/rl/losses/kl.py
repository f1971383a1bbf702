"""Estimates of KL(policy || reference) from single sampled tokens."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor


def k1(logprob: Tensor, reference: Tensor) -> Tensor:
    """log p - log q: unbiased, may be negative, and as a loss its expected gradient is zero: use it in rewards.

    All three: Schulman, "Approximating KL Divergence" (2020), with samples from p; one value a token.
    """
    return logprob - reference


def k2(logprob: Tensor, reference: Tensor) -> Tensor:
    """(log p - log q)^2 / 2: biased, low variance; its gradient is that of the KL divergence itself."""
    return (logprob - reference).square() / 2


def k3(logprob: Tensor, reference: Tensor) -> Tensor:
    """q/p - 1 - log(q/p): unbiased and never negative; what GRPO's paper has in its loss (eq. 4)."""
    difference = reference - logprob
    return difference.expm1() - difference


ESTIMATORS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"k1": k1, "k2": k2, "k3": k3}
"""(log-probability under the policy, under the reference) of sampled tokens -> estimate a token."""
