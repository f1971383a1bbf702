"""The digest of a refit: adds up over any cut, and sees a single byte."""

from __future__ import annotations

import random

import pytest
import torch

from octo_megatron.engine.refit.digest import digest_part, wrapped
from octo_megatron.engine.refit.pieces import Box


def by_loops(tensor: torch.Tensor) -> int:
    """The formula with Python's integers."""
    total, mask = 0, (1 << 64) - 1
    for i, bits in enumerate(tensor.reshape(-1).view(torch.int32).tolist()):
        x = i * 0x9E3779B97F4A7C15 & mask
        x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 & mask
        x = (x ^ (x >> 27)) * 0x94D049BB133111EB & mask
        total += (bits + 1) * ((x ^ (x >> 31)) | 1)
    return wrapped(total)


def test_it_is_the_formula() -> None:
    tensor = torch.randn(7, 5, generator=torch.Generator().manual_seed(0))
    assert digest_part(tensor, Box(0, 7, 0, 5), 5) == by_loops(tensor)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_parts_add_up_to_the_whole(dtype: torch.dtype) -> None:
    tensor = torch.randn(12, 10, generator=torch.Generator().manual_seed(1)).to(dtype)
    whole = digest_part(tensor, Box(0, 12, 0, 10), 10)
    parts = sum(
        digest_part(tensor[r : r + 4, c : c + 5], Box(r, 4, c, 5), 10) for r in (8, 0, 4) for c in (5, 0)
    )
    assert wrapped(parts) == whole
    vector = tensor[0].contiguous()
    assert wrapped(
        digest_part(vector[:3], Box(0, 3, 0, 1), 1) + digest_part(vector[3:], Box(3, 7, 0, 1), 1)
    ) == digest_part(vector, Box(0, 10, 0, 1), 1)


def test_every_flipped_bit_and_every_exchange_is_seen() -> None:
    r, tensor = random.Random(0), torch.randn(16, 8, generator=torch.Generator().manual_seed(2))
    whole = digest_part(tensor, Box(0, 16, 0, 8), 8)
    for _ in range(200):
        changed = tensor.clone()
        changed.view(torch.uint8).view(-1)[r.randrange(512)] ^= 1 << r.randrange(8)
        assert digest_part(changed, Box(0, 16, 0, 8), 8) != whole
    assert digest_part(tensor.flip(0), Box(0, 16, 0, 8), 8) != whole
    assert (
        digest_part(torch.zeros(16, 8), Box(0, 16, 0, 8), 8)
        != digest_part(torch.zeros(8, 16), Box(0, 8, 0, 16), 16) - 1
    )
