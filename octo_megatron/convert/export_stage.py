"""Megatron distributed checkpoint -> Hugging Face folder, proven."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from octo_megatron.checkpoint import manifest
from octo_megatron.checkpoint.parent import parent_checkpoint
from octo_megatron.config.errors import UserError
from octo_megatron.config.loading import digest, to_plain
from octo_megatron.config.run_folder import (
    NodeContext,
    Progress,
    RunFolder,
    read_json,
    write_json,
    write_text,
)
from octo_megatron.config.schema import ExportNode
from octo_megatron.config.versions import installed_versions
from octo_megatron.convert.bar import OnProgress, megabytes, silent
from octo_megatron.convert.export_stream import export_tensors
from octo_megatron.convert.gate.files import copy_companions
from octo_megatron.convert.gate.result import GateReport
from octo_megatron.convert.gate.run import require_passed, run_gate, write_reports
from octo_megatron.convert.import_stage import BESIDE
from octo_megatron.convert.journal import PARTS_FOLDER, Share
from octo_megatron.convert.model_card import Ancestry, ancestry, card
from octo_megatron.convert.publish import check_room, made_aside, refuse_existing
from octo_megatron.convert.ranks import share_of
from octo_megatron.convert.safetensors_writer import MAX_SHARD_BYTES, TensorWriter
from octo_megatron.convert.stream import check_checkpoint
from octo_megatron.convert.torch_dist import DistCheckpoint
from octo_megatron.model.build import DTYPES
from octo_megatron.model.slots import tensor_shapes


@dataclass(frozen=True)
class Origin:
    """A checkpoint, and all that an export needs to know beside its tensors."""

    checkpoint: Path
    hf_config: dict[str, Any]
    originals: list[Path]
    """Folders with the files beside the weights, first match wins."""
    ancestry: Ancestry


@dataclass(frozen=True)
class Wish:
    """What an export is to look like."""

    dtype: str = "fp32"
    """fp32 or bf16, of the tensors in the files."""
    max_shard_bytes: int = MAX_SHARD_BYTES
    skip: Sequence[str] = ()
    """Parts of the gate to leave out."""
    gate: bool = True
    """False only where the result is compared otherwise: nothing is proven then, and no report is written."""


def run(ctx: NodeContext) -> None:
    """Export the parent's newest checkpoint to NODE/hf; writes done.json last. The layout's ranks share the work."""
    node = ctx.node
    assert isinstance(node, ExportNode)
    began = time.perf_counter()
    share = share_of(ctx.lineage.layout_of(ctx.name))
    progress = Progress(ctx.folder.progress, share.is_first)
    progress.update("export", 0, 1)
    checkpoint = parent_checkpoint(ctx)
    facts = manifest.read_extra(checkpoint)
    origin = Origin(
        checkpoint,
        read_json(ctx.run.hf_config),
        [ctx.run.tokenizer, Path(ctx.lineage.model)],
        ancestry(facts, ctx.run, node.parent),
    )
    if share.is_first:
        shutil.rmtree(ctx.folder.hf, ignore_errors=True)  # ours, from a run that was killed before done.json
    result = _export(origin, ctx.folder.hf, Wish(node.dtype, skip=node.skip), share, progress.update)
    if result is not None:
        done = {
            "kind": "export",
            "parent": node.parent,
            "hf": str(ctx.folder.hf),
            "dtype": node.dtype,
            **result,
        }
        made = {"config_digest": digest(to_plain(node)), "versions": installed_versions()}
        write_json(ctx.folder.done, {**done, "seconds": time.perf_counter() - began, **made})
        progress.update("export", 1, 1)


def export_folder(
    checkpoint_dir: Path,
    hf_dir: Path,
    wish: Wish | None = None,
    share: Share | None = None,
    progress: OnProgress = silent,
) -> dict[str, Any] | None:
    """Make a Hugging Face folder from a checkpoint.

    The config comes from the checkpoint; the tokenizer from what was imported with it, or from the run
    folder that it stands in.

    Args:
        share: this process's part of the work.

    Returns:
        tensors, bytes and what the gate found; None on ranks but the first.

    Raises:
        UserError: no finished checkpoint, a damaged one, a target that exists, or a failed gate.
    """
    share = share or Share()
    if share.is_first:
        refuse_existing(hf_dir)
    return _export(origin_of(checkpoint_dir), hf_dir, wish or Wish(), share, progress)


def verify_folder(
    checkpoint_dir: Path, hf_dir: Path, skip: Sequence[str] = (), progress: OnProgress = silent
) -> GateReport:
    """Run the gate on a folder that is there already; writes nothing.

    Raises:
        UserError: no finished checkpoint, or a damaged one. What the gate finds is in the report.
    """
    origin = origin_of(checkpoint_dir)
    manifest.verify(checkpoint_dir)
    return run_gate(hf_dir, checkpoint_dir, origin.hf_config, origin.originals, skip, progress)


def origin_of(checkpoint_dir: Path) -> Origin:
    """What a checkpoint says of itself, and where the files are that belong to it.

    Raises:
        UserError: it is no finished checkpoint, or does not say which model it holds.
    """
    facts = manifest.read_extra(checkpoint_dir)
    if "hf_config" not in facts:
        raise UserError(f"{checkpoint_dir} does not say which model it holds: no hf_config in its manifest")
    originals, run, node = [checkpoint_dir / BESIDE], None, None
    parents = checkpoint_dir.absolute().parents
    if len(parents) > 3 and RunFolder(parents[3]).lineage_file.is_file():
        run, node = RunFolder(parents[3]), parents[1].name
    if run is not None:
        originals.append(run.tokenizer)
    if "hf" in facts:
        originals.append(Path(facts["hf"]))
    return Origin(checkpoint_dir, facts["hf_config"], originals, ancestry(facts, run, node))


def _export(
    origin: Origin, target: Path, wish: Wish, share: Share, progress: OnProgress
) -> dict[str, Any] | None:
    checkpoint = _opened(origin.checkpoint)
    check_checkpoint(checkpoint, origin.hf_config)
    shapes = tensor_shapes(origin.hf_config)
    with made_aside(target, share) as aside:
        writer = TensorWriter(aside, shapes, DTYPES[wish.dtype], wish.max_shard_bytes)
        if share.is_first:
            check_room(target, writer.bytes)
        export_tensors(
            checkpoint,
            origin.hf_config,
            aside,
            writer,
            share,
            megabytes("export", progress),
        )
        if not share.is_first:
            return None
        _write_companions(aside, origin, wish)
        result: dict[str, Any] = {"tensors": len(shapes), "bytes": writer.bytes}
        if wish.gate:
            report = run_gate(
                aside, origin.checkpoint, origin.hf_config, origin.originals, wish.skip, progress
            )
            require_passed(report, str(target))
            facts = {"checkpoint": str(origin.checkpoint), "dtype": wish.dtype, **result}
            write_reports(aside, report, facts)
            text = card(target.name, origin.hf_config, wish.dtype, origin.ancestry, report)
            write_text(aside / "README.md", text)
            result |= {key: value for part in report.parts for key, value in part.figures.items()}
            result["not_run"] = report.left_out
        shutil.rmtree(aside / PARTS_FOLDER)
        aside.rename(target)
    return result


def _opened(folder: Path) -> DistCheckpoint:
    """A checkpoint whose `.metadata` is the one that its manifest knows: a damaged one may say anything."""
    known = manifest.entries(folder).get(".metadata")
    if known is None:
        raise UserError(
            f"checkpoint {folder}: its manifest does not name .metadata, which says where tensors are"
        )
    manifest.verify_file(folder, ".metadata", known)
    return DistCheckpoint(folder)


def _write_companions(folder: Path, origin: Origin, wish: Wish) -> None:
    key = "torch_dtype" if "torch_dtype" in origin.hf_config else "dtype"
    config = {**origin.hf_config, key: str(DTYPES[wish.dtype]).removeprefix("torch.")}
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    copy_companions(origin.originals, folder)
