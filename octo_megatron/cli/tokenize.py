"""`octo tokenize`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from octo_megatron.cli.workers import Rejects, Workers, work
from octo_megatron.config.errors import UserError

if TYPE_CHECKING:
    from octo_megatron.data.distribute import Run


Inputs = Annotated[
    list[str],
    typer.Argument(metavar="INPUT...", help="Files, folders and globs: .jsonl[.gz|.zst] .json .parquet .txt"),
]
Tokenizer = Annotated[
    Path,
    typer.Option(
        metavar="PATH",
        help="Hugging Face folder, tokenizer.json, or tokenizer.model (Llama-3's tiktoken, SentencePiece).",
    ),
]
Template = Annotated[
    str,
    typer.Option(help="plain, question-answer, chat, openr1, or a format string like '{title}\\n{body}'."),
]
Fields = Annotated[
    list[str] | None,
    typer.Option(metavar="NAME=FIELD", help="Where a template's field is: question=problem; repeatable."),
]
Replacements = Annotated[
    list[str] | None,
    typer.Option(metavar="REGEX=TEXT", help="Replacement on the text, in this order; repeatable."),
]
SourceField = Annotated[str | None, typer.Option(metavar="FIELD", help="Count documents and tokens by this.")]
MaskPrompt = Annotated[
    bool, typer.Option("--mask-prompt", help="Leave the template's prompt out of the loss.")
]
ShardSize = Annotated[
    int, typer.Option(metavar="N", min=0, help="MiB of text a shard (0: by the input's size, up to 256).")
]
End = Annotated[
    str | None, typer.Option(metavar="TOKEN", help="End of a document, where the tokenizer names none.")
]


def tokenize(
    inputs: Inputs,
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="Where the set goes.")],
    tokenizer: Tokenizer,
    template: Template = "plain",
    text_field: Annotated[
        str, typer.Option(metavar="FIELD", help="Text of a row (template plain).")
    ] = "text",
    field: Fields = None,
    replace: Replacements = None,
    id_field: Annotated[str | None, typer.Option(metavar="FIELD", help="Keep each document's id.")] = None,
    source_field: SourceField = None,
    mask_prompt: MaskPrompt = False,
    rejects: Rejects = None,
    workers: Workers = 0,
    shard_mib: ShardSize = 0,
    max_row_mib: Annotated[float, typer.Option(metavar="N", help="MiB above which a row is bad.")] = 16,
    eos: End = None,
) -> None:
    """Turn text into a tokenised set: shards in Megatron's .bin/.idx format with a manifest.

    The bytes are the same for every number of workers, and however often it was killed and started again.

    [bold]Examples[/bold]

    octo tokenize web/ --out sets/web --tokenizer /models/Llama-3.2-1B

    octo tokenize qa.parquet --template question-answer --field question=problem --out sets/qa --tokenizer m/

    mpirun -n 64 octo tokenize 'web/**/*.jsonl.zst' --rejects bad.jsonl --out sets/web --tokenizer m/
    """
    # Here and not above: the tokenizers cost half a second that no other verb should pay.
    from octo_megatron.data.documents import TextOptions
    from octo_megatron.data.tokenise import tokenise

    names = _pairs(field, "--field", "NAME=FIELD")
    if text_field != "text":
        names["text"] = text_field
    text = TextOptions(
        template=template,
        names=names,
        replace=_pairs(replace, "--replace", "REGEX=TEXT"),
        id_field=id_field,
        source_field=source_field,
        mask_prompt=mask_prompt,
        max_row_bytes=int(max_row_mib * 2**20),
    )

    def call(run: Run, prepare: Callable[[Path], None]) -> None:
        made = tokenise(inputs, out, tokenizer, text, rejects, run, shard_mib * 2**20, eos, prepare)
        manifest = made.manifest
        typer.echo(
            f"{out}: {manifest['documents']} documents, {manifest['tokens']} tokens in {len(manifest['shards'])} "
            f"shards{' (was there)' if made.was_there else ''}; "
            f"{manifest['rows']} rows in = {manifest['documents']} out + {manifest['rejected']} rejects"
        )

    work("tokenize", workers, call)


def _pairs(items: list[str] | None, option: str, form: str) -> dict[str, str]:
    pairs = {}
    for item in items or ():
        key, sign, value = item.partition("=")
        if not sign or not key:
            raise UserError(f"{option} '{item}' is not of the form {form}")
        pairs[key] = value
    return pairs
