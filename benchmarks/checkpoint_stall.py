"""How long training waits for a checkpoint: prints one table. python benchmarks/checkpoint_stall.py [--megabytes 700]

A model whose weights and Adam state make about so many megabytes is trained in FP32 on this machine's CPU and saved
several times by `checkpoint/saver.py`. Columns: seconds from the start of a save until it is visible; seconds that the
training loop spent inside the saver for it; their ratio. Below: the mean step while a writer runs and without one (a
forked writer shares memory, which the first update after the fork has to copy, and the machine's cores and disk).
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path

from octo_megatron.lineage.launch import environment

for name, value in environment(threads=1, has_gpu=False).items():
    os.environ.setdefault(name, value)

import torch  # noqa: E402

from octo_megatron.checkpoint.retention import Retention  # noqa: E402
from octo_megatron.checkpoint.saver import Saver  # noqa: E402
from octo_megatron.config.schema import OptimizerConfig, ParallelConfig  # noqa: E402
from octo_megatron.model.batch import Document, pack  # noqa: E402
from octo_megatron.parallel import world as worlds  # noqa: E402
from octo_megatron.train.megatron import MegatronTrainer, next_token_loss  # noqa: E402

LAYERS = 4


def measure(megabytes: int, saves: int) -> tuple[int, list[tuple[float, float]], float, float]:
    """(bytes of one checkpoint, (seconds, seconds waited) of each save, mean step without and with a writer)."""
    layout = ParallelConfig()
    world = worlds.start(layout, seed=1)
    hidden = 64 * max(1, round((megabytes * 1e6 / 16 / 16 / LAYERS) ** 0.5 / 64))
    hf_config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": 256,
        "hidden_size": hidden,
        "intermediate_size": 4 * hidden,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": hidden // 64,
        "num_key_value_heads": hidden // 64,
        "max_position_embeddings": 64,
        "rms_norm_eps": 1e-5,
        "hidden_act": "silu",
        "tie_word_embeddings": True,
    }
    trainer = MegatronTrainer(hf_config, layout, "fp32", OptimizerConfig(), world)
    tokens = torch.arange(17) % 7
    batch = pack([Document(tokens[:-1], tokens[1:], torch.ones(16))], layout)

    def step() -> float:
        began = time.perf_counter()
        trainer.train_step([batch], next_token_loss, 1e-4)
        return time.perf_counter() - began

    with tempfile.TemporaryDirectory() as folder:
        saver = Saver(Path(folder), trainer, Retention(last=1))
        step()
        quiet, busy, out = [], [], []
        for number in range(saves):
            quiet += [step() for _ in range(2)]
            saver.start(number + 1, {"step": number + 1})
            while saver.busy:
                busy.append(step())
                saver.poll()
            out.append((saver.last_seconds, saver.last_stall))
        saver.close()
        size = sum(p.stat().st_size for p in Path(folder).rglob("*") if p.is_file())
    return size, out, statistics.fmean(quiet), statistics.fmean(busy)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--megabytes", type=int, default=700, help="of one checkpoint, about")
    parser.add_argument("--saves", type=int, default=4)
    options = parser.parse_args()
    size, saves, quiet, busy = measure(options.megabytes, options.saves)
    print("| save | checkpoint | until visible | training waited | ratio |")
    print("| --- | --- | --- | --- | --- |")
    for number, (seconds, waited) in enumerate(saves, 1):
        print(
            f"| {number} | {size / 1e6:.0f} MB | {seconds:.2f} s | {waited:.3f} s | {100 * waited / seconds:.1f} % |"
        )
    print(f"\nmean step {quiet:.2f} s, while a writer runs {busy:.2f} s ({busy / quiet:.2f}x)")


if __name__ == "__main__":
    main()
