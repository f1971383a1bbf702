"""Rank script: train, save in the background, start afresh, go on; the figures of both as JSON.

resume_runs.py '{"folder": DIR, "ports": [...], "runs": [{"name": ..., "layout": {...}, "until": 20, "save_at": [10]}]}'

A run with "load": NAME begins at the newest intact checkpoint of run NAME. Every run has a process of its own on each
rank, forked from one that has imported everything; `ports` has one for each.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from pathlib import Path
from typing import Any


def main(options: dict[str, Any]) -> None:
    from octo_megatron.checkpoint import saver  # noqa: F401  (loaded once, for all runs)
    from octo_megatron.train import megatron  # noqa: F401

    folder = Path(options["folder"])
    for run, port in zip(options["runs"], options["ports"], strict=True):
        pid = os.fork()
        if pid == 0:
            os.environ["MASTER_PORT"] = str(port)
            code = 1
            try:
                in_own_process(run, folder)
                code = 0
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        if code:
            sys.exit(f"run {run['name']} ended with {code}")
    if os.environ["RANK"] == "0":
        results = {
            run["name"]: json.loads((folder / f"{run['name']}.json").read_text()) for run in options["runs"]
        }
        print("RESULT " + json.dumps(results))


def in_own_process(run: dict[str, Any], folder: Path) -> None:
    from octo_megatron.config.schema import ParallelConfig
    from octo_megatron.parallel import world as worlds

    world = worlds.start(ParallelConfig(**run.get("layout", {})), seed=3, timeout_seconds=120)
    figures = train(run, folder, world)
    if world.is_first:
        (folder / f"{run['name']}.json").write_text(json.dumps(figures))
    world.barrier()


def train(run: dict[str, Any], folder: Path, world: Any) -> dict[str, Any]:
    import torch

    from octo_megatron.checkpoint import store
    from octo_megatron.checkpoint.digest import weights_sha256
    from octo_megatron.checkpoint.retention import Retention
    from octo_megatron.checkpoint.saver import Saver
    from octo_megatron.config.schema import OptimizerConfig
    from octo_megatron.model.batch import Document, PackedBatch, pack
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
        "tie_word_embeddings": True,
    }
    layout = world.layout
    trainer = MegatronTrainer(
        hf_config, layout, run.get("precision", "fp32"), OptimizerConfig(), world, run.get("dropout", 0.0)
    )
    said: list[str] = []
    step = 0
    if "load" in run:
        facts = store.load_newest(folder / run["load"], trainer, said.append, seed=3)
        assert facts is not None
        step = int(facts["step"])
    saver = Saver(folder / run["name"], trainer, Retention(), say=said.append)

    def batch(index: int) -> PackedBatch:
        generator = torch.Generator().manual_seed(index)
        documents = []
        for length in (24, 9, 17, 14):
            tokens = torch.randint(0, 96, (length + 1,), generator=generator)
            documents.append(Document(tokens[:-1], tokens[1:], (torch.arange(length) > 1).float()))
        return pack(documents, layout)

    rows = []
    while step < run["until"]:
        mine = range(world.data_parallel_rank, 4, world.data_parallel_size)
        result = trainer.train_step([batch(4 * step + i) for i in mine], next_token_loss, 1e-2)
        step += 1
        rows.append({"step": step, "loss": result.sums["loss"], "grad_norm": result.grad_norm})
        if step in run.get("save_at", []):
            saver.start(step, {"step": step})
        saver.poll()
    saver.close()
    return {"rows": rows, "weights": weights_sha256(trainer.chunks, hf_config), "said": said}


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
