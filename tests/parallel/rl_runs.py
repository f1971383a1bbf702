"""What the tests of the RL stage share: a run folder with a trained base, its copies, and their processes."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import yaml
import zstandard

from octo_megatron.lineage.launch import ProcessGroup, environment, machine_has_gpu

MAKE = Path(__file__).with_name("rl_tiny_run.py")
TIMES = ("seconds", "tokens_per_second")
"""Beginnings of the names of figures that no two runs share."""


def make_run(root: Path, *options: str) -> Path:
    """A run whose node `base` is trained; `options` of rl_tiny_run.py."""
    env = {**os.environ, **environment(1, machine_has_gpu()), "RANK": "0", "WORLD_SIZE": "1"}
    command = [sys.executable, str(MAKE), str(root), *options]
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return root


def copy(made: Path, to: Path, **changes: Any) -> Path:
    """The run again, with fields of node `rl` changed."""
    shutil.copytree(made, to)
    lineage = yaml.safe_load((to / "lineage.yaml").read_text())
    lineage["nodes"]["rl"] |= changes
    (to / "lineage.yaml").write_text(yaml.safe_dump(lineage))
    return to


def start(root: Path, node: str = "rl", processes: int = 1) -> ProcessGroup:
    command = ["-m", "octo_megatron.lineage.worker", str(root), node]
    return ProcessGroup(command, processes, root / "log.txt", environment(1, machine_has_gpu()))


def wait(group: ProcessGroup, root: Path, seconds: float = 600) -> None:
    """Until all ranks have ended well."""
    deadline = time.monotonic() + seconds
    while not group.finished() and group.failure() is None and time.monotonic() < deadline:
        time.sleep(0.1)
    failure, late = group.failure(), not group.finished()
    group.end()
    assert failure is None and not late, (root / "log.txt").read_text()[-3000:]


def killed_at(mark: str, root: Path, processes: int = 1) -> bool:
    """Start node `rl` and kill a rank as soon as `mark` is there; False: it had ended by then."""
    group, node = start(root, processes=processes), root / "nodes/rl"
    deadline = time.monotonic() + 200
    while not any(node.glob(mark)):
        assert group.failure() is None and time.monotonic() < deadline, (root / "log.txt").read_text()[-3000:]
        if (node / "done.json").exists():
            break
        time.sleep(0.001)
    with contextlib.suppress(ProcessLookupError):
        os.kill(group._processes[processes - 1].pid, signal.SIGKILL)
    group.end()
    return not (node / "done.json").exists()


def all_rows(root: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (root / "nodes/rl/metrics.jsonl").read_text().splitlines()]


def rows(root: Path) -> list[dict[str, Any]]:
    """The metrics without what is a time."""
    return [{k: v for k, v in row.items() if not k.startswith(TIMES)} for row in all_rows(root)]


def shown(root: Path) -> list[str]:
    """The rollouts of each step."""
    files = sorted((root / "nodes/rl/rollouts").glob("step_*.jsonl.zst"))
    return [zstandard.ZstdDecompressor().decompress(p.read_bytes()).decode() for p in files]
