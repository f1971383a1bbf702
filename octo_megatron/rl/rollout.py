"""Sampling: which prompts a step draws, with which seeds, and what came of them."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from octo_megatron.config.schema import RLNode
from octo_megatron.data.order import permutation
from octo_megatron.data.problems import Problem
from octo_megatron.data.tokenizer import TextTokenizer
from octo_megatron.engine.seeds import sample_seed
from octo_megatron.engine.vllm_engine import Engine, Sampling
from octo_megatron.grade import grade
from octo_megatron.parallel.world import World


@dataclass(frozen=True)
class Sample:
    """One answer to one prompt."""

    problem: int
    """Index in the problem set."""
    prompt_ids: list[int]
    token_ids: list[int]
    logprobs: list[float]
    """The engine's, of token_ids."""
    finished: bool
    """It ended by itself instead of being cut."""
    weight_version: int
    text: str
    reward: float


@dataclass(frozen=True)
class Rollout:
    """All answers of a step, prompt by prompt, the same on every rank."""

    samples: list[Sample]
    seconds_grade: float
    """Of the slowest rank."""


def drawn(problems: int, seed: int, step: int, count: int) -> list[int]:
    """Indices of the `count` problems of a step: a pure function of (seed, step).

    Every problem comes once before any comes again; each pass has an order of its own.

    Args:
        problems: size of the set.
        step: counted from 1.
    """
    first = (step - 1) * count
    return [
        permutation(problems, seed, "prompts", position // problems)(position % problems)
        for position in range(first, first + count)
    ]


def roll_out(
    engine: Engine,
    tokenizer: TextTokenizer,
    problems: Sequence[Problem],
    node: RLNode,
    seed: int,
    step: int,
    world: World,
) -> Rollout:
    """Sample and grade one step's answers; the prompts are shared out over the ranks. Collective."""
    chosen = drawn(len(problems), seed, step, node.prompts_per_step)
    mine = range(world.rank, len(chosen), world.world_size)
    encoded = {place: tokenizer.encode(problems[chosen[place]].prompt) for place in mine}
    asked = [(place, n) for place in mine for n in range(node.samples_per_prompt)]
    completions = engine.generate(
        [encoded[place] for place, _ in asked],
        Sampling(
            node.max_response_tokens,
            node.temperature,
            [sample_seed(seed, "rl", step, place, n) for place, n in asked],
            (tokenizer.eos_id,),
        ),
    )
    began = time.perf_counter()
    groups: dict[int, list[Sample]] = {place: [] for place in mine}
    for (place, _), answer in zip(asked, completions, strict=True):
        text = tokenizer.decode(answer.token_ids)
        groups[place].append(
            Sample(
                problem=chosen[place],
                prompt_ids=encoded[place],
                token_ids=answer.token_ids,
                logprobs=answer.logprobs,
                finished=answer.finished,
                weight_version=answer.weight_version,
                text=text,
                reward=grade(text, problems[chosen[place]].answer),
            )
        )
    shared = world.all_gather_object((groups, time.perf_counter() - began))
    everything = {place: group for part, _ in shared for place, group in part.items()}
    samples = [sample for place in range(len(chosen)) for sample in everything[place]]
    return Rollout(samples, max(seconds for _, seconds in shared))
