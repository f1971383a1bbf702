"""A config is understood whole or refused by name."""

from __future__ import annotations

from typing import Any

import pytest

from octo_megatron.config.errors import UserError
from octo_megatron.model.families import RopeScaling, family_of

LLAMA_3_2_1B: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 128000,
    "eos_token_id": 128001,
    "head_dim": 64,
    "hidden_act": "silu",
    "hidden_size": 2048,
    "initializer_range": 0.02,
    "intermediate_size": 8192,
    "max_position_embeddings": 131072,
    "mlp_bias": False,
    "model_type": "llama",
    "num_attention_heads": 32,
    "num_hidden_layers": 16,
    "num_key_value_heads": 8,
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-05,
    "rope_scaling": {
        "factor": 32.0,
        "high_freq_factor": 4.0,
        "low_freq_factor": 1.0,
        "original_max_position_embeddings": 8192,
        "rope_type": "llama3",
    },
    "rope_theta": 500000.0,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.45.0.dev0",
    "use_cache": True,
    "vocab_size": 128256,
}
QWEN2_5_05B: dict[str, Any] = {
    "architectures": ["Qwen2ForCausalLM"],
    "attention_dropout": 0.0,
    "bos_token_id": 151643,
    "eos_token_id": 151643,
    "hidden_act": "silu",
    "hidden_size": 896,
    "initializer_range": 0.02,
    "intermediate_size": 4864,
    "max_position_embeddings": 32768,
    "max_window_layers": 24,
    "model_type": "qwen2",
    "num_attention_heads": 14,
    "num_hidden_layers": 24,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-06,
    "rope_theta": 1000000.0,
    "sliding_window": 32768,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.40.1",
    "use_cache": True,
    "use_mrope": False,
    "use_sliding_window": False,
    "vocab_size": 151936,
}


def test_llama_3_2_reads_its_rope_scaling() -> None:
    shape = family_of(LLAMA_3_2_1B).shape(LLAMA_3_2_1B)
    assert (shape.num_layers, shape.num_query_groups, shape.kv_channels, shape.tied) == (16, 8, 64, True)
    assert shape.rope_theta == 500000.0
    assert shape.rope_scaling == RopeScaling(32.0, 1.0, 4.0, 8192)


def test_both_spellings_of_rope_mean_the_same() -> None:
    new = {k: v for k, v in LLAMA_3_2_1B.items() if k not in ("rope_theta", "rope_scaling")}
    new["rope_parameters"] = {**LLAMA_3_2_1B["rope_scaling"], "rope_theta": 500000.0}
    assert family_of(new).shape(new) == family_of(LLAMA_3_2_1B).shape(LLAMA_3_2_1B)


def test_qwen2_has_biases_and_no_window() -> None:
    shape = family_of(QWEN2_5_05B).shape(QWEN2_5_05B)
    assert shape.qkv_bias and not shape.qk_norm
    assert shape.kv_channels == 64
    rows = [row.megatron for row in family_of(QWEN2_5_05B).rows(QWEN2_5_05B)]
    assert "decoder.layers.{i}.self_attention.linear_qkv.bias" in rows
    assert "output_layer.weight" not in rows  # tied


def test_qwen3_assumes_its_own_head_width() -> None:
    config = {**QWEN2_5_05B, "architectures": ["Qwen3ForCausalLM"], "attention_bias": False}
    shape = family_of(config).shape(config)
    assert shape.qk_norm and not shape.qkv_bias
    assert shape.kv_channels == 128


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"architectures": ["GPT2LMHeadModel"]},
            "no family for GPT2LMHeadModel; supported: LlamaForCausalLM",
        ),
        ({"clever_trick": 3}, "unknown field 'clever_trick'"),
        ({"quantization_config": {"bits": 4}}, "unknown field 'quantization_config'"),
        ({"attention_bias": True}, "attention_bias=True is not supported"),
        ({"mlp_bias": True}, "mlp_bias=True is not supported"),
        ({"hidden_act": "gelu"}, "hidden_act='gelu' is not supported"),
        ({"use_sliding_window": True}, "use_sliding_window=True is not supported"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "only full_attention is supported"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "rope_type 'yarn' is not supported"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 4.0}}, "rope_type llama3 needs high_freq_factor"),
        ({"rope_scaling": {"rope_type": "default", "beta": 4.0}}, "unknown rope field 'beta'"),
        ({"rope_parameters": {"rope_theta": 10.0}}, "rope_theta 500000.0 contradicts rope_parameters' 10.0"),
        ({"num_key_value_heads": 5}, "num_key_value_heads 5 does not divide num_attention_heads 32"),
        ({"hidden_size": "2048"}, "hidden_size is '2048'; it must be a whole number"),
        ({"vocab_size": None}, "vocab_size is None"),
    ],
)
def test_what_is_not_honoured_is_refused_by_name(change: dict[str, Any], message: str) -> None:
    config = {**LLAMA_3_2_1B, **change}
    with pytest.raises(UserError) as caught:
        family_of(config).shape(config)
    assert message in str(caught.value)
