"""What the house itself asks of Transformer Engine (Megatron-Core's use apart). The one file that imports it.

Written from the sources of Transformer Engine 2.11 and apex; on a machine without CUDA nothing here loads it.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import torch

from octo_megatron.config.accelerators import has_apex_weight_gradient, version_of

_APEX_MODULE = "fused_weight_gradient_mlp_cuda"


def adds_weight_gradients() -> bool:
    """Whether the output layer too can add its weight gradient into the FP32 buffer in one kernel."""
    return torch.cuda.is_available() and (_APEX_MODULE in sys.modules or has_apex_weight_gradient())


def stand_in_for_apex() -> None:
    """Give Megatron-Core the two functions that it takes from apex, on Transformer Engine's matrix product.

    Called before megatron.core is imported, on CUDA only. apex itself is preferred when it is there.
    """
    if has_apex_weight_gradient() or version_of("transformer-engine") is None:
        return
    module: Any = ModuleType(_APEX_MODULE)
    module.wgrad_gemm_accum_fp32 = module.wgrad_gemm_accum_fp16 = _add_weight_gradient
    sys.modules[_APEX_MODULE] = module


def _add_weight_gradient(inputs: torch.Tensor, gradient: torch.Tensor, main_grad: torch.Tensor) -> None:
    """main_grad [out, in] += gradient [n, out]^T inputs [n, in], accumulated in main_grad's format."""
    from transformer_engine.pytorch.cpp_extensions import general_gemm

    general_gemm(
        inputs, gradient, out_dtype=main_grad.dtype, accumulate=True, layout="NT", out=main_grad, grad=True
    )


def high_precision(tensor: torch.Tensor) -> torch.Tensor:
    """An FP8 parameter in the format it stands for (BF16); any other tensor as it is."""
    return tensor if type(tensor) in (torch.Tensor, torch.nn.Parameter) else tensor.dequantize()


def fp8_problem(recipe: str) -> str | None:
    """Why this process cannot train in FP8 with `recipe` (delayed, tensorwise, blockwise); None when it can."""
    version = version_of("transformer-engine")
    if version is None:
        return "FP8 needs Transformer Engine, which is not installed (requirements: the `gpu` extra)"
    if not torch.cuda.is_available():
        return "FP8 needs a CUDA device, and this machine has none"
    from transformer_engine.pytorch import fp8

    check = fp8.check_fp8_block_scaling_support if recipe == "blockwise" else fp8.check_fp8_support
    supported, reason = check()
    if supported:
        return None
    name, (major, minor) = torch.cuda.get_device_name(), torch.cuda.get_device_capability()
    return f"{name} (compute capability {major}.{minor}) cannot: {reason.rstrip('.')}"
