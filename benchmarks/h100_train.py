"""Training rate of the trainer beside plain Megatron-Core, in one run on one GPU.

    python benchmarks/h100_train.py                    all rows (about 20 minutes on an H100)
    python benchmarks/h100_train.py --only 3b          rows whose name contains this
    python benchmarks/h100_train.py --smoke            tiny shapes on a CPU in FP32: only that everything runs

Each row is a process of its own, one after the other, so that none inherits another's memory. Printed are a Markdown
table and, with --json FILE, the rows as JSON. tokens/s is of the median step. TFLOP/s = tokens/s x 6 x (weights of the
layers' matrices and of the output layer + layers x sequence x query width), causal attention at half the square
(`ModelSize.flops_per_token`). Memory is torch's peak allocation. The ratio is to the row named in the column before;
the goal is the project's. Exit code 1 when a row failed or no row of a goal's group reaches it.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from octo_megatron.config.model import read_hf_config
from octo_megatron.config.model_size import model_size

SHAPES = {"1b": "model/llama-3.2-1b.yaml", "3b": "model/llama-3.2-3b.yaml", "tiny": "model/tiny.yaml"}
COMMON = {"seq": 8192, "steps": 8, "warmup": 3}


def rows() -> list[dict[str, Any]]:
    """Yardsticks first in each group; `to` names a row's yardstick, `goal` what the group's best must reach."""
    one, three = {"model": "1b", "micro": 2, "accumulate": 8}, {"model": "3b", "micro": 1, "accumulate": 8}
    wide, two = {"micro": 4, "accumulate": 4}, {"micro": 2, "accumulate": 4}
    bf16, fp8 = {"precision": "bf16"}, {"precision": "fp8-delayed"}
    small = {"moments": "bf16"}
    mlp = {"compute": {"recompute": "selective", "recompute_modules": ["mlp"]}}
    chunks = {"compute": {"lm_head_chunk_tokens": 2048}}
    groups: list[tuple[str, float, dict[str, Any], dict[str, dict[str, Any]]]] = [
        ("1b bf16", 1.10, one | bf16, {"octo": {}, "octo wide": wide, "octo wide, small moments": wide | small,
                                       "octo wide, chunked head": wide | chunks}),
        ("1b fp8", 1.15, one | fp8, {"octo": {}, "octo wide": wide, "octo wide, small moments": wide | small,
                                     "octo wide, tensorwise": wide | {"precision": "fp8-tensorwise"}}),
        ("3b bf16", 1.10, three | bf16, {"octo, small moments": small,
                                         "octo wide, small moments, mlp again": two | small | mlp}),
        ("3b fp8", 1.05, three | fp8 | small | {"fusion": True},
         {"octo, small moments": small, "octo, small moments, chunked head": small | chunks,
          "octo, small moments, tensorwise": small | {"precision": "fp8-tensorwise"}}),
    ]  # fmt: skip
    out = []
    for name, goal, plain, variants in groups:
        yardstick = f"{name} plain" + (", fusion, small moments" if plain.get("fusion") else "")
        out.append({**COMMON, **plain, "kind": "plain", "name": yardstick, "group": name, "goal": goal})
        ours = {key: value for key, value in plain.items() if key not in ("fusion", "moments")}
        for label, options in variants.items():
            row = {**COMMON, **ours, **options, "kind": "octo", "name": f"{name} {label}", "to": yardstick}
            out.append({**row, "group": name, "goal": goal})
    return out


def smoke_rows() -> list[dict[str, Any]]:
    """The same code on tiny shapes in FP32."""
    tiny = {
        "model": "tiny",
        "precision": "fp32",
        "seq": 64,
        "micro": 2,
        "accumulate": 2,
        "steps": 2,
        "warmup": 1,
    }
    tiny |= {"group": "smoke", "goal": 0.0}
    plain = {**tiny, "kind": "plain", "name": "smoke plain"}
    saving = {"lm_head_chunk_tokens": 48, "recompute": "selective", "recompute_modules": ["mlp"]}
    variants: dict[str, dict[str, Any]] = {"octo": {}, "octo, chunked head, mlp again": {"compute": saving}}
    return [plain] + [
        {**tiny, **options, "kind": "octo", "name": f"smoke {label}", "to": "smoke plain"}
        for label, options in variants.items()
    ]


def measure(row: dict[str, Any]) -> dict[str, Any]:
    """Run one row in this process."""
    import resource

    import torch

    hf = read_hf_config(SHAPES[row["model"]])
    if row["kind"] == "plain":
        from plain_megatron import step_seconds
    else:
        step_seconds = _octo_step_seconds
    seconds = step_seconds(row, hf)
    tokens = row["seq"] * row["micro"] * row["accumulate"]
    rate = tokens / statistics.median(seconds)
    on_gpu = torch.cuda.is_available()
    peak = (
        torch.cuda.max_memory_allocated()
        if on_gpu
        else 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    )
    return {
        "tokens_per_second": rate,
        "tflops": rate * model_size(hf).flops_per_token(row["seq"]) / 1e12,
        "peak_gib": peak / 2**30,
        "device": torch.cuda.get_device_name() if on_gpu else platform.processor() or platform.machine(),
        "torch": torch.__version__,
    }


def _octo_step_seconds(row: dict[str, Any], hf: dict[str, Any]) -> list[float]:
    """Seconds of each timed step of the project's trainer, on rows of whole documents as the yardstick's."""
    import time

    import torch

    from octo_megatron.config.schema import ComputeConfig, OptimizerConfig, ParallelConfig
    from octo_megatron.model.batch import Document, pack
    from octo_megatron.parallel import world as worlds
    from octo_megatron.train.megatron import MegatronTrainer, next_token_loss

    layout = ParallelConfig()
    world = worlds.start(layout, seed=1)
    optimizer = OptimizerConfig(moments=row.get("moments", "fp32"))
    compute = ComputeConfig(**row.get("compute", {}))
    trainer = MegatronTrainer(hf, layout, row["precision"], optimizer, world, compute=compute)
    documents = []
    for _ in range(row["micro"]):
        tokens = torch.randint(0, hf["vocab_size"], (row["seq"] + 1,))
        documents.append(Document(tokens[:-1], tokens[1:], torch.ones(row["seq"])))
    batches = [pack(documents, layout)] * row["accumulate"]
    seconds = []
    for _ in range(row["warmup"] + row["steps"]):
        torch.cuda.synchronize()
        began = time.perf_counter()
        trainer.train_step(batches, next_token_loss, 1e-5)
        torch.cuda.synchronize()
        seconds.append(time.perf_counter() - began)
    world.stop()
    return seconds[row["warmup"] :]


def run(row: dict[str, Any], deadline_seconds: int) -> dict[str, Any]:
    """One row in a process of its own; its figures, or {"error": last line}."""
    environment = {
        **os.environ,
        "PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True",
        "PYTHONWARNINGS": "ignore",
    }
    command = [sys.executable, __file__, "--row", json.dumps(row)]
    try:
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=deadline_seconds
        )
    except subprocess.TimeoutExpired:
        return {"error": f"no result in {deadline_seconds} s"}
    for line in done.stdout.splitlines():
        if line.startswith("RESULT "):
            return dict(json.loads(line.removeprefix("RESULT ")))
    return {"error": (done.stderr.strip().splitlines() or [f"code {done.returncode}"])[-1][:160]}


def table(todo: list[dict[str, Any]], results: dict[str, dict[str, Any]]) -> tuple[str, bool]:
    """The Markdown table, and whether every row ran and every group reached its goal."""
    lines = [
        "| row | micro x accumulation | tokens/s | TFLOP/s | peak GiB | to | ratio | goal |",
        "|" + " --- |" * 8,
    ]
    best: dict[str, float] = {}
    for row in todo:
        found = results[row["name"]]
        shape = f"{row['micro']} x {row['accumulate']}"
        if "error" in found:
            lines.append(f"| {row['name']} | {shape} | {found['error']} | | | | | |")
            continue
        rate, base = found["tokens_per_second"], results.get(row.get("to", ""), {}).get("tokens_per_second")
        ratio = rate / base if base else None
        if ratio is not None:
            best[row["group"]] = max(best.get(row["group"], 0.0), ratio)
        figures = f"{rate:,.0f} | {found['tflops']:.4g} | {found['peak_gib']:.1f}"
        compared = f"{row['to']} | {ratio:.3f} | {row['goal']}" if ratio else " | | "
        lines.append(f"| {row['name']} | {shape} | {figures} | {compared} |")
    reached = all(best.get(row["group"], 0.0) >= row["goal"] for row in todo)
    return "\n".join(lines), reached and all("error" not in found for found in results.values())


def main() -> int:
    """Run the rows and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--smoke", action="store_true")
    parser.add_argument("--only", default="")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--deadline", type=int, default=420, help="seconds a row")
    parser.add_argument("--row", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.row:
        print("RESULT " + json.dumps(measure(json.loads(chosen.row))), flush=True)
        return 0
    todo = [row for row in (smoke_rows() if chosen.smoke else rows()) if chosen.only in row["name"]]
    results: dict[str, dict[str, Any]] = {}
    for row in todo:
        results[row["name"]] = run(row, chosen.deadline)
        print(f"{row['name']}: {results[row['name']]}", file=sys.stderr, flush=True)
        if chosen.json:
            chosen.json.write_text(json.dumps([{**r, **results.get(r["name"], {})} for r in todo], indent=1))
    text, good = table(todo, results)
    device = next(
        (f"{r['device']}, torch {r['torch']}" for r in results.values() if "device" in r), "no row ran"
    )
    print(f"{text}\n\nMachine: {device}.")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
