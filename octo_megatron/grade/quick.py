r"""Answers whose comparison needs no computer algebra: numbers, fractions, tuples, intervals, sets, choices.

A verdict here is the one that math-verify would give (`tests/unit/grade/test_quick.py` holds the two against each
other); whatever is not plain enough gets no verdict and goes to math-verify. One thing is more lenient here: a full
stop after a plain number and a dollar sign before it mean nothing, also both at once.
"""

from __future__ import annotations

import re
from fractions import Fraction

_DIGITS = r"(?:\d+|\d{1,3}(?:,\d{3})+)"
_NUMBER = re.compile(rf"[+-]?(?:{_DIGITS}(?:\.\d+)?|\.\d+)")
_FRACTION = re.compile(
    r"(?P<sign>[+-]?)\\frac(?:\{(?P<a>[+-]?\d+)\}\{(?P<b>[+-]?\d+)\}|(?P<c>\d)(?P<d>\d))"
    r"|(?P<e>[+-]?\d+)/(?P<f>\d+)"
)
_CHOICE = re.compile(r"[A-E]")
_SHAPE = re.compile(r"(?P<open>\(|\[|\\\{)(?P<inside>[^()\[\]]*)(?P<close>\)|\]|\\\})")
_LONGEST_NUMBER = 100
"""Characters; longer ones are not typical and Python's integers get slow."""
_CLOSE = Fraction(1, 10**4)
"""Numbers nearer to each other than this share of their size are left to math-verify, which rounds."""


def quick_verdict(found: str, answer: str) -> bool | None:
    """Whether the two are equal; None: not to be told without computer algebra."""
    a, b = normalised(found), normalised(answer)
    if a == b and a:
        return True
    if _CHOICE.fullmatch(a) and _CHOICE.fullmatch(b):
        return False
    x, y = number(a), number(b)
    if x is not None and y is not None:
        return _same(x, y)
    if (x is not None and _CHOICE.fullmatch(b)) or (y is not None and _CHOICE.fullmatch(a)):
        return False
    return _same_shape(a, b)


def normalised(text: str) -> str:
    """Without what does not change the meaning: spaces, sizes of brackets and fractions, dollar signs."""
    plain = text.strip().removesuffix(".").strip()
    if not plain.isascii():
        return plain
    for old, new in (
        ("\\!", ""), ("\\,", ""), ("\\;", ""), ("{,}", ","), ("\\left", ""), ("\\right", ""),
        ("\\dfrac", "\\frac"), ("\\tfrac", "\\frac"),
    ):  # fmt: skip
        plain = plain.replace(old, new)
    plain = plain.removeprefix("\\$").removeprefix("$").removesuffix("\\$").removesuffix("$")
    return re.sub(r"\s+", "", plain) if not re.search(r"\\[a-zA-Z]+\s", plain) else plain.strip()


def number(plain: str) -> Fraction | None:
    """The exact value of a normalised integer, decimal or fraction; None for anything else."""
    if len(plain) > _LONGEST_NUMBER or not plain.isascii():
        return None
    if _NUMBER.fullmatch(plain):
        return Fraction(plain.replace(",", ""))
    match = _FRACTION.fullmatch(plain)
    if match is None:
        return None
    top = match["a"] or match["c"] or match["e"]
    bottom = match["b"] or match["d"] or match["f"]
    if int(bottom) == 0:
        return None
    value = Fraction(int(top), int(bottom))
    return -value if match["sign"] == "-" else value


def _same(x: Fraction, y: Fraction) -> bool | None:
    if x == y:
        return True
    if x.denominator == 1 and y.denominator == 1:
        return False
    return None if abs(x - y) <= _CLOSE * max(abs(x), abs(y), Fraction(1)) else False


def _same_shape(a: str, b: str) -> bool | None:
    """Tuples, intervals and sets of numbers with the same brackets."""
    first, second = _SHAPE.fullmatch(a), _SHAPE.fullmatch(b)
    if first is None or second is None:
        return None
    if (first["open"], first["close"]) != (second["open"], second["close"]):
        return None
    left, right = ([number(part) for part in m["inside"].split(",")] for m in (first, second))
    if None in left or None in right:
        return None
    values: list[Fraction] = [v for v in left if v is not None]
    wanted: list[Fraction] = [v for v in right if v is not None]
    if first["open"] == "\\{":
        # a set has no order and no repetitions
        values, wanted = sorted(set(values)), sorted(set(wanted))
    if len(values) != len(wanted):
        return None if len(left) < 2 or len(right) < 2 else False
    verdicts = [_same(x, y) for x, y in zip(values, wanted, strict=True)]
    if False in verdicts:
        return False
    return None if None in verdicts else True
