"""Run the nodes of a prepared run folder on this machine: what is missing, in order, several side by side."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from octo_megatron.config.errors import UserError
from octo_megatron.config.run_folder import RunFolder, read_json
from octo_megatron.config.schema import LineageConfig
from octo_megatron.lineage.display import Display
from octo_megatron.lineage.graph import dependencies, topological_order
from octo_megatron.lineage.launch import ProcessGroup, environment, machine_has_gpu

_POLL_SECONDS = 0.1
_DATA = "data"
"""Name under which the preparation of the data is shown and reported."""


class StageFailed(Exception):
    """A stage ended badly and it was not the user's mistake; the text is one line for the terminal."""


@dataclass
class _Job:
    """One running node, or the preparation of the data."""

    name: str
    folder: Path
    processes: ProcessGroup
    slots: int
    started: float = field(default_factory=time.time)
    state: dict[str, Any] = field(default_factory=dict)

    def refresh(self) -> bool:
        """Read progress.json; whether it says something new."""
        path = self.folder / "progress.json"
        state = read_json(path) if path.is_file() else {}
        changed = bool(state) and state != self.state and float(state["time"]) >= self.started - 1
        if changed:
            self.state = state
        return changed

    def silent_seconds(self) -> float:
        return time.time() - max(self.started, float(self.state.get("time", 0.0)))

    def where(self) -> str:
        """`in phase training (12 of 341)`."""
        if not self.state:
            return "while starting"
        return f"in phase {self.state['phase']} ({self.state['done']} of {self.state['total']})"


class Runner:
    """Schedules nodes over `lineage.slots` slots; a node takes as many as it has processes, at most all."""

    def __init__(self, run: RunFolder, lineage: LineageConfig, display: Display, locks: tuple[int, ...]):
        """`locks`: descriptors of the run folder's locks, which the workers keep too."""
        self._run, self._lineage, self._display, self._locks = run, lineage, display, locks
        self._env = environment(lineage.threads, machine_has_gpu())
        self._jobs: dict[str, _Job] = {}
        self._failures: list[tuple[str, bool]] = []

    def prepare_data(self) -> None:
        """Make tokenizer, sources and problem sets, as far as they are missing.

        Raises:
            UserError: a source or a problem set cannot be read.
            StageFailed: the preparation crashed, was killed or went silent beyond the deadline.
        """
        try:
            self._launch(
                _DATA, self._run.root / "data", ["-m", "octo_megatron.data.prepare", str(self._run.root)], 1
            )
            self._loop([])
        finally:
            self._end_all()

    def run_nodes(self, names: list[str]) -> None:
        """Run those of `names` that have no done.json, each after what it depends on.

        After a failure nothing new is started, but nodes that run beside it go on to their end.

        Raises:
            UserError: a stage refused its input.
            StageFailed: a stage crashed, was killed or went silent beyond the deadline.
        """
        order = topological_order(self._lineage)
        try:
            self._loop([name for name in order if name in names and not self._run.node(name).is_done()])
        finally:
            self._end_all()

    def _end_all(self) -> None:
        for job in self._jobs.values():
            job.processes.end()
        self._jobs.clear()

    def _loop(self, waiting: list[str]) -> None:
        while (waiting and not self._failures) or self._jobs:
            if not self._failures:
                self._start_ready(waiting)
            time.sleep(_POLL_SECONDS)
            for job in list(self._jobs.values()):
                self._check(job)
        if self._failures:
            message, user = self._failures[0]
            raise UserError(message) if user else StageFailed(message)

    def _start_ready(self, waiting: list[str]) -> None:
        for name in list(waiting):
            needs = dependencies(self._lineage.nodes[name])
            world_size = self._lineage.layout_of(name).world_size
            slots = min(world_size, self._lineage.slots)
            free = self._lineage.slots - sum(job.slots for job in self._jobs.values())
            if slots <= free and all(self._run.node(other).is_done() for other in needs):
                waiting.remove(name)
                command = ["-m", "octo_megatron.lineage.worker", str(self._run.root), name]
                self._launch(name, self._run.node(name).root, command, world_size)

    def _launch(self, name: str, folder: Path, command: list[str], world_size: int) -> None:
        for left in ("progress.json", "error.json"):
            (folder / left).unlink(missing_ok=True)
        processes = ProcessGroup(command, world_size, folder / "log.txt", self._env, self._locks)
        self._jobs[name] = _Job(name, folder, processes, min(world_size, self._lineage.slots))
        self._display.started(name)

    def _check(self, job: _Job) -> None:
        if job.refresh():
            self._display.progress(job.name, job.state)
        failure = job.processes.failure()
        if failure is not None:
            job.processes.end(grace_seconds=2.0)
            error = _error_of(job)
            user = error.get("kind") == "user"
            rank = f"rank {error['rank']}: {error['message']}" if error else failure.describe()
            self._end(
                job, f"{self._title(job)} failed {job.where()}, {rank}; log: {job.folder / 'log.txt'}", user
            )
        elif job.processes.finished():
            if job.name == _DATA or self._run.node(job.name).is_done():
                self._end(job)
            else:
                text = (
                    f"{self._title(job)} ended without a result {job.where()}; log: {job.folder / 'log.txt'}"
                )
                self._end(job, text, False)
        elif job.silent_seconds() > self._lineage.deadline_seconds:
            ranks = ", ".join(map(str, job.processes.alive_ranks()))
            job.processes.dump_stacks()
            job.processes.end()
            text = (
                f"{self._title(job)} was silent for {self._lineage.deadline_seconds} s {job.where()} and "
                "was ended "
                f"(ranks {ranks}); their stacks are in {job.folder / 'log.txt'}; raise deadline_seconds if "
                "it was only slow"
            )
            self._end(job, text, False)

    def _title(self, job: _Job) -> str:
        return "preparing the data" if job.name == _DATA else f"node {job.name}"

    def _end(self, job: _Job, failure: str | None = None, user: bool = False) -> None:
        job.processes.end(grace_seconds=2.0)
        del self._jobs[job.name]
        if failure is None:
            seconds = time.time() - job.started
            self._display.ended(
                job.name, f"{job.name:<12} done in {seconds:.1f} s  {self._figures(job)}".rstrip()
            )
            return
        self._failures.append((failure, user))
        self._display.ended(job.name, f"{job.name:<12} failed {job.where()}")
        if self._jobs:
            self._display.say(
                f"still running: {', '.join(self._jobs)}; nothing new is started (Ctrl-C ends them)"
            )

    def _figures(self, job: _Job) -> str:
        if job.name == _DATA:
            return ""
        return result_figures(self._run.node(job.name).result())


def check_ready(run: RunFolder, lineage: LineageConfig, name: str) -> None:
    """Whether a single stage can run now.

    Raises:
        UserError: there is no such node, or one that it depends on is not finished.
    """
    if name not in lineage.nodes:
        raise UserError(f"--stage {name}: there is no such node; there are: {', '.join(lineage.nodes)}")
    missing = [other for other in dependencies(lineage.nodes[name]) if not run.node(other).is_done()]
    if missing:
        raise UserError(
            f"--stage {name} needs {', '.join(missing)}, not finished in {run.root}; run --stage "
            f"{missing[0]} first"
        )


def result_figures(done: dict[str, Any]) -> str:
    """The figure or two of a done.json that say how it went."""
    if "loss_last" in done:
        return f"loss {done['loss_last']:.3f}"
    if "evaluation" in done:
        after = done["evaluation"].get("after", {})
        return "  ".join(f"{name} {result['accuracy']:.3f}" for name, result in after.items())
    if "max_logit_difference" in done:
        return f"largest logit difference {done['max_logit_difference']:.1e}"
    return ""


def _error_of(job: _Job) -> dict[str, Any]:
    """What the failing process said: its error.json, or the `octo: error:` line that ends its log."""
    path = job.folder / "error.json"
    if path.is_file():
        return dict(read_json(path))
    log = job.folder / "log.txt"
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()[-5:] if log.is_file() else []
    said = [line for line in lines if line.startswith("octo: error: ")]
    return {"rank": 0, "kind": "user", "message": said[-1].removeprefix("octo: error: ")} if said else {}
