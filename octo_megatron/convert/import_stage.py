"""Hugging Face folder -> Megatron distributed checkpoint, proven."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch

from octo_megatron.checkpoint import store
from octo_megatron.checkpoint.digest import weights_sha256
from octo_megatron.config.loading import digest, to_plain
from octo_megatron.config.run_folder import NodeContext, Progress, read_json, write_json
from octo_megatron.config.schema import ImportNode, ParallelConfig
from octo_megatron.config.versions import installed_versions
from octo_megatron.convert.hf_folder import copy_companions, on_first, refuse_existing
from octo_megatron.convert.safetensors_io import HfFolder
from octo_megatron.convert.verify import Verified, verify
from octo_megatron.model.build import build_model
from octo_megatron.model.hf_weights import check_names, import_weights, tensor_shapes
from octo_megatron.parallel import world as worlds
from octo_megatron.parallel.world import World

BESIDE = "hf_files"
"""Folder in an imported checkpoint with what the Hugging Face folder held beside the weights."""


def run(ctx: NodeContext) -> None:
    """Import the node's folder (else the lineage's model) as its only checkpoint; writes done.json last."""
    node = ctx.node
    assert isinstance(node, ImportNode)
    began = time.perf_counter()
    world = worlds.start(ctx.lineage.layout_of(ctx.name), ctx.lineage.seed)
    progress = Progress(ctx.folder.progress, world.is_first)
    progress.update("import", 0, 1)
    source = HfFolder(Path(node.hf or ctx.lineage.model))
    # the run's config, not the folder's: they agree in every number, or verify says where they do not
    hf_config = read_json(ctx.run.hf_config)
    models = _fill(source, hf_config, ctx.lineage.dtype_of(ctx.name), world)
    verified = verify(source, models, world)
    step = store.step_folder(ctx.folder.checkpoints, 0)
    store.save_weights(step, models, _facts(hf_config, ctx.lineage.dtype_of(ctx.name), source), world)
    sha256 = weights_sha256(models, hf_config)
    if world.is_first:
        result = {
            "kind": "import",
            "parent": None,
            "hf": str(source.path),
            **_result(hf_config, models, verified),
            "weights_sha256": sha256,
            "seconds": time.perf_counter() - began,
            "config_digest": digest(to_plain(node)),
            "versions": installed_versions(),
        }
        write_json(ctx.folder.done, result)
        progress.update("import", 1, 1)
    world.barrier()
    world.stop()


def import_folder(hf_dir: Path, checkpoint_dir: Path, precision: str = "fp32") -> dict[str, Any]:
    """Make `checkpoint_dir` from a Hugging Face folder, in this process alone.

    The tokenizer and other small files go into `checkpoint_dir/hf_files`, so that an export finds them.

    Returns:
        tensors, bytes, max_logit_difference, weights_sha256.

    Raises:
        UserError: the folder is no supported model, is damaged, or the gate failed; nothing is left behind.
    """
    refuse_existing(checkpoint_dir)
    source = HfFolder(hf_dir)
    world = worlds.start(ParallelConfig(), seed=0)
    try:
        models = _fill(source, source.config, precision, world)
        verified = verify(source, models, world)
        store.save_weights(checkpoint_dir, models, _facts(source.config, precision, source), world)
        on_first(world, lambda: _keep_companions(source, checkpoint_dir))
        sha256 = weights_sha256(models, source.config)
        return {**_result(source.config, models, verified), "weights_sha256": sha256}
    finally:
        world.stop()


def _fill(source: HfFolder, hf_config: dict[str, Any], precision: str, world: World) -> list[torch.nn.Module]:
    check_names(source.names, hf_config, str(source.path))
    models: list[torch.nn.Module] = list(build_model(hf_config, world.layout, precision))
    import_weights(models, hf_config, source.read)
    return models


def _facts(hf_config: dict[str, Any], precision: str, source: HfFolder) -> dict[str, Any]:
    return {
        "kind": "import",
        "step": 0,
        "precision": precision,
        "hf_config": hf_config,
        "hf": str(source.path),
    }


def _result(hf_config: dict[str, Any], models: list[torch.nn.Module], verified: Verified) -> dict[str, Any]:
    width = next(models[0].parameters()).dtype.itemsize
    shapes = tensor_shapes(hf_config)
    return {
        "tensors": len(shapes),
        "bytes": width * sum(torch.Size(shape).numel() for shape in shapes.values()),
        "max_logit_difference": verified.max_logit_difference,
        "positions_compared": verified.positions,
    }


def _keep_companions(source: HfFolder, checkpoint_dir: Path) -> None:
    (checkpoint_dir / BESIDE).mkdir()
    copy_companions([source.path], checkpoint_dir / BESIDE)
