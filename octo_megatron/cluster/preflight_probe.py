"""What one rank measures in `octo preflight`: its device, its links, its disk. The one file of this room with torch.

Every figure is the median of several tries after a first one that warms up.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import torch
import torch.distributed as dist

from octo_megatron.cluster.preflight import Facts

_WRITE_BYTES = 64 * 2**20
_REDUCE_ELEMENTS = 4 * 2**20
"""FP32 elements of an all-reduce: 16 MiB; on CUDA 16 times as many."""
_THROTTLE = ("hw_slowdown", "hw_thermal_slowdown", "hw_power_brake_slowdown", "sw_thermal_slowdown")
_SMI = ("index", "memory.total", "memory.used", "ecc.errors.uncorrected.volatile.total",
        *(f"clocks_throttle_reasons.{reason}" for reason in _THROTTLE))  # fmt: skip


def this_machine(folder: Path) -> list[Facts]:
    """A fact sheet for every device here, as if each were a rank; the first has the machine's and the disk's too."""
    count = torch.cuda.device_count() if on_cuda() else 1
    name = platform.node()
    sheets = [{"rank": i, "node": name, **compute(device(i, 1))} for i in range(count)]
    return [{**node_facts(count), **disk(folder, str(os.getpid())), **sheets[0]}, *sheets[1:]]


def on_cuda() -> bool:
    return torch.cuda.is_available()


def device(local_rank: int, local_ranks: int) -> torch.device:
    """This rank's device; made the current one. On CPU this rank's share of the cores becomes its threads."""
    if not on_cuda():
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // local_ranks))
        return torch.device("cpu")
    where = torch.device("cuda", local_rank % torch.cuda.device_count())
    torch.cuda.set_device(where)
    return where


def versions() -> dict[str, str]:
    """Everything installed, and what lies below it."""
    found = {str(d.metadata["Name"]): d.version for d in importlib.metadata.distributions()}
    found |= {"python": platform.python_version(), "kernel": platform.release()}
    if on_cuda():
        found["CUDA"] = str(torch.version.cuda)
        found["NCCL"] = ".".join(map(str, torch.cuda.nccl.version()))
        found["driver"] = _smi("driver_version")[0]
    return found


def node_facts(local_ranks: int) -> Facts:
    """Of a node's first rank: versions, devices, their health."""
    cuda = on_cuda()
    devices = torch.cuda.device_count() if cuda else len(os.sched_getaffinity(0))
    facts: Facts = {
        "versions": versions(),
        "on_cuda": cuda,
        "local_ranks": local_ranks,
        "devices": devices,
        "device": torch.cuda.get_device_name(0) if cuda else "CPU cores",
        "memory_available": psutil.virtual_memory().available,
    }
    if cuda:
        facts["device_memory"] = min(torch.cuda.get_device_properties(i).total_memory for i in range(devices))
        facts["gpus"] = parse_smi("\n".join(_smi(",".join(_SMI))))
    return facts


def parse_smi(text: str) -> list[dict[str, Any]]:
    """Health of each GPU, from nvidia-smi's lines for the query `_SMI` (csv, noheader, nounits)."""
    gpus = []
    for line in text.strip().splitlines():
        index, total, used, ecc, *reasons = (word.strip() for word in line.split(","))
        gpus.append(
            {
                "index": int(index),
                "total_bytes": int(total) * 2**20,
                "used_bytes": int(used) * 2**20,
                "ecc_errors": int(ecc) if ecc.isdigit() else 0,  # [N/A] where ECC is off
                "throttled_by": [
                    name for name, word in zip(_THROTTLE, reasons, strict=True) if word == "Active"
                ],
            }
        )
    return gpus


def _smi(query: str) -> list[str]:
    command = ["nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader,nounits"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    return done.stdout.strip().splitlines()


def compute(where: torch.device) -> Facts:
    """FLOP/s of a square matrix product (BF16 on CUDA, FP32 on CPU) and bytes/s of a copy (read + write)."""
    cuda = where.type == "cuda"
    size = 8192 if cuda else 768
    a = torch.ones(size, size, device=where, dtype=torch.bfloat16 if cuda else torch.float32)
    b = torch.ones_like(a)
    seconds = _median_seconds(lambda: torch.mm(a, b), where, at_least=1.0)
    source = torch.ones(2**28 if cuda else 2**26, device=where, dtype=torch.uint8)
    target = torch.empty_like(source)
    copy = _median_seconds(lambda: target.copy_(source), where, at_least=0.5)
    return {"matmul_flops": 2 * size**3 / seconds, "copy_bytes_per_second": 2 * source.numel() / copy}


def _median_seconds(work: Callable[[], object], where: torch.device, at_least: float) -> float:
    """Median seconds of a try; tries go on for `at_least` seconds, five at the least."""

    def once() -> float:
        began = time.perf_counter()
        work()
        if where.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - began

    once()
    tries: list[float] = []
    while len(tries) < 5 or sum(tries) < at_least:
        tries.append(once())
    return statistics.median(tries)


def links(where: torch.device, rank: int, nodes: list[str]) -> Facts:
    """Bandwidth inside this node, between all nodes, and to the node before and after; collective.

    Args:
        nodes: host name of every rank.

    Returns:
        inside_bytes_per_second (all-reduce of the node's ranks), between_bytes_per_second (all-reduce of the nodes'
        first ranks), link_bytes_per_second (the better of the links to both neighbours: a bad node has no good one);
        each where there is such a link. Bus bandwidth of an all-reduce: 2 (n - 1) / n x bytes / seconds.
    """
    leaders = [nodes.index(name) for name in dict.fromkeys(nodes)]
    groups = {name: [r for r, other in enumerate(nodes) if other == name] for name in dict.fromkeys(nodes)}
    facts: Facts = {}
    inside = {name: dist.new_group(ranks) for name, ranks in groups.items()}
    between = dist.new_group(leaders)
    own = groups[nodes[rank]]
    if len(own) > 1:
        facts["inside_bytes_per_second"] = _all_reduce(where, inside[nodes[rank]], len(own))
    dist.barrier()
    if len(leaders) > 1 and rank in leaders:
        facts["between_bytes_per_second"] = _all_reduce(where, between, len(leaders))
        facts["link_bytes_per_second"] = _ring(where, rank, leaders)
    dist.barrier()
    return facts


def _all_reduce(where: torch.device, group: Any, size: int) -> float:
    data = torch.ones(_REDUCE_ELEMENTS * (16 if where.type == "cuda" else 1), device=where)
    tries = []
    for _ in range(6):
        began = time.perf_counter()
        dist.all_reduce(data, group=group)
        if where.type == "cuda":
            torch.cuda.synchronize()
        tries.append(time.perf_counter() - began)
    return 2 * (size - 1) / size * data.numel() * data.element_size() / statistics.median(tries[1:])


def _ring(where: torch.device, rank: int, leaders: list[int]) -> float:
    """Best bandwidth of this node's two links in the ring of nodes; each link is used alone, in two rounds."""
    position, count = leaders.index(rank), len(leaders)
    data = torch.ones(_REDUCE_ELEMENTS * (16 if where.type == "cuda" else 1), device=where)
    best = 0.0
    for first in range(2 if count > 2 else 1):
        # Links (0,1) (2,3) ... and then (1,2) (3,4) ...; in an odd ring the last node misses one of them.
        partner = position + 1 if position % 2 == first else position - 1
        if not 0 <= partner < count:
            continue
        tries = []
        for _ in range(4):
            began = time.perf_counter()
            if position < partner:
                dist.send(data, leaders[partner])
                dist.recv(data, leaders[partner])
            else:
                dist.recv(data, leaders[partner])
                dist.send(data, leaders[partner])
            if where.type == "cuda":
                torch.cuda.synchronize()
            tries.append(time.perf_counter() - began)
        best = max(best, 2 * data.numel() * data.element_size() / statistics.median(tries[1:]))
    return best


def disk(folder: Path, tag: str) -> Facts:
    """Write speed with fsync and free bytes of `folder`; a failure becomes a problem with its figure."""
    facts: Facts = {"checkpoints": str(folder)}
    path = folder / f".preflight-{tag}"
    free = 0
    try:
        folder.mkdir(parents=True, exist_ok=True)
        state = os.statvfs(folder)
        free = facts["free_bytes"] = state.f_bavail * state.f_frsize
        block = os.urandom(2**20)
        began = time.perf_counter()
        with path.open("wb") as file:
            for _ in range(_WRITE_BYTES // len(block)):
                file.write(block)
            file.flush()
            os.fsync(file.fileno())
        facts["write_bytes_per_second"] = _WRITE_BYTES / (time.perf_counter() - began)
    except OSError as error:
        facts["problems"] = [
            f"cannot write {_WRITE_BYTES / 1e6:.0f} MB to {folder}: {error.strerror} ({free / 1e6:.0f} MB free)"
        ]
    finally:
        path.unlink(missing_ok=True)
    return facts


if __name__ == "__main__":
    print(json.dumps(this_machine(Path(sys.argv[1]))))
