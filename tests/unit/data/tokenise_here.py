"""Tokenise in this process: a real worker and a real coordinator, without starting processes."""

from __future__ import annotations

import json
import os
import shutil
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from octo_megatron.data.coordinate import Coordinator, LocalLink
from octo_megatron.data.distribute import prepare_folder
from octo_megatron.data.documents import TextOptions
from octo_megatron.data.pieces import Piece, Plan
from octo_megatron.data.tokenise import Tokenised, tokenise
from octo_megatron.data.work import Job, Worker

MPIRUN = ["mpirun", "-n", "4", "--oversubscribe", "--allow-run-as-root"]
MPI_MISSING = "no MPI here: apt install openmpi-bin, pip install --no-deps mpi4py"


def has_mpi() -> bool:
    """Whether mpirun and mpi4py are there (not imported: that would start MPI in this process)."""
    from importlib.util import find_spec

    return shutil.which("mpirun") is not None and find_spec("mpi4py") is not None


def mpi_environment() -> dict[str, str]:
    """For mpirun inside a container: its ranks are threads of one machine and need no network."""
    return {**os.environ, "OMPI_MCA_btl": "self,vader", "OMPI_MCA_btl_vader_single_copy_mechanism": "none"}


def run_here(before: Callable[[], None] = lambda: None) -> Any:
    """Has the pieces made by one worker; `before` is called when the files have been listed."""

    def run(plan: Plan, job: Job, folder: Path, keep: bool, done: dict[Piece, dict[str, Any]]) -> None:
        before()
        prepare_folder(folder)
        coordinator = Coordinator(plan, done, lambda totals: None)
        Worker(plan, job, folder, keep, LocalLink(coordinator, threading.Lock())).run()

    return run


def tokenise_here(
    inputs: Iterable[Path | str],
    out: Path,
    tokenizer: Path,
    rejects: Path | None = None,
    piece_bytes: int = 0,
    before: Callable[[], None] = lambda: None,
    **options: Any,
) -> Tokenised:
    """`octo tokenize` without the command line."""
    text = TextOptions(**options)
    return tokenise(
        [str(one) for one in inputs], out, tokenizer, text, rejects, run_here(before), piece_bytes
    )


def write_rows(path: Path, rows: Iterable[Any]) -> Path:
    """JSON lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def content(folder: Path) -> dict[str, bytes]:
    """Every file of a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
