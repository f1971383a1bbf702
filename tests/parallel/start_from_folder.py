"""Rank script: in one layout, trainers that start from a Hugging Face folder beside trainers that load its import.

start_from_folder.py '{"layout": {...}, "run": RUN, "checkpoints": {"fp32": CKPT, "bf16": CKPT}}'

RUN is a run folder whose model is the Hugging Face folder. Prints one JSON line: by precision, the digest of the
weights after each way of starting and after a step of training from each, and what the start says of itself.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any


def main(options: dict[str, Any]) -> None:
    import torch

    from octo_megatron.checkpoint import store
    from octo_megatron.checkpoint.digest import weights_sha256
    from octo_megatron.config.run_folder import NodeContext, RunFolder, read_json
    from octo_megatron.config.schema import LineageConfig, OptimizerConfig, ParallelConfig, RLNode, TrainNode
    from octo_megatron.config.schema.rl import KLConfig
    from octo_megatron.model.batch import Document, pack
    from octo_megatron.parallel import world as worlds
    from octo_megatron.rl.begin import begin as rl_begin
    from octo_megatron.rl.critic import Critic
    from octo_megatron.train.begin import begin
    from octo_megatron.train.megatron import MegatronTrainer, next_token_loss

    layout = ParallelConfig(**options["layout"])
    world = worlds.start(layout, seed=3, timeout_seconds=300)
    run = RunFolder(Path(options["run"]))
    hf_config = read_json(run.hf_config)
    train = TrainNode(hf=options["hf"], steps=1, mixture={"text": 1.0})
    rl = RLNode(hf=options["hf"], advantages="ppo", kl=KLConfig(coefficient=0.1))
    lineage = LineageConfig("test", model=options["hf"], nodes={"train": train, "rl": rl})

    def batch(index: int) -> Any:
        tokens = torch.randint(0, 512, (33,), generator=torch.Generator().manual_seed(index))
        return pack([Document(tokens[:-1], tokens[1:], torch.ones(32))], layout)

    def step(trainer: MegatronTrainer) -> str:
        rank, size = world.data_parallel_rank, world.data_parallel_size
        batches = [batch(index) for index in range(4) if index % size == rank]
        trainer.train_step(batches, next_token_loss, 1e-2)
        return weights_sha256(trainer.chunks, hf_config)

    results: dict[str, Any] = {}
    for precision, checkpoint in options["checkpoints"].items():
        trainers = [MegatronTrainer(hf_config, layout, precision, OptimizerConfig(), world) for _ in range(3)]
        store.load(Path(checkpoint), trainers[0], optimizer=False)
        critic = Critic(rl, trainers[2])
        facts = begin(NodeContext(run, lineage, "train"), train, trainers[1])
        rl_facts, reference = rl_begin(NodeContext(run, lineage, "rl"), rl, trainers[2], critic)
        started = [weights_sha256(trainer.chunks, hf_config) for trainer in trainers]
        judges = _equal_parameters(critic.trainer, trainers[2])
        trained = [step(trainer) for trainer in trainers]
        assert reference is not None
        with reference._in_place():
            kept = weights_sha256(trainers[2].chunks, hf_config)
        results[precision] = {
            "started": started,
            "trained": trained,
            "reference": kept,
            "critic": world.all_gather_object(judges),
            "facts": [
                {key: one.get(key) for key in ("step", "hf", "hf_weights_sha256")}
                for one in (facts, rl_facts)
            ],
        }
    # another model than the lineage's: the same line on every rank
    other = dataclasses.replace(train, hf=options["other"])
    try:
        begin(NodeContext(run, lineage, "train"), other, trainers[1])
    except Exception as error:
        results["refused"] = world.all_gather_object(f"{type(error).__name__}: {error}")
    if world.is_first:
        print("RESULT " + json.dumps(results), flush=True)
    world.barrier()
    world.stop()


def _equal_parameters(critic: Any, policy: Any) -> bool:
    """Whether all but the head is the policy's on this rank, and something is."""
    given = dict(policy.chunks[0].named_parameters())
    same = [
        bool(p.equal(given[name]))
        for name, p in critic.chunks[0].named_parameters()
        if not name.startswith("output_layer.")
    ]
    return all(same) and len(same) > 10


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
