"""Megatron's distributed AdamW as the house configures it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from octo_megatron.config.accelerators import version_of
from octo_megatron.config.errors import UserError
from octo_megatron.config.schema import OptimizerConfig
from octo_megatron.parallel.device import ON_CUDA

from megatron.core.optimizer import OptimizerConfig as MegatronOptimizerConfig
from megatron.core.optimizer import get_megatron_optimizer
from megatron.core.transformer import TransformerConfig

_MOMENT_DTYPES = {"bf16": torch.bfloat16, "fp8": torch.uint8}


def check_moments(optimizer: OptimizerConfig) -> None:
    """Raises UserError when this process cannot keep the moments in the format that is asked for."""
    if optimizer.moments == "fp32" or (ON_CUDA and version_of("transformer-engine") is not None):
        return
    missing = "a CUDA device" if not ON_CUDA else "Transformer Engine"
    raise UserError(
        f"optimizer.moments {optimizer.moments} needs Transformer Engine's fused AdamW, and {missing} is missing "
        "here; use optimizer.moments=fp32"
    )


def distributed_adam(
    models: Sequence[torch.nn.Module],
    config: TransformerConfig,
    optimizer: OptimizerConfig,
    overlap_param_gather: bool,
    fp8_recipe: str | None,
) -> Any:
    """The distributed optimizer over the chunks of a model; its learning rate is set before every step.

    Args:
        models: the chunks under Megatron's DistributedDataParallel.
        fp8_recipe: delayed, tensorwise or blockwise where parameters are kept in FP8.
    """
    small: dict[str, Any] = {}
    if optimizer.moments != "fp32":
        dtype = _MOMENT_DTYPES[optimizer.moments]
        small = {
            "use_precision_aware_optimizer": True,
            "exp_avg_dtype": dtype,
            "exp_avg_sq_dtype": dtype,
            # whole master weights: checkpoints then hold the same FP32 tensors whatever the moments are
            "store_param_remainders": False,
        }
    made = get_megatron_optimizer(
        MegatronOptimizerConfig(
            optimizer="adam",
            lr=1.0,
            min_lr=0.0,
            weight_decay=optimizer.weight_decay,
            adam_beta1=optimizer.beta1,
            adam_beta2=optimizer.beta2,
            adam_eps=optimizer.eps,
            clip_grad=optimizer.clip_grad,
            bf16=config.bf16,
            params_dtype=config.params_dtype,
            use_distributed_optimizer=True,
            overlap_param_gather=overlap_param_gather,
            fp8_recipe=fp8_recipe,
            **small,
        ),
        models,
    )
    if small:
        for part in made.chained_optimizers:
            part.init_state_fn = _begin_state
    return made


def _begin_state(adam: Any, config: Any = None) -> None:
    """Moments and master weights of Transformer Engine's AdamW before its first step.

    Megatron 0.16's own call lacks an argument that Transformer Engine 2.11 asks for.
    """
    for p in (p for group in adam.param_groups for p in group["params"]):
        if not adam.state[p]:
            adam.initialize_state(p, False)
