"""The RL stage: from the parent's weights, resumable in every phase, validated on the way."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from octo_megatron.checkpoint import store
from octo_megatron.checkpoint.digest import weights_sha256
from octo_megatron.checkpoint.hf_start import START_FACTS
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
from octo_megatron.engine.refit.refit import Refit
from octo_megatron.engine.sampler import EngineLost, Sampler
from octo_megatron.engine.vllm_engine import Engine
from octo_megatron.evaluate.solve import longest_prompt
from octo_megatron.parallel import world as worlds
from octo_megatron.parallel.stop import STOP
from octo_megatron.parallel.world import World
from octo_megatron.rl.begin import begin
from octo_megatron.rl.critic import Critic
from octo_megatron.rl.engines import engine_layout_of, engine_of
from octo_megatron.rl.records import StepRecords
from octo_megatron.rl.rewards import Rewarder
from octo_megatron.rl.step import Learner, Position
from octo_megatron.rl.update import Updater
from octo_megatron.rl.watch import Evaluation, Watch
from octo_megatron.train.megatron import MegatronTrainer
from octo_megatron.train.phases import Phases
from octo_megatron.train.watch import Watch as Guard
from octo_megatron.train.watch import watch

_BEHIND_SECONDS = 120
"""Collectives give up so much later than the watch, which can say which rank is behind."""

_PATIENCE_SECONDS = 60.0
"""A step may outlast what SLURM leaves between its signal and the end (120 s in our job files). So long after a signal
a process ends where it is; the records of the step's finished phases are what the next one goes on from."""


@dataclass
class _Node:
    """A node that runs, on this rank."""

    ctx: NodeContext
    config: RLNode
    hf_config: dict[str, Any]
    world: World
    guard: Guard
    trainer: MegatronTrainer
    critic: Critic | None
    engine: Engine | Sampler
    rewarder: Rewarder
    records: StepRecords
    learner: Learner
    watch: Watch
    metrics: MetricsFile
    progress: Progress
    phases: Phases
    origin: dict[str, Any]
    """START_FACTS, where it started from a Hugging Face folder."""
    elsewhere: dict[str, float]
    """Seconds outside the steps in earlier processes."""
    step: int
    """Steps that are done."""


def run(ctx: NodeContext) -> None:
    """All steps of the node, from its newest checkpoint if there is one; writes done.json last.

    Raises:
        Stopped: a signal asked for it; the weights after the last step are saved.
    """
    assert isinstance(ctx.node, RLNode)
    phases, lineage = Phases(), ctx.lineage
    timeout = max(600, lineage.deadline_seconds) + _BEHIND_SECONDS
    world = worlds.start(lineage.layout_of(ctx.name), lineage.seed, timeout)
    with watch(ctx, world) as guard:
        node = _started(ctx, ctx.node, world, guard, phases)
        guard.enter("validation")
        before = node.watch.before()
        node.phases.mark("evaluate")
        stopped = node.watch.collapsed(node.step)
        STOP.listen(_PATIENCE_SECONDS)
        while node.step < node.config.steps and not stopped:
            stopped = _one_step(node)
        STOP.rest()
        _finish(node, before, stopped)
    world.stop()


def _started(ctx: NodeContext, node: RLNode, world: World, guard: Guard, phases: Phases) -> _Node:
    """Models, engine and files, as the newest checkpoint or the parent says."""
    lineage, layout = ctx.lineage, ctx.lineage.layout_of(ctx.name)
    tokenizer, problems = TextTokenizer(ctx.run.tokenizer), load_problems(ctx.run.problems(node.problems))
    tests = {name: load_problems(ctx.run.problems(name)) for name in node.evaluate}
    prompt_tokens = _prompt_tokens(ctx.name, node, problems, tests, tokenizer)
    progress = Progress(ctx.folder.progress, world.is_first)
    progress.update("start", 0, node.steps)
    hf_config = read_json(ctx.run.hf_config)
    precision, compute = lineage.precision_of(ctx.name), lineage.compute_of(ctx.name)
    trainer = MegatronTrainer(hf_config, layout, precision, node.optimizer, world, compute=compute)
    critic = Critic(node, trainer) if node.has_critic else None
    facts, reference = begin(ctx, node, trainer, critic, guard.say)
    engine_layout = engine_layout_of(ctx.name, node, world)
    engine = engine_of(ctx, node, engine_layout, hf_config, prompt_tokens + node.max_response_tokens, world)
    separate, proof = node.engine.placement == "separate", node.engine.proof_interval
    dtype = trainer.config.params_dtype
    refit = Refit(hf_config, layout, engine_layout, dtype, proof, separate=separate)
    records = StepRecords(ctx.folder.root, world)
    rewarder = Rewarder(ctx.name, node, problems, world, lineage.threads)
    updater = Updater(ctx.name, node, lineage.seed, trainer, reference, critic)
    position = Position(int(facts["weight_version"]), int(facts["prompts"]))
    learner = Learner(
        node, lineage.seed, trainer, engine, tokenizer, problems, rewarder, updater, records, position, refit
    )
    step, elsewhere = int(facts["step"]), dict(facts["seconds"])
    origin = {key: facts[key] for key in START_FACTS if key in facts}
    metrics = MetricsFile(ctx.folder.metrics, step, world.is_first)
    watch = Watch(ctx, node, engine, tokenizer, tests, world, progress)
    phases.mark("start")
    return _Node(
        ctx, node, hf_config, world, guard, trainer, critic, engine, rewarder, records, learner, watch, metrics,
        progress, phases, origin, elsewhere, step,
    )  # fmt: skip


def _one_step(node: _Node) -> str:
    """The next step with what is due after it. Returns why the node ends early, empty where it goes on.

    Raises:
        UserError: the engine was lost for good; the weights are saved.
    """
    config, watch = node.config, node.watch
    row: dict[str, Any] = {}
    try:
        row = node.learner.step(node.step + 1, node.guard.enter)
    except EngineLost as error:
        # nothing was trained yet in this step: the weights are those after the last one
        lost = str(error)
    else:
        node.step += 1
        lost = node.learner.lost
    node.phases.mark("steps")
    step, stopped = node.step, ""
    validate = not lost and config.validation_interval and step % config.validation_interval == 0
    if validate:
        node.guard.enter("validation")
        row |= watch.validate(step)
        node.phases.mark("evaluate")
    if row:
        node.metrics.write(row)
        node.progress.update(
            "rl", step, config.steps, **{name: row[name] for name in ("reward", "response_length")}
        )
        stopped = watch.collapsed(step)
    due = config.checkpoint_interval and step % config.checkpoint_interval == 0
    stopping = node.world.any(STOP.asked)
    if stopping:
        STOP.arrived()
    if due or step == config.steps or stopped or lost or stopping or (validate and watch.is_best(step)):
        _save(node, lost)
    if lost:
        when = f"after step {step}" if row else f"in step {step + 1}"
        raise UserError(
            f"node {node.ctx.name}, {when}: {lost}; the weights after step {step} are saved; look at "
            f"{node.ctx.folder.log}, then run again"
        )
    if stopping and step < config.steps and not stopped:
        node.metrics.close()
        raise node.guard.stopped(step, config.steps)
    return stopped


def _save(node: _Node, lost: str) -> None:
    """The checkpoint of the present step, unless an engine was lost right after one."""
    step, folder = node.step, store.step_folder(node.ctx.folder.checkpoints, node.step)
    if step and not (lost and folder.is_dir()):
        facts = _facts(node, _added(node.elsewhere, node.phases))
        critic = node.critic.trainer if node.critic else None
        node.guard.enter("checkpoint")
        store.save(folder, node.trainer, facts, node.config.keep_checkpoints, critic, node.guard.fence)
        node.watch.saved(step, folder)
        node.records.covered(step)
    node.phases.mark("checkpoint")


def _finish(node: _Node, before: Evaluation, stopped: str) -> None:
    """The last evaluation and done.json."""
    node.guard.enter("validation")
    after = node.watch.evaluate("after")
    node.phases.mark("evaluate")
    sha256 = weights_sha256(node.trainer.chunks, node.hf_config)
    node.metrics.close()
    if node.world.is_first:
        evaluation, outside = {"before": before, "after": after}, _added(node.elsewhere, node.phases)
        result = _result(node.ctx, node.config, evaluation, outside)
        extra = {"stopped": stopped} if stopped else {}
        made = {"step": node.step, **extra, **node.origin, "weights_sha256": sha256}
        write_json(node.ctx.folder.done, {**result, **made})
    node.rewarder.close()
    node.engine.close()
    node.world.barrier()


def _facts(node: _Node, seconds: dict[str, float]) -> dict[str, Any]:
    """What a checkpoint says of itself."""
    return {
        "kind": "rl",
        "step": node.step,
        "weight_version": node.learner.position.updates,
        "prompts": node.learner.position.prompts,
        "seconds": seconds,
        "lr": node.config.lr,
        "critic": node.critic is not None,
        "hf_config": node.hf_config,
        "config_digest": digest(to_plain(node.config)),
        **node.origin,
    }


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
