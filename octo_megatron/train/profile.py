"""A few steps of a train node under PyTorch's profiler; the node's own folder is only read."""

from __future__ import annotations

import torch
from torch.profiler import ProfilerActivity, profile

from octo_megatron.config.run_folder import NodeContext, Progress, read_json, write_text
from octo_megatron.config.schema import TrainNode
from octo_megatron.data.mixture import node_seed, open_mixture
from octo_megatron.parallel import world as worlds
from octo_megatron.parallel.device import ON_CUDA
from octo_megatron.train.batches import micro_batches
from octo_megatron.train.begin import begin
from octo_megatron.train.megatron import MegatronTrainer
from octo_megatron.train.schedule import learning_rate
from octo_megatron.train.source_loss import SourceLoss

_WARM_UP = 2
_ROWS = 25


def run(ctx: NodeContext, steps: int) -> None:
    """Take the steps that the node would take next, and write nodes/<node>/profile."""
    node, lineage, layout = ctx.node, ctx.lineage, ctx.lineage.layout_of(ctx.name)
    assert isinstance(node, TrainNode)
    world = worlds.start(layout, lineage.seed, lineage.deadline_seconds)
    progress = Progress(ctx.folder.progress, world.is_first)
    progress.update("profile", 0, steps)
    precision, compute = lineage.precision_of(ctx.name), lineage.compute_of(ctx.name)
    trainer = MegatronTrainer(
        read_json(ctx.run.hf_config), layout, precision, node.optimizer, world, node.dropout, compute
    )
    seed = node_seed(lineage.seed, ctx.name)
    mixture = open_mixture(ctx.run, node.mixture, node.seq_length, seed, node.packing, node.max_epochs)
    first = int(begin(ctx, node, trainer)["step"])
    loss = SourceLoss(tuple(node.mixture))

    def take(step: int) -> None:
        batches = micro_batches(
            node, mixture.sample, step, world.data_parallel_rank, world.data_parallel_size, layout
        )
        trainer.train_step(batches, loss, learning_rate(node.schedule, step, node.steps))

    for step in range(first, first + _WARM_UP):
        take(step)
    folder = ctx.folder.root / "profile"
    folder.mkdir(exist_ok=True)
    if ON_CUDA:
        torch.cuda.memory._record_memory_history()
    kinds = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if ON_CUDA else [])
    with profile(activities=kinds, record_shapes=True) as recorded:
        for step in range(first + _WARM_UP, first + _WARM_UP + steps):
            take(step)
            progress.update("profile", step - first - _WARM_UP + 1, steps)
    recorded.export_chrome_trace(str(folder / f"trace_{world.rank:05d}.json.gz"))
    if ON_CUDA:
        torch.cuda.memory._dump_snapshot(str(folder / f"memory_{world.rank:05d}.pickle"))
    world.barrier()
    if world.is_first:
        order = "self_cuda_time_total" if ON_CUDA else "self_cpu_time_total"
        table = recorded.key_averages().table(sort_by=order, row_limit=_ROWS, max_name_column_width=50)
        write_text(folder / "summary.txt", f"rank 0, steps {first + _WARM_UP + 1} to {step + 1}\n{table}\n")
    world.stop()
