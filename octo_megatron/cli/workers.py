"""What the verbs with many workers share: their options, the lock on the output folder, and how they end."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from octo_megatron.lineage.lock import FolderLock

if TYPE_CHECKING:
    from octo_megatron.data.distribute import Run

Rejects = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE", help="Write bad rows here with their cause and go on; else stop at the first."
    ),
]
Workers = Annotated[
    int, typer.Option(metavar="N", min=0, help="Processes (0: one a core). Under MPI each rank is one.")
]


def work(verb: str, workers: int, call: Callable[[Run, Callable[[Path], None]], None]) -> NoReturn:
    """Call `call` with what does the pieces and with what takes an output folder; exits with the command's code.

    Raises:
        UserError, WorkFailed: those of `call`; UserError where another command works in the folder.
    """
    # Here and not above: numpy costs time that no other verb should pay.
    from octo_megatron.data import distribute

    def with_lock(run: Run) -> int:
        with ExitStack() as stack:

            def prepare(folder: Path) -> None:
                stack.enter_context(FolderLock(folder / ".work" / "lock", f"octo {verb}"))
                distribute.prepare_folder(folder)

            call(run, prepare)
        return 0

    try:
        code = distribute.with_workers(with_lock, workers)
    except KeyboardInterrupt:
        typer.echo("octo: stopped; the same command goes on with what is left", err=True)
        code = 130
    raise typer.Exit(code)
