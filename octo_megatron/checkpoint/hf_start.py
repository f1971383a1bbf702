"""Weights straight from a Hugging Face folder into a running job: an import without a checkpoint between."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from octo_megatron.checkpoint.digest import weights_sha256
from octo_megatron.checkpoint.store import Trainable
from octo_megatron.model.hf_folder import HfFolder
from octo_megatron.model.hf_weights import import_weights

START_FACTS = ("hf", "hf_weights_sha256")
"""What a checkpoint and done.json say of such a start: the folder, and the digest of its weights in this job."""


def fill_from_folder(folder: Path, models: Sequence[torch.nn.Module], hf_config: dict[str, Any]) -> None:
    """Fill GPTModel chunks of any layout; each rank brings only its own slices into memory.

    Raises:
        UserError: the folder is damaged, or holds another model than `hf_config`.
    """
    source = HfFolder(folder)
    source.check_same_model(hf_config)
    source.check(hf_config)
    import_weights(list(models), hf_config, source.mapped)


def start_from_folder(folder: Path, trainer: Trainable, hf_config: dict[str, Any]) -> dict[str, Any]:
    """Fill a trainer of any layout and its optimizer's master weights; collective. Returns START_FACTS.

    The weights are bit for bit those of an import node's checkpoint, and so is the digest.
    """
    fill_from_folder(folder, trainer.chunks, hf_config)
    trainer.synchronise_replicas()
    return dict(zip(START_FACTS, (str(folder), weights_sha256(trainer.chunks, hf_config)), strict=True))
