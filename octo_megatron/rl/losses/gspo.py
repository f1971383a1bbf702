"""GSPO: one importance ratio for a whole answer."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor


def sequence_log_ratio(
    difference: Tensor,
    mask: Tensor,
    segment: Tensor,
    length: Tensor,
    add_up: Callable[[Tensor], Tensor] = lambda x: x,
) -> Tensor:
    """log s of each token's answer, with the token's own gradient: the shape of `difference`.

        log s_i = sum over tokens t of answer i of (log p_t - log p_old_t) / |answer i|
        result  = sg[log s_i] + log p_t - sg[log p_t]

    Zheng et al., "Group Sequence Policy Optimization", arXiv 2507.18071, eq. 7 (sequence ratio) and eq. 14 (the
    token form, whose value is s_i and whose gradient for one advantage an answer is GSPO's).

    Args:
        difference: log p - log p_old, [1, t]; carries the gradient.
        mask: 1 where a token counts, [1, t].
        segment: number of the token's answer in this row, float, [1, t].
        length: tokens of the token's whole answer, [1, t].
        add_up: adds a vector over the ranks that hold parts of the same row (context parallelism).
    """
    held = difference.detach() * mask
    index = segment.long().flatten()
    # every rank of the row must add vectors of one size: a row holds fewer answers than places
    places = held.new_zeros(_places(segment, add_up))
    sums = add_up(places.index_add(0, index, held.flatten()))
    own = sums[index].view_as(difference) / length.clamp(min=1)
    return own + difference - difference.detach()


def _places(segment: Tensor, add_up: Callable[[Tensor], Tensor]) -> int:
    # the sum of the ranks' highest numbers is an upper limit that all of them agree on
    return int(add_up(segment.max()[None]).item()) + 1
