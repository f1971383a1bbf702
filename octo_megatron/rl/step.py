"""One RL step: sample, reward, update, push the new weights into the engine; each phase leaves a record."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from octo_megatron.config.schema import RLNode
from octo_megatron.data.problems import Problem
from octo_megatron.data.tokenizer import TextTokenizer
from octo_megatron.engine.refit.refit import Refit
from octo_megatron.engine.refit.transfer import Report
from octo_megatron.engine.vllm_engine import Engine
from octo_megatron.parallel.device import ON_CUDA
from octo_megatron.rl.figures import answer_figures, idle_share
from octo_megatron.rl.records import StepRecords, shown
from octo_megatron.rl.rewards import Rewarder, Rewards, rewarded, score
from octo_megatron.rl.rollout import Answers, Sample, drawn, sample_answers
from octo_megatron.rl.update import Updater
from octo_megatron.train.megatron import MegatronTrainer


@dataclass(frozen=True)
class Position:
    """Where in its streams a run stands between two steps."""

    updates: int = 0
    """Optimizer updates behind the trainer's weights; their version in the engine too."""
    prompts: int = 0
    """Prompts drawn."""


@dataclass
class _Collected:
    """A step's graded answers, whole groups."""

    samples: list[Sample]
    prompts: int = 0
    rounds: int = 0
    generated_tokens: int = 0
    seconds_rollout: float = 0.0
    seconds_grade: float = 0.0
    idle: float = 0.0


class Learner:
    """Trainer and engine of this rank, and how far they are."""

    def __init__(
        self,
        node: RLNode,
        seed: int,
        trainer: MegatronTrainer,
        engine: Engine,
        tokenizer: TextTokenizer,
        problems: Sequence[Problem],
        rewarder: Rewarder,
        updater: Updater,
        records: StepRecords,
        position: Position,
        refit: Refit,
    ):
        self.node, self.seed, self.position = node, seed, position
        self.trainer, self.engine, self.tokenizer, self.problems = trainer, engine, tokenizer, problems
        self.rewarder, self.updater, self.records, self.world = rewarder, updater, records, trainer.world
        self._refit = refit
        self.refit()

    def refit(self) -> Report:
        """The trainer's weights into every rank's engine, under their version. Collective."""
        return self._refit.run(self.trainer.chunks, self.engine, self.position.updates)

    def step(self, step: int) -> dict[str, Any]:
        """One step (counted from 1). Returns the row for metrics.jsonl. Collective.

        Raises:
            UserError: engine and trainer disagree by more than the node's limits.
        """
        began, node = time.perf_counter(), self.node
        collected = self._collect(step)
        self.engine.sleep()
        sampled = time.perf_counter()
        update = self.updater.run(step, collected.samples)
        self.position = Position(
            self.position.updates + update.updates, self.position.prompts + collected.prompts
        )
        learned = time.perf_counter()
        self.engine.wake()
        # on GPU a sleeping engine has lost its weights, also where nothing was learned
        report = self.refit() if update.updates or ON_CUDA else Report()
        ended = time.perf_counter()
        groups = {i // node.samples_per_prompt for i in update.live}
        row = {
            "step": step,
            **answer_figures(update.samples, node.samples_per_prompt),
            **update.row,
            "weight_version": self.position.updates,
            "prompts": self.position.prompts,
            "rounds": collected.rounds,
            "generated_tokens": collected.generated_tokens,
            "live_groups": len(groups) * node.samples_per_prompt / len(update.samples),
            "max_response_tokens": node.response_tokens(step),
            "seconds": ended - began,
            "seconds_rollout": collected.seconds_rollout,
            "seconds_grade": collected.seconds_grade,
            "seconds_train": learned - sampled,
            "seconds_refit": ended - learned,
            "seconds_refit_proof": report.seconds_proof,
            "refit_bytes_moved": report.bytes_received,
            "refit_bytes": report.bytes_received + report.bytes_local,
            "seconds_idle": collected.idle,
        }
        row["tokens_per_second_rollout"] = row["generated_tokens"] / max(1e-9, row["seconds_rollout"])
        row["tokens_per_second_train"] = row["trained_tokens"] / max(1e-9, row["seconds_train"])
        mine = [self.problems[s.problem] for s in update.samples]
        people = shown(update.samples, [p.prompt for p in mine], [p.answer for p in mine])
        self.records.finished(step, row, people)
        return row

    def _collect(self, step: int) -> _Collected:
        """Graded answers to the step's prompts, from the records of a killed process where it left some.

        With dynamic sampling (DAPO, Yu et al., arXiv 2503.14476, section 3.2) only groups with contrast count, and
        further prompts are drawn until there are enough or the rounds are used up. A step in which nothing has
        contrast keeps its last groups, so that engine and trainer are still compared.
        """
        node, size = self.node, self.node.samples_per_prompt
        out, kept = _Collected([]), []
        while True:
            answers, rewards = self._round(step, out.rounds, out.prompts)
            samples = [rewarded(s, p) for s, p in zip(answers.samples, rewards.parts, strict=True)]
            out.rounds, out.prompts = out.rounds + 1, out.prompts + node.prompts_per_step
            out.generated_tokens += sum(len(s.token_ids) for s in samples)
            out.seconds_rollout += max(answers.seconds)
            out.seconds_grade += rewards.seconds
            out.idle += idle_share(answers.seconds) * max(answers.seconds)
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

    def _round(self, step: int, round_: int, place: int) -> tuple[Answers, Rewards]:
        """One round of prompts, answered and graded."""
        node, records, world = self.node, self.records, self.world
        first = self.position.prompts + place
        chosen = drawn(len(self.problems), self.seed, first, node.prompts_per_step)
        records.drawn(step, round_, chosen, first)
        answers = records.answers(step, round_)
        if answers is None:
            answers = sample_answers(
                self.engine, self.tokenizer, self.problems, chosen, place, node, self.seed, step, world
            )
            self._check_version(step, answers.samples)
            records.keep_answers(step, round_, answers)
        recorded = records.rewards(step, round_)
        if recorded is not None:
            return answers, Rewards(**recorded)
        rewards = self.rewarder(answers.samples, step)
        records.keep_rewards(step, round_, dataclasses.asdict(rewards))
        return answers, rewards

    def _check_version(self, step: int, samples: Sequence[Sample]) -> None:
        stale = [s.weight_version for s in samples if s.weight_version != self.position.updates]
        if stale:
            raise RuntimeError(
                f"step {step}: samples of weight version {stale[0]}, the trainer is at {self.position.updates}"
            )
