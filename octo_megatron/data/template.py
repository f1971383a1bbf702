"""A row -> text, by a Python format string over the row's fields: `{question}`, `{prompt[0][content]}`."""

from __future__ import annotations

import re
import string
from collections.abc import Mapping
from typing import Any


class TemplateError(ValueError):
    """Why a template does not fit a row, without the place: the caller knows file and line."""


def render(template: str, row: Mapping[str, Any]) -> str:
    """The template with the row's fields filled in.

    Raises:
        TemplateError: a field is missing, null, a list or a mapping, or the template is malformed.
    """
    try:
        return _Strict().vformat(template, (), row)
    except TemplateError:
        raise
    except (ValueError, TypeError, IndexError, KeyError) as error:
        raise TemplateError(f"template '{template}' is malformed or does not fit: {error}") from None


class _Strict(string.Formatter):
    """Fields and items only: no positions, no attributes, no values that would print as Python code."""

    def get_value(self, key: int | str, args: Any, kwargs: Mapping[str, Any]) -> Any:
        if key not in kwargs:
            shown = f"{{{key}}}" if key != "" else "{}"
            raise TemplateError(f"no field {shown}; the row has: {', '.join(map(str, kwargs))}")
        return kwargs[key]  # type: ignore[index]  # a row's keys are strings, and `key` is one of them

    def get_field(self, field_name: str, args: Any, kwargs: Any) -> tuple[Any, Any]:
        if "." in re.sub(r"\[[^\]]*\]", "", field_name):
            raise TemplateError(f"'{{{field_name}}}': use brackets for an item: {{field[item]}}")
        try:
            value, key = super().get_field(field_name, args, kwargs)
        except (KeyError, IndexError, AttributeError, TypeError):
            raise TemplateError(f"no item '{{{field_name}}}' in the row") from None
        if value is None:
            raise TemplateError(f"field '{{{field_name}}}' is null")
        if isinstance(value, (list, tuple, Mapping)):
            hint = ", ".join(map(str, value)) if isinstance(value, Mapping) else f"0 to {len(value) - 1}"
            raise TemplateError(f"field '{{{field_name}}}' is not text; name one of its items: {hint}")
        return value, key
