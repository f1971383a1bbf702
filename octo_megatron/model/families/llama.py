"""Llama 2, 3, 3.1, 3.2 and what has their architecture under their name: SmolLM2, TinyLlama."""

from __future__ import annotations

from octo_megatron.model.families.family import Family
from octo_megatron.model.families.table import Kind, layer_row, words

_H, _QKV = ("hidden",), ("query,hidden", "kv,hidden", "kv,hidden")

# fmt: off
LAYER_ROWS = (
    layer_row(Kind.PLAIN, "input_layernorm.weight", _H,
              "input_layernorm.weight", "self_attention.linear_qkv.layer_norm_weight"),
    layer_row(Kind.QKV, "self_attn.q_proj.weight self_attn.k_proj.weight self_attn.v_proj.weight", _QKV,
              "self_attention.linear_qkv.weight"),
    layer_row(Kind.ROW, "self_attn.o_proj.weight", ("hidden,query",), "self_attention.linear_proj.weight"),
    layer_row(Kind.PLAIN, "post_attention_layernorm.weight", _H,
              "pre_mlp_layernorm.weight", "mlp.linear_fc1.layer_norm_weight"),
    layer_row(Kind.GATE_UP, "mlp.gate_proj.weight mlp.up_proj.weight", ("ffn,hidden", "ffn,hidden"),
              "mlp.linear_fc1.weight"),
    layer_row(Kind.ROW, "mlp.down_proj.weight", ("hidden,ffn",), "mlp.linear_fc2.weight"),
)
# fmt: on

ONLY = {
    "hidden_act": ("silu",),
    "attention_dropout": (0.0, None),
    "partial_rotary_factor": (1.0, None),
}
"""Of this family and of those built like it."""

LLAMA = Family(
    "Llama",
    ("LlamaForCausalLM",),
    "llama",
    LAYER_ROWS,
    harmless=words("is_llama_config transformers.js_config"),  # SmolLM2 carries these
    only={
        **ONLY,
        "attention_bias": (False, None),
        "mlp_bias": (False, None),
        "pretraining_tp": (1, None),
        "rope_interleaved": (False, None),
    },
)
