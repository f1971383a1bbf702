"""Which weight a token has in the loss of an update."""

from __future__ import annotations

from collections.abc import Sequence


def token_weights(lengths: Sequence[int], aggregation: str, limit: int) -> list[float]:
    """The weight of each token of each answer, such that sum(weight x loss) / sum(lengths) is

        token:     sum over all tokens / number of tokens        (DAPO, arXiv 2503.14476, section 3.3)
        sequence:  mean over answers of their mean over tokens   (GRPO, arXiv 2402.03300, eq. 3)
        fixed:     sum over all tokens / (answers x limit)       (Dr. GRPO, arXiv 2503.20783, section 3.2)

    The trainer divides by the tokens of the whole update, so how answers are cut into micro-batches and over
    ranks changes nothing.

    Args:
        lengths: tokens of every answer of the update, over all ranks.
        limit: the step's limit of answer tokens.
    """
    total, answers = sum(lengths), len(lengths)
    if aggregation == "token":
        return [1.0] * answers
    if aggregation == "sequence":
        return [total / (answers * length) for length in lengths]
    if aggregation == "fixed":
        return [total / (answers * limit)] * answers
    raise ValueError(f"unknown aggregation {aggregation}")
