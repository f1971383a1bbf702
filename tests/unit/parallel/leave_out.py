"""Run by test_device.py: leave substitution N out (0: none), then train, save, load and train one step.

Exits with the traceback of whatever misses it; prints figures that a silent fault would change.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import tempfile
from pathlib import Path


def main(number: int) -> None:
    from octo_megatron.parallel import cpu_substitutions

    cpu_substitutions.BEFORE_MEGATRON.pop(number, None)
    cpu_substitutions.AFTER_MEGATRON.pop(number, None)
    logs: list[str] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            logs.append(record.getMessage())

    logging.getLogger("megatron").addHandler(Keep())

    import torch

    from octo_megatron.checkpoint import store
    from octo_megatron.config.schema import OptimizerConfig, ParallelConfig
    from octo_megatron.model.batch import Document, pack
    from octo_megatron.parallel import world as worlds
    from octo_megatron.train.megatron import MegatronTrainer, next_token_loss

    from megatron.core import tensor_parallel

    stages = int(os.environ.get("WORLD_SIZE", "1"))
    hf_config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": 32,
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": stages,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
        "rms_norm_eps": 1e-5,
        "hidden_act": "silu",
        "tie_word_embeddings": True,
    }
    layout = ParallelConfig(pipeline_model_parallel_size=stages)
    world = worlds.start(layout, seed=1)
    trainer = MegatronTrainer(hf_config, layout, "fp32", OptimizerConfig(), world)
    x = torch.arange(17) % 5
    batch = pack([Document(x[:-1], x[1:], torch.ones(16))], layout)
    with tensor_parallel.get_cuda_rng_tracker().fork():
        first = torch.rand(3)
    with tensor_parallel.get_cuda_rng_tracker().fork():
        second = torch.rand(3)
    moved = not torch.equal(first, second)
    torch.manual_seed(123)
    with tensor_parallel.get_cuda_rng_tracker().fork():
        torch.rand(3)
    untouched = torch.equal(torch.rand(3), torch.rand(3, generator=torch.Generator().manual_seed(123)))
    losses = [trainer.train_step([batch], next_token_loss, 1e-2).sums["loss"] for _ in range(2)]
    with tempfile.TemporaryDirectory() as folder:
        store.save(Path(folder) / "step_00000002", trainer, {})
        ahead = [trainer.train_step([batch], next_token_loss, 1e-2).sums["loss"] for _ in range(2)]
        store.load(Path(folder) / "step_00000002", trainer)
        again = [trainer.train_step([batch], next_token_loss, 1e-2).sums["loss"] for _ in range(2)]
    print(
        "RESULT "
        + json.dumps(
            {
                "losses": losses,
                "resumed": ahead == again,
                "tracker_moves": moved,
                "outside_untouched": untouched,
                "rng_logs": sum("CPU RNG state changed" in line for line in logs),
                "compiles": not torch._dynamo.config.disable,
            }
        )
    )


if __name__ == "__main__":
    main(int(sys.argv[1]))
