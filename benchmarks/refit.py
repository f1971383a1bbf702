"""Refit: milliseconds, bytes and GB/s by layout pair, beside a plain copy of the same bytes and vLLM's `load_weights`.

    python benchmarks/refit.py --shape tiny --ranks 1 2 4          # CPU: gloo between processes
    python benchmarks/refit.py --shape 1b --ranks 1                # one GPU: also into vLLM's live parameters
    python benchmarks/refit.py --shape 3b --ranks 1 --out refit.md

Runs unattended: starts its own ranks, prints one table, and a row that fails says why instead of stopping the rest.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import socket
import statistics
import subprocess
import sys
import time
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
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-5,
        "rope_theta": 500000.0,
        **SHAPES[shape],
    }


def measure(options: dict[str, Any]) -> None:
    """One rank of one row; rank 0 prints the figures."""
    import torch
    import torch.distributed as dist

    from octo_megatron.config.schema import ParallelConfig
    from octo_megatron.engine.refit.pieces import EngineLayout, live_pieces, trainer_pieces
    from octo_megatron.engine.refit.planner import plan
    from octo_megatron.engine.refit.transfer import Setting, Transfer
    from octo_megatron.model.build import build_model
    from octo_megatron.model.hf_weights import table_parameters, tensor_shapes
    from octo_megatron.parallel import world as worlds
    from octo_megatron.parallel.device import DEVICE, ON_CUDA

    hf_config, layout = config_of(options["shape"]), ParallelConfig(**options["layout"])
    world = worlds.start(layout, 0)
    precision = "bf16" if ON_CUDA else "fp32"
    models = build_model(hf_config, layout, precision)
    sources = table_parameters(models, hf_config)
    dtype = next(iter(sources.values())).dtype
    engine_layout = EngineLayout(options["engine_tp"], world.world_size // options["engine_tp"])
    began = time.perf_counter()
    targets = live_pieces(hf_config, engine_layout)
    moves = plan(trainer_pieces(hf_config, layout), targets)
    planned = time.perf_counter() - began
    setting = Setting(tensor_shapes(hf_config), world.rank, dtype, DEVICE, "benchmark")
    transfer = Transfer(moves, setting)
    sizes: dict[str, tuple[int, int]] = {}
    for p in targets[world.rank]:
        rows, columns = sizes.get(p.parameter, (0, 0))
        sizes[p.parameter] = (max(rows, p.row + p.box.rows), max(columns, p.column + p.box.columns))
    found: dict[str, Any] = {}
    engine = None
    if ON_CUDA and options["vllm"]:
        from octo_megatron.engine.vllm_engine import Engine

        engine = Engine.of(hf_config, precision, 1024, 8, options["engine_tp"])
        parameters = engine.live_parameters()
    else:
        parameters = {name: torch.empty(size, dtype=dtype, device=DEVICE) for name, size in sizes.items()}

    def wait() -> None:
        if ON_CUDA:
            torch.cuda.synchronize()
        if dist.get_world_size() > 1:
            dist.barrier()

    def timed(work: Any) -> float:
        """Median milliseconds after one warm run."""
        taken = []
        for _ in range(options["repeats"] + 1):
            wait()
            began = time.perf_counter()
            work()
            wait()
            taken.append((time.perf_counter() - began) * 1e3)
        return statistics.median(taken[1:])

    found["refit"] = timed(lambda: transfer.into(sources, parameters, False))
    report = transfer.into(sources, parameters, True)
    found["proof"] = report.seconds_proof * 1e3
    total = report.bytes_local + report.bytes_received
    flat = torch.empty(total // dtype.itemsize, dtype=dtype, device=DEVICE)
    other = torch.empty_like(flat)
    found["copy"] = timed(lambda: other.copy_(flat))
    if engine is not None and world.world_size == 1:
        from octo_megatron.model.hf_weights import export_weights

        def load() -> None:
            weights = list(export_weights(models, hf_config))
            engine._llm.apply_model(lambda model: model.load_weights(weights))

        found["load_weights"] = timed(load)
    found |= {"bytes": total, "moved": report.bytes_received, "plan": planned * 1e3, "moves": len(moves)}
    if world.is_first:
        print("RESULT " + json.dumps(found), flush=True)
    os._exit(0)  # not through vLLM's destructors


def start(options: dict[str, Any], ranks: int, seconds: int) -> dict[str, Any]:
    """All ranks of a row; {"error": ...} when it fails."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    common = dict(os.environ, WORLD_SIZE=str(ranks), LOCAL_WORLD_SIZE=str(ranks), MASTER_ADDR="127.0.0.1",
                  MASTER_PORT=str(port), PYTHONWARNINGS="ignore")  # fmt: skip
    common.setdefault("OMP_NUM_THREADS", "1")
    command = [sys.executable, str(Path(__file__).resolve()), "--rank", json.dumps(options)]
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


def table(arguments: argparse.Namespace) -> str:
    rows = [
        "| training ranks | engine | tensors' bytes a rank | bytes over the wire | refit ms | GB/s | plain copy ms "
        "| refit / copy | load_weights ms | proof ms | plan ms |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for ranks in arguments.ranks:
        for layout in LAYOUTS[ranks]:
            for engine_tp in sorted({1, ranks}):
                options = {"shape": arguments.shape, "layout": layout, "engine_tp": engine_tp,
                           "repeats": arguments.repeats, "vllm": not arguments.no_vllm}  # fmt: skip
                found = start(options, ranks, arguments.deadline)
                words = " x ".join(f"{k.split('_')[0][0].upper()}P{v}" for k, v in layout.items()) or "one"
                engine = f"TP{engine_tp} x DP{ranks // engine_tp}"
                if "error" in found:
                    rows.append(f"| {words} | {engine} | failed: {found['error']} |" + " |" * 8)
                    continue
                load = f"{found['load_weights']:.1f}" if "load_weights" in found else ""
                rows.append(
                    f"| {words} | {engine} | {found['bytes'] / 1e6:.1f} MB | {found['moved'] / 1e6:.1f} MB | "
                    f"{found['refit']:.1f} | {found['bytes'] / found['refit'] / 1e6:.2f} | {found['copy']:.1f} | "
                    f"{found['refit'] / found['copy']:.2f} | {load} | {found['proof']:.1f} | {found['plan']:.0f} |"
                )
    return "\n".join(rows)


def machine() -> str:
    import torch

    if torch.cuda.is_available():
        return f"{torch.cuda.get_device_name()}, torch {torch.__version__}"
    return f"{os.cpu_count()} cores, {platform.machine()}, torch {torch.__version__}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", choices=SHAPES, default="tiny")
    parser.add_argument("--ranks", type=int, nargs="+", choices=LAYOUTS, default=[1, 2, 4])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--deadline", type=int, default=900, help="seconds for one row")
    parser.add_argument(
        "--no-vllm", action="store_true", help="on a GPU: write into empty tensors instead of vLLM's"
    )
    parser.add_argument("--out", type=Path, help="write the table there too")
    parser.add_argument("--rank", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.rank:
        measure(json.loads(arguments.rank))
    text = (
        f"{table(arguments)}\n\nMachine: {machine()}. Shape {arguments.shape}. Median of {arguments.repeats}."
    )
    print(text)
    if arguments.out:
        arguments.out.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
