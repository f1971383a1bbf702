"""Hugging Face folder -> Megatron distributed checkpoint, proven."""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from octo_megatron.checkpoint.hf_start import START_FACTS
from octo_megatron.checkpoint.manifest import step_folder, write_manifest
from octo_megatron.config.loading import digest, to_plain
from octo_megatron.config.run_folder import NodeContext, Progress, read_json, write_json
from octo_megatron.config.schema import ImportNode
from octo_megatron.config.versions import installed_versions
from octo_megatron.convert.bar import OnProgress, megabytes, silent
from octo_megatron.convert.gate.files import copy_companions
from octo_megatron.convert.gate.run import PARTS, require_passed, run_gate
from octo_megatron.convert.import_stream import import_tensors
from octo_megatron.convert.journal import PARTS_FOLDER, Share
from octo_megatron.convert.publish import check_room, made_aside, refuse_existing
from octo_megatron.convert.ranks import share_of
from octo_megatron.model.build import DTYPES
from octo_megatron.model.hf_folder import HfFolder
from octo_megatron.model.slots import parameter_count, tensor_shapes

BESIDE = "hf_files"
"""Folder in an imported checkpoint with what the Hugging Face folder held beside the weights."""
GATE = ("round-trip", "logits")
"""Parts of the gate that an import runs: the rest is about what an export writes."""


def run(ctx: NodeContext) -> None:
    """Import the node's folder (else the lineage's model) as its only checkpoint; writes done.json last.

    The ranks of the node's layout share the work; any layout reads the result.
    """
    node = ctx.node
    assert isinstance(node, ImportNode)
    began = time.perf_counter()
    share = share_of(ctx.lineage.layout_of(ctx.name))
    progress = Progress(ctx.folder.progress, share.is_first)
    progress.update("import", 0, 1)
    step = step_folder(ctx.folder.checkpoints, 0)
    if share.is_first:
        shutil.rmtree(step, ignore_errors=True)  # ours, from a run that was killed before done.json
    source = HfFolder(Path(node.hf or ctx.lineage.model))
    # the run's config, not the folder's: they agree in every number, or the gate says where they do not
    hf_config, precision = read_json(ctx.run.hf_config), ctx.lineage.dtype_of(ctx.name)
    result = _import(source, hf_config, step, precision, share, GATE, progress.update)
    if result is not None:
        start = dict(zip(START_FACTS, (str(source.path), result["weights_sha256"]), strict=True))
        done = {"kind": "import", "parent": None, **start, **result}
        facts = {"config_digest": digest(to_plain(node)), "versions": installed_versions()}
        write_json(ctx.folder.done, {**done, "seconds": time.perf_counter() - began, **facts})
        progress.update("import", 1, 1)


def import_folder(
    hf_dir: Path,
    checkpoint_dir: Path,
    precision: str = "fp32",
    share: Share | None = None,
    gate: bool = True,
    progress: OnProgress = silent,
) -> dict[str, Any] | None:
    """Make `checkpoint_dir` from a Hugging Face folder.

    The tokenizer and other small files go into `checkpoint_dir/hf_files`, so that an export finds them.

    Args:
        precision: fp32 or bf16, of the checkpoint.
        share: this process's part of the work.
        gate: False only where the result is compared otherwise.

    Returns:
        tensors, bytes and what the gate found (max_logit_difference, weights_sha256, ...); None on ranks but the first.

    Raises:
        UserError: the folder is no supported model, is damaged, or the gate failed; nothing is left behind.
    """
    if share is None or share.is_first:
        refuse_existing(checkpoint_dir)
    source = HfFolder(hf_dir)
    parts = GATE if gate else ()
    return _import(source, source.config, checkpoint_dir, precision, share or Share(), parts, progress)


def _import(
    source: HfFolder,
    hf_config: dict[str, Any],
    target: Path,
    precision: str,
    share: Share,
    gate: Sequence[str],
    progress: OnProgress,
) -> dict[str, Any] | None:
    source.check(hf_config)
    dtype = DTYPES[precision]
    total = parameter_count(hf_config) * dtype.itemsize
    with made_aside(target, share) as aside:
        if share.is_first:
            check_room(target, total)
        known = import_tensors(
            source,
            hf_config,
            aside,
            dtype,
            share,
            megabytes("import", progress),
        )
        if not share.is_first:
            return None
        result = {"tensors": len(tensor_shapes(hf_config)), "bytes": total}
        if gate:
            skip = [part for part in PARTS if part not in gate]
            report = run_gate(source.path, aside, hf_config, [source.path], skip, progress)
            require_passed(report, str(source.path))
            result |= {key: value for part in report.parts for key, value in part.figures.items()}
        (aside / BESIDE).mkdir(exist_ok=True)
        copy_companions([source.path], aside / BESIDE)
        shutil.rmtree(aside / PARTS_FOLDER)
        facts = {
            "kind": "import",
            "step": 0,
            "precision": precision,
            "hf_config": hf_config,
            "hf": str(source.path),
            "hf_weights_sha256": result.get("weights_sha256"),
        }
        write_manifest(aside, facts, known)
        aside.rename(target)
    return result
