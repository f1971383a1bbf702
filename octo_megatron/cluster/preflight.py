"""Judging what the ranks of a job measured before it trains: pure functions of their facts.

A fact sheet is a dict a rank (see `preflight_probe`); figures are compared with the median over all ranks or nodes,
so no table of what a device should reach is needed: one bad node among good ones is what this finds.
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Facts = dict[str, Any]


@dataclass(frozen=True)
class Limits:
    """From where on a figure is an outlier."""

    compute: float = 0.8
    """Matrix product and memory copy, as a share of the median over all devices."""
    network: float = 0.5
    """All-reduce and point-to-point bandwidth, as a share of the median."""
    write: float = 0.3
    """Write speed of the checkpoint folder, as a share of the median over nodes."""
    clock_seconds: float = 2.0
    used_memory_bytes: float = 2 * 2**30
    """Memory of a GPU that something else may use already."""
    save_seconds: float = 100.0
    """A checkpoint must be written in less: SLURM's USR1 comes 120 s before the end."""


def limits_here() -> Limits:
    """For GPUs; on CPUs, which other work shares, a half of the median is still normal."""
    return Limits() if Path("/dev/nvidiactl").exists() else Limits(compute=0.5)


@dataclass(frozen=True)
class Needs:
    """What the node of the lineage will write."""

    checkpoint_bytes: int = 0
    kept_checkpoints: int = 1

    @property
    def bytes(self) -> int:
        """Space for what is kept and for one that is being written."""
        return self.checkpoint_bytes * (self.kept_checkpoints + 1)


@dataclass(frozen=True)
class Problem:
    """One outlier: the node that has it, and the figure."""

    node: str
    what: str

    def __str__(self) -> str:
        return f"{self.node}: {self.what}"


def judge(facts: list[Facts], needs: Needs, limits: Limits) -> list[Problem]:
    """Everything that is wrong, each with its node and figure.

    Args:
        facts: one sheet a rank, in rank order; sheets of a node's first rank also have its `node_*` facts.
    """
    nodes = [sheet for sheet in facts if "versions" in sheet]
    problems = [Problem(sheet["node"], str(line)) for sheet in facts for line in sheet.get("problems", [])]
    problems += _versions(nodes)
    problems += _same(nodes, "devices", "devices")
    problems += _same(nodes, "device_memory", "bytes of device memory")
    problems += _devices(nodes, limits)
    for key, what, unit, scale in (
        ("matmul_flops", "matrix product", "GFLOP/s", 1e9),
        ("copy_bytes_per_second", "memory copy", "GB/s", 1e9),
    ):
        problems += _slow(facts, key, what, unit, scale, limits.compute)
    for key, what in (("inside_bytes_per_second", "all-reduce inside the node"),
                      ("link_bytes_per_second", "point-to-point to its neighbours")):  # fmt: skip
        problems += _slow(nodes, key, what, "GB/s", 1e9, limits.network)
    problems += _slow(nodes, "write_bytes_per_second", "write speed", "MB/s", 1e6, limits.write)
    problems += _space(nodes, needs, limits)
    return problems + _clock(nodes, limits)


def bad_nodes(problems: list[Problem]) -> list[str]:
    return sorted({problem.node for problem in problems})


def unheard(expected: list[str], facts: Iterable[Facts | None]) -> list[Problem]:
    """Nodes that gave no sign. `expected`: host name by rank, as far as known ('' where not)."""
    silent = [rank for rank, sheet in enumerate(facts) if sheet is None]
    return [
        Problem(expected[rank] or "unknown node", f"rank {rank} was not heard in time") for rank in silent
    ]


def _versions(nodes: list[Facts]) -> list[Problem]:
    problems = []
    for name in sorted({name for sheet in nodes for name in sheet["versions"]}):
        found = {sheet["node"]: sheet["versions"].get(name, "not installed") for sheet in nodes}
        usual = _usual(found)
        problems += [
            Problem(node, f"{name} {version}, elsewhere {usual}")
            for node, version in found.items()
            if version != usual
        ]
    return problems


def _same(nodes: list[Facts], key: str, what: str) -> list[Problem]:
    found = {sheet["node"]: sheet[key] for sheet in nodes if key in sheet}
    if not found:
        return []
    usual = _usual(found)
    return [Problem(n, f"{value} {what}, elsewhere {usual}") for n, value in found.items() if value != usual]


def _usual(found: dict[str, Any]) -> Any:
    """The value of most nodes; between two equally common ones that of the node that comes first."""
    return Counter(found.values()).most_common(1)[0][0]


def _devices(nodes: list[Facts], limits: Limits) -> list[Problem]:
    problems = []
    for sheet in nodes:
        if sheet.get("devices", 0) < sheet["local_ranks"] and sheet["on_cuda"]:
            problems.append(
                Problem(sheet["node"], f"{sheet['devices']} GPUs for {sheet['local_ranks']} processes")
            )
        for gpu in sheet.get("gpus", []):
            name = f"GPU {gpu['index']}"
            if gpu["ecc_errors"]:
                problems.append(
                    Problem(sheet["node"], f"{name} has {gpu['ecc_errors']} uncorrected ECC errors")
                )
            if gpu["throttled_by"]:
                problems.append(
                    Problem(sheet["node"], f"{name} is throttled: {', '.join(gpu['throttled_by'])}")
                )
            if gpu["used_bytes"] > limits.used_memory_bytes:
                used = f"{gpu['used_bytes'] / 2**30:.1f} GiB"
                problems.append(Problem(sheet["node"], f"{name}: {used} of its memory is used by others"))
    return problems


def _slow(facts: list[Facts], key: str, what: str, unit: str, scale: float, limit: float) -> list[Problem]:
    values = [float(sheet[key]) for sheet in facts if key in sheet]
    if len(values) < 2:
        return []
    median = statistics.median(values)
    return [
        Problem(
            sheet["node"],
            f"{what} {sheet[key] / scale:.3g} {unit} on rank {sheet['rank']}, "
            f"{sheet[key] / median:.0%} of the median {median / scale:.3g}",
        )
        for sheet in facts
        if key in sheet and sheet[key] < limit * median
    ]


def _space(nodes: list[Facts], needs: Needs, limits: Limits) -> list[Problem]:
    problems = [
        Problem(
            sheet["node"],
            f"{sheet['free_bytes'] / 1e9:.2f} GB free in {sheet['checkpoints']}, the plan needs "
            f"{needs.bytes / 1e9:.2f} ({needs.kept_checkpoints} checkpoints and one being written)",
        )
        for sheet in nodes
        if sheet.get("free_bytes", needs.bytes) < needs.bytes
    ]
    total = sum(float(sheet.get("write_bytes_per_second", 0.0)) for sheet in nodes)
    if total and needs.checkpoint_bytes / total > limits.save_seconds:
        slowest = min(nodes, key=lambda sheet: float(sheet.get("write_bytes_per_second", 0.0)))
        seconds = needs.checkpoint_bytes / total
        problems.append(
            Problem(
                slowest["node"],
                f"a checkpoint of {needs.checkpoint_bytes / 1e9:.1f} GB takes {seconds:.0f} s at the "
                f"{total / 1e6:.0f} MB/s of all nodes; it must fit into {limits.save_seconds:.0f} s",
            )
        )
    return problems


def _clock(nodes: list[Facts], limits: Limits) -> list[Problem]:
    """`clock_rounds`: the same moments by each node's clock; the round in which a node is nearest counts."""
    rounds = [sheet["clock_rounds"] for sheet in nodes if "clock_rounds" in sheet]
    if len(rounds) < 2:
        return []
    medians = [statistics.median(moment) for moment in zip(*rounds, strict=True)]
    problems = []
    for sheet in nodes:
        offsets = [own - median for own, median in zip(sheet["clock_rounds"], medians, strict=True)]
        offset = min(offsets, key=abs)
        if abs(offset) > limits.clock_seconds:
            problems.append(
                Problem(sheet["node"], f"its clock is {offset:+.1f} s off the median of the nodes")
            )
    return problems


def rows(facts: list[Facts]) -> list[list[str]]:
    """The table of the report: a line a node, each figure the worst of its ranks."""
    out = []
    for sheet in (sheet for sheet in facts if "versions" in sheet):
        own = [other for other in facts if other["node"] == sheet["node"]]
        out.append(
            [
                sheet["node"],
                f"{sheet['local_ranks']} of {sheet['devices']} {sheet['device']}",
                _worst(own, "matmul_flops", lambda v: f"{v / 1e9:,.0f}"),
                _worst(own, "copy_bytes_per_second", lambda v: f"{v / 1e9:.1f}"),
                _worst([sheet], "inside_bytes_per_second", lambda v: f"{v / 1e9:.2f}"),
                _worst([sheet], "link_bytes_per_second", lambda v: f"{v / 1e9:.2f}"),
                _worst([sheet], "write_bytes_per_second", lambda v: f"{v / 1e6:.0f}"),
                _worst([sheet], "free_bytes", lambda v: f"{v / 1e9:.1f}"),
            ]
        )
    return out


COLUMNS = (
    "node",
    "ranks of devices",
    "GFLOP/s",
    "copy GB/s",
    "inside GB/s",
    "between GB/s",
    "write MB/s",
    "free GB",
)


def _worst(sheets: list[Facts], key: str, text: Callable[[float], str]) -> str:
    values = [float(sheet[key]) for sheet in sheets if key in sheet]
    return text(min(values)) if values else ""
