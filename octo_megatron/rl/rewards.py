"""The reward of an answer as named parts, which are logged apart and added up."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from octo_megatron.config.errors import UserError
from octo_megatron.config.schema import RLNode
from octo_megatron.data.problems import Problem
from octo_megatron.grade import CustomReward, grade_all
from octo_megatron.parallel.world import World
from octo_megatron.rl.rollout import Sample
from octo_megatron.rl.shaping import overlong_penalty

SHAPING = ("overlong", "length", "kl")
"""Parts that do not judge the answer's content: dynamic sampling does not look at them."""


@dataclass(frozen=True)
class Rewards:
    """Parts of the rewards of answers, in their order, the same on every rank."""

    parts: list[dict[str, float]]
    seconds: float
    """Of the slowest rank."""


class Rewarder:
    """Grades the answers of a node; owns the process of its custom reward."""

    def __init__(self, name: str, node: RLNode, problems: Sequence[Problem], world: World, workers: int = 1):
        """`workers`: math-verify processes of this rank.

        Raises:
            UserError: the node's reward file is missing.
        """
        self._name, self._node, self._problems, self._world = name, node, problems, world
        self._workers, config = workers, node.reward
        self._custom = (
            CustomReward(Path(config.file), config.file_seconds, config.file_memory) if config.file else None
        )

    def __call__(self, samples: Sequence[Sample], step: int) -> Rewards:
        """Grade all answers, shared out over the ranks. Collective.

        Raises:
            UserError: the reward file failed on an answer and the config does not let that pass.
        """
        began, world = time.perf_counter(), self._world
        mine = list(range(world.rank, len(samples), world.world_size))
        answers = [self._problems[samples[i].problem].answer for i in mine]
        correct = grade_all(
            [(samples[i].text, answer) for i, answer in zip(mine, answers, strict=True)], self._workers
        )
        graded: dict[int, dict[str, float]] = {}
        error = ""
        for i, right in zip(mine, correct, strict=True):
            graded[i] = self._parts(samples[i], right, step)
            if self._custom and not error:
                error = self._ask(samples[i], graded[i], step)
        shared = world.all_gather_object((graded, time.perf_counter() - began, error))
        for *_, said in shared:
            if said:
                raise UserError(said)
        everything = {i: parts for part, *_ in shared for i, parts in part.items()}
        return Rewards([everything[i] for i in range(len(samples))], max(seconds for _, seconds, _ in shared))

    def close(self) -> None:
        """End the process of the custom reward."""
        if self._custom:
            self._custom.close()

    def _parts(self, sample: Sample, correct: float, step: int) -> dict[str, float]:
        node, tokens, limit = self._node, len(sample.token_ids), self._node.response_tokens(step)
        config, parts = node.reward, {"correct": node.reward.correct * correct}
        if config.format:
            parts["format"] = config.format * float(bool(re.search(config.format_pattern, sample.text)))
        if config.length:
            parts["length"] = -config.length * tokens / limit
        if node.overlong.buffer_tokens:
            parts["overlong"] = overlong_penalty(
                tokens, limit, node.overlong.buffer_tokens, node.overlong.penalty
            )
        return parts

    def _ask(self, sample: Sample, parts: dict[str, float], step: int) -> str:
        """Add the reward file's parts; returns what stops the run, if anything."""
        assert self._custom is not None
        problem = self._problems[sample.problem]
        verdict = self._custom(problem.prompt, sample.text, problem.answer)
        parts.update(verdict.parts)
        if not verdict.error:
            return ""
        where = f"node {self._name}, step {step}: {self._node.reward.file} failed on an answer to problem {problem.id}"
        said = f"{where} ({sample.text[-80:]!r}): {verdict.error}"
        if self._node.reward.errors_are_zero:
            print(said, flush=True)
            parts["file_error"] = 0.0
            return ""
        return (
            f"{said}; set nodes.{self._name}.reward.errors_are_zero=true to count such an answer as no reward"
        )


def rewarded(sample: Sample, parts: dict[str, float]) -> Sample:
    """The sample with its reward."""
    return replace(sample, reward=sum(parts.values()), parts=parts)


def score(sample: Sample) -> float:
    """The reward without its shaping: what says whether a group has contrast."""
    return sum(value for name, value in sample.parts.items() if name not in SHAPING)
