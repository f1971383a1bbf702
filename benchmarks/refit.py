"""Refit: milliseconds, bytes and GB/s by layout pair, beside a plain copy of the same bytes and vLLM's `load_weights`.

    python benchmarks/refit.py --shape tiny --ranks 1 2 4          # CPU: gloo, reload interface of vLLM
    python benchmarks/refit.py --shape 1b --ranks 1                # one GPU: into vLLM's live parameters
    python benchmarks/refit.py --shape 3b --ranks 1 --out refit.md

Every row is the product's own path (`octo_megatron.engine.refit.Refit`) into a running vLLM on each rank. Runs
unattended: starts its own ranks, prints one table, and a row that fails says why instead of stopping the rest.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

SHAPES: dict[str, dict[str, Any]] = {
    "tiny": {"hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 8, "num_attention_heads": 8,
             "num_key_value_heads": 4, "head_dim": 32, "vocab_size": 8192, "tie_word_embeddings": True},
    "1b": {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32,
           "num_key_value_heads": 8, "head_dim": 64, "vocab_size": 128256, "tie_word_embeddings": True},
    "3b": {"hidden_size": 3072, "intermediate_size": 8192, "num_hidden_layers": 28, "num_attention_heads": 24,
           "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 128256, "tie_word_embeddings": True},
}  # fmt: skip
LAYOUTS: dict[int, list[dict[str, int]]] = {
    1: [{}],
    2: [{"tensor_model_parallel_size": 2}, {"pipeline_model_parallel_size": 2}, {"data_parallel_size": 2}],
    4: [
        {"tensor_model_parallel_size": 2, "pipeline_model_parallel_size": 2},
        {"tensor_model_parallel_size": 4},
    ],
}


def config_of(shape: str) -> dict[str, Any]:
    """A Hugging Face config of one of SHAPES."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-5,
        "rope_theta": 500000.0,
        **SHAPES[shape],
    }


def start(options: dict[str, Any], ranks: int, seconds: int) -> dict[str, Any]:
    """All ranks of a row; {"error": ...} when it fails."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    common = dict(os.environ, WORLD_SIZE=str(ranks), LOCAL_WORLD_SIZE=str(ranks), MASTER_ADDR="127.0.0.1",
                  MASTER_PORT=str(port), PYTHONWARNINGS="ignore")  # fmt: skip
    common.setdefault("OMP_NUM_THREADS", "1")
    common |= {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_WAIT_POLICY": "PASSIVE"}
    command = [sys.executable, str(Path(__file__).with_name("refit_rank.py").resolve()), json.dumps(options)]
    processes = [
        subprocess.Popen(command, env=dict(common, RANK=str(r), LOCAL_RANK=str(r)), stdout=subprocess.PIPE,
                         stderr=subprocess.STDOUT, text=True)
        for r in range(ranks)
    ]  # fmt: skip
    output = ""
    try:
        output = processes[0].communicate(timeout=seconds)[0]
        for process in processes[1:]:
            process.communicate(timeout=60)
    except subprocess.TimeoutExpired:
        output += f"\nno result within {seconds} s"
    finally:
        for process in processes:
            process.kill()
    lines = [line for line in output.splitlines() if line.startswith("RESULT ")]
    if lines:
        return json.loads(lines[-1].removeprefix("RESULT "))
    return {"error": (output.strip().splitlines() or ["no output"])[-1][:120]}


COLUMNS = (
    "training ranks", "engine", "MB a rank", "of it received", "refit ms", "moving ms", "plain copy ms", "GB/s",
    "moving / copy", "`load_weights` ms", "refit / `load_weights`", "proof ms", "plan ms",
)  # fmt: skip


def table(arguments: argparse.Namespace) -> str:
    """A row for each layout pair, in Markdown."""
    rows = ["| " + " | ".join(COLUMNS) + " |", "| --- " * len(COLUMNS) + "|"]
    for ranks in arguments.ranks:
        for layout in LAYOUTS[ranks]:
            for engine_tp in sorted({1, ranks}):
                options = {"hf_config": config_of(arguments.shape), "layout": layout, "engine_tp": engine_tp,
                           "repeats": arguments.repeats}  # fmt: skip
                words = " x ".join(f"{k[0].upper()}P{v}" for k, v in layout.items()) or "one"
                engine = f"TP{engine_tp} x DP{ranks // engine_tp}"
                cells = [words, engine, *_figures(start(options, ranks, arguments.deadline))]
                rows.append("| " + " | ".join(cells + [""] * (len(COLUMNS) - len(cells))) + " |")
    return "\n".join(rows)


def _figures(found: dict[str, Any]) -> list[str]:
    if "error" in found:
        return [f"failed: {found['error']}"]
    load = found.get("load_weights")
    return [
        f"{found['bytes'] / 1e6:.1f}",
        f"{found['over_the_wire'] / 1e6:.1f}",
        f"{found['refit']:.1f}",
        f"{found['moving']:.1f}",
        f"{found['copy']:.1f}",
        f"{found['bytes'] / found['refit'] / 1e6:.2f}",
        f"{found['moving'] / found['copy']:.2f}",
        f"{load:.1f}" if load else "",
        f"{found['refit'] / load:.2f}" if load else "",
        f"{found['proof']:.1f}",
        f"{found['plan']:.0f}",
    ]


def machine() -> str:
    import torch

    if torch.cuda.is_available():
        return f"{torch.cuda.get_device_name()}, torch {torch.__version__}"
    return f"{os.cpu_count()} cores, {platform.machine()}, torch {torch.__version__}"


def main() -> None:
    """Print the table, and write it to --out."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", choices=SHAPES, default="tiny")
    parser.add_argument("--ranks", type=int, nargs="+", choices=LAYOUTS, default=[1, 2, 4])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--deadline", type=int, default=900, help="seconds for one row")
    parser.add_argument("--out", type=Path, help="write the table there too")
    arguments = parser.parse_args()
    text = (
        f"{table(arguments)}\n\nMachine: {machine()}. Shape {arguments.shape}. Median of {arguments.repeats}."
    )
    print(text)
    if arguments.out:
        arguments.out.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
