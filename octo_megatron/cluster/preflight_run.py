"""`octo preflight` on one rank: measure, exchange, judge; within a deadline that names the phase it fell into."""

from __future__ import annotations

import datetime
import importlib
import os
import secrets
import socket
import sys
import threading
import time
from pathlib import Path
from typing import Any

from octo_megatron.cluster.exchange import Exchange
from octo_megatron.cluster.preflight import Facts, Limits, Needs, Problem, bad_nodes, judge, unheard
from octo_megatron.config.run_folder import write_json

BAD_NODE = 4
"""Exit code: a node is bad; the report names it."""


class Deadline:
    """Ends the process when time is over, saying where it was: nothing else ends a collective that hangs."""

    def __init__(self, seconds: float, where: str):
        self._end, self.phase = time.monotonic() + seconds, "start"
        self._seconds, self._where = seconds, where
        self._timer = threading.Timer(seconds, self._over)
        self._timer.daemon = True
        self._timer.start()

    def left(self) -> float:
        return max(0.1, self._end - time.monotonic())

    def cancel(self) -> None:
        self._timer.cancel()

    def _over(self) -> None:
        print(
            f"octo: error: preflight: {self._where} was still in phase '{self.phase}' after {self._seconds:.0f} s",
            file=sys.stderr,
            flush=True,
        )
        os._exit(BAD_NODE)


def run(
    exchange: Exchange, out: Path, checkpoints: Path, needs: Needs, limits: Limits, seconds: float,
    expected: list[str],
) -> tuple[list[Facts], list[Problem]]:  # fmt: skip
    """Measure on this rank and judge all; every rank returns the same. Collective.

    Args:
        out: run folder, which every node must see.
        checkpoints: folder that the job will write to.
        seconds: for everything; a rank that is not through by then ends with code BAD_NODE.
        expected: host name of each rank as the launcher tells it, '' where it does not.
    """
    node = socket.gethostname()
    deadline = Deadline(seconds, f"rank {exchange.rank} on {node}")
    deadline.phase = "meeting the other ranks"
    names = exchange.gather(node, deadline.left() / 3)
    if None in names:
        deadline.cancel()
        return [], unheard(expected, names)
    leader = names.index(node) == exchange.rank
    probe = importlib.import_module("octo_megatron.cluster.preflight_probe")
    where = probe.device(exchange.rank - names.index(node), names.count(node))
    facts: Facts = {"rank": exchange.rank, "node": node}
    deadline.phase = "the shared folder"
    problems = _shared_folder(exchange, out, node, leader, deadline)
    if leader:
        deadline.phase = "versions and devices"
        facts |= probe.node_facts(names.count(node))
    deadline.phase = "matrix product and memory copy"
    facts |= probe.compute(where)
    if leader:
        deadline.phase = f"writing to {checkpoints}"
        facts |= probe.disk(checkpoints, f"{node}-{os.getpid()}")
    facts["problems"] = [*problems, *facts.get("problems", [])]
    deadline.phase = "clocks"
    rounds = []
    for _ in range(5):
        exchange.gather(0, deadline.left())
        rounds.append(time.time())
    if leader:
        facts["clock_rounds"] = rounds
    deadline.phase = "all-reduce and point-to-point"
    facts |= _links(probe, exchange, where, names, deadline)
    deadline.phase = "exchanging the results"
    sheets = [sheet for sheet in exchange.gather(facts, deadline.left()) if sheet is not None]
    deadline.cancel()
    return sheets, judge(sheets, needs, limits)


def _links(probe: Any, exchange: Exchange, where: Any, names: list[str], deadline: Deadline) -> Facts:
    if exchange.size == 1:
        return {}
    dist = importlib.import_module("torch.distributed")
    timeout = datetime.timedelta(seconds=deadline.left())
    backend = "nccl" if probe.on_cuda() else "gloo"
    keywords = {"device_id": where} if backend == "nccl" else {}
    dist.init_process_group(
        backend,
        store=exchange.store(),
        rank=exchange.rank,
        world_size=exchange.size,
        timeout=timeout,
        **keywords,
    )
    facts = dict(probe.links(where, exchange.rank, names))
    dist.destroy_process_group()
    return facts


def _shared_folder(exchange: Exchange, out: Path, node: str, leader: bool, deadline: Deadline) -> list[str]:
    """Whether this node sees what rank 0 wrote, and rank 0 what this node wrote."""
    folder = out / "preflight"
    token = exchange.gather(secrets.token_hex(8) if exchange.rank == 0 else None, deadline.left())[0]
    problems = []
    try:
        if leader:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f".{token}-{exchange.rank}").write_text(node)
    except OSError as error:
        problems.append(f"cannot write to the run folder {folder}: {error.strerror}")
    leaders = [rank for rank, is_leader in enumerate(exchange.gather(leader, deadline.left())) if is_leader]
    if leader:
        unseen = [rank for rank in leaders if not _appears(folder / f".{token}-{rank}")]
        # A node that sees nobody else is the odd one; that one other is missing is told by the others' view of it.
        others = [rank for rank in leaders if rank != exchange.rank]
        if others and set(others) <= set(unseen):
            problems.append(f"{folder} is not shared: files of the other nodes are not visible here")
    exchange.gather(0, deadline.left())
    if leader:
        (folder / f".{token}-{exchange.rank}").unlink(missing_ok=True)
    return problems


def _appears(path: Path, seconds: float = 3.0) -> bool:
    """Network file systems show a new file after a moment."""
    end = time.monotonic() + seconds
    while not path.is_file():
        if time.monotonic() > end:
            return False
        time.sleep(0.1)
    return True


def write_report(
    path: Path, facts: list[Facts], problems: list[Problem], exchange: Exchange, seconds: float
) -> None:
    """The JSON report; slurm/job.sh reads `bad_nodes` of it."""
    write_json(
        path,
        {
            "ok": not problems,
            "bad_nodes": ",".join(bad_nodes(problems)),
            "problems": [str(problem) for problem in problems],
            "seconds": round(seconds, 1),
            "exchange": exchange.kind,
            "facts": [{key: value for key, value in sheet.items() if key != "versions"} for sheet in facts],
        },
    )
