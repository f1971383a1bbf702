"""`octo import` and `octo export`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from octo_megatron.cluster.engines import check_engines
from octo_megatron.lineage.convert_command import convert


def import_folder(
    hf_dir: Annotated[
        Path, typer.Argument(metavar="HF_DIR", help="Folder with config.json and safetensors.")
    ],
    checkpoint: Annotated[Path, typer.Argument(metavar="CKPT", help="Checkpoint folder to write.")],
    precision: Annotated[Literal["fp32", "bf16"], typer.Option(help="Of the checkpoint.")] = "fp32",
) -> None:
    """Turn a Hugging Face folder into a Megatron checkpoint.

    [bold]Example[/bold]: octo import models/SmolLM2-135M ckpt/smollm2
    """
    check_engines({"import"})
    raise typer.Exit(convert(["import", str(hf_dir), str(checkpoint), "--precision", precision]))


def export_folder(
    checkpoint: Annotated[
        Path, typer.Argument(metavar="CKPT", help="Checkpoint folder of a node or of `octo import`.")
    ],
    hf_dir: Annotated[Path, typer.Argument(metavar="HF_DIR", help="Hugging Face folder to write.")],
    dtype: Annotated[Literal["fp32", "bf16"], typer.Option(help="Of the written tensors.")] = "fp32",
) -> None:
    """Turn a Megatron checkpoint into a Hugging Face folder that transformers and vLLM load.

    [bold]Example[/bold]: octo export runs/tiny/nodes/rl-long/checkpoints/step_00000025 out/long
    """
    check_engines({"export"})
    raise typer.Exit(convert(["export", str(checkpoint), str(hf_dir), "--dtype", dtype]))
