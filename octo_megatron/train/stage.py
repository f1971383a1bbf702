"""The mid-training stage: a token budget on a mixture, from random weights or from a parent node."""

from __future__ import annotations

import time
from functools import partial
from typing import Any

from octo_megatron.checkpoint.digest import weights_sha256
from octo_megatron.checkpoint.hf_start import START_FACTS
from octo_megatron.checkpoint.parent import tokens_before
from octo_megatron.checkpoint.retention import Retention
from octo_megatron.checkpoint.saver import Saver
from octo_megatron.config.errors import UserError
from octo_megatron.config.run_folder import NodeContext, Progress, read_json, write_json
from octo_megatron.config.schema import TrainNode
from octo_megatron.data.mixture import Mixture, node_seed, open_mixture, validation
from octo_megatron.model.batch import PackedBatch
from octo_megatron.model.families import family_of
from octo_megatron.parallel import world as worlds
from octo_megatron.parallel.stop import STOP
from octo_megatron.train.batches import affordable_steps, batch_stream
from octo_megatron.train.begin import begin, fingerprints
from octo_megatron.train.flops import training_flops
from octo_megatron.train.guard import Guard
from octo_megatron.train.megatron import MegatronTrainer, StepResult
from octo_megatron.train.metrics import Metrics, memory_gib, speed
from octo_megatron.train.phases import Phases
from octo_megatron.train.result import result
from octo_megatron.train.schedule import learning_rate
from octo_megatron.train.source_loss import SourceLoss
from octo_megatron.train.validate import validate
from octo_megatron.train.watch import Watch, watch

_PATIENCE_SECONDS = 120
"""Collectives give up so much later than the watch, which can say which rank is behind."""


def run(ctx: NodeContext) -> None:
    """Train the node to its budget, from its newest checkpoint if there is one; writes done.json last.

    Raises:
        Stopped: a signal asked for it; everything up to the last step is saved.
    """
    phases, lineage = Phases(), ctx.lineage
    world = worlds.start(
        lineage.layout_of(ctx.name), lineage.seed, lineage.deadline_seconds + _PATIENCE_SECONDS
    )
    with watch(ctx, world) as watching:
        STOP.listen()
        train(ctx, world, watching, phases)
    world.barrier()
    world.stop()


def train(ctx: NodeContext, world: worlds.World, watching: Watch, phases: Phases) -> None:
    """The loop."""
    node, lineage, layout = ctx.node, ctx.lineage, ctx.lineage.layout_of(ctx.name)
    assert isinstance(node, TrainNode)
    progress = Progress(ctx.folder.progress, world.is_first)
    progress.update("start", 0, node.steps)
    trainer = _trainer(ctx, node, world)
    mixture = _mixture(ctx, node)
    steps = affordable_steps(ctx.name, node, mixture.end())
    held_out = {name: validation(ctx.run, name, node.seq_length) for name in sorted(node.mixture)}
    watching.enter("load")
    inherited, pinned = tokens_before(ctx), lineage.pinned_steps(ctx.name)
    facts = begin(ctx, node, trainer)
    step, loss, guard = int(facts["step"]), SourceLoss(tuple(node.mixture)), _guard(node, facts)
    metrics = Metrics(ctx, step or -1, world.is_first)  # anew from step 0: its row too
    saver = Saver(ctx.folder.checkpoints, trainer, _retention(node, pinned), watching.fence, watching.say)
    stream = batch_stream(
        node, mixture.sample, range(step, steps), world, layout, lineage.deadline_seconds / 2
    )
    origin = {key: facts[key] for key in START_FACTS if key in facts}
    constant = {
        "kind": "train",
        "hf_config": trainer.hf_config,
        "fingerprints": fingerprints(ctx, node),
        **origin,
    }
    phases.mark("start")
    if step == 0:
        watching.enter("validation")
        metrics.write({"step": 0, "tokens": 0, **validate(trainer, node, held_out)})
        phases.mark("validation")

    while step < steps:
        began, stalled = time.perf_counter(), saver.seconds
        watching.enter("data")
        phases.mark("log")  # metrics, progress and heartbeat of the step before
        batches = stream.next()
        waited = phases.mark("data")
        watching.enter("forward-backward")
        lr = learning_rate(node.schedule, step, steps)
        judge, local = partial(_judge, watching, guard), partial(_local, trainer, batches)
        done = trainer.train_step(batches, loss, lr, judge, local)
        step += 1
        saver.poll()
        phases.mark("train")
        row = {
            "lineage_tokens": inherited + step * node.tokens_per_step,
            **_row(node, step, lr, done, time.perf_counter() - began, world.world_size),
            **loss.means(done.sums),
            "seconds_data": waited,
            "seconds_checkpoint": saver.seconds - stalled,
        }
        _check(ctx.name, guard, step, saver)
        last, stopping = step == steps, done.sums["stop"] > 0
        if last or (node.validation_interval and step % node.validation_interval == 0):
            watching.enter("validation")
            row |= validate(trainer, node, held_out)
            phases.mark("validation")
        if last or stopping or _due(node, step, pinned, guard):
            watching.enter("checkpoint")
            saver.start(step, {**constant, **_facts(node, mixture, row, guard)})
            row["seconds_checkpoint"] += phases.mark("checkpoint")
        metrics.write(row)
        progress.update("train", step, steps, loss=row["loss"], tokens_per_second=row["tokens_per_second"])
        if stopping and not last:
            saver.close()
            metrics.close()
            raise watching.stopped(step, steps)

    watching.enter("end")
    stream.close()
    saver.close()
    phases.mark("checkpoint")
    metrics.close()
    _finish(ctx, node, trainer, steps, mixture, phases, origin)


def _trainer(ctx: NodeContext, node: TrainNode, world: worlds.World) -> MegatronTrainer:
    lineage, hf_config = ctx.lineage, read_json(ctx.run.hf_config)
    precision, compute = lineage.precision_of(ctx.name), lineage.compute_of(ctx.name)
    layout = lineage.layout_of(ctx.name)
    return MegatronTrainer(hf_config, layout, precision, node.optimizer, world, node.dropout, compute)


def _due(node: TrainNode, step: int, pinned: set[int], guard: Guard) -> bool:
    """While nothing finite comes, the checkpoints from before are not to be pushed out by later ones."""
    every = node.checkpoint_interval and step % node.checkpoint_interval == 0
    return step in pinned or bool(every and not guard.not_finite)


def _finish(
    ctx: NodeContext,
    node: TrainNode,
    trainer: MegatronTrainer,
    steps: int,
    mixture: Mixture,
    phases: Phases,
    origin: dict[str, Any],
) -> None:
    parameters, sha256 = trainer.parameter_count, weights_sha256(trainer.chunks, trainer.hf_config)
    if trainer.world.is_first:
        figures = result(ctx, node, steps, mixture, phases.seconds)
        write_json(ctx.folder.done, {**figures, **origin, "parameters": parameters, "weights_sha256": sha256})


def _mixture(ctx: NodeContext, node: TrainNode) -> Mixture:
    seed = node_seed(ctx.lineage.seed, ctx.name)
    return open_mixture(ctx.run, node.mixture, node.seq_length, seed, node.packing, node.max_epochs)


def _guard(node: TrainNode, facts: dict[str, Any]) -> Guard:
    guard = Guard(node.skip_sigma, node.skip_window)
    if "guard" in facts:
        guard.restore(facts["guard"])
    return guard


def _judge(watching: Watch, guard: Guard, loss: float, grad_norm: float) -> str | None:
    watching.enter("optimizer")
    return guard.judge(loss, grad_norm)


def _retention(node: TrainNode, pinned: set[int]) -> Retention:
    return Retention(node.keep_checkpoints, node.keep_every, node.keep_best, frozenset(pinned))


def _local(trainer: MegatronTrainer, batches: list[PackedBatch]) -> dict[str, float]:
    """Added over all ranks: who was asked to stop, and the step's operations, each batch counted once."""
    layout, shape = trainer.layout, family_of(trainer.hf_config).shape(trainer.hf_config)
    lengths = [n for b in batches for n in (b.cu_seqlens[1:] - b.cu_seqlens[:-1]).tolist()]
    share = layout.world_size // layout.data_parallel_size
    return {"stop": float(STOP.asked), "flops": training_flops(shape, lengths) / share}


def _row(
    node: TrainNode, step: int, lr: float, done: StepResult, seconds: float, devices: int
) -> dict[str, Any]:
    tokens = node.tokens_per_step
    row: dict[str, Any] = {
        "step": step,
        "tokens": step * tokens,
        "loss": done.sums["loss"],
        "lr": lr,
        "grad_norm": done.grad_norm,
        "seconds": seconds,
        **speed(tokens, done.sums["flops"], seconds, devices),
        **{f"seconds_{name}": value for name, value in done.seconds.items()},
        "memory_gib": memory_gib(),
    }
    if done.skipped:
        first = (step - 1) * node.global_batch_size
        row |= {"skipped": done.skipped, "samples": [first, first + node.global_batch_size - 1]}
    return row


def _facts(node: TrainNode, mixture: Mixture, row: dict[str, Any], guard: Guard) -> dict[str, Any]:
    """What a checkpoint says about itself, beside weights, optimizer and random generators."""
    consumed = row["step"] * node.global_batch_size
    kept = ("step", "tokens", "lineage_tokens", "lr", "validation_loss")
    facts: dict[str, Any] = {k: row[k] for k in kept if k in row}
    return {**facts, "consumed_samples": consumed, "ledger": mixture.ledger(consumed), "guard": guard.state()}


def _check(name: str, guard: Guard, step: int, saver: Saver) -> None:
    """Raises UserError when nothing finite comes any more; what is saved stays as it is."""
    if guard.exhausted:
        saver.finish()  # one that was begun before may still be good
        first = step - guard.not_finite + 1
        raise UserError(
            f"node {name}: loss or gradient was not finite in steps {first} to {step}; no update was made and nothing "
            f"saved since. The last checkpoint is from before. Look at the samples (octo inspect), then lower "
            f"nodes.{name}.schedule.lr or leave the data out, and run again"
        )
