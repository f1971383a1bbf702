"""Rank script: train a few steps of a small model on fixed packed documents and print losses as JSON.

train_some_steps.py '{"layout": {...}, "steps": 4, "load": DIR, "save": DIR, "save_at": 2, ...}'
train_some_steps.py '{"runs": [{...}, {...}]}'      one after the other in the same processes
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any


def main(options: dict[str, Any]) -> None:
    import torch

    from octo_megatron.checkpoint import store
    from octo_megatron.config.schema import ComputeConfig, OptimizerConfig, ParallelConfig
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
    world = worlds.start(layout, seed=3, timeout_seconds=600)
    compute = ComputeConfig(**options.get("compute", {}))
    precision = options.get("precision", "fp32")
    trainer = MegatronTrainer(hf_config, layout, precision, OptimizerConfig(), world, compute=compute)
    first = 0
    if "load" in options:
        first = int(store.load(Path(options["load"]), trainer, options.get("load_optimizer", True))["step"])

    def batch(*samples: int) -> PackedBatch:
        documents = []
        for index in samples:
            generator = torch.Generator().manual_seed(index)
            for length in (24, 9, 17, 14):
                tokens = torch.randint(0, 96, (length + 1,), generator=generator)
                documents.append(Document(tokens[:-1], tokens[1:], (torch.arange(length) > 1).float()))
        return pack(documents, layout)

    micro = options.get("micro_batch_size", 1)  # of the four samples of a step

    rows = []
    for step in range(first, options["steps"]):
        starts = range(world.data_parallel_rank * micro, 4, world.data_parallel_size * micro)
        batches = [batch(*(4 * step + start + i for i in range(micro))) for start in starts]
        result = trainer.train_step(batches, next_token_loss, options.get("lr", 1e-2))
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


class Meetings:
    """A new store for the process groups of every run, as torchrun's agent has one for every restart of a job."""

    def __init__(self) -> None:
        from torch.distributed import TCPStore

        self.make, self.rank = TCPStore, int(os.environ["RANK"])
        address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        self.first = TCPStore(address, port, is_master=self.rank == 0, wait_for_workers=False)
        os.environ["TORCHELASTIC_USE_AGENT_STORE"] = "True"

    def next(self, number: int) -> None:
        if self.rank == 0:
            self.store = self.make(os.environ["MASTER_ADDR"], 0, is_master=True, wait_for_workers=False)
            self.first.set(f"port {number}", str(self.store.port))
        os.environ["MASTER_PORT"] = self.first.get(f"port {number}").decode()


if __name__ == "__main__":
    arguments = json.loads(sys.argv[1])
    meetings = Meetings() if "runs" in arguments and os.environ.get("WORLD_SIZE", "1") != "1" else None
    for number, run in enumerate(arguments.get("runs", [arguments])):
        if meetings:
            meetings.next(number)
        print("RUN " + json.dumps(run), flush=True)  # the last of these lines names the run that failed
        main(run)
