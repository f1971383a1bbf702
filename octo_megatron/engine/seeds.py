"""Sampling seeds: pure functions of what is being sampled."""

from __future__ import annotations

import hashlib


def sample_seed(*path: int | str) -> int:
    """63 bits of sha256 over e.g. (run seed, "rl", step, prompt, sample): same path, same tokens.

    Unlike seed + counter, no two paths share a stream and neighbours are not alike.
    """
    raw = hashlib.sha256("/".join(map(str, path)).encode()).digest()
    return int.from_bytes(raw[:8], "big") >> 1
