"""The mid-training stage: a token budget on a mixture, from random weights or from a parent node."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

from octo_megatron.checkpoint import store
from octo_megatron.checkpoint.digest import weights_sha256
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
from octo_megatron.config.schema import TrainNode
from octo_megatron.config.versions import installed_versions
from octo_megatron.data.mixture import Mixture, node_seed, open_mixture, validation
from octo_megatron.data.sample import Sample
from octo_megatron.parallel import world as worlds
from octo_megatron.train.batches import affordable_steps, batch_stream, validation_batches
from octo_megatron.train.megatron import MegatronTrainer, next_token_loss
from octo_megatron.train.schedule import learning_rate


@dataclass
class Phases:
    """Seconds spent, by phase."""

    seconds: dict[str, float] = field(default_factory=dict)
    _since: float = field(default_factory=time.perf_counter)

    def mark(self, phase: str) -> None:
        """Everything since the last mark was `phase`."""
        now = time.perf_counter()
        self.seconds[phase] = self.seconds.get(phase, 0.0) + now - self._since
        self._since = now


def run(ctx: NodeContext) -> None:
    """Train the node to its budget, from its newest checkpoint if there is one; writes done.json last."""
    node = ctx.node
    assert isinstance(node, TrainNode)
    phases, layout = Phases(), ctx.lineage.layout_of(ctx.name)
    world = worlds.start(layout, ctx.lineage.seed)
    progress = Progress(ctx.folder.progress, world.is_first)
    progress.update("start", 0, node.steps)
    hf_config = read_json(ctx.run.hf_config)
    trainer = MegatronTrainer(hf_config, layout, ctx.lineage.precision, node.optimizer, world)
    mixture = open_mixture(
        ctx.run,
        node.mixture,
        node.seq_length,
        node_seed(ctx.lineage.seed, ctx.name),
        node.packing,
        node.max_epochs,
    )
    steps = affordable_steps(ctx.name, node, mixture.end())
    held_out = {name: validation(ctx.run, name, node.seq_length) for name in sorted(node.mixture)}
    step = _begin(ctx, node, trainer)
    stream = batch_stream(
        node, mixture.sample, range(step, steps), world, layout, ctx.lineage.deadline_seconds / 2
    )
    metrics = MetricsFile(ctx.folder.metrics, step, world.is_first)
    phases.mark("start")
    if step == 0:
        metrics.write({"step": 0, "tokens": 0, **_validate(trainer, node, held_out)})
        phases.mark("validation")

    while step < steps:
        began = time.perf_counter()
        batches = stream.next()
        phases.mark("data")
        lr = learning_rate(node.schedule, step, steps)
        result = trainer.train_step(batches, next_token_loss, lr)
        phases.mark("train")
        step += 1
        seconds = time.perf_counter() - began
        row: dict[str, Any] = {
            "step": step,
            "tokens": step * node.global_batch_size * node.seq_length,
            "loss": result.sums["loss"],
            "lr": lr,
            "grad_norm": result.grad_norm,
            "seconds": seconds,
            "tokens_per_second": node.global_batch_size * node.seq_length / seconds,
        }
        last = step == steps
        if last or (node.validation_interval and step % node.validation_interval == 0):
            row |= _validate(trainer, node, held_out)
            phases.mark("validation")
        metrics.write(row)
        progress.update("train", step, steps, loss=row["loss"], tokens_per_second=row["tokens_per_second"])
        if last or (node.checkpoint_interval and step % node.checkpoint_interval == 0):
            facts = {"kind": "train", "step": step, "lr": lr, "tokens": row["tokens"], "hf_config": hf_config}
            facts["ledger"] = mixture.ledger(step * node.global_batch_size)
            store.save(
                store.step_folder(ctx.folder.checkpoints, step),
                trainer,
                {**facts, "config_digest": digest(to_plain(node))},
                node.keep_checkpoints,
            )
            phases.mark("checkpoint")

    stream.close()
    metrics.close()
    parameters, sha256 = trainer.parameter_count, weights_sha256(trainer.chunks, hf_config)
    if world.is_first:
        write_json(ctx.folder.done, _result(ctx, node, steps, mixture, parameters, sha256, phases))
    world.barrier()
    world.stop()


def _begin(ctx: NodeContext, node: TrainNode, trainer: MegatronTrainer) -> int:
    """Load the node's own newest checkpoint, else the parent's; returns the step to go on from."""
    own = store.latest(ctx.folder.checkpoints)
    if own is not None:
        return int(store.load(own, trainer)["step"])
    parent = ctx.parent_folder()
    if parent is None:
        return 0
    checkpoint = store.latest(parent.checkpoints)
    if checkpoint is None:
        raise UserError(
            f"node {ctx.name}: its parent {node.parent} has no checkpoint in {parent.checkpoints}"
        )
    facts = store.read_extra(checkpoint)
    trained = facts.get("kind") == "train"
    if trained and node.continue_lr:
        check_continuity(ctx.name, node, str(node.parent), float(facts["lr"]))
    store.load(checkpoint, trainer, optimizer=trained and node.inherit_optimizer)
    return 0


def check_continuity(name: str, node: TrainNode, parent: str, parent_lr: float) -> None:
    """Raises UserError unless the node's first learning rate is its parent's last one (within 1e-12 relative)."""
    first = learning_rate(node.schedule, 0, node.steps)
    if abs(first - parent_lr) > 1e-12 * parent_lr:
        raise UserError(
            f"node {name} starts at learning rate {first:g} but its parent {parent} ended at {parent_lr:g}; "
            f"set nodes.{name}.schedule.lr={parent_lr:g} without warmup, or nodes.{name}.continue_lr=false"
        )


def _validate(
    trainer: MegatronTrainer, node: TrainNode, held_out: dict[str, list[Sample]]
) -> dict[str, float]:
    """Mean loss a token on each source's held-out windows, and over all of them."""
    world, out = trainer.world, {}
    total = tokens = 0.0
    for source, samples in held_out.items():
        if not samples:
            continue
        batches = validation_batches(
            samples, node.micro_batch_size, world.data_parallel_rank, world.data_parallel_size, trainer.layout
        )
        sums = trainer.evaluate(batches, next_token_loss)
        out[f"validation/{source}"] = sums["loss"]
        total, tokens = total + sums["loss_sum"], tokens + sums["tokens"]
    return {**out, "validation_loss": total / tokens} if tokens else {}


def _result(
    ctx: NodeContext,
    node: TrainNode,
    done: int,
    mixture: Mixture,
    parameters: int,
    sha256: str,
    phases: Phases,
) -> dict[str, Any]:
    rows = read_json_lines(ctx.folder.metrics)
    steps = [row for row in rows if row["step"] > 0]
    checked = [row for row in rows if "validation_loss" in row]
    last = [row["loss"] for row in steps[-20:]]
    ledger = mixture.ledger(done * node.global_batch_size)

    def by_source(row: dict[str, Any]) -> dict[str, float]:
        return {k.split("/", 1)[1]: v for k, v in row.items() if k.startswith("validation/")}

    return {
        "kind": "train",
        "parent": node.parent,
        "step": done,
        "tokens": done * node.global_batch_size * node.seq_length,
        "tokens_by_source": {name: row["tokens"] for name, row in ledger.items()},
        "ledger": ledger,
        "lr_first": steps[0]["lr"],
        "lr_last": steps[-1]["lr"],
        "loss_first": steps[0]["loss"],
        "loss_last": sum(last) / len(last),
        "validation_first": by_source(checked[0]) if checked else {},
        "validation": by_source(checked[-1]) if checked else {},
        "seconds": sum(row["seconds"] for row in steps)
        + sum(v for k, v in phases.seconds.items() if k not in ("data", "train")),
        "seconds_by_phase": phases.seconds,
        "parameters": parameters,
        "weights_sha256": sha256,
        "config_digest": digest(to_plain(node)),
        "versions": installed_versions(),
    }
