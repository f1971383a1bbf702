"""Number formats of a run, and which of them a machine must be able to do."""

from __future__ import annotations

from octo_megatron.config.schema.checks import require

PRECISIONS = ("fp32", "bf16", "fp8-delayed", "fp8-tensorwise", "fp8-blockwise")
"""fp8-*: BF16 with the matrix products of the layers in FP8, after one of Transformer Engine's scaling recipes."""


def check_precision(where: str, value: str) -> None:
    """Raises UserError unless `value` is one of PRECISIONS."""
    require(
        value in PRECISIONS, f"{where} is '{value}'; use {', '.join(PRECISIONS[:-1])} or {PRECISIONS[-1]}"
    )


def is_fp8(precision: str) -> bool:
    """Whether the layers' matrix products run in FP8."""
    return precision.startswith("fp8-")


def fp8_recipe(precision: str) -> str:
    """delayed, tensorwise or blockwise: Megatron's name of an fp8-* precision's scaling."""
    return precision.removeprefix("fp8-")


def storage_dtype(precision: str) -> str:
    """fp32 or bf16: what weights are exchanged in, with other engines and on disk."""
    return "bf16" if is_fp8(precision) else precision
