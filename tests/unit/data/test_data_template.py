"""Templates: only what a row holds, and only as text."""

import pytest

from octo_megatron.data.template import TEMPLATES, TemplateError, apply, columns, render

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


QA = {"question": "2+2?", "answer": "It is 4.", "text": "whole"}
CHAT = [
    {"role": "system", "content": "Be kind."},
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hello."},
    {"role": "user", "content": "2+2?"},
    {"role": "assistant", "content": "4"},
]
R1 = {
    "problem": "What is 2+2?\n",
    "generations": ["<think>\nTwo and two.\n\nSo 4.\n</think>\n\nThe answer is \\boxed{4}.", "other"],
    "answer": "4",
}


@pytest.mark.parametrize(
    ("name", "row", "names", "prompt", "response"),
    [
        ("plain", QA, {}, "", "whole"),
        ("plain", {"body": "b", "question": "q"}, {"text": "body"}, "", "b"),
        ("plain", {"question": "2+2?", "answer": 4}, {}, "2+2?\n", "4"),
        ("question-answer", QA, {}, "Question: 2+2?\nAnswer:", " It is 4."),
        ("question-answer", {"a": [{"b": "p"}], "s": "4"}, {"question": "a[0][b]", "answer": "s"},
         "Question: p\nAnswer:", " 4"),
        ("chat", QA, {}, "User: 2+2?\nAssistant:", " It is 4."),
        ("chat", {"messages": CHAT}, {}, "Be kind.\nUser: Hi\nAssistant:", " Hello.\nUser: 2+2?\nAssistant: 4"),
        ("chat", {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Yo"}]},
         {"messages": "conversations"}, "User: Hi\nAssistant:", " Yo"),
        ("openr1", R1, {}, "What is 2+2?\n", "Two and two.\n\nSo 4.\n\nThe answer is \\boxed{4}."),
        ("openr1", {"question": "q", "answer": "<think>t</think>a"}, {}, "q\n", "ta"),
        ("openr1", {"p": "q", "m": [{"content": "<think>t</think> a"}]},
         {"problem": "p", "generations": "m[0][content]"}, "q\n", "t a"),
    ],
)  # fmt: skip
def test_named_templates(name: str, row: dict, names: dict, prompt: str, response: str) -> None:
    made = apply(name, row, names)
    assert (made.text[: made.prompt_characters], made.text[made.prompt_characters :]) == (prompt, response)
    used = columns(name, names)
    assert used is not None and apply(name, {key: row[key] for key in used if key in row}, names) == made


@pytest.mark.parametrize(
    ("name", "row", "cause"),
    [
        ("plain", {"text": 3}, r"field '\{text\}' is a int, not text"),
        ("plain", {"question": "q"}, r"no field \{answer\}"),
        ("plain", {"body": "q"}, r"no field \{text\}; the row has: body"),
        ("chat", {"messages": "hi"}, "is not a list of messages"),
        ("chat", {"messages": []}, "is not a list of messages"),
        (
            "chat",
            {"messages": [{"role": "robot", "content": "x"}]},
            "message 0 has role 'robot'; known: assistant",
        ),
        ("chat", {"messages": [{"role": "user", "content": None}]}, "is null"),
        ("openr1", {"problem": "p", "generations": []}, "is empty"),
        ("openr1", {"problem": "p", "generations": [3]}, "is a int, not text"),
    ],
)
def test_rows_that_do_not_fit_a_named_template(name: str, row: dict, cause: str) -> None:
    with pytest.raises(TemplateError, match=cause):
        apply(name, row, {})


def test_every_template_is_tested() -> None:
    assert set(TEMPLATES) == {"plain", "question-answer", "chat", "openr1"}
    assert columns("{a[0][b]} {c}", {}) == ["a", "c"] and columns("{a", {}) is None
