"""`octo decontaminate`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from octo_megatron.cli.workers import Rejects, Workers, work

if TYPE_CHECKING:
    from octo_megatron.data.distribute import Run


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
    rejects: Rejects = None,
    workers: Workers = 0,
) -> None:
    """Find evaluation items in training text: equal after normalising, or N words in a row in common.

    [bold]Example[/bold]

    octo decontaminate math8k.json --template '{prompt}' --against 'math500.jsonl={problem}' --report found.json
    """
    # Here and not above: numpy and pyarrow cost time that no other verb should pay.
    from octo_megatron.data.decontaminate import TextSet
    from octo_megatron.data.decontaminate import decontaminate as search
    from octo_megatron.data.documents import TextOptions

    def call(run: Run, prepare: Callable[[Path], None]) -> None:
        made = search(
            inputs,
            [TextSet.parse(one) for one in against],
            [TextSet.parse(one) for one in reference or ()],
            report,
            out,
            TextOptions(template=template),
            ngram,
            rejects,
            run,
            prepare=prepare,
        )
        _tell(made, ngram, report, bool(reference))

    work("decontaminate", workers, call)


def _tell(made: dict[str, Any], ngram: int, report: Path, with_reference: bool) -> None:
    for one in made["sets"]:
        alone = one["documents_exact"] - one["documents_exact_in_reference"]
        apart = f" ({alone} of them in no reference)" if with_reference else ""
        typer.echo(
            f"{one['path']}: {one['documents_exact']} documents equal one of {one['items']} items"
            f"{apart}, {one['documents_overlapping']} share {ngram} words in a row"
        )
    typer.echo(
        f"{made['rows']} rows in = {made['clean']} clean + {made['contaminated']} contaminated + "
        f"{made['rejected']} rejects; report: {report}"
    )
