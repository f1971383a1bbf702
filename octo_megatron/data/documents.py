"""A row -> a document, or the reason why it is a bad row."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from octo_megatron.config.errors import UserError
from octo_megatron.data.row import MAX_ROW_BYTES
from octo_megatron.data.template import TEMPLATES, TemplateError, apply, columns


@dataclass(frozen=True)
class TextOptions:
    """How rows become documents; the same for `octo tokenize` and for the sources of a lineage."""

    template: str = "plain"
    """A name of `TEMPLATES` or a format string over the row's fields."""
    names: dict[str, str] = field(default_factory=dict)
    """Field of a named template -> where it stands in the row: {"question": "problem"}."""
    replace: dict[str, str] = field(default_factory=dict)
    """Regular expression -> what takes its place, on the text, in this order."""
    id_field: str | None = None
    source_field: str | None = None
    mask_prompt: bool = False
    """Whether the prompt that a named template tells apart is to be left out of the loss."""
    max_row_bytes: int = MAX_ROW_BYTES

    def __post_init__(self) -> None:
        """Raises UserError for a template that is none and for replacements that cannot be together with a mask."""
        if self.template not in TEMPLATES and "{" not in self.template:
            raise UserError(
                f"template '{self.template}' is not known; use one of {', '.join(TEMPLATES)} "
                'or a format string such as "{question} {answer}"'
            )
        if self.mask_prompt and self.template not in TEMPLATES:
            raise UserError(
                "a format string does not say what the prompt is: mask one of the named templates"
            )
        if self.mask_prompt and self.replace:
            raise UserError(
                "mask_prompt and replace do not go together: replacements would move the prompt's end"
            )
        if self.names and self.template not in TEMPLATES:
            raise UserError(
                "a format string names its fields itself; renaming them is for the named templates"
            )
        known = TEMPLATES[self.template].fields if self.template in TEMPLATES else ()
        for name in self.names:
            if name not in known:
                raise UserError(f"template {self.template} has no field '{name}'; it has {', '.join(known)}")

    def columns(self) -> list[str] | None:
        """Fields that are read, None where that is not known."""
        found = columns(self.template, self.names)
        extra = [name for name in (self.id_field, self.source_field) if name]
        return None if found is None else sorted({*found, *extra})

    def plain(self) -> dict[str, Any]:
        """What the manifest says."""
        return asdict(self)


@dataclass(frozen=True)
class Document:
    """Text to be tokenised, where it came from, and how much of it is prompt."""

    text: str
    prompt_characters: int = 0
    id: str = ""
    source: str = ""


def document(row: Mapping[str, Any], options: TextOptions) -> Document:
    """The document of a row.

    Raises:
        TemplateError: why the row is a bad one, without the place.
    """
    made = apply(options.template, row, options.names)
    text = made.text
    for pattern, value in options.replace.items():
        text = re.sub(pattern, value, text)
    if not text.strip():
        raise TemplateError("the text is empty")
    at = text.find("\0")
    if at >= 0:
        raise TemplateError(f"the text holds a NUL byte (character {at})")
    try:
        size = len(text.encode())
    except UnicodeEncodeError as error:
        raise TemplateError(f"not valid Unicode text ({error.reason} at {error.start})") from None
    if size > options.max_row_bytes:
        raise TemplateError(
            f"the text has {size / 2**20:.1f} MiB, more than the {options.max_row_bytes / 2**20:.4g} MiB that a "
            "row may have: split it, or raise --max-row-mib"
        )
    return Document(text, made.prompt_characters, *_labels(row, options))


def _labels(row: Mapping[str, Any], options: TextOptions) -> Iterator[str]:
    for key in (options.id_field, options.source_field):
        value = row.get(key) if key else ""
        if value is None or isinstance(value, (list, dict)):
            raise TemplateError(f"no text or number in field '{key}'")
        text = str(value)
        if key == options.id_field and key and not text:
            raise TemplateError(f"field '{key}' is empty")
        try:
            text.encode()
        except UnicodeEncodeError:
            raise TemplateError(f"field '{key}' is not valid Unicode text") from None
        yield text
