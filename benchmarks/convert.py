"""Speed and memory of conversion: GB/s against a plain copy of the same bytes and against transformers.

    python benchmarks/convert.py [--layers 6] [--rounds 3] [--folder DIR]

A Llama of random weights (FP32; 524 MB of embedding and head, 180 MB a layer) is imported, exported, copied file by
file and taken through `from_pretrained` + `save_pretrained`, all on the same disk, each in a process of its own that is
timed after its imports. Every way finds what it reads in the page cache, waits for no disk (no fsync, but that of an
import's small manifest), and its pages are memory that was in use a moment before: a virtual machine gives free memory
back to its host, and to get it again costs more than to copy it.

GB/s = bytes of the weights / seconds. Every round does all of them; ratios are taken within a round, and the table
gives the median over the rounds; CPU seconds, of all threads, hold on a busy machine too. The gate is not in these
times. The peak is ru_maxrss of the process at its end minus before the conversion.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

WAYS = ("copy", "import", "export", "transformers")
SHARED = ("import by 2", "export by 2")

_WORK = """
import json, os, resource, sys, time
from pathlib import Path
way, a, b = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
if way == "copy":
    import shutil
    def work():
        b.mkdir()
        for file in a.glob("*.safetensors"):
            shutil.copyfile(file, b / file.name)
elif way == "import":
    from octo_megatron.convert.import_stage import import_folder
    from octo_megatron.convert.ranks import share_of_environment
    def work():
        import_folder(a, b, gate=False, share=share_of_environment())
elif way == "export":
    from octo_megatron.convert.export_stage import Wish, export_folder
    from octo_megatron.convert.ranks import share_of_environment
    def work():
        export_folder(a, b, Wish(gate=False), share=share_of_environment())
else:
    import torch, transformers
    transformers.utils.logging.disable_progress_bar()
    def work():
        transformers.AutoModelForCausalLM.from_pretrained(a, dtype=torch.float32).save_pretrained(b)
print("ready", flush=True)
sys.stdin.readline()
before = resource.getrusage(resource.RUSAGE_SELF)
began = time.perf_counter()
work()
seconds = time.perf_counter() - began
after = resource.getrusage(resource.RUSAGE_SELF)
cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
print(json.dumps({"seconds": seconds, "cpu": cpu, "peak": (after.ru_maxrss - before.ru_maxrss) * 1024}), flush=True)
"""


_USE_FREE_MEMORY = """
import mmap
lines = open("/proc/meminfo").read().splitlines()
free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemFree:"))
mmap.mmap(-1, int(free * 0.9), mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | mmap.MAP_POPULATE).close()
"""


def random_folder(folder: Path, layers: int) -> int:
    """Write a Llama of random weights without holding it in memory; returns its bytes."""
    import torch

    from octo_megatron.convert.safetensors_writer import TensorWriter
    from octo_megatron.model.slots import tensor_shapes

    folder.mkdir(parents=True)
    config: dict[str, Any] = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": 32000,
        "hidden_size": 2048,
        "intermediate_size": 5632,
        "num_hidden_layers": layers,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": False,
    }
    (folder / "config.json").write_text(json.dumps(config))
    shapes = tensor_shapes(config)
    writer = TensorWriter(folder, shapes, torch.float32)
    writer.prepare()
    generator = torch.Generator().manual_seed(1)
    for name, (rows, *rest) in shapes.items():
        for start in range(0, rows, 4096):
            part = torch.randn(min(4096, rows - start), *rest, generator=generator) * 0.02
            writer.write_rows(name, start, part)
    writer.finish()
    return writer.bytes


def measure(way: str, a: Path, b: Path, warm: bool = False) -> dict[str, float]:
    """Seconds, CPU seconds and peak bytes of one way from `a` to `b`; "by N" shares it among N processes.

    `warm`: what memory is free was in use a moment before.
    """
    name, _, number = way.partition(" by ")
    ranks = int(number or 1)
    shutil.rmtree(b, ignore_errors=True)
    processes = []
    for rank in range(ranks):
        env = {**os.environ, "RANK": str(rank), "WORLD_SIZE": str(ranks)}
        command = [sys.executable, "-c", _WORK, name, str(a), str(b)]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        processes.append(subprocess.Popen(command, env=env, text=True, **pipes))  # type: ignore[call-overload]
    for process in processes:
        assert process.stdout.readline() == "ready\n"
    os.sync()  # nobody pays for what the one before has left to the kernel
    if warm:  # in a process of its own: what it held at the most would count as its children's
        subprocess.run([sys.executable, "-c", _USE_FREE_MEMORY], check=True)
    for process in processes:
        process.stdin.write("\n")
        process.stdin.flush()
    found = [json.loads(process.communicate(timeout=1800)[0]) for process in processes]
    cpu = sum(one["cpu"] for one in found)
    return {"seconds": found[0]["seconds"], "cpu": cpu, "peak": max(one["peak"] for one in found)}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--shared", action="store_true", help="also with two processes")
    parser.add_argument("--folder", type=Path, default=None, help="on the disk to be measured")
    chosen = parser.parse_args()
    ways = WAYS + SHARED if chosen.shared else WAYS
    with tempfile.TemporaryDirectory(dir=chosen.folder) as work:
        root = Path(work)
        size = random_folder(root / "hf", chosen.layers)
        measure("import", root / "hf", root / "checkpoint")
        places = {"export": root / "checkpoint", "export by 2": root / "checkpoint"}
        rounds = [
            {way: measure(way, places.get(way, root / "hf"), root / "out", True) for way in ways}
            for _ in range(chosen.rounds)
        ]
    print(f"{size / 1e9:.2f} GB of weights in FP32, {chosen.rounds} rounds, {os.cpu_count()} CPU cores\n")
    print(
        "| way | GB/s | of the copy's speed | times transformers' speed | CPU s a GB | peak MB over the start |"
    )
    print("| --- | --- | --- | --- | --- | --- |")
    for way in ways:
        speed = statistics.median(size / one[way]["seconds"] / 1e9 for one in rounds)
        of_copy = statistics.median(one["copy"]["seconds"] / one[way]["seconds"] for one in rounds)
        of_theirs = statistics.median(one["transformers"]["seconds"] / one[way]["seconds"] for one in rounds)
        peak = max(one[way]["peak"] for one in rounds) / 1e6
        cpu = statistics.median(one[way]["cpu"] / size * 1e9 for one in rounds)
        print(
            f"| {way} | {speed:.2f} | {of_copy:.0%} | {of_theirs:.1f} | {cpu:.2f} | {peak:.0f} |", flush=True
        )


if __name__ == "__main__":
    main()
