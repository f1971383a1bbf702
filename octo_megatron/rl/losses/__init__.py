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
from octo_megatron.rl.losses.value import RETURN, VALUE, ValueLoss

__all__ = [
    "ADVANTAGE",
    "ENGINE",
    "FRESH",
    "LENGTH",
    "OLD",
    "REFERENCE",
    "RETURN",
    "SEGMENT",
    "VALUE",
    "WEIGHT",
    "PolicyLoss",
    "ValueLoss",
]
