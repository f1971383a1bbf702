"""Sampling: which prompts a step draws, with which seeds, and what the engine answered."""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from typing import Any

from octo_megatron.config.schema import RLNode
from octo_megatron.data.order import permutation
from octo_megatron.data.problems import Problem
from octo_megatron.data.tokenizer import TextTokenizer
from octo_megatron.engine.sampler import EngineLost, Sampler
from octo_megatron.engine.seeds import sample_seed
from octo_megatron.engine.vllm_engine import Completion, Engine, Sampling
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
    versions: list[list[int]] = field(default_factory=list)
    """[weight version, tokens] of its stretches, in order; empty: all of `weight_version`."""
    origin: list[int] = field(default_factory=list)
    """[prompt's place in the stream, number within the group] of an answer that grows over steps."""

    def fresh(self, version: int) -> list[float]:
        """1 for each token that weights `version` produced, 0 for the others."""
        runs = self.versions or [[self.weight_version, len(self.token_ids)]]
        return [float(run == version) for run, count in runs for _ in range(count)]


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


@dataclass(frozen=True)
class Asked:
    """A round of prompts that an engine has been asked, and what is needed to make samples of the answers."""

    chosen: Sequence[int]
    encoded: dict[int, list[int]]
    asked: list[tuple[int, int]]
    began: float
    completions: Future[list[Completion]]


def ask(
    engine: Engine | Sampler,
    tokenizer: TextTokenizer,
    problems: Sequence[Problem],
    chosen: Sequence[int],
    first_place: int,
    node: RLNode,
    seed: int,
    step: int,
) -> Asked:
    """Have the chosen problems answered `samples_per_prompt` times each; the prompts are shared out over the engine's
    copies. An engine of this process has answered when this returns, a sampler may still be at it.

    Seeds are a pure function of (run seed, step, place of the prompt, sample).

    Args:
        first_place: prompts that this step has drawn before these (dynamic sampling).
    """
    mine = range(engine.copy, len(chosen), engine.copies)
    encoded = {place: tokenizer.encode(problems[chosen[place]].prompt) for place in mine}
    asked = [(place, n) for place in mine for n in range(node.samples_per_prompt)]
    prompts = [encoded[place] for place, _ in asked]
    sampling = Sampling(
        node.response_tokens(step),
        node.temperature,
        [sample_seed(seed, "rl", step, first_place + place, n) for place, n in asked],
        (tokenizer.eos_id,),
    )
    began = time.perf_counter()
    if isinstance(engine, Sampler):
        return Asked(chosen, encoded, asked, began, engine.begin(prompts, sampling))
    completions: Future[list[Completion]] = Future()
    completions.set_result(engine.generate(prompts, sampling))
    return Asked(chosen, encoded, asked, began, completions)


def answered(asked: Asked, engine: Engine | Sampler, tokenizer: TextTokenizer, world: World) -> Answers:
    """Wait for the answers and share them between the ranks. Collective.

    Raises:
        EngineLost: on every rank, when a sampler of one was lost.
    """
    groups: dict[int, list[Sample]] = {place: [] for place in asked.encoded}
    lost = ""
    try:
        for (place, _), answer in zip(asked.asked, asked.completions.result(), strict=True):
            groups[place].append(
                Sample(
                    problem=asked.chosen[place],
                    prompt_ids=asked.encoded[place],
                    token_ids=answer.token_ids,
                    logprobs=answer.logprobs,
                    finished=answer.finished,
                    weight_version=answer.weight_version,
                    text=tokenizer.decode(answer.token_ids),
                )
            )
    except EngineLost as error:
        lost = str(error)
    everything, seconds = _shared(groups if engine.is_lead else {}, asked.began, lost, world)
    samples = [sample for place in range(len(asked.chosen)) for sample in everything[place]]
    return Answers(samples, seconds)


def continued(
    engine: Engine | Sampler,
    tokenizer: TextTokenizer,
    flight: Sequence[Sample],
    node: RLNode,
    seed: int,
    step: int,
    world: World,
) -> Answers:
    """Let every answer that is not complete grow by up to `partial_tokens` more. Collective.

    Seeds are a pure function of (run seed, the prompt's place in the stream, sample, tokens so far).

    Raises:
        EngineLost: on every rank, when a sampler of one was lost.
    """
    limit, began, lost = node.response_tokens(step), time.perf_counter(), ""
    groups = range(len(flight))
    mine = [i for i in groups if i // node.samples_per_prompt % engine.copies == engine.copy]
    growing = [i for i in mine if not complete(flight[i], limit)]
    grown = {i: flight[i] for i in mine}
    sampling = Sampling(
        [min(node.partial_tokens, limit - len(flight[i].token_ids)) for i in growing],
        node.temperature,
        [sample_seed(seed, "rl partial", *flight[i].origin, len(flight[i].token_ids)) for i in growing],
        (tokenizer.eos_id,),
    )
    try:
        prompts = [flight[i].prompt_ids + flight[i].token_ids for i in growing]
        for i, answer in zip(growing, engine.generate(prompts, sampling), strict=True):
            grown[i] = _longer(flight[i], answer, tokenizer)
    except EngineLost as error:
        lost = str(error)
    everything, seconds = _shared(grown if engine.is_lead else {}, began, lost, world)
    return Answers([everything[i] for i in groups], seconds)


def complete(sample: Sample, limit: int) -> bool:
    """Whether an answer has ended, by itself or at the limit of tokens."""
    return sample.finished or len(sample.token_ids) >= limit


def _longer(sample: Sample, answer: Completion, tokenizer: TextTokenizer) -> Sample:
    tokens = sample.token_ids + answer.token_ids
    return replace(
        sample,
        token_ids=tokens,
        logprobs=sample.logprobs + answer.logprobs,
        finished=answer.finished,
        weight_version=min([answer.weight_version, *(version for version, _ in sample.versions)]),
        text=tokenizer.decode(tokens),
        versions=[*sample.versions, [answer.weight_version, len(answer.token_ids)]],
    )


def _shared(
    mine: dict[int, Any], began: float, lost: str, world: World
) -> tuple[dict[int, Any], list[float]]:
    """(everybody's parts, seconds by rank); an engine that was lost anywhere is lost everywhere."""
    shared = world.all_gather_object((mine, time.perf_counter() - began, lost))
    for *_, said in shared:
        if said:
            raise EngineLost(said)
    everything = {key: value for part, *_ in shared for key, value in part.items()}
    return everything, [seconds for _, seconds, _ in shared]
