"""Where a run keeps what, and the only ways to write there: whole files by rename, JSON lines by append.

RUN/lineage.yaml                 the resolved lineage and its digest
RUN/tokenizer/                   Hugging Face tokenizer files
RUN/hf_config.json               the model's Hugging Face config
RUN/data/<source>/               tokenised sources with their manifests
RUN/problems/<set>.jsonl         problem sets: {"id", "prompt", "answer"} a line
RUN/nodes/<node>/config.yaml     the node's resolved config with its digest
RUN/nodes/<node>/checkpoints/    Megatron distributed checkpoints (step_00000100/, ...)
RUN/nodes/<node>/metrics.jsonl   one line a step, flat keys
RUN/nodes/<node>/progress.json   what it is doing now (for the progress bar and the deadline)
RUN/nodes/<node>/heartbeat/      what each rank is doing now (parallel/heartbeat.py)
RUN/nodes/<node>/samplers/       where the ranks that sample listen (engine/address.py)
RUN/nodes/<node>/fence/          which start of the node may write checkpoints (checkpoint/fence.py)
RUN/nodes/<node>/log.txt         output of its processes
RUN/nodes/<node>/error.json      why its last try failed: {rank, kind: user | crash | hang | stopped, message}
RUN/nodes/<node>/done.json       written last; a node with it is finished
RUN/nodes/<export>/hf/           the exported Hugging Face folder
RUN/summary.json, RUN/report/    made by `octo report`
"""

from __future__ import annotations

import json
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from octo_megatron.config.errors import UserError, reading

if TYPE_CHECKING:
    from octo_megatron.config.schema import LineageConfig, NodeConfig


@dataclass(frozen=True)
class RunFolder:
    """Paths of one run."""

    root: Path

    @property
    def lineage_file(self) -> Path:
        return self.root / "lineage.yaml"

    @property
    def tokenizer(self) -> Path:
        return self.root / "tokenizer"

    @property
    def hf_config(self) -> Path:
        return self.root / "hf_config.json"

    @property
    def summary(self) -> Path:
        return self.root / "summary.json"

    @property
    def report(self) -> Path:
        return self.root / "report"

    def source(self, name: str) -> Path:
        return self.root / "data" / name

    def problems(self, name: str) -> Path:
        return self.root / "problems" / f"{name}.jsonl"

    def node(self, name: str) -> NodeFolder:
        return NodeFolder(self.root / "nodes" / name)


@dataclass(frozen=True)
class NodeFolder:
    """Paths of one node."""

    root: Path

    @property
    def config(self) -> Path:
        return self.root / "config.yaml"

    @property
    def checkpoints(self) -> Path:
        return self.root / "checkpoints"

    @property
    def metrics(self) -> Path:
        return self.root / "metrics.jsonl"

    @property
    def progress(self) -> Path:
        return self.root / "progress.json"

    @property
    def heartbeat(self) -> Path:
        return self.root / "heartbeat"

    @property
    def samplers(self) -> Path:
        return self.root / "samplers"

    @property
    def fence(self) -> Path:
        return self.root / "fence"

    @property
    def log(self) -> Path:
        return self.root / "log.txt"

    @property
    def done(self) -> Path:
        return self.root / "done.json"

    @property
    def error(self) -> Path:
        return self.root / "error.json"

    @property
    def hf(self) -> Path:
        return self.root / "hf"

    def forget_last_start(self) -> None:
        """Remove what only tells of processes that are gone; before any of a new start is there."""
        for left in (
            self.progress,
            self.error,
            *self.heartbeat.glob("*.json"),
            *self.samplers.glob("*.json"),
        ):
            left.unlink(missing_ok=True)

    def is_done(self) -> bool:
        return self.done.is_file()

    def result(self) -> dict[str, Any]:
        """What the node wrote into done.json."""
        return read_json(self.done)


@dataclass(frozen=True)
class NodeContext:
    """All that a stage is told: the run, the lineage, and which node it is."""

    run: RunFolder
    lineage: LineageConfig
    name: str

    @property
    def node(self) -> NodeConfig:
        return self.lineage.nodes[self.name]

    @property
    def folder(self) -> NodeFolder:
        return self.run.node(self.name)

    def parent_folder(self) -> NodeFolder | None:
        """Folder of the parent node, None for a root."""
        return self.run.node(self.node.parent) if self.node.parent else None


class Progress:
    """Says what a node is doing; `octo run` draws it and takes silence beyond the deadline for a hang."""

    def __init__(self, path: Path, enabled: bool = True):
        self._path, self._enabled, self._last, self._phase = path, enabled, 0.0, ""

    def update(self, phase: str, done: int, total: int, **figures: float) -> None:
        """`figures`: a few numbers worth showing (loss, reward).

        Written when a phase begins (a failure is told with its phase), at the end, else at most every 0.3 s.
        """
        now = time.time()
        if self._enabled and (now - self._last > 0.3 or phase != self._phase or done >= total):
            self._last, self._phase = now, phase
            write_json(self._path, {"phase": phase, "done": done, "total": total, "time": now, **figures})


class MetricsFile:
    """JSON lines, one a step. Resuming at step n first drops the lines of later steps."""

    def __init__(self, path: Path, resume_step: int, enabled: bool = True):
        self._file = None
        if not enabled:
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        kept = [row for row in read_json_lines(path) if row["step"] <= resume_step] if path.is_file() else []
        write_text(path, "".join(json.dumps(row) + "\n" for row in kept))
        self._file = path.open("a", encoding="utf-8")

    def write(self, row: dict[str, Any]) -> None:
        """`row` must hold "step"."""
        if self._file:
            self._file.write(json.dumps(row) + "\n")
            self._file.flush()

    def close(self) -> None:
        if self._file:
            self._file.close()


def write_text(path: Path, text: str) -> None:
    """Write a whole file so that a reader sees the old or the new content, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise UserError(
            f"cannot write {path}: {error.strerror}; free some space or choose another folder"
        ) from error


def report_error(path: Path, rank: int, kind: str, message: str) -> None:
    """Write error.json unless another rank was first: what follows elsewhere is mostly a lost connection."""
    temporary = path.with_name(f".error.{os.getpid()}.tmp")
    try:
        temporary.write_text(
            json.dumps({"rank": rank, "kind": kind, "message": message}) + "\n", encoding="utf-8"
        )
        os.link(temporary, path)
    except OSError:  # there is one already, or the disk is full: the log has it anyway
        pass
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """`write_text` of indented JSON."""
    write_text(path, json.dumps(value, indent=1) + "\n")


def read_json(path: Path) -> Any:
    """Raises UserError naming the file when it is missing, not readable or damaged."""
    try:
        with reading(path):
            return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is damaged: {error}") from None


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """Rows of a JSON-lines file; a last line cut short by a kill is dropped."""
    # only \n ends a line: U+2028 and the like may stand inside strings
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n")[:-1]]
