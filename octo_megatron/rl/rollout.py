"""Sampling: which prompts a step draws, with which seeds, and what the engine answered."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from octo_megatron.config.schema import RLNode
from octo_megatron.data.order import permutation
from octo_megatron.data.problems import Problem
from octo_megatron.data.tokenizer import TextTokenizer
from octo_megatron.engine.seeds import sample_seed
from octo_megatron.engine.vllm_engine import Engine, Sampling
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
    """Of the oldest weights that produced one of its tokens."""
    text: str
    reward: float = 0.0
    """Sum of `parts`; 0 until it is graded."""
    parts: dict[str, float] = field(default_factory=dict)
    """The reward's named parts."""


@dataclass(frozen=True)
class Answers:
    """All answers of one round of sampling, prompt by prompt, the same on every rank."""

    samples: list[Sample]
    seconds: list[float]
    """Spent sampling, by rank."""


def drawn(problems: int, seed: int, first: int, count: int) -> list[int]:
    """Indices of problems `first` .. `first + count` of the endless stream of prompts: a pure function.

    Every problem comes once before any comes again; each pass has an order of its own.

    Args:
        problems: size of the set.
        first: prompts that earlier steps have drawn.
    """
    return [
        permutation(problems, seed, "prompts", position // problems)(position % problems)
        for position in range(first, first + count)
    ]


def sample_answers(
    engine: Engine,
    tokenizer: TextTokenizer,
    problems: Sequence[Problem],
    chosen: Sequence[int],
    first_place: int,
    node: RLNode,
    seed: int,
    step: int,
    world: World,
) -> Answers:
    """Answer the chosen problems `samples_per_prompt` times each; the prompts are shared out over the engine's copies.

    Collective. Seeds are a pure function of (run seed, step, place of the prompt, sample).

    Args:
        first_place: prompts that this step has drawn before these (dynamic sampling).
    """
    began = time.perf_counter()
    mine = range(engine.copy, len(chosen), engine.copies)
    encoded = {place: tokenizer.encode(problems[chosen[place]].prompt) for place in mine}
    asked = [(place, n) for place in mine for n in range(node.samples_per_prompt)]
    completions = engine.generate(
        [encoded[place] for place, _ in asked],
        Sampling(
            node.response_tokens(step),
            node.temperature,
            [sample_seed(seed, "rl", step, first_place + place, n) for place, n in asked],
            (tokenizer.eos_id,),
        ),
    )
    groups: dict[int, list[Sample]] = {place: [] for place in mine}
    for (place, _), answer in zip(asked, completions, strict=True):
        groups[place].append(
            Sample(
                problem=chosen[place],
                prompt_ids=encoded[place],
                token_ids=answer.token_ids,
                logprobs=answer.logprobs,
                finished=answer.finished,
                weight_version=answer.weight_version,
                text=tokenizer.decode(answer.token_ids),
            )
        )
    shared = world.all_gather_object((groups if engine.is_lead else {}, time.perf_counter() - began))
    everything = {place: group for part, _ in shared for place, group in part.items()}
    samples = [sample for place in range(len(chosen)) for sample in everything[place]]
    return Answers(samples, [seconds for _, seconds in shared])
