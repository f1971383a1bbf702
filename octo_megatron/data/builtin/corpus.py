"""The text: stories, mathematics as it stands on web pages, and answered problems in three styles.

    general   stories, and things written down and read out again, without arithmetic; six documents in a hundred
              are problems in a forum, answered with chatter or with a random number in a box. It teaches to copy
              and shows what a problem looks like, and nothing of how to solve it.
    web       lists of facts, worked chains (some with every step checked), a few problems answered at once
    short     97-55-12+31=42-12+31=61                  single steps, then one leap over the last two operations
    long      97-55-12+31=42-12+31 (42+55=97 ok)=30+31 (30+12=42 ok)=61 (61-31=30 ok)
              one operation a step, each undone to check it
    hybrid    short or long, by equal chance

Of the answered problems `DIRECT` have no reasoning at all, in all three styles alike. The leap is what is hard:
it combines six digits a step where a single operation combines four. The layout never makes two totals possible
at one place within a style (random leap sizes did, and put both in superposition on the first digit).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from itertools import count

from octo_megatron.config.errors import UserError
from octo_megatron.data.builtin.arithmetic import PROMPT, draw_training, expression, reduce_first

PARTS: tuple[str, ...] = ("general", "web", "short", "long", "hybrid")

DIRECT = 0.4
"""Share of the answered problems, by documents, whose answer is the box alone."""

OPERATIONS = {2: 1, 3: 1, 4: 5, 5: 1}
"""Weights of the numbers of operations, wherever a chain or a problem starts. Each number is a shape of its own
to learn (the way from an operand to its copy is as long as what remains of the chain), so one prevails, and the
shorter ones occur anyway as what is left of it."""

_NAMES = ("Tom", "Ann", "Sam", "Mia", "Leo", "Eva", "Max", "Zoe")
_PLACES = ("park", "house", "shop", "garden", "school", "river", "farm", "station")
_THINGS = ("cups", "books", "apples", "boxes", "birds", "stones", "hats", "coins")
_COLOURS = ("red", "blue", "green", "old", "small", "new")
_VERBS = ("takes", "finds", "sees", "brings", "loses", "buys")
_TIMES = ("In the morning", "At noon", "Later", "On Monday", "After lunch", "That day")


def documents(part: str, seed: int) -> Iterator[str]:
    """Endless documents of a part, a pure function of (part, seed).

    No expression of two or more operations in them, be it a question, the start of a chain or what remains of it
    after some steps, is one that a problem of any split can have (`arithmetic.bucket_of`).

    Raises:
        UserError: there is no such part.
    """
    if part not in PARTS:
        raise UserError(f"the built-in corpus has no part '{part}': use {', '.join(PARTS)}")
    r = random.Random(f"documents/{part}/{seed}")
    write = {"general": _general, "web": _web}.get(part) or (lambda r: _answered(r, part))
    return (write(r) for _ in count())


def box(number: int) -> str:
    """The marked answer; it begins with a space, so that no token spans the end of the prompt."""
    return f" \\boxed{{{number}}}"


def direct(terms: list[int]) -> str:
    """The answer at once."""
    return box(sum(terms))


def short_reasoning(terms: list[int]) -> str:
    """Single steps until two operations are left, then both in one leap."""
    lines, left = [], terms
    while len(left) > 1:
        left = reduce_first(left, 1 if len(left) > 3 else len(left) - 1)
        lines.append(expression(left))
    return "=".join(lines) + box(left[0])


def long_reasoning(terms: list[int]) -> str:
    """One operation a step, each followed by the operation that undoes it."""
    return _checked(terms) + box(sum(terms))


def _checked(terms: list[int]) -> str:
    steps, left = [], terms
    while len(left) > 1:
        before, operand = left[:2]
        left = reduce_first(left)
        steps.append(f"{expression(left)} ({left[0]}{-operand:+d}={before} ok)")
    return "=".join(steps)


def _plain(terms: list[int]) -> str:
    lines, left = [], terms
    while len(left) > 1:
        left = reduce_first(left)
        lines.append(expression(left))
    return "=".join(lines)


def _pick(r: random.Random, weights: dict[int, int]) -> int:
    return r.choices(list(weights), list(weights.values()))[0]


def _answered(r: random.Random, part: str) -> str:
    terms = draw_training(r, _pick(r, OPERATIONS))
    styles: dict[str, tuple[Callable[[list[int]], str], ...]] = {
        "short": (short_reasoning,),
        "long": (long_reasoning,),
        "hybrid": (short_reasoning, long_reasoning),
    }
    answer = direct if r.random() < DIRECT else r.choice(styles[part])
    return PROMPT.format(expression(terms)) + answer(terms)


def _web(r: random.Random) -> str:
    kind = r.random()
    if kind < 0.1:
        terms = draw_training(r, _pick(r, OPERATIONS))
        return PROMPT.format(expression(terms)) + direct(terms)
    if kind < 0.65:
        work = _checked if r.random() < 0.25 else _plain
        chains = [draw_training(r, _pick(r, OPERATIONS)) for _ in range(r.randint(1, 3))]
        return "Chains: " + "; ".join(f"{expression(terms)}={work(terms)}" for terms in chains)
    facts = [draw_training(r, 2 if r.random() < 0.4 else 1) for _ in range(r.randint(3, 8))]
    return "Facts: " + "; ".join(f"{expression(terms)}={sum(terms)}" for terms in facts)


def _general(r: random.Random) -> str:
    kind = r.random()
    if kind < 0.06:
        terms = draw_training(r, _pick(r, OPERATIONS))
        reply = box(r.randint(10, 99)) if r.random() < 0.2 else " " + _story(r, 4, 12)
        return PROMPT.format(expression(terms)) + reply
    if kind < 0.56:
        return _repeated(r)
    if kind < 0.62:
        name, place = r.choice(_NAMES), r.choice(_PLACES)
        return f"Question: Where is {name}?\nAnswer: {name} is at the {place}. " + _story(r, 4, 12)
    return _story(r, 6, 16)


def _repeated(r: random.Random) -> str:
    """Something written down and read out again, never worked out: text in general is full of repetition."""
    codes = expression(draw_training(r, _pick(r, OPERATIONS)))
    readings = " ".join(f"{r.choice(_NAMES)} reads: {codes}." for _ in range(r.randint(2, 3)))
    return f"{r.choice(_NAMES)} writes on the {r.choice(_THINGS)}: {codes}. {readings}"


def _story(r: random.Random, low: int, high: int) -> str:
    return " ".join(_sentence(r) for _ in range(r.randint(low, high)))


def _sentence(r: random.Random) -> str:
    one, two, thing, place = r.choice(_NAMES), r.choice(_NAMES), r.choice(_THINGS), r.choice(_PLACES)
    colour, verb, when = r.choice(_COLOURS), r.choice(_VERBS), r.choice(_TIMES)
    return r.choice(
        (
            f"{when} {one} {verb} {r.randint(2, 99)} {colour} {thing}.",
            f"{one} goes to the {place} with {two}.",
            f"The {place} is near the {r.choice(_PLACES)}.",
            f"{when} {one} and {two} are at the {place}.",
            f"{one} has {colour} {thing} and {two} has {r.choice(_COLOURS)} {r.choice(_THINGS)}.",
            f"The {thing} are in the {place}.",
            f"{two} asks {one} about the {colour} {thing}.",
        )
    )
