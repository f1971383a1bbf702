"""Rank script: train a few steps of a small model on fixed packed documents and print losses as JSON.

train_some_steps.py '{"layout": {...}, "steps": 4, "load": DIR, "save": DIR, "save_at": 2, ...}'
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any


def main(options: dict[str, Any]) -> None:
    import torch

    from octo_megatron.checkpoint import store
    from octo_megatron.config.schema import OptimizerConfig, ParallelConfig
    from octo_megatron.model.batch import Document, PackedBatch, pack
    from octo_megatron.parallel import world as worlds
    from octo_megatron.train.megatron import MegatronTrainer, next_token_loss

    hf_config = {
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
        "initializer_range": 0.05,
        "tie_word_embeddings": options.get("tied", True),
    }
    layout = ParallelConfig(**options.get("layout", {}))
    world = worlds.start(layout, seed=3, timeout_seconds=120)
    trainer = MegatronTrainer(hf_config, layout, options.get("precision", "fp32"), OptimizerConfig(), world)
    first = 0
    if "load" in options:
        first = int(store.load(Path(options["load"]), trainer, options.get("load_optimizer", True))["step"])

    def batch(index: int) -> PackedBatch:
        generator = torch.Generator().manual_seed(index)
        documents = []
        for length in (24, 9, 17, 14):
            tokens = torch.randint(0, 96, (length + 1,), generator=generator)
            documents.append(Document(tokens[:-1], tokens[1:], (torch.arange(length) > 1).float()))
        return pack(documents, layout)

    rows = []
    for step in range(first, options["steps"]):
        mine = range(world.data_parallel_rank, 4, world.data_parallel_size)
        result = trainer.train_step([batch(4 * step + i) for i in mine], next_token_loss, 1e-2)
        rows.append({"step": step + 1, "loss": result.sums["loss"], "grad_norm": result.grad_norm})
        if options.get("save_at") == step + 1:
            store.save(Path(options["save"]), trainer, {"step": step + 1})
    logprobs = trainer.logprobs([batch(1000), batch(1001)])
    if world.is_first:
        figures = {"rows": rows, "logprobs": [x[:, :24].tolist()[0] for x in logprobs]}
        print("RESULT " + json.dumps(figures | {"parameters": trainer.parameter_count}))
    else:
        trainer.parameter_count  # noqa: B018  (collective)
    world.stop()


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
