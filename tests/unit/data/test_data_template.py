"""Templates: only what a row holds, and only as text."""

import pytest

from octo_megatron.data.template import TemplateError, render

ROW = {"text": "a {b} c", "n": 3, "prompt": [{"role": "user", "content": "2+2?"}], "none": None}


def test_fields_items_and_braces() -> None:
    assert render("{text}|{n}|{prompt[0][content]}|{{x}}", ROW) == "a {b} c|3|2+2?|{x}"
    assert render("{n:04d}", ROW) == "0003"


@pytest.mark.parametrize(
    ("template", "cause"),
    [
        ("{question}", r"no field \{question\}; the row has: text, n, prompt, none"),
        ("{}", r"no field"),
        ("{0}", r"no field \{0\}"),
        ("{prompt}", r"not text; name one of its items: 0 to 0"),
        ("{prompt[0]}", r"not text; name one of its items: role, content"),
        ("{prompt[1][content]}", r"no item '\{prompt\[1\]\[content\]\}'"),
        ("{text[role]}", r"no item '\{text\[role\]\}'"),
        ("{none}", r"'\{none\}' is null"),
        ("{text.__class__}", r"use brackets"),
        ("{prompt[0].__class__}", r"use brackets"),
        ("{text", r"malformed"),
        ("{n:q}", r"malformed or does not fit"),
    ],
)
def test_what_does_not_fit_is_named(template: str, cause: str) -> None:
    with pytest.raises(TemplateError, match=cause):
        render(template, ROW)
