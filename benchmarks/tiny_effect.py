"""Does the built-in lineage show the paper's claim, whatever the seed?

    python benchmarks/tiny_effect.py --seeds 0 1 2 --out runs/effect

Runs `octo demo` once a seed (what is finished already is not run again) and prints one Markdown table from the
summaries: sampled reward and answer length in RL (means of the first and last five steps) and greedy accuracy
before and after, for RL from the base and from each branch. Exit code 1 when a seed misses the claim.
"""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

from octo_megatron.config.run_folder import read_json

STARTS = ("base", "short", "hybrid", "long")


def main() -> int:
    """Run the seeds, print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=Path("runs/effect"))
    options = parser.parse_args()
    summaries = {}
    for seed in options.seeds:
        run = options.out / f"seed{seed}"
        command = [
            sys.executable,
            "-m",
            "octo_megatron.cli.main",
            "demo",
            "--seed",
            str(seed),
            "--out",
            str(run),
        ]
        subprocess.run(command, check=True)
        summaries[seed] = read_json(run / "summary.json")
    print(table(summaries))
    print(f"\nMachine: {os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}.")
    missed = [seed for seed, summary in summaries.items() if not holds(summary["rl"])]
    print(f"The claim holds for {len(summaries) - len(missed)} of {len(summaries)} seeds.")
    return 1 if missed else 0


def holds(rl: dict[str, Any]) -> bool:
    """Base flat under 0.05; every branch climbs by 0.1 and ends above 0.5; long's answers are the longest."""
    climbs = all(rl[b]["reward"][1] - rl[b]["reward"][0] >= 0.1 for b in STARTS[1:])
    high = all(rl[b]["reward"][1] > 0.5 for b in STARTS[1:])
    longest = max(STARTS[1:], key=lambda b: rl[b]["length"][1]) == "long"
    return rl["base"]["reward"][1] < 0.05 and climbs and high and longest


def table(summaries: dict[int, dict[str, Any]]) -> str:
    """One row a seed and start."""
    rows = [
        "| RL from | seed | sampled reward, first > last five steps | answer tokens | greedy accuracy before > after |",
        "| --- | --- | --- | --- | --- |",
    ]
    for start in STARTS:
        for seed, summary in summaries.items():
            r = summary["rl"][start]
            rows.append(
                f"| {start} | {seed} | {r['reward'][0]:.3f} > {r['reward'][1]:.3f} "
                f"| {r['length'][0]:.0f} > {r['length'][1]:.0f} | {r['accuracy'][0]:.3f} > {r['accuracy'][1]:.3f} |"
            )
    return "\n".join(rows)


if __name__ == "__main__":
    sys.exit(main())
