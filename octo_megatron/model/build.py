"""Hugging Face config -> Megatron TransformerConfig -> GPTModel chunks of this rank."""

from __future__ import annotations

from typing import Any

import torch

from octo_megatron.config.errors import UserError
from octo_megatron.config.schema import ComputeConfig, ParallelConfig
from octo_megatron.config.schema.precision import fp8_recipe, is_fp8, storage_dtype
from octo_megatron.model.families import ModelShape, family_of
from octo_megatron.model.layers import cpu_block_spec
from octo_megatron.model.lm_head import ChunkedHeadGPTModel
from octo_megatron.model.value_head import ValueHead
from octo_megatron.parallel import transformer_engine
from octo_megatron.parallel.device import DEVICE, ON_CUDA

from megatron.core import parallel_state
from megatron.core.models.gpt import GPTModel
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_with_transformer_engine_spec
from megatron.core.transformer import TransformerConfig

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def check_layout(shape: ModelShape, layout: ParallelConfig) -> None:
    """Raises UserError with the arithmetic when the layout does not divide the model."""
    tensor, pipeline = layout.tensor_model_parallel_size, layout.pipeline_model_parallel_size
    chunks = pipeline * layout.virtual_pipeline_model_parallel_size
    for name, value in (
        ("num_attention_heads", shape.num_attention_heads),
        ("num_key_value_heads", shape.num_query_groups),
        ("intermediate_size", shape.ffn_hidden_size),
        ("vocab_size", shape.vocab_size),
    ):
        if value % tensor:
            raise UserError(
                f"parallel.tensor_model_parallel_size {tensor} does not divide the model's {name} {value}; "
                f"sizes that do: {', '.join(str(d) for d in range(1, 65) if value % d == 0)}"
            )
    if shape.num_layers % chunks:
        raise UserError(
            f"{shape.num_layers} layers cannot be cut into {chunks} equal parts (pipeline {pipeline} x virtual "
            f"{layout.virtual_pipeline_model_parallel_size}); change parallel.pipeline_model_parallel_size"
        )


def transformer_config(
    hf_config: dict[str, Any], layout: ParallelConfig, precision: str, compute: ComputeConfig | None = None
) -> TransformerConfig:
    """Megatron's config for a Hugging Face config dict.

    On CPU every fused kernel is off: they are CUDA extensions.

    Raises:
        UserError: the layout does not divide the model, or this machine cannot do the precision.
    """
    shape = family_of(hf_config).shape(hf_config)
    check_layout(shape, layout)
    compute = compute or ComputeConfig()
    dtype = DTYPES[storage_dtype(precision)]
    interleaved = layout.virtual_pipeline_model_parallel_size > 1
    return TransformerConfig(
        num_layers=shape.num_layers,
        hidden_size=shape.hidden_size,
        num_attention_heads=shape.num_attention_heads,
        num_query_groups=shape.num_query_groups,
        kv_channels=shape.kv_channels,
        ffn_hidden_size=shape.ffn_hidden_size,
        normalization="RMSNorm",
        layernorm_epsilon=shape.rms_norm_eps,
        gated_linear_unit=True,
        activation_func=torch.nn.functional.silu,
        add_bias_linear=False,
        add_qkv_bias=shape.qkv_bias,
        qk_layernorm=shape.qk_norm,
        init_method_std=shape.initializer_range,
        attention_dropout=0.0,
        hidden_dropout=0.0,
        tensor_model_parallel_size=layout.tensor_model_parallel_size,
        pipeline_model_parallel_size=layout.pipeline_model_parallel_size,
        virtual_pipeline_model_parallel_size=(
            layout.virtual_pipeline_model_parallel_size if interleaved else None
        ),
        context_parallel_size=layout.context_parallel_size,
        sequence_parallel=layout.sequence_parallel,
        bf16=dtype == torch.bfloat16,
        params_dtype=dtype,
        pipeline_dtype=dtype,
        calculate_per_token_loss=True,
        attention_softmax_in_fp32=True,
        gradient_accumulation_fusion=transformer_engine.adds_weight_gradients(),
        cross_entropy_loss_fusion=ON_CUDA,
        cross_entropy_fusion_impl="te",
        apply_rope_fusion=ON_CUDA,
        bias_dropout_fusion=ON_CUDA,
        bias_activation_fusion=ON_CUDA,
        masked_softmax_fusion=False,
        persist_layer_norm=False,
        # interleaving over two stages needs un-batched sends: batched ones pair wrongly between the same two ranks
        batch_p2p_comm=not interleaved,
        overlap_p2p_comm=interleaved,
        batch_p2p_sync=ON_CUDA,
        **_recompute(compute),
        **_fp8(precision, compute),
    )


def _recompute(compute: ComputeConfig) -> dict[str, Any]:
    if compute.recompute == "full":
        return {"recompute_granularity": "full", "recompute_method": "uniform", "recompute_num_layers": 1}
    if compute.recompute == "selective":
        return {"recompute_granularity": "selective", "recompute_modules": list(compute.recompute_modules)}
    return {}


def _fp8(precision: str, compute: ComputeConfig) -> dict[str, Any]:
    """Hybrid FP8: E4M3 forward, E5M2 for gradients; the layers' matrix products alone, not the output layer."""
    if not is_fp8(precision):
        return {}
    recipe = fp8_recipe(precision)
    problem = transformer_engine.fp8_problem(recipe)
    if problem:
        raise UserError(f"precision {precision}: {problem}; use precision=bf16")
    options: dict[str, Any] = {"fp8": "hybrid", "fp8_recipe": recipe, "fp8_param": compute.fp8_params}
    if recipe == "delayed":
        options |= {"fp8_amax_history_len": 1024, "fp8_amax_compute_algo": "max"}
    if compute.bf16_layers:
        options |= {
            "first_last_layers_bf16": True,
            "num_layers_at_start_in_bf16": compute.bf16_first_layers,
            "num_layers_at_end_in_bf16": compute.bf16_last_layers,
        }
    return options


def build_model(
    hf_config: dict[str, Any],
    layout: ParallelConfig,
    precision: str,
    config: TransformerConfig | None = None,
    lm_head_chunk_tokens: int = 0,
    value_head: bool = False,
) -> list[GPTModel]:
    """This rank's part of the model: one GPTModel per virtual pipeline chunk, on DEVICE, in `precision`.

    Weights are random (Megatron's initialisation from the seeds of `world.start`).

    Args:
        value_head: one number a token in place of logits; the embedding is then tied to nothing.
    """
    shape = family_of(hf_config).shape(hf_config)
    config = config or transformer_config(hf_config, layout, precision)
    chunks = layout.virtual_pipeline_model_parallel_size
    return [
        _chunk(shape, config, stage if chunks > 1 else None, lm_head_chunk_tokens, value_head)
        for stage in range(chunks)
    ]


def _chunk(
    shape: ModelShape,
    config: TransformerConfig,
    vp_stage: int | None,
    lm_head_chunk_tokens: int,
    value_head: bool,
) -> GPTModel:
    spec: Any
    if ON_CUDA:
        spec = get_gpt_layer_with_transformer_engine_spec(qk_layernorm=shape.qk_norm)
    else:
        spec = cpu_block_spec(config, vp_stage)
    model = (ChunkedHeadGPTModel if lm_head_chunk_tokens else GPTModel)(
        config,
        spec,
        shape.vocab_size,
        shape.max_position_embeddings,
        pre_process=parallel_state.is_pipeline_first_stage(ignore_virtual=False, vp_stage=vp_stage),
        post_process=parallel_state.is_pipeline_last_stage(ignore_virtual=False, vp_stage=vp_stage),
        share_embeddings_and_output_weights=shape.tied and not value_head,
        position_embedding_type="rope",
        rotary_base=shape.rope_theta,
        vp_stage=vp_stage,
    )
    if value_head and model.post_process:
        model.output_layer = ValueHead(config, model.pg_collection.tp)
    if lm_head_chunk_tokens:
        model.lm_head_chunk_tokens = lm_head_chunk_tokens
    if shape.rope_scaling is not None:
        _scale_rope(model, shape)
    return model.to(DEVICE).to(config.params_dtype)


def _scale_rope(model: GPTModel, shape: ModelShape) -> None:
    """Llama-3's frequency scaling with all four of its numbers.

    GPTModel's own `rope_scaling` takes only the factor and assumes the other three; here Megatron's formula is
    applied with what the model's config says.
    """
    assert shape.rope_scaling is not None
    scaling, rope = shape.rope_scaling, model.rotary_pos_emb
    rope.inv_freq = rope._apply_scaling(
        rope.inv_freq,
        factor=scaling.factor,
        low_freq_factor=scaling.low_freq_factor,
        high_freq_factor=scaling.high_freq_factor,
        original_max_position_embeddings=scaling.original_max_position_embeddings,
    )
