"""The evaluate stage: accuracy of several nodes on problem sets, with one engine."""

from __future__ import annotations

import time
from typing import Any

from octo_megatron.checkpoint import store
from octo_megatron.config.errors import UserError
from octo_megatron.config.loading import digest, to_plain
from octo_megatron.config.run_folder import NodeContext, Progress, read_json, write_json
from octo_megatron.config.schema import EvaluateNode
from octo_megatron.config.versions import installed_versions
from octo_megatron.data.problems import Problem, load_problems
from octo_megatron.data.tokenizer import TextTokenizer
from octo_megatron.engine.seeds import sample_seed
from octo_megatron.engine.vllm_engine import Engine
from octo_megatron.evaluate.solve import evaluate_greedy, longest_prompt, solve
from octo_megatron.model.build import build_model
from octo_megatron.model.hf_weights import export_weights
from octo_megatron.parallel import world as worlds
from octo_megatron.parallel.world import World

_AT_ONCE = 128
"""Answers that grow side by side."""


def run(ctx: NodeContext) -> None:
    """Evaluate node after node; what a killed run had finished is not done again. Writes done.json last."""
    node, lineage = ctx.node, ctx.lineage
    assert isinstance(node, EvaluateNode)
    began, layout = time.perf_counter(), lineage.layout_of(ctx.name)
    tokenizer = TextTokenizer(ctx.run.tokenizer)
    sets = {name: load_problems(ctx.run.problems(name)) for name in node.problems}
    longest, _ = longest_prompt(sets, tokenizer)
    world = worlds.start(layout, lineage.seed, max(600, lineage.deadline_seconds))
    progress = Progress(ctx.folder.progress, world.is_first)
    progress.update("start", 0, len(node.of))
    # results of a run that was cut short
    kept_file, key = ctx.folder.root / "finished_nodes.json", digest(to_plain(node))
    kept = world.broadcast_object(read_json(kept_file) if world.is_first and kept_file.is_file() else None)
    if kept is None or kept["config_digest"] != key:
        kept = {"config_digest": key, "results": {}, "seconds": 0.0}
    results, before = kept["results"], float(kept["seconds"])

    hf_config = read_json(ctx.run.hf_config)
    models = build_model(hf_config, layout, lineage.dtype_of(ctx.name))
    engine = Engine.of(hf_config, lineage.dtype_of(ctx.name), longest + node.max_response_tokens, _AT_ONCE)
    for number, name in enumerate(node.of):
        if name in results:
            continue
        checkpoint = store.latest(ctx.run.node(name).checkpoints)
        if checkpoint is None:
            raise UserError(f"node {ctx.name}: node {name} has no checkpoint to evaluate; run it first")
        store.load_weights(checkpoint, models)
        engine.load_weights(export_weights(list(models), hf_config), number)

        def report(phase: str, share: float, number: int = number) -> None:
            progress.update(phase, number * 100 + int(100 * share), len(node.of) * 100)

        results[name] = {
            problem_set: _accuracy(
                engine, tokenizer, problems, node, lineage.seed, world, f"{name} on {problem_set}", report
            )
            for problem_set, problems in sets.items()
        }
        if world.is_first:
            seconds = before + time.perf_counter() - began
            write_json(kept_file, {"config_digest": key, "results": results, "seconds": seconds})
    if world.is_first:
        write_json(
            ctx.folder.done,
            {
                "kind": "evaluate",
                "results": {name: results[name] for name in node.of},
                "seconds": before + time.perf_counter() - began,
                "config_digest": key,
                "versions": installed_versions(),
            },
        )
        kept_file.unlink(missing_ok=True)
    engine.close()
    world.barrier()
    world.stop()


def _accuracy(
    engine: Engine,
    tokenizer: TextTokenizer,
    problems: list[Problem],
    node: EvaluateNode,
    seed: int,
    world: World,
    what: str,
    report: Any,
) -> dict[str, float]:
    """Greedy and sampled accuracy of the weights in the engine on one set. Collective."""
    parts = 1 + node.samples
    report(what, 0.0)
    greedy = evaluate_greedy(engine, tokenizer, problems, node.max_response_tokens, world)
    out = {"greedy": greedy["accuracy"], "length": greedy["length"], "truncated": greedy["truncated"]}
    if node.samples == 0:
        return out
    asked = [(i, n) for i in range(len(problems)) for n in range(node.samples)][
        world.rank :: world.world_size
    ]
    answers = solve(
        engine,
        tokenizer,
        [problems[i] for i, _ in asked],
        node.max_response_tokens,
        node.temperature,
        # the same for every node: differences between nodes are not differences of luck
        [sample_seed(seed, "evaluate", problems[i].id, n) for i, n in asked],
        report=lambda done, total: report(what, (1 + done / total * node.samples) / parts),
    )
    rewards = [r for part in world.all_gather_object([a.reward for a in answers]) for r in part]
    return {**out, "sampled": sum(rewards) / len(rewards)}
