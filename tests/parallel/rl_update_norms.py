"""Rank script: gradient norms of several RL losses on fixed answers, as JSON. rl_update_norms.py '{"layout": {...}}'

The learning rate is 0, so that every case starts from the same weights.
"""

from __future__ import annotations

import json
import random
import sys
from typing import Any

HF_CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "hidden_act": "silu",
    "initializer_range": 0.15,
    "tie_word_embeddings": True,
}
LIMIT = 24


def main(options: dict[str, Any]) -> None:
    from pathlib import Path

    import torch

    from octo_megatron.checkpoint import store
    from octo_megatron.config.schema import OptimizerConfig, ParallelConfig
    from octo_megatron.parallel import world as worlds
    from octo_megatron.rl.batches import Target, micro_batches
    from octo_megatron.rl.losses import OLD, REFERENCE, PolicyLoss
    from octo_megatron.rl.losses.aggregate import token_weights
    from octo_megatron.rl.reference import Reference
    from octo_megatron.rl.rollout import Sample
    from octo_megatron.rl.update import context_sum
    from octo_megatron.train.megatron import MegatronTrainer

    layout = ParallelConfig(**options.get("layout", {}))
    world = worlds.start(layout, seed=3, timeout_seconds=120)
    trainer = MegatronTrainer(HF_CONFIG, layout, "fp32", OptimizerConfig(clip_grad=0.0), world)
    folder = Path(options["folder"])
    if options.get("make"):
        # all layouts start from one checkpoint; the reference is another one
        for name in ("reference", "policy"):
            store.save(folder / name, trainer, {"step": 0})
            with torch.no_grad():
                for i, p in enumerate(trainer.chunks[0].parameters()):
                    p.add_(0.02 * torch.randn(p.shape, generator=torch.Generator().manual_seed(i)))
            trainer.synchronise_replicas()
    store.load(folder / "policy", trainer, optimizer=False)
    reference = Reference(trainer, folder / "reference")

    r = random.Random(0)
    samples = []
    for n in range(13):
        prompt, answer = ([r.randrange(96) for _ in range(r.randrange(2, top))] for top in (9, LIMIT))
        # what the engine said and what was true before the update: apart from now by a fixed amount
        samples.append(Sample(0, prompt, answer, [r.gauss(-4, 1) for _ in answer], bool(n % 3), 0, "", 0.0))
    advantages = [r.gauss(0, 1) for _ in samples]
    cases = {
        "clip token": (PolicyLoss("clip", 0.2, 0.28, 3.0), "token"),
        "gspo sequence": (PolicyLoss("gspo", 0.3, 0.4, add_up=context_sum), "sequence"),
        "cispo fixed": (PolicyLoss("cispo", 1.0, 0.3), "fixed"),
        "kl and entropy": (PolicyLoss(kl_coefficient=0.3, entropy_coefficient=0.1), "sequence"),
    }
    out = {}
    for name, (loss, aggregation) in cases.items():
        weights = token_weights([len(s.token_ids) for s in samples], aggregation, LIMIT)
        targets = [Target(a, w) for a, w in zip(advantages, weights, strict=True)]
        batches = micro_batches(samples, targets, options["capacity"], layout, world.data_parallel_rank,
                                world.data_parallel_size)  # fmt: skip
        for batch, found in zip(batches, reference.logprobs(batches), strict=True):
            batch.extras[REFERENCE] = found.cpu() * batch.loss_mask
        for batch, found in zip(batches, trainer.logprobs(batches), strict=True):
            shift = 0.3 * torch.sin(batch.labels * 1.7 + batch.position_ids)
            batch.extras[OLD] = (found.cpu() + shift) * batch.loss_mask
        result = trainer.train_step(batches, loss, 0.0, entropy=loss.needs_entropy)
        out[name] = [result.grad_norm, result.sums["loss"], len(batches)]
    if world.is_first:
        print("RESULT " + json.dumps(out))
    world.stop()


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
