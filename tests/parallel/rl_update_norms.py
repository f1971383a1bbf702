"""Rank script: gradient norms of several RL losses on fixed answers, as JSON. rl_update_norms.py '{"layout": {...}}'

The learning rate is 0, so that every case starts from the same weights.
"""

from __future__ import annotations

import json
import random
import sys
from functools import partial
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
    config = {**HF_CONFIG, "tie_word_embeddings": options.get("tied", True)}
    trainer = MegatronTrainer(config, layout, "fp32", OptimizerConfig(clip_grad=0.0), world)
    folder = Path(options["folder"])
    if options.get("make"):
        # all layouts start from one checkpoint; the reference is another one
        for name in ("reference", "policy"):
            store.save(folder / name, trainer, {"step": 0})
            with torch.no_grad():
                for i, p in enumerate(trainer.chunks[0].parameters()):
                    p.add_(0.02 * torch.randn(p.shape, generator=torch.Generator().manual_seed(i)))
            trainer.synchronise_replicas()
        make_critic(trainer, folder)
    store.load(folder / "policy", trainer, optimizer=False)
    reference = Reference(trainer, partial(store.load_weights, folder / "reference", trainer.chunks))

    r = random.Random(0)
    samples = []
    for n in range(13):
        prompt, answer = ([r.randrange(96) for _ in range(r.randrange(2, top))] for top in (9, LIMIT))
        # what the engine said and what was true before the update: apart from now by a fixed amount
        logprobs, reward = [r.gauss(-4, 1) for _ in answer], float(n % 2)
        samples.append(Sample(0, prompt, answer, logprobs, bool(n % 3), 0, "", reward))
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
    out["critic"] = critic_norm(trainer, folder, samples, options["capacity"])
    if world.is_first:
        print("RESULT " + json.dumps(out))
    world.stop()


def critic_of(trainer: Any, capacity: int) -> Any:
    from octo_megatron.config.schema import OptimizerConfig, RLNode
    from octo_megatron.config.schema.critic import CriticConfig
    from octo_megatron.rl.critic import Critic

    config = CriticConfig(
        lr=3e-3, gamma=0.98, gae_lambda=0.9, value_clip=0.1, optimizer=OptimizerConfig(clip_grad=0.0)
    )
    node = RLNode(advantages="ppo", critic=config, micro_batch_tokens=capacity, max_prompt_tokens=9,
                  max_response_tokens=LIMIT)  # fmt: skip
    return Critic(node, trainer)


def make_critic(trainer: Any, folder: Any) -> None:
    """A checkpoint of the policy with a critic beside it whose head is not zero any more."""
    import torch

    from octo_megatron.checkpoint import store

    critic = critic_of(trainer, 64)
    critic.begin(folder / "policy")
    head = critic.trainer.chunks[0].output_layer.weight
    assert (head == 0).all()
    with torch.no_grad():
        head.copy_(0.02 * torch.randn(head.shape, generator=torch.Generator().manual_seed(5)))
    critic.trainer.synchronise_replicas()
    store.save(folder / "critic", trainer, {"step": 0, "critic": True}, critic=critic.trainer)


def critic_norm(trainer: Any, folder: Any, samples: list[Any], capacity: int) -> list[float]:
    """The critic's figures on the answers: gradient norm, loss, batches, and what it makes of them."""
    import torch

    from octo_megatron.rl.batches import Target, micro_batches

    critic, world = critic_of(trainer, capacity), trainer.world
    critic.begin(folder / "critic")
    judged = critic.judge(samples, None)
    targets = [
        # as if earlier updates had moved the values, some of them beyond the clip
        Target(a, critic=(v + 0.2 * torch.sin(3.0 * torch.arange(len(v))), goal))
        for a, v, goal in zip(judged.advantages, judged.values, judged.returns, strict=True)
    ]
    batches = micro_batches(samples, targets, capacity, trainer.layout, world.data_parallel_rank,
                            world.data_parallel_size)  # fmt: skip
    row = critic.train([batches])
    assert 0 < row["value_clip_share"] < 1
    if trainer.world.world_size == 1:
        check_it_learns(critic, samples)
    weighted = sum(float((a * torch.arange(len(a))).sum()) for a in judged.advantages)
    return [
        row["critic_grad_norm"],
        row["value_loss"],
        len(batches),
        weighted,
        judged.row["explained_variance"],
    ]


def check_it_learns(critic: Any, samples: list[Any]) -> None:
    """From the same answers over and over it comes to foresee what each of their tokens leads to."""
    from octo_megatron.rl.batches import Target, micro_batches

    for _ in range(40):
        judged = critic.judge(samples, None)
        both = zip(judged.values, judged.returns, strict=True)
        targets = [Target(0.0, critic=pair) for pair in both]
        critic.train([micro_batches(samples, targets, 4096, critic.trainer.layout, 0, 1)])
    found = critic.judge(samples, None).row["explained_variance"]
    assert found > 0.9, found


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
