"""Mistral 7B and its kin: Llama's layers; v0.1's window of 4096 positions is refused, later ones have none."""

from __future__ import annotations

from octo_megatron.model.families.family import Family
from octo_megatron.model.families.llama import LAYER_ROWS, ONLY

MISTRAL = Family(
    "Mistral",
    ("MistralForCausalLM",),
    "mistral",
    LAYER_ROWS,
    only=ONLY,
    window="sliding_window",
    defaults={"num_key_value_heads": 8, "sliding_window": 4096},
)
