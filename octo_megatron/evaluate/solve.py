"""Solving a problem set with an engine: what `evaluate` nodes and the RL stage share."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from octo_megatron.config.errors import UserError
from octo_megatron.data.problems import Problem
from octo_megatron.data.tokenizer import TextTokenizer
from octo_megatron.engine.sampler import Sampler
from octo_megatron.engine.vllm_engine import Engine, Sampling
from octo_megatron.grade import grade
from octo_megatron.parallel.world import World

_AT_ONCE = 512
"""Answers between two reports of progress. A constant: what is sampled together decides the last bits."""


@dataclass(frozen=True)
class Answer:
    """One graded answer."""

    text: str
    reward: float
    length: int
    """Tokens, the stop token included."""
    finished: bool


def solve(
    engine: Engine | Sampler,
    tokenizer: TextTokenizer,
    problems: Sequence[Problem],
    max_tokens: int,
    temperature: float = 0.0,
    seeds: Sequence[int] | None = None,
    report: Callable[[int, int], None] | None = None,
) -> list[Answer]:
    """One answer a problem, in order. `report`: told (answered, in all) now and then."""
    out: list[Answer] = []
    for first in range(0, len(problems), _AT_ONCE):
        part = problems[first : first + _AT_ONCE]
        some = seeds[first : first + _AT_ONCE] if seeds is not None else None
        completions = engine.generate(
            [tokenizer.encode(p.prompt) for p in part],
            Sampling(max_tokens, temperature, some, (tokenizer.eos_id,)),
        )
        for problem, found in zip(part, completions, strict=True):
            text = tokenizer.decode(found.token_ids)
            out.append(Answer(text, grade(text, problem.answer), len(found.token_ids), found.finished))
        if report:
            report(len(out), len(problems))
    return out


def evaluate_greedy(
    engine: Engine | Sampler,
    tokenizer: TextTokenizer,
    problems: Sequence[Problem],
    max_tokens: int,
    world: World,
    report: Callable[[int, int], None] | None = None,
) -> dict[str, float]:
    """Greedy accuracy, mean length in tokens (of all, of right and of wrong answers) and share of cut answers.

    The problems are shared out over ranks; a mean over no answers is 0.

    Collective.
    """
    mine = solve(engine, tokenizer, problems[engine.copy :: engine.copies], max_tokens, report=report)
    shared = world.all_gather_object(mine if engine.is_lead else [])
    answers = [answer for part in shared for answer in part]
    return {
        "accuracy": _mean([a.reward for a in answers]),
        "length": _mean([float(a.length) for a in answers]),
        "length_right": _mean([float(a.length) for a in answers if a.reward > 0]),
        "length_wrong": _mean([float(a.length) for a in answers if a.reward <= 0]),
        "truncated": _mean([float(not a.finished) for a in answers]),
    }


def longest_prompt(sets: Mapping[str, Sequence[Problem]], tokenizer: TextTokenizer) -> tuple[int, str]:
    """(tokens, set and problem id) of the longest prompt.

    Raises:
        UserError: a set is empty.
    """
    best = (0, "")
    for name, problems in sets.items():
        if not problems:
            raise UserError(f"problem set {name} is empty")
        for problem in problems:
            best = max(best, (len(tokenizer.encode(problem.prompt)), f"{name}, problem {problem.id}"))
    return best


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0
