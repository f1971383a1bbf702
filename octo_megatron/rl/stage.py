"""The RL stage: GRPO from the parent's weights, resumable, with accuracy before and after."""

from __future__ import annotations

import json
from typing import Any

from octo_megatron.checkpoint import store
from octo_megatron.checkpoint.digest import weights_sha256
from octo_megatron.checkpoint.parent import parent_checkpoint
from octo_megatron.config.errors import UserError
from octo_megatron.config.loading import digest, to_plain
from octo_megatron.config.run_folder import (
    MetricsFile,
    NodeContext,
    Progress,
    read_json,
    read_json_lines,
    write_json,
    write_text,
)
from octo_megatron.config.schema import RLNode
from octo_megatron.config.versions import installed_versions
from octo_megatron.data.problems import Problem, load_problems
from octo_megatron.data.tokenizer import TextTokenizer
from octo_megatron.engine.vllm_engine import Engine
from octo_megatron.evaluate.solve import evaluate_greedy, longest_prompt
from octo_megatron.parallel import world as worlds
from octo_megatron.rl.rollout import Sample
from octo_megatron.rl.step import Learner
from octo_megatron.train.megatron import MegatronTrainer
from octo_megatron.train.phases import Phases

_GROUPS_SHOWN = 8
"""Groups of each step whose answers are written out for people to read."""
_AT_ONCE = 128
"""Answers that grow side by side in one engine, at most."""

Evaluation = dict[str, dict[str, float]]


def run(ctx: NodeContext) -> None:
    """All steps of the node, from its newest checkpoint if there is one; writes done.json last."""
    node, lineage = ctx.node, ctx.lineage
    assert isinstance(node, RLNode)
    phases, layout = Phases(), lineage.layout_of(ctx.name)
    tokenizer, problems = TextTokenizer(ctx.run.tokenizer), load_problems(ctx.run.problems(node.problems))
    tests = {name: load_problems(ctx.run.problems(name)) for name in node.evaluate}
    prompt_tokens = _prompt_tokens(ctx.name, node, problems, tests, tokenizer)
    world = worlds.start(layout, lineage.seed, max(600, lineage.deadline_seconds))
    progress = Progress(ctx.folder.progress, world.is_first)
    progress.update("start", 0, node.steps)
    hf_config = read_json(ctx.run.hf_config)
    trainer = MegatronTrainer(
        hf_config,
        layout,
        lineage.precision_of(ctx.name),
        node.optimizer,
        world,
        compute=lineage.compute_of(ctx.name),
    )
    facts = _begin(ctx, node, trainer)
    step, elsewhere = int(facts["step"]), dict(facts["seconds"])
    answers = -(-node.prompts_per_step // world.world_size) * node.samples_per_prompt
    engine = Engine.of(
        hf_config,
        lineage.dtype_of(ctx.name),
        prompt_tokens + node.max_response_tokens,
        min(answers, _AT_ONCE),
    )
    learner = Learner(
        ctx.name, node, lineage.seed, trainer, engine, tokenizer, problems, int(facts["weight_version"])
    )
    metrics = MetricsFile(ctx.folder.metrics, step, world.is_first)
    phases.mark("start")

    def evaluate(when: str) -> Evaluation:
        def report(done: int, total: int) -> None:
            progress.update(f"evaluate {when}", done, total)

        return {
            name: evaluate_greedy(engine, tokenizer, test, node.max_response_tokens, world, report)
            for name, test in tests.items()
        }

    before = facts["evaluation_before"] if step else evaluate("before")
    phases.mark("evaluate")
    while step < node.steps:
        row, samples = learner.step(step + 1)
        step += 1
        phases.mark("steps")
        metrics.write(row)
        if world.is_first:
            _show(ctx, step, samples[: _GROUPS_SHOWN * node.samples_per_prompt], problems)
        progress.update("rl", step, node.steps, reward=row["reward"], response_length=row["response_length"])
        if step == node.steps or (node.checkpoint_interval and step % node.checkpoint_interval == 0):
            state = {
                "kind": "rl",
                "step": step,
                "weight_version": learner.updates,
                "evaluation_before": before,
                "seconds": _added(elsewhere, phases),
                "lr": node.lr,
                "hf_config": hf_config,
                "config_digest": digest(to_plain(node)),
            }
            store.save(store.step_folder(ctx.folder.checkpoints, step), trainer, state, node.keep_checkpoints)
            phases.mark("checkpoint")

    after = evaluate("after")
    phases.mark("evaluate")
    sha256 = weights_sha256(trainer.chunks, hf_config)
    metrics.close()
    if world.is_first:
        result = _result(ctx, node, {"before": before, "after": after}, _added(elsewhere, phases))
        write_json(ctx.folder.done, {**result, "weights_sha256": sha256})
    engine.close()
    world.barrier()
    world.stop()


def _prompt_tokens(
    name: str,
    node: RLNode,
    problems: list[Problem],
    tests: dict[str, list[Problem]],
    tokenizer: TextTokenizer,
) -> int:
    """Tokens of the longest prompt that the engine will see.

    Raises:
        UserError: a training prompt is longer than max_prompt_tokens, with the value that fits.
    """
    longest, where = longest_prompt({node.problems: problems}, tokenizer)
    if longest > node.max_prompt_tokens:
        raise UserError(
            f"nodes.{name}.max_prompt_tokens is {node.max_prompt_tokens}, but {where} has {longest} tokens; "
            f"set nodes.{name}.max_prompt_tokens={longest}"
        )
    return max(longest, longest_prompt(tests, tokenizer)[0])


def _begin(ctx: NodeContext, node: RLNode, trainer: MegatronTrainer) -> dict[str, Any]:
    """Load the node's own newest checkpoint, else the parent's weights under a fresh optimizer."""
    own = store.latest(ctx.folder.checkpoints)
    if own is not None:
        return store.load(own, trainer)
    store.load(parent_checkpoint(ctx), trainer, optimizer=False)
    return {"step": 0, "weight_version": 0, "seconds": {}}


def _show(ctx: NodeContext, step: int, samples: list[Sample], problems: list[Problem]) -> None:
    """Some answers of the step, for people to read."""
    lines = [
        json.dumps(
            {
                "prompt": problems[s.problem].prompt,
                "text": s.text,
                "answer": problems[s.problem].answer,
                "reward": s.reward,
                "tokens": len(s.token_ids),
                "finished": s.finished,
                "weight_version": s.weight_version,
            },
            ensure_ascii=False,
        )
        for s in samples
    ]
    write_text(ctx.folder.root / "rollouts" / f"step_{step:05d}.jsonl", "\n".join(lines) + "\n")


def _added(elsewhere: dict[str, float], phases: Phases) -> dict[str, float]:
    """Seconds outside the steps, earlier processes of this node included."""
    here = {name: value for name, value in phases.seconds.items() if name != "steps"}
    return {name: elsewhere.get(name, 0.0) + here.get(name, 0.0) for name in {**elsewhere, **here}}


def _result(
    ctx: NodeContext, node: RLNode, evaluation: dict[str, Evaluation], outside: dict[str, float]
) -> dict[str, Any]:
    rows = read_json_lines(ctx.folder.metrics)
    inside = {
        part: sum(row[f"seconds_{part}"] for row in rows) for part in ("rollout", "grade", "train", "refit")
    }
    return {
        "kind": "rl",
        "parent": node.parent,
        "step": node.steps,
        "evaluation": evaluation,
        "generated_tokens": sum(row["generated_tokens"] for row in rows),
        "trained_tokens": sum(row["trained_tokens"] for row in rows),
        "seconds": sum(row["seconds"] for row in rows) + sum(outside.values()),
        "seconds_by_phase": {**outside, **inside},
        "config_digest": digest(to_plain(node)),
        "versions": installed_versions(),
    }
