"""A digest of rectangles of a tensor that adds up: parts may be counted anywhere and in any order.

    digest(tensor) = sum over elements of (bits + 1) x mix(index)   modulo 2^64

`bits` is the element's bit pattern, `index` its place in the whole Hugging Face tensor, `mix` a 64-bit mixing function
made odd (Steele et al. 2014, SplitMix64's finaliser). A change of one element is always seen: an odd factor is
invertible modulo 2^64. Moved or exchanged elements change the sum but for chance (2^-64). It guards against
faults, not against an adversary.
"""

from __future__ import annotations

import torch
from torch import Tensor

from octo_megatron.engine.refit.pieces import Box

_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_CHUNK = 1 << 20
"""Elements at a time, so that the intermediate values stay small beside a bucket."""


def digest_part(values: Tensor, box: Box, width: int) -> int:
    """The part of a tensor's digest that `values` are; signed 64 bits.

    Args:
        values: the rectangle's elements, [rows, columns] or [rows], any dtype of 1, 2, 4 or 8 bytes.
        box: where they lie in the tensor.
        width: columns of the whole tensor (1 for a vector).
    """
    flat = values.detach().reshape(box.rows, box.columns)
    step = max(1, _CHUNK // box.columns)
    total = torch.zeros((), dtype=torch.int64, device=flat.device)
    columns = torch.arange(box.column, box.column + box.columns, device=flat.device)
    for first in range(0, box.rows, step):
        part = flat[first : first + step].contiguous()
        rows = torch.arange(box.row + first, box.row + first + len(part), device=flat.device)
        index = rows[:, None] * width + columns
        total += ((part.view(_BITS[part.element_size()]).long() + 1) * _mix(index)).sum()
    return int(total)


def wrapped(total: int) -> int:
    """A sum of digests as signed 64 bits, as torch adds them."""
    return (total + (1 << 63)) % (1 << 64) - (1 << 63)


def _mix(index: Tensor) -> Tensor:
    x = index * _signed(0x9E3779B97F4A7C15)
    x = (x ^ _shifted(x, 30)) * _signed(0xBF58476D1CE4E5B9)
    x = (x ^ _shifted(x, 27)) * _signed(0x94D049BB133111EB)
    return (x ^ _shifted(x, 31)) | 1


def _shifted(x: Tensor, bits: int) -> Tensor:
    # torch shifts the sign in; the mask makes it the unsigned shift
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _signed(constant: int) -> int:
    return constant - (1 << 64) if constant >> 63 else constant
