"""Text and problems: what a lineage reads."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from octo_megatron.config.errors import UserError
from octo_megatron.config.schema.checks import require


@dataclass(frozen=True)
class SourceConfig:
    """One set of training text. Exactly one of `builtin`, `files` and `tokenized` is given."""

    builtin: str | None = None
    """Part of the built-in corpus: general, web, short, long or hybrid."""
    tokens: int = 0
    """Tokens to produce (builtin) or to stop after (files, tokenized; 0: all)."""
    files: list[str] = field(default_factory=list)
    """.jsonl[.gz|.zst], .json, .parquet or .txt files; relative paths start at the working directory."""
    tokenized: str | None = None
    """Folder that `octo tokenize` made with the lineage's tokenizer, read where it is."""
    published: str = ""
    """Where the set can be had, for the error when it is missing."""
    tokenize: str = ""
    """The `octo tokenize` line that makes `tokenized`, for the same error."""
    text: str = "{text}"
    """How a row becomes text: a Python format string over the row's fields, or the name of a template (plain,
    question-answer, chat, openr1)."""
    fields: dict[str, str] = field(default_factory=dict)
    """Field of a named template -> where it stands in the row: {question: problem}."""
    mask_prompt: bool = False
    """Leave what a named template calls the prompt out of the loss."""
    rejects: bool = False
    """Put bad rows into RUN/data/<source>/rejects.jsonl with their cause, instead of stopping at the first."""
    replace: dict[str, str] = field(default_factory=dict)
    """Regular expression -> what takes its place (\\1: its first group), on the text, in this order."""
    validation_tokens: int = 0
    """Tokens of whole documents held out from training for the validation loss (tokenized: its last ones)."""

    def __post_init__(self) -> None:
        require(
            [bool(self.builtin), bool(self.files), bool(self.tokenized)].count(True) == 1,
            "a source names one of builtin: PART, files: [...] and tokenized: FOLDER, and only one",
        )
        for pattern, value in self.replace.items():
            try:
                re.compile(pattern).sub(value, "")
            except (re.error, IndexError) as error:
                raise UserError(f"source: cannot replace '{pattern}' by '{value}': {error}") from None
        require(
            not self.builtin or self.tokens > 0, f"source builtin: {self.builtin} needs tokens: N above 0"
        )


@dataclass(frozen=True)
class ProblemSetConfig:
    """Problems with checkable answers, for RL or evaluation. Exactly one of `builtin` and `file` is given."""

    builtin: str | None = None
    """Split of the built-in problems: rl, same or hard."""
    file: str | None = None
    """.jsonl, .json or .parquet file with one problem a row."""
    prompt: str = "{question}"
    """Python format string over the row's fields."""
    answer: str = "{answer}"
    """Python format string over the row's fields."""
    answer_pattern: str | None = None
    """Regular expression whose first group is the answer within `answer`, for example '#### (.+)' for GSM8K."""
    count: int = 0
    """Problems to take (0: all; the built-in sets need a number)."""
    offset: int = 0
    """Problems of a file to pass over first."""

    def __post_init__(self) -> None:
        require(
            bool(self.builtin) != bool(self.file),
            "a problem set names either builtin: SPLIT or file: PATH, and not both",
        )
        require(
            not self.builtin or self.count > 0, f"problem set builtin: {self.builtin} needs count: N above 0"
        )
