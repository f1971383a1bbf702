"""Qwen2 and Qwen2.5: Llama's layers with biases on query, key and value."""

from __future__ import annotations

from octo_megatron.model.families.family import Family
from octo_megatron.model.families.llama import LAYER_ROWS, ONLY
from octo_megatron.model.families.table import Kind, layer_row, words

_BIASES = layer_row(
    Kind.QKV,
    "self_attn.q_proj.bias self_attn.k_proj.bias self_attn.v_proj.bias",
    ("query", "kv", "kv"),
    "self_attention.linear_qkv.bias",
)

QWEN2 = Family(
    "Qwen2",
    ("Qwen2ForCausalLM",),
    "qwen2",
    (*LAYER_ROWS, _BIASES),
    harmless=words("max_window_layers"),  # which layers the window is for, when it is switched on
    only={**ONLY, "use_mrope": (False, None)},
    window="sliding_window",
    window_switch="use_sliding_window",
    defaults={"num_key_value_heads": 32, "sliding_window": 4096},
    qkv_bias=True,
)
