"""Megatron distributed checkpoint -> Hugging Face folder, proven."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Any

import torch

from octo_megatron.checkpoint import store
from octo_megatron.checkpoint.digest import weights_sha256
from octo_megatron.checkpoint.parent import parent_checkpoint
from octo_megatron.config.errors import UserError
from octo_megatron.config.loading import digest, to_plain
from octo_megatron.config.run_folder import NodeContext, Progress, RunFolder, read_json, write_json
from octo_megatron.config.schema import ExportNode, ParallelConfig
from octo_megatron.config.versions import installed_versions
from octo_megatron.convert.hf_folder import Written, refuse_existing, write_folder
from octo_megatron.convert.import_stage import BESIDE
from octo_megatron.model.build import build_model
from octo_megatron.parallel import world as worlds


def run(ctx: NodeContext) -> None:
    """Export the parent's newest checkpoint to NODE/hf; writes done.json last."""
    node = ctx.node
    assert isinstance(node, ExportNode)
    began = time.perf_counter()
    world = worlds.start(ctx.lineage.layout_of(ctx.name), ctx.lineage.seed)
    progress = Progress(ctx.folder.progress, world.is_first)
    progress.update("export", 0, 1)
    checkpoint = parent_checkpoint(ctx)
    hf_config = read_json(ctx.run.hf_config)
    models: list[torch.nn.Module] = list(build_model(hf_config, world.layout, ctx.lineage.dtype_of(ctx.name)))
    store.load_weights(checkpoint, models)
    if world.is_first:
        shutil.rmtree(ctx.folder.hf, ignore_errors=True)  # ours, from a run that was killed before done.json
    world.barrier()
    companions = [ctx.run.tokenizer, Path(ctx.lineage.model)]
    written = write_folder(ctx.folder.hf, models, hf_config, node.dtype, companions, world)
    sha256 = weights_sha256(models, hf_config)
    if world.is_first:
        result = {
            "kind": "export",
            "parent": node.parent,
            "hf": str(ctx.folder.hf),
            "dtype": node.dtype,
            **_result(written),
            "weights_sha256": sha256,
            "seconds": time.perf_counter() - began,
            "config_digest": digest(to_plain(node)),
            "versions": installed_versions(),
        }
        write_json(ctx.folder.done, result)
        progress.update("export", 1, 1)
    world.barrier()
    world.stop()


def export_folder(checkpoint_dir: Path, hf_dir: Path, dtype: str = "fp32") -> dict[str, Any]:
    """Make a Hugging Face folder from a checkpoint, in this process alone.

    The config comes from the checkpoint; the tokenizer from what was imported with it, or from the run
    folder that it stands in.

    Returns:
        tensors, bytes, max_logit_difference, weights_sha256.

    Raises:
        UserError: no finished checkpoint, a damaged one, a target that exists, or a failed gate.
    """
    refuse_existing(hf_dir)
    facts = store.read_extra(checkpoint_dir)
    if "hf_config" not in facts:
        raise UserError(f"{checkpoint_dir} does not say which model it holds: no hf_config in its manifest")
    hf_config = facts["hf_config"]
    world = worlds.start(ParallelConfig(), seed=0)
    try:
        models: list[torch.nn.Module] = list(build_model(hf_config, world.layout, "fp32"))
        store.load_weights(checkpoint_dir, models)
        written = write_folder(hf_dir, models, hf_config, dtype, _companions(checkpoint_dir, facts), world)
        return {**_result(written), "weights_sha256": weights_sha256(models, hf_config)}
    finally:
        world.stop()


def _companions(checkpoint_dir: Path, facts: dict[str, Any]) -> list[Path]:
    """Where tokenizer files may be: beside an imported checkpoint, or in the run that it belongs to."""
    places = [checkpoint_dir / BESIDE]
    if len(checkpoint_dir.absolute().parents) > 3:
        run = RunFolder(checkpoint_dir.absolute().parents[3])
        if run.lineage_file.is_file():
            places.append(run.tokenizer)
    if "hf" in facts:
        places.append(Path(facts["hf"]))
    return places


def _result(written: Written) -> dict[str, Any]:
    return {
        "tensors": written.tensors,
        "bytes": written.bytes,
        "max_logit_difference": written.verified.max_logit_difference,
        "positions_compared": written.verified.positions,
    }
