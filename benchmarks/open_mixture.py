"""How long a mixture takes to open, what it holds in memory and what a sample costs, beside Megatron-Core's GPTDataset.

    python benchmarks/open_mixture.py --documents 1000000 10000000 100000000

Makes four sources of documents of 2,000 tokens on average (uniform from 1 to 3,999); 100 million of them are 200
billion tokens. Indexes are real, the token files sparse: they hold no data, and reading them is as fast as reading from
a warm file cache. Both readers open the same files, each in a process of its own, and read samples of 8,192 tokens:

    ours, concat      `Mixture` over the four sources
    ours, whole       the same with documents kept whole, twice: when its table is made, and with the table there
    GPTDataset        one for each source, twice: when its indexes are built, and with the indexes cached on disk

Resident memory is VmRSS after opening and after the samples, in MB of 10^6 bytes, that of the imports (torch for
Megatron) taken off and given apart. Microseconds a sample = CPU time of the process for all samples / samples: at
random positions, and for positions one after another as training takes them. 10,000 samples each for ours, 1,000 for
GPTDataset; pages of its mapped files that were touched count in its memory, the system can take them back.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

SHARES = {"web": 0.725, "general": 0.1, "text-code": 0.1, "qa": 0.075}
SEQ_LENGTH = 8192
LONGEST = 3999
EOS, VOCABULARY = 1, 50000
RUNS = {
    "ours, concat": ("concat",),
    "GPTDataset": ("megatron", "megatron"),
    "ours, whole": ("whole", "whole"),
}


def make_sets(folder: Path, documents: int) -> None:
    """Tokenised sets of sparse tokens; `documents` in all, by the sources' shares."""
    from octo_megatron.config.run_folder import write_json
    from octo_megatron.data.store import _HEADER, _MAGIC, _VERSION
    from octo_megatron.data.token_set import set_manifest

    for number, (name, share) in enumerate(SHARES.items()):
        count = round(documents * share)
        (folder / name).mkdir(parents=True)
        prefix, random, tokens = folder / name / "shard-00000", np.random.default_rng(number), 0
        with prefix.with_suffix(".idx").open("wb") as file:
            file.write(_HEADER.pack(_MAGIC, _VERSION, 8, count, count + 1))
            for first in range(0, count, 1_000_000):
                lengths = random.integers(1, LONGEST + 1, min(1_000_000, count - first), dtype=np.int32)
                starts = 2 * (tokens + np.cumsum(lengths, dtype=np.int64) - lengths)
                tokens += int(lengths.sum())
                for part, place in (
                    (lengths, 4 * first),
                    (starts, 4 * count + 8 * first),
                    (np.arange(first, first + len(lengths) + 1, dtype=np.int64), 12 * count + 8 * first),
                ):
                    file.seek(_HEADER.size + place)
                    file.write(part.tobytes())
        with prefix.with_suffix(".bin").open("wb") as file:
            file.truncate(2 * tokens)
        shard = {"name": prefix.name, "documents": count, "tokens": tokens, "bytes": 2 * tokens}
        manifest = set_manifest([{**shard, "sha256": "0" * 64}], EOS, "t" * 64)
        write_json(folder / name / "manifest.json", manifest)


def resident() -> float:
    """MB of this process in memory now."""
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith("VmRSS"))
    return int(line.split()[1]) * 1024 / 1e6


def measure_ours(folder: Path, packing: str, samples: int) -> dict[str, float]:
    from octo_megatron.data.mixture import Mixture
    from octo_megatron.data.token_set import TokenisedSet

    imports, began, busy = resident(), time.perf_counter(), time.process_time()
    mixture = Mixture({name: TokenisedSet(folder / name) for name in SHARES}, SHARES, SEQ_LENGTH, 0, packing)
    mixture.sample(0)
    opened = time.perf_counter() - began, time.process_time() - busy
    memory = resident()
    total = sum(tokens.tokens for tokens in mixture.sets.values()) // SEQ_LENGTH
    places = np.random.default_rng(0).integers(0, int(0.95 * total), samples).tolist()
    random = _seconds(mixture.sample, places)
    return _figures(
        imports, opened, memory, random, _seconds(mixture.sample, range(total // 2, total // 2 + samples))
    )


def _seconds(sample: Callable[[Any], Any], places: Iterable[Any]) -> float:
    """Mean CPU time over `places`."""
    began, count = time.process_time(), 0
    for place in places:
        sample(place)
        count += 1
    return (time.process_time() - began) / count


def measure_megatron(folder: Path, packing: str, samples: int) -> dict[str, float]:
    from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig
    from megatron.core.datasets.utils import Split
    from megatron.core.tokenizers import MegatronTokenizer

    tokenizer = MegatronTokenizer.from_pretrained(metadata_path={"library": "null"}, vocab_size=VOCABULARY)
    imports, began, busy = resident(), time.perf_counter(), time.process_time()
    config = GPTDatasetConfig(
        random_seed=0,
        sequence_length=SEQ_LENGTH,
        split="1,0,0",
        tokenizer=tokenizer,
        path_to_cache=str(folder / "cache"),
        reset_position_ids=True,
        reset_attention_mask=False,
        eod_mask_loss=True,
        create_attention_mask=False,
    )
    parts = []
    for name in SHARES:
        prefix = str(folder / name / "shard-00000")
        tokens = GPTDataset.build_low_level_dataset(prefix, config)
        indices = np.arange(len(tokens), dtype=np.int32)
        parts.append(GPTDataset(tokens, prefix, indices, None, Split.train, config))
    parts[0][0]
    opened = time.perf_counter() - began, time.process_time() - busy
    memory = resident()
    random = np.random.default_rng(0)
    owners = random.choice(len(SHARES), samples, p=list(SHARES.values()))
    places = [(owner, int(random.random() * len(parts[owner]))) for owner in owners.tolist()]
    in_order = [(owner, i) for i, owner in enumerate(owners.tolist())]

    def read(place: tuple[int, int]) -> None:
        parts[place[0]][place[1] % len(parts[place[0]])]

    return _figures(imports, opened, memory, _seconds(read, places), _seconds(read, in_order))


def _figures(
    imports: float, opened: float, memory: float, random: float, in_order: float
) -> dict[str, float]:
    return {
        "imports": imports,
        "open_seconds": opened[0],
        "open_cpu": opened[1],
        "open_mb": memory - imports,
        "read_mb": resident() - imports,
        "random_us": random * 1e6,
        "in_order_us": in_order * 1e6,
    }


def measure(folder: Path, how: str, samples: int) -> dict[str, float]:
    """One reader in a process of its own."""
    command = [sys.executable, __file__, "--measure", how, "--folder", str(folder), "--samples", str(samples)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{how} failed:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def table(rows: list[dict[str, Any]]) -> str:
    names = (
        "open, s",
        "of CPU",
        "MB open",
        "MB after reading",
        "MB of imports",
        "µs a random sample",
        "µs in order",
    )
    lines = ["| documents | reader | " + " | ".join(names) + " |", "| --- " * (len(names) + 2) + "|"]
    keys = ("open_seconds", "open_cpu", "open_mb", "read_mb", "imports", "random_us", "in_order_us")
    for row in rows:
        figures = [f"{row[key]:.2f}" if key in keys[:2] else f"{row[key]:.0f}" for key in keys]
        lines.append(f"| {row['documents']:,} | {row['reader']} | " + " | ".join(figures) + " |")
    return "\n".join(lines)


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """Both growth curves: seconds and memory of opening against documents."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(10, 4))
    for reader in dict.fromkeys(row["reader"] for row in rows):
        mine = [row for row in rows if row["reader"] == reader]
        documents = [row["documents"] for row in mine]
        for axis, key in zip(axes, ("open_seconds", "open_mb"), strict=True):
            axis.loglog(documents, [max(row[key], 1e-3) for row in mine], "o-", label=reader)
    for axis, title, limit in zip(axes, ("seconds to open", "MB in memory once open"), (5, 500), strict=True):
        axis.axhline(limit, color="grey", linewidth=0.8, linestyle=":")
        axis.set(title=title, xlabel="documents (2,000 tokens each)")
        axis.grid(True, which="major", alpha=0.3)
    axes[0].legend()
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--documents", type=int, nargs="+", default=[1_000_000, 10_000_000, 100_000_000])
    parser.add_argument("--samples", type=int, default=10_000)
    parser.add_argument("--peer-samples", type=int, default=1_000, help="GPTDataset's, which are slower")
    parser.add_argument("--folder", type=Path, help="where to make the sets; a temporary one if not given")
    parser.add_argument("--plot", type=Path, default=Path(__file__).with_name("open_mixture.png"))
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.measure:
        reader = measure_megatron if asked.measure == "megatron" else measure_ours
        print(json.dumps(reader(asked.folder, asked.measure, asked.samples)))
        return
    base = asked.folder or Path(tempfile.mkdtemp(prefix="open_mixture-"))
    rows: list[dict[str, Any]] = []
    for documents in sorted(asked.documents):
        folder = base / str(documents)
        make_sets(folder, documents)
        for reader, hows in RUNS.items():
            for number, how in enumerate(hows):
                note = (", first time", ", again")[number] if len(hows) > 1 else ""
                rows.append(
                    {
                        "documents": documents,
                        "reader": reader + note,
                        **measure(folder, how, asked.peer_samples if how == "megatron" else asked.samples),
                    }
                )
                print(table(rows[-1:]).splitlines()[-1], flush=True)
        shutil.rmtree(folder)
    print("\n" + table(rows))
    plot(rows, asked.plot)


if __name__ == "__main__":
    main()
