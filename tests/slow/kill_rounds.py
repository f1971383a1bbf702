"""Kill a random rank at a random moment, many times: kill_rounds.py RUN NODE RANKS KILLS SEED; prints RESULT JSON.

The ranks are forks of this process, which has imported what they need: real processes that run the real worker, started
in milliseconds instead of seconds.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

from octo_megatron.config.run_folder import RunFolder
from octo_megatron.lineage.launch import free_port
from octo_megatron.lineage.worker import run_stage


def start(root: Path, node: str, count: int) -> list[int]:
    sys.stdout.flush()
    world = {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1"}
    world["MASTER_PORT"] = str(free_port())
    pids = []
    for rank in range(count):
        pid = os.fork()
        if pid == 0:
            os.environ.update(world, RANK=str(rank), LOCAL_RANK=str(rank))
            log = os.open(root / "ranks.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(log, 1)
            os.dup2(log, 2)
            code = 1
            try:
                code = run_stage(root, node)
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)
        pids.append(pid)
    return pids


def rows(root: Path, node: str) -> int:
    """Steps that have been written about up to now."""
    path = RunFolder(root).node(node).metrics
    return path.read_bytes().count(b"\n") if path.is_file() else 0


def end(pids: list[int]) -> None:
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    for pid in pids:
        os.waitpid(pid, 0)


def main(root: Path, node: str, ranks: int, kills: int, seed: int) -> None:
    import octo_megatron.train.stage  # noqa: F401  (the ranks inherit what is loaded now)

    moments = random.Random(seed)
    told = []
    for _ in range(kills):
        pids = start(root, node, ranks)
        # so many steps further, and then anywhere within one, its checkpoint or the next start
        more, deadline = moments.choice([0, 0, 1, 2, 3, 5, 8]), time.monotonic() + 60
        if more:
            while not (RunFolder(root).node(node).root / "heartbeat" / "00000.json").is_file():
                time.sleep(0.002)
            before = rows(root, node)
            while rows(root, node) < before + more and time.monotonic() < deadline:
                time.sleep(0.001)
        time.sleep(moments.uniform(0.0, 0.05 if more else 1.0))
        victim = moments.randrange(ranks)
        os.kill(pids[victim], signal.SIGKILL)
        time.sleep(moments.uniform(0.0, 0.05))  # the others notice, or not yet
        end(pids)
        told.append([victim, rows(root, node)])
    last = [os.waitpid(pid, 0)[1] for pid in start(root, node, ranks)]
    print("RESULT " + json.dumps({"told": told, "codes": [os.waitstatus_to_exitcode(s) for s in last]}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], *map(int, sys.argv[3:6]))
