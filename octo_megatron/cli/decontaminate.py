"""`octo decontaminate`."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any

import typer

from octo_megatron.lineage.lock import FolderLock


def decontaminate(
    inputs: Annotated[
        list[str], typer.Argument(metavar="INPUT...", help="Training text, as `octo tokenize` takes it.")
    ],
    against: Annotated[
        list[str],
        typer.Option(
            metavar="SET",
            help="Evaluation set: PATH, or PATH={field} where the item is no question, problem, prompt or text.",
        ),
    ],
    report: Annotated[Path, typer.Option(metavar="FILE.json", help="Where the report goes.")],
    out: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Also write the clean rows, as JSON lines.")
    ] = None,
    reference: Annotated[
        list[str] | None,
        typer.Option(metavar="SET", help="Training set whose own items are counted apart; repeatable."),
    ] = None,
    template: Annotated[
        str,
        typer.Option(
            help="What of a training row is compared: a template of `octo tokenize`, or '{prompt}'."
        ),
    ] = "plain",
    ngram: Annotated[
        int, typer.Option(metavar="N", help="Words in a row that count as overlap; 0: exact only.")
    ] = 13,
    rejects: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write bad rows here and go on; else stop at the first."),
    ] = None,
    workers: Annotated[
        int, typer.Option(metavar="N", min=0, help="Processes (0: one a core). Under MPI each rank is one.")
    ] = 0,
) -> None:
    """Find evaluation items in training text: equal after normalising, or N words in a row in common.

    [bold]Example[/bold]

    octo decontaminate math8k.json --template '{prompt}' --against 'math500.jsonl={problem}' --report found.json
    """
    # Here and not above: numpy and pyarrow cost time that no other verb should pay.
    from octo_megatron.data import distribute
    from octo_megatron.data.decontaminate import TextSet
    from octo_megatron.data.decontaminate import decontaminate as search
    from octo_megatron.data.documents import TextOptions

    def call(run: distribute.Run) -> int:
        with ExitStack() as stack:

            def locked(plan: Any, job: Any, folder: Path, keep: bool, done: Any) -> None:
                stack.enter_context(FolderLock(folder / ".work" / "lock", "octo decontaminate"))
                run(plan, job, folder, keep, done)

            made = search(
                inputs,
                [TextSet.parse(one) for one in against],
                [TextSet.parse(one) for one in reference or ()],
                report,
                out,
                TextOptions(template=template),
                ngram,
                rejects,
                locked,
            )
        for one in made["sets"]:
            alone = one["documents_exact"] - one["documents_exact_in_reference"]
            apart = f" ({alone} of them in no reference)" if reference else ""
            typer.echo(
                f"{one['path']}: {one['documents_exact']} documents equal one of {one['items']} items"
                f"{apart}, {one['documents_overlapping']} share {ngram} words in a row"
            )
        typer.echo(
            f"{made['rows']} rows in = {made['clean']} clean + {made['contaminated']} contaminated + "
            f"{made['rejected']} rejects; report: {report}"
        )
        return 0

    try:
        code = distribute.with_workers(call, workers)
    except KeyboardInterrupt:
        typer.echo("octo: stopped; the same command goes on with what is left", err=True)
        code = 130
    raise typer.Exit(code)
