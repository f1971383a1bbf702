"""`octo import`, `octo export` and `octo verify`."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Literal

import typer

from octo_megatron.cluster.engines import check_engines
from octo_megatron.lineage.convert_command import convert

Processes = Annotated[int, typer.Option(min=1, help="Processes that share the work.")]


class Part(StrEnum):
    """Of the gate."""

    files = "files"
    round_trip = "round-trip"
    logits = "logits"
    bf16 = "bf16"
    generation = "generation"
    vllm = "vllm"


Skip = Annotated[
    list[Part] | None, typer.Option(help="Part of the gate to leave out (the report says so); repeatable.")
]


def import_folder(
    hf_dir: Annotated[
        Path, typer.Argument(metavar="HF_DIR", help="Folder with config.json and safetensors.")
    ],
    checkpoint: Annotated[Path, typer.Argument(metavar="CKPT", help="Checkpoint folder to write.")],
    precision: Annotated[Literal["fp32", "bf16"], typer.Option(help="Of the checkpoint.")] = "fp32",
    processes: Processes = 1,
) -> None:
    """Turn a Hugging Face folder into a Megatron checkpoint, which any layout reads.

    [bold]Example[/bold]: octo import models/SmolLM2-135M ckpt/smollm2
    """
    check_engines({"import"})
    options = ["--precision", precision, "--processes", str(processes)]
    raise typer.Exit(convert(["import", str(hf_dir), str(checkpoint), *options]))


def export_folder(
    checkpoint: Annotated[
        Path, typer.Argument(metavar="CKPT", help="Checkpoint folder of a node or of `octo import`.")
    ],
    hf_dir: Annotated[Path, typer.Argument(metavar="HF_DIR", help="Hugging Face folder to write.")],
    dtype: Annotated[Literal["fp32", "bf16"], typer.Option(help="Of the written tensors.")] = "fp32",
    shard_gb: Annotated[float, typer.Option(help="Largest weight file, in GB.")] = 5.0,
    processes: Processes = 1,
    skip: Skip = None,
) -> None:
    """Turn a Megatron checkpoint, whatever layout wrote it, into a Hugging Face folder, and prove it.

    [bold]Example[/bold]: octo export runs/tiny/nodes/rl-long/checkpoints/step_00000025 out/long
    """
    check_engines({"export"})
    options = ["--dtype", dtype, "--shard-gb", str(shard_gb), "--processes", str(processes)]
    raise typer.Exit(convert(["export", str(checkpoint), str(hf_dir), *options, *_skipped(skip)]))


def verify_folder(
    checkpoint: Annotated[Path, typer.Argument(metavar="CKPT", help="Checkpoint folder.")],
    hf_dir: Annotated[Path, typer.Argument(metavar="HF_DIR", help="Hugging Face folder.")],
    skip: Skip = None,
) -> None:
    """Prove that a Hugging Face folder and a checkpoint are the same model; prints what was compared.

    [bold]Example[/bold]: octo verify ckpt/smollm2 models/SmolLM2-135M
    """
    check_engines({"export"})
    raise typer.Exit(convert(["verify", str(checkpoint), str(hf_dir), *_skipped(skip)]))


def _skipped(skip: list[Part] | None) -> list[str]:
    return [word for part in skip or [] for word in ("--skip", part.value)]
