"""Reads a run folder, finished or not, into plain records. Changes nothing there."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import zstandard

from octo_megatron.config.errors import UserError
from octo_megatron.config.loading import digest, load_lineage, to_plain
from octo_megatron.config.run_folder import RunFolder, read_json, read_json_lines
from octo_megatron.config.schema import LineageConfig, NodeConfig, TrainNode

MISSING, RUNNING, DONE = "missing", "running", "done"
"""States of a node: nothing there, started but not finished, finished."""


@dataclass(frozen=True)
class NodeRecord:
    """What one node has left behind so far."""

    name: str
    config: NodeConfig
    folder: Path
    state: str
    """One of MISSING, RUNNING, DONE."""
    metrics: list[dict[str, Any]] = field(default_factory=list)
    """Rows of metrics.jsonl by step; empty for nodes without steps."""
    done: dict[str, Any] = field(default_factory=dict)
    """done.json; empty unless the state is DONE."""
    progress: dict[str, Any] = field(default_factory=dict)
    """progress.json; empty when there is none."""
    error: str = ""
    """Why the last try failed; empty when it did not."""

    @property
    def kind(self) -> str:
        return self.config.kind

    @property
    def parent(self) -> str | None:
        return self.config.parent

    def rows(self, *keys: str) -> list[dict[str, Any]]:
        """The steps at which all of these metrics are finite numbers."""
        return [
            row
            for row in self.metrics
            if all(row.get(key) is not None and math.isfinite(row[key]) for key in keys)
        ]

    def series(self, key: str) -> list[float]:
        """The finite values of one metric, by step."""
        return [float(row[key]) for row in self.rows(key)]

    @property
    def tokens(self) -> int:
        """Mid-training tokens consumed by this node so far (0 for other kinds)."""
        if self.kind != "train":
            return 0
        return int(self.done.get("tokens") or max(self.series("tokens"), default=0))

    @property
    def last_step(self) -> int:
        return int(max(self.series("step"), default=0))


@dataclass(frozen=True)
class RunRecord:
    """A whole run: its resolved lineage and what every node left."""

    folder: RunFolder
    lineage: LineageConfig
    digest: str
    nodes: dict[str, NodeRecord]
    sources: dict[str, dict[str, Any]]
    """Manifests of the prepared sources, by source; only those that exist."""

    def of_kind(self, kind: str) -> list[NodeRecord]:
        return [node for node in self.nodes.values() if node.kind == kind]

    def path(self, name: str) -> list[NodeRecord]:
        """The nodes from the root to `name`, both included."""
        way: list[NodeRecord] = []
        here: str | None = name
        while here in self.nodes and len(way) <= len(self.nodes):
            way.append(self.nodes[here])
            here = self.nodes[here].parent
        return way[::-1]

    def path_tokens(self, name: str) -> int:
        """Mid-training tokens on the way from the root to the end of `name`."""
        return sum(node.tokens for node in self.path(name))

    @cached_property
    def branches(self) -> list[str]:
        """Train nodes that start from another node and that no train node starts from."""
        trunk = {node.parent for node in self.of_kind("train")}
        return [node.name for node in self.of_kind("train") if node.parent and node.name not in trunk]

    @cached_property
    def roots(self) -> list[str]:
        return [node.name for node in self.nodes.values() if node.parent is None and node.kind != "evaluate"]

    @cached_property
    def rl_names(self) -> dict[str, NodeRecord]:
        """RL nodes by the node they start from; by their own name where two start from the same."""
        starts = [node.parent for node in self.of_kind("rl")]
        return {
            (node.parent if node.parent and starts.count(node.parent) == 1 else node.name): node
            for node in self.of_kind("rl")
        }

    @property
    def finished(self) -> bool:
        return all(node.state == DONE for node in self.nodes.values())

    def train_config(self, name: str) -> TrainNode:
        config = self.nodes[name].config
        assert isinstance(config, TrainNode)
        return config


def read_run(root: Path) -> RunRecord:
    """Read everything `octo report` shows.

    Raises:
        UserError: `root` is no run folder, or a file in it is damaged (a last line cut short is not).
    """
    folder = RunFolder(root)
    lineage, lineage_digest = _read_lineage(folder)
    sources = {
        name: read_json(folder.source(name) / "manifest.json")
        for name in lineage.sources
        if (folder.source(name) / "manifest.json").is_file()
    }
    nodes = {name: _read_node(folder, name, config) for name, config in lineage.nodes.items()}
    return RunRecord(folder, lineage, lineage_digest, nodes, sources)


def _read_lineage(folder: RunFolder) -> tuple[LineageConfig, str]:
    path = folder.lineage_file
    if not path.is_file():
        raise UserError(
            f"{folder.root} is not a run folder (no lineage.yaml in it); `octo run` or `octo demo` makes one"
        )
    lineage = load_lineage(path)
    return lineage, digest(to_plain(lineage))


def _read_node(folder: RunFolder, name: str, config: NodeConfig) -> NodeRecord:
    node = folder.node(name)
    metrics = _rows(node.metrics)
    progress = read_json(node.progress) if node.progress.is_file() else {}
    done = node.result() if node.is_done() else {}
    state = DONE if done else RUNNING if metrics or progress else MISSING
    error = str(read_json(node.error).get("message", "")) if not done and node.error.is_file() else ""
    return NodeRecord(name, config, node.root, state, metrics, done, progress, error)


def _rows(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        return []
    try:
        return read_json_lines(path)
    except ValueError as error:
        raise UserError(
            f"{path} is damaged: {error}; remove the line or the node's folder and run again"
        ) from error


def read_rollouts(node: NodeRecord) -> list[tuple[int, list[dict[str, Any]]]]:
    """[(step, rows)] of the first and of the last step that left rollouts; one entry if they are the same."""
    files = sorted((node.folder / "rollouts").glob("step_*.jsonl.zst"), key=_step_of)
    chosen = files[:1] + files[1:][-1:]
    return [(_step_of(path), compressed_rows(path)) for path in chosen]


def compressed_rows(path: Path) -> list[dict[str, Any]]:
    """Rows of a .jsonl.zst file.

    Raises:
        UserError: it is damaged.
    """
    try:
        with zstandard.open(path, "rt", encoding="utf-8", errors="surrogatepass", newline="\n") as file:
            return [json.loads(line) for line in file]
    except (zstandard.ZstdError, ValueError) as error:
        raise UserError(f"{path} is damaged: {error}; remove it and run again") from error


def _step_of(path: Path) -> int:
    digits = path.name.split(".")[0].removeprefix("step_")
    return int(digits) if digits.isdigit() else -1
