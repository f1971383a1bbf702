"""One number for a model's weights, the same under every layout."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import torch

from octo_megatron.model.hf_weights import export_weights


def weights_sha256(models: Sequence[torch.nn.Module], hf_config: dict[str, Any]) -> str:
    """sha256 over names, types and bytes of all weights in Hugging Face form; collective, known to every rank."""
    total = hashlib.sha256()
    for name, tensor in export_weights(list(models), hf_config):
        total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        total.update(tensor.detach().contiguous().cpu().view(torch.uint8).numpy().tobytes())
    return total.hexdigest()
