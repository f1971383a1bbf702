"""Share of a training step that is spent waiting for data, at the tiny model's speed.

    python benchmarks/data_wait.py --steps 400

Trains the first node of the built-in lineage (`configs/lineage/tiny-quick.yaml`: 0.6M parameters, 2 samples of 256
tokens a step, the fastest steps there are here) and reads its metrics: waiting = `seconds_data` of a step, the time in
which the loop asks for the batch that a background thread makes, over `seconds`, the whole step. For comparison, what
the same batches cost when the loop makes them itself, one after another, in this process. The first step is left out:
it is the only one that has to wait for a batch to be made from nothing.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def train(folder: Path, steps: int, packing: str) -> None:
    """The node `base` for so many steps, by the command that users run."""
    command = [sys.executable, "-m", "octo_megatron.cli.main", "run", "tiny-quick.yaml", "--stage", "base"]
    values = [f"nodes.base.tokens={steps * 512}", f"nodes.base.packing={packing}"]
    done = subprocess.run([*command, *values, "--out", str(folder)], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)


def inline_seconds(folder: Path, steps: int) -> float:
    """Mean seconds of making a step's batch in the loop itself."""
    from octo_megatron.config.loading import load_lineage
    from octo_megatron.config.run_folder import RunFolder
    from octo_megatron.config.schema import TrainNode
    from octo_megatron.data.mixture import node_seed, open_mixture
    from octo_megatron.train.batches import micro_batches

    run = RunFolder(folder)
    lineage = load_lineage(run.lineage_file)
    node, layout = lineage.nodes["base"], lineage.layout_of("base")
    assert isinstance(node, TrainNode)
    seed = node_seed(lineage.seed, "base")
    mixture = open_mixture(run, node.mixture, node.seq_length, seed, node.packing)
    micro_batches(node, mixture.sample, 0, 0, 1, layout)
    began = time.perf_counter()
    for step in range(1, steps):
        micro_batches(node, mixture.sample, step, 0, 1, layout)
    return (time.perf_counter() - began) / (steps - 1)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=400)
    steps = parser.parse_args().steps
    from octo_megatron.config.run_folder import RunFolder, read_json_lines

    print("| packing | steps | a step, ms | of it waiting for data | making the batch in the loop would be |")
    print("| --- | --- | --- | --- | --- |")
    for packing in ("concat", "whole"):
        with tempfile.TemporaryDirectory() as folder:
            train(Path(folder) / "run", steps, packing)
            run = RunFolder(Path(folder) / "run")
            rows = [row for row in read_json_lines(run.node("base").metrics) if row["step"] > 1]
            seconds = sum(row["seconds"] for row in rows)
            waiting = sum(row["seconds_data"] for row in rows) / seconds
            inline = inline_seconds(run.root, steps) * len(rows) / seconds
            middle = statistics.median(row["seconds"] for row in rows)
            print(f"| {packing} | {steps} | {middle * 1e3:.1f} | {waiting:.2%} | {inline:.2%} |", flush=True)


if __name__ == "__main__":
    main()
