"""Validation loss on the held-out samples of every source."""

from __future__ import annotations

from octo_megatron.config.schema import TrainNode
from octo_megatron.data.sample import Sample
from octo_megatron.train.batches import validation_batches
from octo_megatron.train.megatron import MegatronTrainer, next_token_loss


def validate(
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
