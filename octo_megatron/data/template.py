"""A row -> text: by a format string over its fields (`{question}`, `{prompt[0][content]}`) or a named template.

The named templates (`TEMPLATES`) say which leading part of the text is the prompt; a loss mask can leave it out.
Fields are taken from the row by name; `names` gives another place for one: {"question": "problem"}.
"""

from __future__ import annotations

import re
import string
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

Getter = Callable[[Mapping[str, Any]], Any]


class TemplateError(ValueError):
    """Why a template does not fit a row, without the place: the caller knows file and line."""


@dataclass(frozen=True)
class Rendered:
    """The text of a document; its first `prompt_characters` are the prompt."""

    text: str
    prompt_characters: int = 0


def render(template: str, row: Mapping[str, Any]) -> str:
    """A format string with the row's fields filled in.

    Raises:
        TemplateError: a field is missing, null, a list or a mapping, or the template is malformed.
    """
    return _compiled(template)(row)


@dataclass(frozen=True)
class Template:
    """How rows of one kind become text."""

    name: str
    does: str
    """One line for `--help` and errors."""
    make: Callable[[Mapping[str, Any], Mapping[str, str]], Rendered]
    """(row, names) -> text; raises TemplateError."""
    fields: tuple[str, ...]
    """Fields it may read, before `names`."""


def columns(template: str, names: Mapping[str, str]) -> list[str] | None:
    """Top-level fields of a row that a template may read; None where that is not known."""
    known = TEMPLATES.get(template)
    try:
        fields = known.fields if known else tuple(_field_names(template))
    except ValueError:  # malformed: rendering will say so
        return None
    return sorted({re.split(r"[.\[]", names.get(field, field))[0] for field in fields})


def apply(template: str, row: Mapping[str, Any], names: Mapping[str, str]) -> Rendered:
    """Render by the name of a template or by a format string (anything with a brace in it).

    Raises:
        TemplateError: the row does not fit.
    """
    known = TEMPLATES.get(template)
    return known.make(row, names) if known else Rendered(render(template, row))


def _plain(row: Mapping[str, Any], names: Mapping[str, str]) -> Rendered:
    """`text` as it is; a row without it has question and answer, joined by a line break."""
    if _first(names, "text") in row or _first(names, "question") not in row:
        text = _value(row, names.get("text", "text"))
        if not isinstance(text, str):
            raise TemplateError(
                f"field '{{{names.get('text', 'text')}}}' is a {type(text).__name__}, not text"
            )
        return Rendered(text)
    return _joined(f"{_words(row, names, 'question')}\n", _words(row, names, "answer"))


def _question_answer(row: Mapping[str, Any], names: Mapping[str, str]) -> Rendered:
    return _joined(f"Question: {_words(row, names, 'question')}\nAnswer:", f" {_words(row, names, 'answer')}")


def _chat(row: Mapping[str, Any], names: Mapping[str, str]) -> Rendered:
    """`messages` [{role, content}, ...], or question and answer as one exchange; prompt: up to the first reply."""
    if _first(names, "messages") not in row and _first(names, "question") in row:
        return _joined(
            f"User: {_words(row, names, 'question')}\nAssistant:", f" {_words(row, names, 'answer')}"
        )
    messages = _item(row, names.get("messages", "messages"))
    if not isinstance(messages, list) or not messages:
        raise TemplateError(f"field '{{{names.get('messages', 'messages')}}}' is not a list of messages")
    text, prompt = "", None
    for number, message in enumerate(messages):
        role = message.get("role", message.get("from")) if isinstance(message, Mapping) else None
        if role not in _SPEAKERS:
            raise TemplateError(f"message {number} has role {role!r}; known: {', '.join(sorted(_SPEAKERS))}")
        content = _words(message, {}, "content" if "content" in message else "value")
        text += "\n" if text else ""
        if _SPEAKERS[role] == "Assistant" and prompt is None:
            prompt = len(f"{text}Assistant:")
        text += f"{_SPEAKERS[role]}: {content}" if _SPEAKERS[role] else content
    return Rendered(text, prompt or 0)


def _openr1(row: Mapping[str, Any], names: Mapping[str, str]) -> Rendered:
    """Question and thinking joined by a line break, think tags dropped (OctoThinker's recipe).

    The question is `problem` (or `question`), the thinking the first of `generations` (or `answer`).
    """
    question = "problem" if _first(names, "problem") in row else "question"
    answer = "generations" if _first(names, "generations") in row else "answer"
    value = _item(row, names.get(answer, answer))
    if isinstance(value, list):
        if not value:
            raise TemplateError(f"field '{{{names.get(answer, answer)}}}' is empty")
        value = value[0]
    if not isinstance(value, str):
        raise TemplateError(f"field '{{{names.get(answer, answer)}}}' is a {type(value).__name__}, not text")
    thinking = re.sub(r"\n{3,}", "\n\n", re.sub(r"</?think>", "", value)).strip()
    return _joined(f"{_words(row, names, question).strip()}\n", thinking)


_SPEAKERS = {
    "user": "User", "human": "User", "assistant": "Assistant", "gpt": "Assistant", "system": "",
}  # fmt: skip
"""Role of a message -> who speaks; a system message stands without a name."""

TEMPLATES: dict[str, Template] = {
    one.name: one
    for one in (
        Template("plain", "text as it is, or question, line break, answer", _plain,
                 ("text", "question", "answer")),
        Template("question-answer", "Question: ... Answer: ...", _question_answer, ("question", "answer")),
        Template("chat", "User: / Assistant: turns from messages, or from question and answer", _chat,
                 ("messages", "question", "answer")),
        Template("openr1", "question, line break, thinking without its think tags", _openr1,
                 ("problem", "question", "generations", "answer")),
    )
}  # fmt: skip


_CONVERSIONS: dict[str, Callable[[Any], str]] = {"s": str, "r": repr, "a": ascii}


def _joined(prompt: str, response: str) -> Rendered:
    return Rendered(prompt + response, len(prompt))


def _first(names: Mapping[str, str], field: str) -> str:
    """The top-level field that a name stands for."""
    return re.split(r"[.\[]", names.get(field, field))[0]


def _words(row: Mapping[str, Any], names: Mapping[str, str], field: str) -> str:
    """The value of a field as text: a string, or a number as Python prints it."""
    return str(_value(row, names.get(field, field)))


def _value(row: Mapping[str, Any], path: str) -> Any:
    return _checked(path, _item(row, path))


def _item(row: Mapping[str, Any], path: str) -> Any:
    return _getter(path)(row)


@lru_cache(maxsize=256)
def _compiled(template: str) -> Callable[[Mapping[str, Any]], str]:
    """Parse once: Python's own formatter would parse for each row, at a tenth of the tokenizer's time."""
    parts: list[tuple[str, str | None, str, str | None]] = []
    try:
        for literal, field, spec, conversion in string.Formatter().parse(template):
            if spec and "{" in spec:
                raise ValueError("a format within a format")
            parts.append((literal, field, spec or "", conversion))
    except ValueError as error:
        raise TemplateError(f"template '{template}' is malformed or does not fit: {error}") from None

    def fill(row: Mapping[str, Any]) -> str:
        out = []
        for literal, field, spec, conversion in parts:
            out.append(literal)
            if field is None:
                continue
            value = _value(row, field)
            try:
                value = _CONVERSIONS[conversion](value) if conversion else value
                out.append(value if not spec and isinstance(value, str) else format(value, spec))
            except (ValueError, TypeError, KeyError) as error:
                raise TemplateError(f"template '{template}' is malformed or does not fit: {error}") from None
        return "".join(out)

    return fill


def _field_names(template: str) -> list[str]:
    return [field for _, field, _, _ in string.Formatter().parse(template) if field]


@lru_cache(maxsize=256)
def _getter(path: str) -> Getter:
    """Walks fields and items only: no positions, no attributes."""
    if "." in re.sub(r"\[[^\]]*\]", "", path):
        raise TemplateError(f"'{{{path}}}': use brackets for an item: {{field[item]}}")
    field, *rest = re.split(r"\[", path)
    steps: list[str | int] = []
    for step in rest:
        if not step.endswith("]"):
            raise TemplateError(f"'{{{path}}}' is malformed or does not fit: a bracket is not closed")
        steps.append(int(step[:-1]) if step[:-1].isdigit() else step[:-1])

    def get(row: Mapping[str, Any]) -> Any:
        if not field or field not in row:
            shown = f"{{{field}}}" if field else "{}"
            raise TemplateError(f"no field {shown}; the row has: {', '.join(map(str, row))}")
        value: Any = row[field]
        for step in steps:
            try:
                value = value[step]
            except (KeyError, IndexError, TypeError):
                raise TemplateError(f"no item '{{{path}}}' in the row") from None
        return value

    return get


def _checked(path: str, value: Any) -> Any:
    """Refuses what would print as Python code."""
    if value is None:
        raise TemplateError(f"field '{{{path}}}' is null")
    if isinstance(value, (list, tuple, Mapping)):
        hint = ", ".join(map(str, value)) if isinstance(value, Mapping) else f"0 to {len(value) - 1}"
        raise TemplateError(f"field '{{{path}}}' is not text; name one of its items: {hint}")
    return value
