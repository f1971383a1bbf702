"""Which optional accelerators are installed and what each is used for; known without importing any of them."""

from __future__ import annotations

import importlib.machinery
import importlib.metadata
from dataclasses import dataclass


@dataclass(frozen=True)
class Accelerator:
    """One line for the log and for `octo doctor`."""

    what: str
    found: str
    """What was found, or "not installed"."""
    used: str
    """What the trainer does with it, or in its place."""


def version_of(*distributions: str) -> str | None:
    """Version of the first of these distributions that is installed."""
    for name in distributions:
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return None


def has_apex_weight_gradient() -> bool:
    """Whether apex's extension for weight gradients is installed."""
    # not importlib.util.find_spec: that would meet the stand-in of parallel/transformer_engine.py among loaded modules
    return importlib.machinery.PathFinder.find_spec("fused_weight_gradient_mlp_cuda") is not None


def accelerators(has_gpu: bool) -> list[Accelerator]:
    """What is here and what is used of it, for a machine with or without a GPU."""
    engine = version_of("transformer-engine")
    if not has_gpu:
        idle = "no: this machine has no CUDA device"
        rows = [("transformer-engine", engine), ("apex", version_of("apex")), ("cuDNN", _cudnn())]
        return [
            Accelerator(name, found or "not installed", idle if found else "not needed on a CPU")
            for name, found in rows
        ]
    if has_apex_weight_gradient():
        gradient = "apex's kernel adds weight gradients into the FP32 buffer"
    elif engine:
        gradient = "not needed: Transformer Engine's product adds weight gradients into the FP32 buffer"
    else:
        gradient = "missing: weight gradients take an extra pass over memory"
    layers = (
        "layers, attention, cross entropy, AdamW" if engine else "missing: training on this GPU cannot start"
    )
    return [
        Accelerator("transformer-engine", engine or "not installed", layers),
        Accelerator("apex", version_of("apex") or "not installed", gradient),
        Accelerator(
            "cuDNN", _cudnn() or "not found", "attention, chosen by Transformer Engine beside FlashAttention"
        ),
    ]


def _cudnn() -> str | None:
    return version_of("nvidia-cudnn-cu13", "nvidia-cudnn-cu12")
