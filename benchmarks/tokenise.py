"""`octo tokenize` beside the limit and beside the simple way, on real text.

    python benchmarks/tokenise.py --data /path/to/shared/data [--tokenizer PATH] [--cores 2] [--rounds 3]

The same documents with the same tokenizer, one way after another, `rounds` times. What is counted:

loop                 texts lie in memory, tokenizer loaded: one loop over `encode_batch_fast` of the `tokenizers`
                     library with `cores` threads, and nothing else. This is the limit
loop as a command    the same script from the start of its process to its end: imports, tokenizer, reading, the
                     loop; it checks and writes nothing
octo tokenize        the whole command from start to end: imports, tokenizer, reading, checks, template, encoding,
                     hashing, writing and syncing to the disk, manifest; `cores` workers
one process a file   one document after another into Megatron-Core's IndexedDatasetBuilder, what Megatron-LM's
                     preprocess_data.py does with a file a process; without the start of its process

Figures are medians over the rounds; a ratio is taken within each round. CPU seconds are of all processes of a way. A
text may be repeated, `gsm8kx16`, to show what is left when the start of a process no longer counts. The file is not
named tokenize.py: beside other scripts that name would hide Python's own module.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median

_SETS = {
    "tex_math": ("train/tex_math.jsonl.zst", "plain", "{text}"),
    "gsm8k": ("train/gsm8k.jsonl", "question-answer", "Question: {question}\\nAnswer: {answer}"),
}
"""File, template, and the same as the loop writes it."""

_LOOP = """
import io, json, sys, time
import tokenizers, zstandard
path, form, folder = sys.argv[1:]
raw = open(path, "rb")
raw = zstandard.ZstdDecompressor().stream_reader(raw, read_across_frames=True) if path.endswith(".zst") else raw
form = form.replace("\\\\n", "\\n")
texts = [form.format(**json.loads(line)) for line in io.TextIOWrapper(raw, encoding="utf-8", newline="\\n")]
batches, size = [[]], 0
for text in texts:
    if len(batches[-1]) == 1024 or size >= 1_000_000:
        batches.append([])
        size = 0
    batches[-1].append(text)
    size += len(text)
tokenizer = tokenizers.Tokenizer.from_file(folder + "/tokenizer.json")
tokenizer.encode_special_tokens = True
encode = tokenizer.encode_batch_fast
wall, cpu, tokens = time.perf_counter(), time.process_time(), 0
for batch in batches:
    tokens += sum(len(one.ids) for one in encode(batch, add_special_tokens=False))
print(time.perf_counter() - wall, time.process_time() - cpu, tokens)
"""

_SIMPLE = """
import sys, time
from pathlib import Path
import numpy, torch
from octo_megatron.data import read
from octo_megatron.data.documents import TextOptions, document
from octo_megatron.data.tokenizer import TextTokenizer
from megatron.core.datasets.indexed_dataset import DType, IndexedDatasetBuilder
path, template, folder, out = sys.argv[1:]
tokenizer, options = TextTokenizer(Path(folder)), TextOptions(template=template)
builder = IndexedDatasetBuilder(out + ".bin", dtype=DType.optimal_dtype(tokenizer.size))
wall, cpu = time.perf_counter(), time.process_time()
for _, row in read.rows(Path(path)):
    ids = [*tokenizer.encode(document(row, options).text), tokenizer.eos_id]
    builder.add_document(torch.IntTensor(ids), [len(ids)])
builder.finalize(out + ".idx")
print(time.perf_counter() - wall, time.process_time() - cpu)
"""
_WAYS = ("loop", "loop as a command", "octo tokenize", "one process a file")


@dataclass(frozen=True)
class Taken:
    """Seconds by the clock and of CPU."""

    wall: float
    cpu: float


def _timed(cores: int, command: list[str]) -> tuple[Taken, str]:
    """A process from start to end on `cores` cores, and what it prints."""
    environment = {**os.environ, "RAYON_NUM_THREADS": str(cores), "TOKENIZERS_PARALLELISM": "true"}
    before, wall = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run(
        ["taskset", "-c", f"0-{cores - 1}", sys.executable, "-P", *command],
        env=environment,
        capture_output=True,
        text=True,
    )
    wall = time.perf_counter() - wall
    if done.returncode:
        raise SystemExit(done.stderr)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return Taken(wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime), done.stdout


def one_round(
    cores: int, path: Path, template: str, form: str, folder: Path, out: Path
) -> tuple[dict[str, Taken], int]:
    """Every way once, and the number of tokens."""
    whole, printed = _timed(cores, ["-c", _LOOP, str(path), form, str(folder)])
    wall, cpu, counted = printed.split()
    taken = {"loop": Taken(float(wall), float(cpu)), "loop as a command": whole}
    options = ["--template", template, "--tokenizer", str(folder), "--out", str(out), "--workers", str(cores)]
    taken["octo tokenize"], _ = _timed(
        cores, ["-m", "octo_megatron.cli.main", "tokenize", str(path), *options]
    )
    _, printed = _timed(cores, ["-c", _SIMPLE, str(path), template, str(folder), f"{out}-simple"])
    taken["one process a file"] = Taken(*map(float, printed.split()))
    manifest = json.loads((out / "manifest.json").read_text())
    if (manifest["tokens"] - int(counted)) % manifest[
        "documents"
    ]:  # else begin and end tokens of each document
        raise SystemExit(f"{path}: the loop saw {counted} tokens, octo tokenize {manifest['tokens']}")
    return taken, manifest["tokens"]


def rows(name: str, rounds: list[dict[str, Taken]], tokens: int) -> list[str]:
    """Lines of the table."""
    lines = []
    for way in _WAYS:
        seconds = median(one[way].wall for one in rounds)
        ratios = [f"{median(one[base].wall / one[way].wall for one in rounds):.2f}" for base in _WAYS[:2]]
        cpu = median(one[way].cpu for one in rounds) / tokens * 1e6
        lines.append(
            f"| {name} | {way} | {seconds:.2f} | {tokens / seconds:,.0f} | {' | '.join(ratios)} | {cpu:.2f} |"
        )
    return lines


def _tokenizer(given: Path | None, into: Path) -> Path:
    """The folder of the tokenizer; Llama-3's from the package llama-models where none is given."""
    from octo_megatron.data.tokenizer_files import tokenizer_folder

    if given is None:
        import llama_models  # pip install --no-deps llama-models

        given = Path(llama_models.__path__[0]) / "llama3" / "tokenizer.model"
    return tokenizer_folder(given, into)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="folder with train/")
    parser.add_argument("--tokenizer", type=Path, help="default: Llama-3's from the package llama-models")
    parser.add_argument("--cores", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--texts", nargs="+", default=["tex_math", "gsm8k", "gsm8kx16"], help="NAME, or NAMExTIMES: repeated"
    )
    options = parser.parse_args()
    load = os.getloadavg()[0]
    print(f"{options.cores} cores, load {load:.1f} before; medians of {options.rounds} rounds\n")
    print(
        "| text | way | seconds | tokens/s | of the loop | of the loop as a command | CPU s a million tokens |"
    )
    print("| --- | --- | ---: | ---: | ---: | ---: | ---: |", flush=True)
    with tempfile.TemporaryDirectory() as scratch:
        folder = _tokenizer(options.tokenizer, Path(scratch) / "tokenizer")
        for text in options.texts:
            name, _, times = text.rpartition("x") if text not in _SETS else (text, "", "")
            file, template, form = _SETS[name]
            path = options.data / file
            if times:
                path = Path(scratch) / path.name
                path.write_bytes((options.data / file).read_bytes() * int(times))
            taken = [
                one_round(options.cores, path, template, form, folder, Path(scratch) / f"{text}-{number}")
                for number in range(options.rounds)
            ]
            print("\n".join(rows(text, [one for one, _ in taken], taken[0][1])), flush=True)


if __name__ == "__main__":
    main()
