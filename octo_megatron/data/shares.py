"""What a mixture file comes to: shares, tokens and epochs of each source within the budget, what is missing."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from octo_megatron.config.errors import UserError
from octo_megatron.config.mixture import load_mixture
from octo_megatron.config.schema import MixtureConfig, MixtureSource
from octo_megatron.data.blend import Blend
from octo_megatron.data.mixture import open_packing
from octo_megatron.data.sources import division
from octo_megatron.data.token_set import TokenisedSet, open_source

REPEATS = 4
"""Epochs up to which repeated text is worth about as much as new text (Muennighoff et al., arXiv 2305.16264)."""


@dataclass(frozen=True)
class Share:
    """One source within the budget."""

    name: str
    weight: float
    mark: str
    """`paper` or `assumed`, and why; empty where the file does not say."""
    budget: int
    """Tokens that the mixture takes from it, in whole samples."""
    tokens: int | None = None
    """Tokens that are trained on: without those that the source holds out or cuts off; None where no set is."""
    documents: int | None = None
    epochs: float | None = None
    fill: float | None = None
    """Share of the samples' places that hold a token."""
    missing: str | None = None
    """Why it cannot be read."""


def shares_of(config: MixtureConfig) -> list[Share]:
    """Every source of a mixture file, in its order."""
    samples = config.tokens // config.seq_length
    counts = Blend({name: source.weight for name, source in config.sources.items()}).counts(samples)
    return [_share(name, source, config, counts.get(name, 0)) for name, source in config.sources.items()]


def _share(name: str, source: MixtureSource, config: MixtureConfig, samples: int) -> Share:
    budget = samples * config.seq_length
    mark = source.provenance.get("weight", "")
    if source.tokenized is None:
        return Share(
            name, source.weight, mark, budget, missing=f"{name}: is tokenised when a run is prepared"
        )
    try:
        whole = open_source(name, source)
        tokens = TokenisedSet(whole.folder, division(name, source, whole)[0])
        packing = open_packing(tokens, config.packing, config.seq_length, name)
    except UserError as error:
        return Share(name, source.weight, mark, budget, missing=str(error))
    fill = packing.totals()[0] / (packing.samples * config.seq_length)
    epochs = samples / packing.samples
    return Share(name, source.weight, mark, budget, tokens.tokens, tokens.documents, epochs, fill)


def show_mixture(path: Path, overrides: list[str]) -> int:
    """Print the table, warnings and what is missing; exit code 0, or 2 where a set is missing.

    Raises:
        UserError: the file is wrong.
    """
    config = load_mixture(path, overrides)
    rows = shares_of(config)
    width = None if sys.stdout.isatty() else 160
    console = Console(width=width, highlight=False)
    table = Table(
        title=f"{path}: {config.tokens:,} tokens, {config.packing}, samples of {config.seq_length:,}"
    )
    table.add_column("source", no_wrap=True)
    for column in ("share", "tokens of it", "in the set", "documents", "epochs", "fill"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("share from")
    for row in rows:
        table.add_row(*_cells(row))
    console.print(table)
    for row in rows:
        if row.epochs is not None and row.epochs > REPEATS:
            console.print(
                f"warning: {row.name} repeats: {row.epochs:.1f} epochs within the budget, more than {REPEATS}; "
                "lower its share or give it more text",
                markup=False,
                soft_wrap=True,
            )
    missing = [row.missing for row in rows if row.missing is not None]
    for line in missing:
        print(f"octo: error: {line}", file=sys.stderr)
    return 2 if missing else 0


def _cells(row: Share) -> list[str]:
    def shown(value: float | None, form: str) -> str:
        return "-" if value is None else format(value, form)

    return [
        row.name,
        f"{row.weight:.4g}",
        f"{row.budget:,}",
        shown(row.tokens, ","),
        shown(row.documents, ","),
        shown(row.epochs, ".2f"),
        shown(row.fill, ".1%"),
        row.mark,
    ]
