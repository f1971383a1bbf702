"""Generalised advantage estimation: how much better each token was than the critic had expected."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

_EPSILON = 1e-8


def token_rewards(reward: float, length: int, penalties: Sequence[float] | None = None) -> Tensor:
    """float64 [length]: the answer's `reward` at its last token, added to each token's own penalty (KL), if any."""
    out = torch.zeros(length, dtype=torch.float64)
    if penalties is not None:
        out += torch.tensor(penalties, dtype=torch.float64)
    out[-1] += reward
    return out


def token_advantages(
    rewards: Sequence[Tensor], values: Sequence[Tensor], gamma: float, lam: float
) -> list[Tensor]:
    """The advantage of each token of each answer, float64, shapes as given.

        A_t = sum over l >= 0 of (gamma lam)^l delta_{t+l},   delta_t = r_t + gamma V_{t+1} - V_t

    Schulman et al., "High-Dimensional Continuous Control Using Generalized Advantage Estimation", arXiv 1506.02438,
    eq. 11, 12 and 16, computed backwards as A_t = delta_t + gamma lam A_{t+1}. An answer is a whole episode: after its
    last token the value is 0, also where it was cut at the limit, since its reward has come. A_t + V_t is what
    the critic learns.

    Args:
        rewards: of each token of each answer, [tokens].
        values: the critic's, before each token; the same shapes.
    """
    lengths = [len(row) for row in rewards]
    # zeros behind an answer are a state of value 0 without reward: they add nothing to what stands before them
    r = pad_sequence([row.double() for row in rewards], batch_first=True)
    v = pad_sequence([row.double() for row in values], batch_first=True)
    delta = r + gamma * torch.nn.functional.pad(v[:, 1:], (0, 1)) - v
    out, running = torch.zeros_like(delta), torch.zeros(len(lengths), dtype=torch.float64)
    for t in reversed(range(delta.shape[1])):
        running = delta[:, t] + gamma * lam * running
        out[:, t] = running
    return [row[:length] for row, length in zip(out, lengths, strict=True)]


def whitened(advantages: Sequence[Tensor]) -> list[Tensor]:
    """(A - mean) / sqrt(variance + 1e-8) over all tokens of all answers; the sample variance (n - 1)."""
    every = torch.cat(list(advantages))
    if len(every) < 2:
        return list(advantages)
    scale = torch.rsqrt(every.var() + _EPSILON)
    return [(row - every.mean()) * scale for row in advantages]
