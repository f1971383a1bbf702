"""`octo tokenize` beside the limit and beside the simple way, on real text.

    python benchmarks/tokenise.py --data /path/to/shared/data [--tokenizer PATH] [--cores 2] [--rounds 3]

Three ways over the same documents with the same tokenizer, in turn, `rounds` times; the best round of each counts:

limit    texts lie in memory; one loop over `encode_batch_fast` of the `tokenizers` library with `cores` threads
octo     the whole command from its start: read, check, tokenise, hash, write, manifest; `cores` workers
simple   one process for the file, one document after another, into Megatron-Core's IndexedDatasetBuilder: what
         Megatron-LM's preprocess_data.py does with a file a process

Tokens a second by the clock, and CPU seconds (all processes) for a million tokens, which other load on the
machine blurs less. Ratios are to the limit of the same run. The file is not named tokenize.py: beside other
scripts that name would hide Python's own module.
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

_SETS = {
    "tex_math": ("train/tex_math.jsonl.zst", "plain", 1),
    "gsm8k": ("train/gsm8k.jsonl", "question-answer", 16),
}
"""File, template, and how often its rows are taken: the start of the command, loading the tokenizer in every worker,
costs two seconds and would be all that is seen of a smaller text."""

_LIMIT = """
import sys, time
from pathlib import Path
from octo_megatron.data import read
from octo_megatron.data.documents import TextOptions, document
from octo_megatron.data.tokenise import BATCH_CHARACTERS, BATCH_DOCUMENTS
from octo_megatron.data.tokenizer import TextTokenizer
path, template, folder = sys.argv[1:]
options = TextOptions(template=template)
texts = [document(row, options).text for _, row in read.rows(Path(path))]
batches, size = [[]], 0
for text in texts:
    if len(batches[-1]) == BATCH_DOCUMENTS or size >= BATCH_CHARACTERS:
        batches.append([])
        size = 0
    batches[-1].append(text)
    size += len(text)
encode = TextTokenizer(Path(folder))._tokenizer.encode_batch_fast
wall, cpu, tokens = time.perf_counter(), time.process_time(), 0
for batch in batches:
    tokens += sum(len(one.ids) for one in encode(batch, add_special_tokens=False))
print(time.perf_counter() - wall, time.process_time() - cpu)
"""

_SIMPLE = """
import sys
from pathlib import Path
import numpy, torch
from octo_megatron.data import read
from octo_megatron.data.documents import TextOptions, document
from octo_megatron.data.tokenizer import TextTokenizer
from megatron.core.datasets.indexed_dataset import DType, IndexedDatasetBuilder
path, template, folder, out = sys.argv[1:]
tokenizer, options = TextTokenizer(Path(folder)), TextOptions(template=template)
builder = IndexedDatasetBuilder(out + ".bin", dtype=DType.optimal_dtype(tokenizer.size))
import time
wall, cpu = time.perf_counter(), time.process_time()
for _, row in read.rows(Path(path)):
    ids = [*tokenizer.encode(document(row, options).text), tokenizer.eos_id]
    builder.add_document(torch.IntTensor(ids), [len(ids)])
builder.finalize(out + ".idx")
print(time.perf_counter() - wall, time.process_time() - cpu)
"""


@dataclass
class Best:
    """The best round of one way: seconds by the clock and of CPU."""

    wall: float = float("inf")
    cpu: float = float("inf")

    def take(self, wall: float, cpu: float) -> None:
        self.wall, self.cpu = min(self.wall, wall), min(self.cpu, cpu)


def _script(code: str, cores: int, *arguments: object) -> tuple[float, float]:
    """(clock, CPU) seconds that a script prints; it runs on `cores` cores."""
    environment = {**os.environ, "RAYON_NUM_THREADS": str(cores), "TOKENIZERS_PARALLELISM": "true"}
    command = ["taskset", "-c", f"0-{cores - 1}", sys.executable, "-P", "-c", code, *map(str, arguments)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    wall, cpu = map(float, done.stdout.split())
    return wall, cpu


def _octo(cores: int, path: Path, template: str, folder: Path, out: Path) -> tuple[float, float, int]:
    """(clock seconds, CPU seconds of all processes, tokens) of the whole command."""
    command = [
        "taskset",
        "-c",
        f"0-{cores - 1}",
        sys.executable,
        "-P",
        "-m",
        "octo_megatron.cli.main",
        "tokenize",
    ]
    command += [str(path), "--template", template, "--tokenizer", str(folder), "--out", str(out)]
    command += ["--workers", str(cores)]
    before, wall = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    wall = time.perf_counter() - wall
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return wall, cpu, json.loads((out / "manifest.json").read_text())["tokens"]


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
    parser.add_argument("--times", type=int, help="how often the rows of gsm8k are taken")
    parser.add_argument("--only", choices=sorted(_SETS), help="one of the texts")
    options = parser.parse_args()
    print(f"{options.cores} cores, best of {options.rounds} rounds; limit = encode_batch_fast in a loop")
    print("| text | way | tokens/s | of the limit | CPU s a million tokens | CPU: limit / this |")
    print("| --- | --- | ---: | ---: | ---: | ---: |")
    with tempfile.TemporaryDirectory() as scratch:
        folder = _tokenizer(options.tokenizer, Path(scratch) / "tokenizer")
        for name, (file, template, times) in _SETS.items():
            if options.only not in (None, name):
                continue
            path, best, tokens = options.data / file, {way: Best() for way in ("limit", "octo", "simple")}, 0
            if times > 1:
                many = Path(scratch) / path.name
                many.write_bytes(path.read_bytes() * (options.times or times))
                path = many
            for number in range(options.rounds):
                out = Path(scratch) / f"{name}-{number}"
                best["limit"].take(*_script(_LIMIT, options.cores, path, template, folder))
                wall, cpu, tokens = _octo(options.cores, path, template, folder, out)
                best["octo"].take(wall, cpu)
                best["simple"].take(*_script(_SIMPLE, options.cores, path, template, folder, f"{out}-simple"))
            for way, one in best.items():
                print(
                    f"| {name} | {way} | {tokens / one.wall:,.0f} | {best['limit'].wall / one.wall:.2f} | "
                    f"{one.cpu / tokens * 1e6:.2f} | {best['limit'].cpu / one.cpu:.2f} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
