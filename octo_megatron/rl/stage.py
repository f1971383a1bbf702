"""The RL stage: from the parent's weights, resumable in every phase, validated on the way."""

from __future__ import annotations

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
)
from octo_megatron.config.schema import RLNode
from octo_megatron.config.versions import installed_versions
from octo_megatron.data.problems import Problem, load_problems
from octo_megatron.data.tokenizer import TextTokenizer
from octo_megatron.engine.refit.pieces import EngineLayout
from octo_megatron.engine.refit.refit import Refit
from octo_megatron.engine.sampler import EngineLost, Sampler
from octo_megatron.engine.vllm_engine import Engine
from octo_megatron.evaluate.solve import longest_prompt
from octo_megatron.parallel import world as worlds
from octo_megatron.parallel.world import World
from octo_megatron.rl.records import StepRecords
from octo_megatron.rl.reference import Reference
from octo_megatron.rl.rewards import Rewarder
from octo_megatron.rl.step import Learner, Position
from octo_megatron.rl.update import Updater
from octo_megatron.rl.watch import Evaluation, Watch
from octo_megatron.train.megatron import MegatronTrainer
from octo_megatron.train.phases import Phases

_AT_ONCE = 128
"""Answers that grow side by side in one engine, at most."""


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
    facts, reference = _begin(ctx, node, trainer)
    step, elsewhere = int(facts["step"]), dict(facts["seconds"])
    engine_layout = _engine_layout(ctx.name, node, world)
    engine = _engine(ctx, node, engine_layout, hf_config, prompt_tokens + node.max_response_tokens, world)
    refit = Refit(
        hf_config,
        layout,
        engine_layout,
        trainer.config.params_dtype,
        node.engine.proof_interval,
        separate=node.engine.placement == "separate",
    )
    records = StepRecords(ctx.folder.root, world)
    rewarder = Rewarder(ctx.name, node, problems, world, lineage.threads)
    updater = Updater(ctx.name, node, lineage.seed, trainer, reference)
    position = Position(int(facts["weight_version"]), int(facts["prompts"]))
    learner = Learner(
        node, lineage.seed, trainer, engine, tokenizer, problems, rewarder, updater, records, position, refit
    )
    metrics = MetricsFile(ctx.folder.metrics, step, world.is_first)
    watch = Watch(ctx, node, engine, tokenizer, tests, world, progress)
    phases.mark("start")

    before = watch.before()
    phases.mark("evaluate")
    stopped = watch.collapsed(step)
    lost = ""
    while step < node.steps and not stopped:
        try:
            row = learner.step(step + 1)
        except EngineLost as error:
            # nothing was trained yet in this step: the weights are those after the last one
            lost = str(error)
        else:
            step += 1
        phases.mark("steps")
        validate = not lost and node.validation_interval and step % node.validation_interval == 0
        if validate:
            row |= watch.validate(step)
            phases.mark("evaluate")
        if not lost:
            metrics.write(row)
            figures = {name: row[name] for name in ("reward", "response_length")}
            progress.update("rl", step, node.steps, **figures)
            stopped = watch.collapsed(step)
        due = node.checkpoint_interval and step % node.checkpoint_interval == 0
        if due or step == node.steps or stopped or lost or (validate and watch.is_best(step)):
            folder = store.step_folder(ctx.folder.checkpoints, step)
            if step and not (lost and folder.is_dir()):
                seconds = _added(elsewhere, phases)
                store.save(
                    folder, trainer, _facts(node, step, learner, seconds, hf_config), node.keep_checkpoints
                )
                watch.saved(step, folder)
                records.covered(step)
            phases.mark("checkpoint")
        if lost:
            raise UserError(
                f"node {ctx.name}, step {step + 1}: {lost}; the weights after step {step} are saved; look at "
                f"{ctx.folder.log}, then run again"
            )

    after = watch.evaluate("after")
    phases.mark("evaluate")
    sha256 = weights_sha256(trainer.chunks, hf_config)
    metrics.close()
    if world.is_first:
        result = _result(ctx, node, {"before": before, "after": after}, _added(elsewhere, phases))
        extra = {"stopped": stopped} if stopped else {}
        write_json(ctx.folder.done, {**result, "step": step, **extra, "weights_sha256": sha256})
    rewarder.close()
    engine.close()
    world.barrier()
    world.stop()


def _facts(
    node: RLNode, step: int, learner: Learner, seconds: dict[str, float], hf_config: dict[str, Any]
) -> dict[str, Any]:
    """What a checkpoint says of itself."""
    return {
        "kind": "rl",
        "step": step,
        "weight_version": learner.position.updates,
        "prompts": learner.position.prompts,
        "seconds": seconds,
        "lr": node.lr,
        "hf_config": hf_config,
        "config_digest": digest(to_plain(node)),
    }


def _engine(
    ctx: NodeContext,
    node: RLNode,
    layout: EngineLayout,
    hf_config: dict[str, Any],
    max_model_len: int,
    world: World,
) -> Engine | Sampler:
    """The engine of this rank: in this process, or a sampler in its own."""
    answers = -(-node.prompts_per_step // layout.data_parallel_size) * node.samples_per_prompt
    dtype, at_once = ctx.lineage.dtype_of(ctx.name), min(answers, _AT_ONCE)
    if node.engine.placement == "separate":
        config = node.engine
        return Sampler(
            hf_config,
            dtype,
            max_model_len,
            at_once,
            world.rank,
            world.world_size,
            config.deadline_seconds,
            config.device,
        )
    return Engine.of(hf_config, dtype, max_model_len, at_once, layout.tensor_parallel_size)


def _engine_layout(name: str, node: RLNode, world: World) -> EngineLayout:
    """Copies of the engine over all ranks.

    Raises:
        UserError: the engine's tensor-parallel size does not divide the ranks.
    """
    size = node.engine.tensor_parallel_size
    if world.world_size % size:
        raise UserError(
            f"nodes.{name}.engine.tensor_parallel_size {size} does not divide the node's {world.world_size} processes"
        )
    return EngineLayout(size, world.world_size // size)


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


def _begin(
    ctx: NodeContext, node: RLNode, trainer: MegatronTrainer
) -> tuple[dict[str, Any], Reference | None]:
    """Load the node's own newest checkpoint, else the parent's weights under a fresh optimizer.

    Where the config measures a distance from the parent's weights, they are read as well.
    """
    own = store.latest(ctx.folder.checkpoints)
    checkpoint = parent_checkpoint(ctx) if own is None or node.needs_reference else None
    facts: dict[str, Any] = {"step": 0, "weight_version": 0, "prompts": 0, "seconds": {}}
    if own is not None:
        facts = store.load(own, trainer)
    else:
        assert checkpoint is not None
        store.load(checkpoint, trainer, optimizer=False)
    if not node.needs_reference:
        return facts, None
    assert checkpoint is not None
    return facts, Reference(trainer, checkpoint)


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
        "evaluation": evaluation,
        "generated_tokens": sum(row["generated_tokens"] for row in rows),
        "trained_tokens": sum(row["trained_tokens"] for row in rows),
        "seconds": sum(row["seconds"] for row in rows) + sum(outside.values()),
        "seconds_by_phase": {**outside, **inside},
        "config_digest": digest(to_plain(node)),
        "versions": installed_versions(),
    }
