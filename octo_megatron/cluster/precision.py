"""Whether this machine can do what a lineage's precision asks for, before any process starts."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Iterable

from octo_megatron.config.accelerators import version_of
from octo_megatron.config.errors import UserError
from octo_megatron.config.schema import LineageConfig, RLNode, TrainNode
from octo_megatron.config.schema.precision import is_fp8

_NEEDED = {"fp8-delayed": 8.9, "fp8-tensorwise": 8.9, "fp8-blockwise": 9.0}
"""Compute capability: FP8 products came with Ada (8.9), block scaling with Hopper."""


def check_precisions(
    lineage: LineageConfig, names: Iterable[str], capability: Callable[[], float | None] | None = None
) -> None:
    """Check the train and RL nodes among `names`.

    Raises:
        UserError: FP8 or small moments without Transformer Engine, or on a device that cannot do them.
    """
    for name in names:
        node = lineage.nodes.get(name)
        if not isinstance(node, TrainNode | RLNode):
            continue
        precision, moments = lineage.precision_of(name), node.optimizer.moments
        if is_fp8(precision):
            problem = _problem("FP8", _NEEDED[precision], capability or compute_capability)
            if problem:
                raise UserError(f"nodes.{name}: precision {precision}: {problem}; use precision=bf16")
        if moments != "fp32":
            problem = _problem("Transformer Engine's AdamW", 0.0, capability or compute_capability)
            if problem:
                raise UserError(
                    f"nodes.{name}: optimizer.moments {moments}: {problem}; use optimizer.moments=fp32"
                )


def _problem(what: str, needed: float, capability: Callable[[], float | None]) -> str | None:
    if version_of("transformer-engine") is None:
        return f"{what} needs Transformer Engine, which is not installed (pip install 'octo-megatron[gpu]')"
    found = capability()
    if found is None:
        return f"{what} needs a CUDA device, and this machine has none"
    if found < needed:
        return f"{what} needs compute capability {needed}, and this device has {found}"
    return None


def compute_capability() -> float | None:
    """Of the first CUDA device, as nvidia-smi says; None without one."""
    if shutil.which("nvidia-smi") is None:
        return None
    command = ["nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    lines = done.stdout.split()
    return float(lines[0]) if done.returncode == 0 and lines else None
