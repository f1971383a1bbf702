"""Qwen3 (dense): Llama's layers with a norm on each head's query and key, heads of a width of their own."""

from __future__ import annotations

from octo_megatron.model.families.family import Family
from octo_megatron.model.families.llama import LAYER_ROWS, ONLY
from octo_megatron.model.families.table import Kind, layer_row, words

# fmt: off
_NORMS = (
    layer_row(Kind.PLAIN, "self_attn.q_norm.weight", ("head",), "self_attention.q_layernorm.weight"),
    layer_row(Kind.PLAIN, "self_attn.k_norm.weight", ("head",), "self_attention.k_layernorm.weight"),
)
# fmt: on

QWEN3 = Family(
    "Qwen3",
    ("Qwen3ForCausalLM",),
    "qwen3",
    (*LAYER_ROWS, *_NORMS),
    harmless=words("max_window_layers"),
    only={**ONLY, "attention_bias": (False, None), "use_mrope": (False, None)},
    window="sliding_window",
    window_switch="use_sliding_window",
    defaults={"num_key_value_heads": 32, "head_dim": 128, "sliding_window": 4096},
    qk_norm=True,
)
