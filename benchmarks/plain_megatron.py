"""The yardstick of h100_train.py: Megatron-Core with Transformer Engine as its own examples put it together.

A GPTModel under DistributedDataParallel with the distributed optimizer, rows of one document, fixed random tokens.
Nothing of octo_megatron is in it but the device seam, which lets `--smoke` run it on a CPU.
"""

from __future__ import annotations

import time
from typing import Any

import torch

from octo_megatron.config.schema import ParallelConfig
from octo_megatron.parallel import world as worlds
from octo_megatron.parallel.device import DEVICE, ON_CUDA

from megatron.core.distributed import (
    DistributedDataParallel,
    DistributedDataParallelConfig,
    finalize_model_grads,
)
from megatron.core.models.gpt import GPTModel
from megatron.core.models.gpt.gpt_layer_specs import (
    get_gpt_layer_local_spec,
    get_gpt_layer_with_transformer_engine_spec,
)
from megatron.core.optimizer import OptimizerConfig, get_megatron_optimizer
from megatron.core.pipeline_parallel import get_forward_backward_func
from megatron.core.transformer import TransformerConfig


def step_seconds(row: dict[str, Any], hf: dict[str, Any]) -> list[float]:
    """Seconds of each timed step. `row`: precision, seq, micro, accumulate, steps, warmup, fusion, moments."""
    world = worlds.start(ParallelConfig(), seed=1)
    config = _config(row, hf)
    spec = (
        get_gpt_layer_with_transformer_engine_spec()
        if ON_CUDA
        else get_gpt_layer_local_spec(normalization="RMSNorm")
    )
    model = GPTModel(
        config,
        spec,
        hf["vocab_size"],
        row["seq"],
        share_embeddings_and_output_weights=hf["tie_word_embeddings"],
        position_embedding_type="rope",
        rotary_base=int(hf["rope_theta"]),
    ).to(DEVICE)
    wrapped = DistributedDataParallel(
        config,
        DistributedDataParallelConfig(use_distributed_optimizer=True, grad_reduce_in_fp32=True),
        model,
    )
    optimizer = get_megatron_optimizer(_optimizer(row), [wrapped])
    config.finalize_model_grads_func, config.grad_scale_func = finalize_model_grads, optimizer.scale_loss
    tokens = torch.randint(0, hf["vocab_size"], (row["micro"], row["seq"] + 1), device=DEVICE)
    positions = torch.arange(row["seq"], device=DEVICE)[None].expand(row["micro"], -1)

    def forward(iterator: Any, model: torch.nn.Module) -> tuple[torch.Tensor, Any]:
        loss = model(tokens[:, :-1].contiguous(), positions, None, labels=tokens[:, 1:].contiguous())
        return loss, lambda output: (output.float().mean(), {})

    schedule, seconds = get_forward_backward_func(), []
    for _ in range(row["warmup"] + row["steps"]):
        torch.cuda.synchronize()
        began = time.perf_counter()
        wrapped.zero_grad_buffer()
        optimizer.zero_grad()
        schedule(
            forward_step_func=forward,
            data_iterator=iter([]),
            model=[wrapped],
            num_microbatches=row["accumulate"],
            seq_length=row["seq"],
            micro_batch_size=row["micro"],
            forward_only=False,
        )
        optimizer.step()
        torch.cuda.synchronize()
        seconds.append(time.perf_counter() - began)
    world.stop()
    return seconds[row["warmup"] :]


def _config(row: dict[str, Any], hf: dict[str, Any]) -> TransformerConfig:
    half = row["precision"] != "fp32"
    dtype = torch.bfloat16 if half else torch.float32
    fp8: dict[str, Any] = {}
    if row["precision"].startswith("fp8-"):
        fp8 = {"fp8": "hybrid", "fp8_recipe": row["precision"].removeprefix("fp8-")}
        if fp8["fp8_recipe"] == "delayed":
            fp8 |= {"fp8_amax_history_len": 1024, "fp8_amax_compute_algo": "max"}
    return TransformerConfig(
        num_layers=hf["num_hidden_layers"],
        hidden_size=hf["hidden_size"],
        ffn_hidden_size=hf["intermediate_size"],
        num_attention_heads=hf["num_attention_heads"],
        num_query_groups=hf["num_key_value_heads"],
        kv_channels=hf["head_dim"],
        normalization="RMSNorm",
        layernorm_epsilon=1e-5,
        add_bias_linear=False,
        gated_linear_unit=True,
        activation_func=torch.nn.functional.silu,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        bf16=half,
        params_dtype=dtype,
        pipeline_dtype=dtype,
        bias_activation_fusion=ON_CUDA,
        bias_dropout_fusion=ON_CUDA,
        apply_rope_fusion=ON_CUDA,
        masked_softmax_fusion=False,
        persist_layer_norm=False,
        cross_entropy_loss_fusion=ON_CUDA,
        cross_entropy_fusion_impl="te",
        gradient_accumulation_fusion=bool(row.get("fusion")) and ON_CUDA,
        **fp8,
    )


def _optimizer(row: dict[str, Any]) -> OptimizerConfig:
    half = row["precision"] != "fp32"
    small: dict[str, Any] = {}
    if row.get("moments") == "bf16":
        small = {
            "use_precision_aware_optimizer": True,
            "exp_avg_dtype": torch.bfloat16,
            "exp_avg_sq_dtype": torch.bfloat16,
        }
    return OptimizerConfig(
        optimizer="adam",
        lr=1e-5,
        min_lr=0.0,
        bf16=half,
        params_dtype=torch.bfloat16 if half else torch.float32,
        use_distributed_optimizer=True,
        clip_grad=1.0,
        **small,
    )
