"""The reward of one answer: 1.0 when its last `\\boxed{...}` equals the right answer, else 0.0."""

from __future__ import annotations

import functools
import re
from fractions import Fraction

from octo_megatron.grade.verifier import Verifier

_TEXT_LIMIT = 100_000
"""Characters at the end of a text in which the marked answer is looked for."""
_ANSWER_LIMIT = 1_000
"""Characters of a marked answer; a longer one is wrong unseen."""
_TOKENS = re.compile(r"\\boxed\s*\{|\\.|[{}]", re.DOTALL)
_NUMBER = re.compile(r"[+-]?(\d+|\d{1,3}(,\d{3})+)(\.\d+)?|[+-]?\.\d+")
_verifier = Verifier()


def grade(text: str, answer: str) -> float:
    """1.0 or 0.0. `answer`: the right one, without a mark. Neither format nor length counts.

    Plain numbers are compared exactly and at once; everything else (fractions, LaTeX, sets, intervals) goes
    to math-verify in a process of its own with limits, so a hostile answer costs its own reward and nothing
    else.
    """
    found = marked_answer(text)
    if found is None or len(found) > _ANSWER_LIMIT:
        return 0.0
    if found == answer.strip():
        return 1.0
    number, wanted = _number(found), _number(answer)
    if number is not None and wanted is not None:
        return float(number == wanted)
    return _verified(found, answer)


def marked_answer(text: str) -> str | None:
    """What stands in the last complete `\\boxed{...}`, None where there is none. Linear in the text."""
    opened: list[int | None] = []
    best: tuple[int, int] | None = None
    text = text[-_TEXT_LIMIT:]
    for token in _TOKENS.finditer(text):
        mark = token.group()
        if mark == "{":
            opened.append(None)
        elif mark == "}":
            start = opened.pop() if opened else None
            if start is not None and (best is None or start > best[0]):
                best = (start, token.start())
        elif mark.endswith("{") and mark.startswith("\\boxed"):
            opened.append(token.end())
    return text[best[0] : best[1]].strip() if best else None


@functools.lru_cache(maxsize=20_000)
def _verified(found: str, answer: str) -> float:
    return float(_verifier.equal(found, answer))


def _number(text: str) -> Fraction | None:
    r"""The exact value of a plain number: 30, -1,200, \$18.50, 3.0; None for anything else."""
    plain = text.strip().replace("\\!", "").replace("\\,", "").replace("{,}", ",")
    plain = (
        plain.removeprefix("\\$")
        .removeprefix("$")
        .removesuffix("\\$")
        .removesuffix("$")
        .removesuffix(".")
        .strip()
    )
    if len(plain) > 100 or not _NUMBER.fullmatch(plain) or not plain.isascii():
        return None
    return Fraction(plain.replace(",", ""))
