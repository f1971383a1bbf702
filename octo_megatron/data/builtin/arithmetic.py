"""The task family: chains of additions and subtractions of two-digit numbers in which no column carries.

    97-55-12    start 97, two operations, answer 30

Every number and every running total lies in 10..99 and every operand has digits 1..9, so one operation is two
independent facts about digits, few enough for a model of half a million weights to learn. Difficulty is the
number of operations, and how many of them an answer does in one leap.

Which expressions may be seen where is decided by a hash of the expression alone (`bucket_of`), so that training
text, reinforcement learning and held-out problems never share one, whatever their seeds.
"""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from octo_megatron.config.errors import UserError

PROMPT = "Problem: {}="
"""What a problem looks like. It ends as a worked chain of the web text begins: the distance from an operand to
its copy is then the same in both, which is what makes copying learnable (an `=?\\nAnswer:` in between cost
most of the accuracy). Answers start with a digit or a space, so no token spans the end of the prompt."""

RL_OPERATIONS = 4
"""Operations of the problems of splits `rl` and `same`."""

HARD_OPERATIONS = 5
"""Operations of the problems of split `hard`."""

SPLITS = ("rl", "same", "hard")

_KEY = "octo_megatron built-in corpus 1:"
_SHARES = {"rl": 10, "held-out": 10}
"""Of a hundred expressions; the others are training text."""

_EXPRESSION = re.compile(r"(?<![\d+-])\d+(?:[+-]\d+){2,}")


@dataclass(frozen=True)
class Problem:
    """One question with its answer."""

    prompt: str
    answer: str
    """The number, without the box."""
    id: str
    """First 16 hexadecimal digits of the sha256 of the prompt."""
    level: str
    """How hard, in words: `4 operations`."""


def _moves(total: int) -> tuple[int, ...]:
    """Signed operands that keep both columns of `total` from carrying or borrowing and the result at two digits."""
    tens, units = divmod(total, 10)
    take = [-(10 * i + j) for i in range(1, tens) for j in range(1, units + 1)]
    add = [10 * i + j for i in range(1, 10 - tens) for j in range(1, 10 - units)]
    return tuple(take + add)


_MOVES = {total: _moves(total) for total in range(10, 100)}


def expression(terms: list[int]) -> str:
    """`[97, -55, -12]` -> `97-55-12`."""
    return str(terms[0]) + "".join(f"{term:+d}" for term in terms[1:])


def parse(text: str) -> list[int]:
    """`97-55-12` -> `[97, -55, -12]`."""
    return [int(term) for term in re.findall(r"[+-]?\d+", text)]


def reduce_first(terms: list[int], operations: int = 1) -> list[int]:
    """The chain after its first `operations` operations: `[97, -55, -12]` -> `[42, -12]`."""
    return [sum(terms[: operations + 1]), *terms[operations + 1 :]]


def bucket_of(text: str) -> str:
    """`train`, `rl` or `held-out`: where an expression may occur.

    Expressions of one operation are facts; they are free, and `train`.
    """
    if len(parse(text)) < 3:
        return "train"
    point = int.from_bytes(hashlib.sha256((_KEY + text).encode()).digest()[:8], "big") % 100
    for name, share in _SHARES.items():
        if point < share:
            return name
        point -= share
    return "train"


def draw(r: random.Random, operations: int) -> list[int]:
    """A start uniform in 11..99 and `operations` operands, each uniform over all that are legal."""
    while True:
        terms = [r.randint(11, 99)]
        total = terms[0]
        for _ in range(operations):
            if not _MOVES[total]:
                break
            terms.append(r.choice(_MOVES[total]))
            total += terms[-1]
        if len(terms) == operations + 1:
            return terms


def draw_training(r: random.Random, operations: int) -> list[int]:
    """As `draw`, until the chain and everything left of it after each operation may occur in training text."""
    while True:
        terms = draw(r, operations)
        if all(
            bucket_of(expression([sum(terms[: i + 1]), *terms[i + 1 :]])) == "train"
            for i in range(operations)
        ):
            return terms


def problems(split: str, n: int, seed: int) -> list[Problem]:
    """`n` different problems of a split, a pure function of (split, n, seed); a longer list begins with a shorter.

    `rl` and `same` are equally hard, `hard` is harder; `same` and `hard` are held out.

    Raises:
        UserError: there is no such split.
    """
    if split not in SPLITS:
        raise UserError(f"built-in problems have no split '{split}': use {', '.join(SPLITS)}")
    operations = HARD_OPERATIONS if split == "hard" else RL_OPERATIONS
    bucket = "rl" if split == "rl" else "held-out"
    r = random.Random(f"problems/{split}/{seed}")
    found: dict[str, Problem] = {}
    while len(found) < n:
        terms = draw(r, operations)
        if bucket_of(expression(terms)) == bucket:
            problem = _problem(terms)
            found.setdefault(problem.id, problem)
    return list(found.values())


def _problem(terms: list[int]) -> Problem:
    prompt = PROMPT.format(expression(terms))
    name = hashlib.sha256(prompt.encode()).hexdigest()[:16]
    return Problem(prompt, str(sum(terms)), name, f"{len(terms) - 1} operations")


def expressions_in(text: str) -> set[str]:
    """Every expression of two or more operations in a text, remainders in worked chains included.

    An expression is a longest run of numbers joined by + and -. A part of a longer one does not count.
    """
    return {found.group() for found in _EXPRESSION.finditer(text)}


def check_overlap(
    training: Iterable[str],
    splits: dict[str, list[Problem]],
    report: Callable[[str], None] = lambda line: None,
) -> int:
    """Check real text and real problems: no expression in two of them. Returns how many expressions it compared.

    Args:
        training: documents of any part.
        splits: problems by name of split.
        report: called with a line a split.

    Raises:
        UserError: names an expression and both places.
    """
    seen: dict[str, str] = {}
    for document in training:
        for found in expressions_in(document):
            seen[found] = "training text"
    for split, some in splits.items():
        for problem in some:
            (found,) = expressions_in(problem.prompt)
            if seen.setdefault(found, split) != split:
                raise UserError(f"'{found}' occurs in {seen[found]} and in the problems of split {split}")
        report(f"{split}: {len(some)} problems, none of them elsewhere")
    return len(seen)
