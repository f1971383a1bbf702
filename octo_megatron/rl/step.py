"""One RL step: sample, reward, update, push the new weights into the engine; each phase leaves a record."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from octo_megatron.config.errors import UserError
from octo_megatron.config.schema import RLNode
from octo_megatron.data.problems import Problem
from octo_megatron.data.tokenizer import TextTokenizer
from octo_megatron.engine.refit.refit import Refit
from octo_megatron.engine.refit.transfer import Report
from octo_megatron.engine.sampler import Sampler
from octo_megatron.engine.vllm_engine import Engine
from octo_megatron.parallel.device import ON_CUDA
from octo_megatron.rl.collect import Collected, Collector
from octo_megatron.rl.figures import answer_figures
from octo_megatron.rl.records import StepRecords, shown
from octo_megatron.rl.rewards import Rewarder
from octo_megatron.rl.update import Update, Updater
from octo_megatron.train.megatron import MegatronTrainer


@dataclass(frozen=True)
class Position:
    """Where in its streams a run stands between two steps."""

    updates: int = 0
    """Optimizer updates behind the trainer's weights; their version in the engine too."""
    prompts: int = 0
    """Prompts drawn."""


class Learner:
    """Trainer and engine of this rank, and how far they are."""

    def __init__(
        self,
        node: RLNode,
        seed: int,
        trainer: MegatronTrainer,
        engine: Engine | Sampler,
        tokenizer: TextTokenizer,
        problems: Sequence[Problem],
        rewarder: Rewarder,
        updater: Updater,
        records: StepRecords,
        position: Position,
        refit: Refit,
    ):
        self.node, self.position, self.problems = node, position, problems
        self.trainer, self.engine, self.updater, self.records = trainer, engine, updater, records
        self._refit = refit
        self.lost = ""
        """Why an engine, on any rank, did not take the weights of the last step."""
        self.collector = Collector(
            node, seed, engine, tokenizer, problems, rewarder, records, trainer.world, position.updates
        )
        self.refit()
        if self.lost:
            raise UserError(f"{self.lost}, while it took the first weights; look at the log, then run again")

    def refit(self) -> Report:
        """The trainer's weights into every rank's engine, under their version; sets `lost`. Collective."""
        report = self._refit.run(self.trainer.chunks, self.engine, self.position.updates)
        if isinstance(self.engine, Sampler):
            self.lost = next(filter(None, self.trainer.world.all_gather_object(report.lost)), "")
        return report

    def step(self, step: int, enter: Callable[[str], None] = lambda phase: None) -> dict[str, Any]:
        """One step (counted from 1). Returns the row for metrics.jsonl. Collective.

        `enter` is told of each phase as it begins.

        Raises:
            UserError: engine and trainer disagree by more than the node's limits.
            EngineLost: before anything was trained; where it was after, `lost` says so.
        """
        began, node = time.perf_counter(), self.node
        enter("rollout")
        if isinstance(self.engine, Sampler):
            self.engine.new_step()
        collected = self.collector.collect(step, self.position.prompts)
        self.collector.ask_ahead(step, self.position.prompts)
        self.engine.sleep()
        sampled, version = time.perf_counter(), self.position.updates
        enter("train")
        update = self.updater.run(step, collected.samples, version)
        self.position = Position(
            self.position.updates + update.updates, self.position.prompts + collected.prompts
        )
        learned = time.perf_counter()
        enter("refit")
        self.engine.wake()
        # on GPU a sleeping engine has lost its weights, also where nothing was learned
        report = self.refit() if update.updates or ON_CUDA else Report()
        self.collector.updated(self.position.updates)
        ended = time.perf_counter()
        row = {
            "step": step,
            **answer_figures(update.samples, node.samples_per_prompt),
            **update.row,
            **self._figures(step, collected, update, version, report),
            "seconds": ended - began,
            "seconds_train": learned - sampled,
            "seconds_refit": ended - learned,
        }
        row["tokens_per_second_rollout"] = row["generated_tokens"] / max(1e-9, row["seconds_rollout"])
        row["tokens_per_second_train"] = row["trained_tokens"] / max(1e-9, row["seconds_train"])
        mine = [self.problems[s.problem] for s in update.samples]
        people = shown(update.samples, [p.prompt for p in mine], [p.answer for p in mine])
        self.records.finished(step, row, people)
        return row

    def _figures(
        self, step: int, collected: Collected, update: Update, version: int, report: Report
    ) -> dict[str, float]:
        """Where the step's answers came from and what the refit moved."""
        size = self.node.samples_per_prompt
        return {
            "weight_version": self.position.updates,
            "staleness": version - min(s.weight_version for s in update.samples),
            "prompts": self.position.prompts,
            "rounds": collected.rounds,
            "carried": collected.carried,
            "generated_tokens": collected.generated_tokens,
            "live_groups": len({i // size for i in update.live}) * size / len(update.samples),
            "max_response_tokens": self.node.response_tokens(step),
            "seconds_rollout": collected.seconds_rollout,
            "seconds_grade": collected.seconds_grade,
            "seconds_idle": collected.idle,
            "seconds_refit_proof": report.seconds_proof,
            "refit_bytes_moved": report.bytes_received,
            "refit_bytes": report.bytes_received + report.bytes_local,
        }
