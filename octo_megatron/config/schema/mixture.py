"""A mixture file: sources with their shares, to be named by train nodes (`mixture: data/stable.yaml`)."""

from __future__ import annotations

from dataclasses import dataclass, field

from octo_megatron.config.schema.checks import check_order, require
from octo_megatron.config.schema.data import SourceConfig

MARKS = ("paper", "assumed")
"""What a value's provenance begins with: it stands in the paper, or is our choice."""


@dataclass(frozen=True)
class MixtureSource(SourceConfig):
    """A source with its place in the mixture."""

    weight: float = 0.0
    """Share of the tokens; the weights of a file sum to 1."""
    max_epochs: float = 0.0
    """How often it may be gone through (0: without end)."""
    provenance: dict[str, str] = field(default_factory=dict)
    """Key of this source -> `paper: ...` or `assumed: ...`, where its value comes from."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.weight >= 0, f"weight is {self.weight:g}; it must not be below 0")
        require(self.max_epochs >= 0, f"max_epochs is {self.max_epochs:g}; use 0 for no limit")
        check_provenance(self.provenance)


@dataclass(frozen=True)
class MixtureConfig:
    """The whole file. A train node that names it takes over every key that it does not set itself."""

    data_root: str = "."
    """For `${data_root}` in paths; a lineage's own data_root comes first."""
    tokens: int = 0
    """Budget."""
    seq_length: int = 0
    packing: str = "concat"
    when_exhausted: str = "error"
    provenance: dict[str, str] = field(default_factory=dict)
    """Key of this file -> `paper: ...` or `assumed: ...`."""
    sources: dict[str, MixtureSource] = field(default_factory=dict)

    def __post_init__(self) -> None:
        require(self.tokens > 0, "tokens is the budget of the mixture and must be above 0")
        require(self.seq_length > 0, "seq_length must be above 0")
        check_order(self.packing, self.when_exhausted)
        check_provenance(self.provenance)
        require(bool(self.sources), "a mixture file needs sources: {NAME: {weight: ..., tokenized: ...}}")
        total = sum(source.weight for source in self.sources.values())
        require(abs(total - 1) < 1e-6, f"the weights of the sources sum to 1; these sum to {total:g}")


def check_provenance(marks: dict[str, str]) -> None:
    """Raises UserError for a text that does not begin with one of MARKS."""
    for key, text in marks.items():
        require(
            text.split(":")[0] in MARKS,
            f"provenance.{key} is '{text}'; it begins with {' or '.join(MARKS)}",
        )
