"""Losses, one formula a file; `policy` puts them together as the trainer calls them."""

from octo_megatron.rl.losses.policy import (
    ADVANTAGE,
    ENGINE,
    FRESH,
    LENGTH,
    OLD,
    REFERENCE,
    SEGMENT,
    WEIGHT,
    PolicyLoss,
)

__all__ = ["ADVANTAGE", "ENGINE", "FRESH", "LENGTH", "OLD", "REFERENCE", "SEGMENT", "WEIGHT", "PolicyLoss"]
