"""A config is understood whole or refused by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig

from octo_megatron.config.errors import UserError
from octo_megatron.model import families
from octo_megatron.model.families import FAMILIES, Family, RopeScaling, family_of
from octo_megatron.model.hf_weights import merge, split
from octo_megatron.model.slots import row_ranges, slots

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


MISTRAL_7B_V0_1: dict[str, Any] = {
    "architectures": ["MistralForCausalLM"],
    "bos_token_id": 1,
    "eos_token_id": 2,
    "hidden_act": "silu",
    "hidden_size": 4096,
    "initializer_range": 0.02,
    "intermediate_size": 14336,
    "max_position_embeddings": 32768,
    "model_type": "mistral",
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-05,
    "rope_theta": 10000.0,
    "sliding_window": 4096,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.34.0.dev0",
    "use_cache": True,
    "vocab_size": 32000,
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
        ({"use_sliding_window": True}, "unknown field 'use_sliding_window' for Llama"),
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


def test_a_sliding_window_is_refused_unless_no_position_is_beyond_it() -> None:
    with pytest.raises(UserError, match="sliding_window=4096 is shorter than max_position_embeddings=32768"):
        family_of(MISTRAL_7B_V0_1)
    missing = {key: value for key, value in MISTRAL_7B_V0_1.items() if key != "sliding_window"}
    with pytest.raises(UserError, match="what Mistral assumes where the field is missing"):
        family_of(missing)
    for fine in ({"sliding_window": None}, {"sliding_window": 32768}, {"max_position_embeddings": 4096}):
        config = {**MISTRAL_7B_V0_1, **fine}
        assert family_of(config).shape(config).num_query_groups == 8
    switched_on = {**QWEN2_5_05B, "use_sliding_window": True, "sliding_window": 4096}
    with pytest.raises(UserError, match="sliding_window=4096 is shorter than"):
        family_of(switched_on)


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_every_field_that_transformers_writes_is_on_a_list(family: Family) -> None:
    config = AutoConfig.for_model(family.model_type).to_dict()
    config |= {"architectures": list(family.architectures), "sliding_window": None}
    if family.window is None:
        del config["sliding_window"]
    shape = family_of(config).shape(config)
    defaults = AutoConfig.for_model(family.model_type)
    assert shape.num_query_groups == defaults.num_key_value_heads
    # what a config.json leaves out is what transformers assumes
    for left_out in (
        "num_key_value_heads",
        "head_dim",
        "rms_norm_eps",
        "tie_word_embeddings",
        "rope_parameters",
    ):
        shorter = {key: value for key, value in config.items() if key != left_out}
        assert family_of(shorter).shape(shorter) == shape, left_out


def test_a_table_is_short() -> None:
    for family in FAMILIES:
        source = Path(families.__file__).with_name(f"{family.model_type}.py")
        assert len(source.read_text().splitlines()) < 120


@pytest.mark.parametrize("config", [LLAMA_3_2_1B, QWEN2_5_05B], ids=["Llama", "Qwen2"])
def test_row_ranges_say_what_merge_does(config: dict[str, Any]) -> None:
    """A parameter of every kind, laid out row range by row range, is what `merge` makes of whole tensors."""
    small = {**config, "hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 4, "vocab_size": 12}
    small |= {"num_key_value_heads": 2, "head_dim": 4}
    shape = family_of(small).shape(small)
    for slot in slots(small)[:12]:
        sizes = [shape.size(size) for size in slot.row.sizes]
        full = [torch.randn(size) for size in sizes]
        ranges = row_ranges(slot.row.kind, [size[0] for size in sizes], shape)
        laid = torch.cat([full[r.tensor][r.hf_start : r.hf_start + r.count] for r in ranges])
        assert [r.start for r in ranges] == [sum(p.count for p in ranges[:i]) for i in range(len(ranges))]
        assert torch.equal(laid, merge(slot.row.kind, full, shape, 0, 1, laid.shape[0])), slot.megatron
        for size in (1, 2):
            parts = [
                merge(slot.row.kind, full, shape, rank, size, laid.shape[0] // size) for rank in range(size)
            ]
            again = split(slot.row.kind, parts, shape)
            assert all(map(torch.equal, full, again)), (slot.megatron, size)
