"""A step's graded answers: drawn, sampled, graded, from the records of a killed process where it left some."""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from octo_megatron.config.schema import RLNode
from octo_megatron.data.problems import Problem
from octo_megatron.data.tokenizer import TextTokenizer
from octo_megatron.engine.sampler import Sampler
from octo_megatron.engine.vllm_engine import Engine
from octo_megatron.parallel.world import World
from octo_megatron.rl.figures import idle_share
from octo_megatron.rl.records import StepRecords
from octo_megatron.rl.rewards import Rewarder, Rewards, rewarded, score
from octo_megatron.rl.rollout import Answers, Asked, Sample, answered, ask, complete, continued, drawn


@dataclass
class Collected:
    """A step's graded answers, whole groups."""

    samples: list[Sample]
    prompts: int = 0
    """Drawn."""
    rounds: int = 0
    carried: int = 0
    """Answers that go on in the next step, with the finished ones of their groups."""
    generated_tokens: int = 0
    seconds_rollout: float = 0.0
    seconds_grade: float = 0.0
    idle: float = 0.0

    def add(self, answers: Answers, drawn: int, tokens: int) -> None:
        """One more round of sampling."""
        self.rounds, self.prompts = self.rounds + 1, self.prompts + drawn
        self.generated_tokens += tokens
        self.seconds_rollout += max(answers.seconds)
        self.idle += idle_share(answers.seconds) * max(answers.seconds)


class Collector:
    """Draws prompts and has them answered and graded; every method is collective."""

    def __init__(
        self,
        node: RLNode,
        seed: int,
        engine: Engine | Sampler,
        tokenizer: TextTokenizer,
        problems: Sequence[Problem],
        rewarder: Rewarder,
        records: StepRecords,
        world: World,
        version: int,
    ):
        """`version`: of the weights in the engine."""
        self._node, self._seed, self._engine, self._tokenizer = node, seed, engine, tokenizer
        self._problems, self._rewarder, self._records, self._world = problems, rewarder, records, world
        self._pending: dict[int, Asked] = {}
        self._recent = deque([version], maxlen=node.engine.lag + 1)

    def updated(self, version: int) -> None:
        """The engine has the weights after one more step."""
        self._recent.append(version)

    def collect(self, step: int, first: int) -> Collected:
        """The answers of a step. `first`: prompts that earlier steps have drawn."""
        return self._partial(step, first) if self._node.partial_tokens else self._whole(step, first)

    def ask_ahead(self, step: int, first: int) -> None:
        """Let the engine begin with the steps after `step`, with the weights that it has, while this one is trained."""
        node = self._node
        for later in range(step + 1, min(step + node.engine.lag, node.steps) + 1):
            if later not in self._pending and not self._records.has_answers(later):
                chosen = self._drawn(first + (later - step) * node.prompts_per_step, node.prompts_per_step)
                self._pending[later] = self._ask(later, chosen, 0)

    def _whole(self, step: int, first: int) -> Collected:
        """With dynamic sampling (DAPO, Yu et al., arXiv 2503.14476, section 3.2) only groups with contrast count, and
        further prompts are drawn until there are enough or the rounds are used up. A step in which nothing has
        contrast keeps its last groups, so that engine and trainer are still compared.
        """
        node, size = self._node, self._node.samples_per_prompt
        out = Collected([])
        kept: list[list[Sample]] = []
        while True:
            answers = self._round(step, out.rounds, first, out.prompts)
            samples = self._graded(step, out, answers.samples)
            out.add(answers, node.prompts_per_step, sum(len(s.token_ids) for s in samples))
            groups = [samples[i : i + size] for i in range(0, len(samples), size)]
            if not node.dynamic_sampling_rounds:
                kept = groups
                break
            kept += [group for group in groups if len({score(s) for s in group}) > 1]
            if len(kept) >= node.prompts_per_step or out.rounds > node.dynamic_sampling_rounds:
                kept = kept or groups
                break
        out.samples = [s for group in kept[: node.prompts_per_step] for s in group]
        return out

    def _round(self, step: int, round_: int, first: int, place: int) -> Answers:
        """One round of prompts, answered. `place`: prompts that this step has drawn before them."""
        chosen = self._drawn(first + place, self._node.prompts_per_step)
        self._records.drawn(step, round_, chosen, first + place)
        answers = self._records.answers(step, round_)
        if answers is None:
            asked = self._pending.pop(step, None) or self._ask(step, chosen, place)
            answers = answered(asked, self._engine, self._tokenizer, self._world)
            self._check_version(step, answers.samples)
            self._records.keep_answers(step, round_, answers)
        return answers

    def _partial(self, step: int, first: int) -> Collected:
        """Answers grow by `partial_tokens` a step; a group is trained on when its last answer is complete.

        As many groups are under way as a step has prompts. A step in which none is complete goes on sampling.
        """
        node, size, limit = self._node, self._node.samples_per_prompt, self._node.response_tokens(step)
        out, flight = Collected([]), self._records.carried(step)
        whole: list[list[Sample]] = []
        while not whole:
            missing = node.prompts_per_step - len(flight) // size
            chosen = self._drawn(first + out.prompts, missing)
            self._records.drawn(step, out.rounds, chosen, first + out.prompts)
            flight = flight + self._begun(chosen, first + out.prompts)
            before = sum(len(s.token_ids) for s in flight)
            answers = self._records.answers(step, out.rounds)
            if answers is None:
                answers = continued(
                    self._engine, self._tokenizer, flight, node, self._seed, step, self._world
                )
                self._records.keep_answers(step, out.rounds, answers)
            out.add(answers, missing, sum(len(s.token_ids) for s in answers.samples) - before)
            groups = [answers.samples[i : i + size] for i in range(0, len(answers.samples), size)]
            whole = [group for group in groups if all(complete(s, limit) for s in group)]
            flight = [s for group in groups if group not in whole for s in group]
        out.carried = len(flight)
        out.samples = self._graded(step, out, [s for group in whole for s in group])
        self._records.keep_carried(step + 1, flight)
        return out

    def _begun(self, chosen: Sequence[int], first: int) -> list[Sample]:
        """Answers without a token yet."""
        return [
            Sample(problem, self._tokenizer.encode(self._problems[problem].prompt), [], [], False,
                   self._recent[-1], "", origin=[first + place, n])
            for place, problem in enumerate(chosen)
            for n in range(self._node.samples_per_prompt)
        ]  # fmt: skip

    def _graded(self, step: int, out: Collected, samples: Sequence[Sample]) -> list[Sample]:
        """The answers with their rewards, which are recorded as those of the round."""
        recorded = self._records.rewards(step, out.rounds)
        rewards = Rewards(**recorded) if recorded is not None else self._rewarder(samples, step)
        if recorded is None:
            self._records.keep_rewards(step, out.rounds, dataclasses.asdict(rewards))
        out.seconds_grade += rewards.seconds
        return [rewarded(s, p) for s, p in zip(samples, rewards.parts, strict=True)]

    def _drawn(self, first: int, count: int) -> list[int]:
        return drawn(len(self._problems), self._seed, first, count)

    def _ask(self, step: int, chosen: list[int], place: int) -> Asked:
        return ask(self._engine, self._tokenizer, self._problems, chosen, place, self._node, self._seed, step)

    def _check_version(self, step: int, samples: Sequence[Sample]) -> None:
        """Answers may be as old as the weights of `lag` steps ago, and no older."""
        stale = [s.weight_version for s in samples if s.weight_version not in self._recent]
        if stale:
            raise RuntimeError(
                f"step {step}: samples of weight version {stale[0]}; engine.lag allows {sorted(self._recent)}"
            )
