"""Run the nodes of a prepared run folder on this machine: what is missing, in order, several side by side."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from octo_megatron.config.errors import UserError, WorkFailed
from octo_megatron.config.run_folder import RunFolder, read_json
from octo_megatron.config.schema import LineageConfig
from octo_megatron.lineage.display import Display
from octo_megatron.lineage.graph import dependencies, topological_order
from octo_megatron.lineage.launch import Failure, ProcessGroup, environment, machine_has_gpu
from octo_megatron.lineage.stopping import Asked
from octo_megatron.parallel import heartbeat
from octo_megatron.parallel.stop import EXIT_CODE, SIGNALS, Stopped

_POLL_SECONDS = 0.1
_SAVING_SECONDS = 60.0
"""Between the first rank that has ended after a signal and the last: all save together."""
_DATA = "data"
"""Name under which the preparation of the data is shown and reported."""


class StageFailed(WorkFailed):
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
    result: Path | None = None
    """File that says that it is done; None: its end is enough."""
    stopped_at: float | None = None
    """When the first of its ranks had ended after a signal."""

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

    def __init__(
        self,
        run: RunFolder,
        lineage: LineageConfig,
        display: Display,
        locks: tuple[int, ...],
        asked: Asked | None = None,
    ):
        """`locks`: descriptors of the run folder's locks, which the workers keep too. `asked`: to stop."""
        self._run, self._lineage, self._display, self._locks = run, lineage, display, locks
        self._asked, self._stopping = asked or Asked(), False
        self._stopped: list[str] = []
        self._env = environment(lineage.threads, machine_has_gpu())
        self._jobs: dict[str, _Job] = {}
        self._failures: list[tuple[str, bool]] = []

    def prepare_data(self) -> None:
        """Make tokenizer, sources and problem sets, as far as they are missing.

        Raises:
            UserError: a source or a problem set cannot be read.
            StageFailed: the preparation crashed, was killed or went silent beyond the deadline.
        """
        for left in ("progress.json", "error.json"):
            (self._run.root / "data" / left).unlink(missing_ok=True)
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
            Stopped: a signal asked for it; what could save has saved.
        """
        order = topological_order(self._lineage)
        try:
            self._loop([name for name in order if name in names and not self._run.node(name).is_done()])
        finally:
            self._end_all()

    def profile(self, name: str, steps: int) -> Path:
        """Record `steps` steps of a train node that can run now; returns the folder with what was recorded.

        Raises:
            UserError, StageFailed, Stopped: as for `run_nodes`.
        """
        node, folder = self._run.node(name), self._run.node(name).root / "profile"
        (folder / "summary.txt").unlink(missing_ok=True)
        command = ["-m", "octo_megatron.lineage.worker", str(self._run.root), name, f"profile:{steps}"]
        try:
            node.forget_last_start()
            self._launch(name, node.root, command, self._lineage.ranks_of(name), folder / "summary.txt")
            self._loop([])
        finally:
            self._end_all()
        return folder

    def _end_all(self) -> None:
        for job in self._jobs.values():
            job.processes.end()
        self._jobs.clear()

    def _loop(self, waiting: list[str]) -> None:
        while (waiting and not self._failures and not self._stopping) or self._jobs:
            if self._asked.yes and not self._stopping:
                self._ask_to_stop()
            if not self._failures and not self._stopping:
                self._start_ready(waiting)
            time.sleep(_POLL_SECONDS)
            for job in list(self._jobs.values()):
                self._check(job)
        if self._failures:
            message, user = self._failures[0]
            raise UserError(message) if user else StageFailed(message)
        if self._stopped or (self._stopping and waiting):
            raise Stopped("; ".join(self._stopped) or "stopped between two nodes")

    def _ask_to_stop(self) -> None:
        self._stopping = True
        if self._jobs:
            self._display.say(f"asked to stop: {', '.join(self._jobs)} will save and end (again: at once)")
        for job in self._jobs.values():
            job.processes.ask_to_stop()

    def _start_ready(self, waiting: list[str]) -> None:
        for name in list(waiting):
            needs = dependencies(self._lineage.nodes[name])
            world_size = self._lineage.ranks_of(name)
            slots = min(world_size, self._lineage.slots)
            free = self._lineage.slots - sum(job.slots for job in self._jobs.values())
            if slots <= free and all(self._run.node(other).is_done() for other in needs):
                waiting.remove(name)
                command = ["-m", "octo_megatron.lineage.worker", str(self._run.root), name]
                node = self._run.node(name)
                node.forget_last_start()
                self._launch(name, node.root, command, world_size, node.done)

    def _launch(
        self, name: str, folder: Path, command: list[str], world_size: int, result: Path | None = None
    ) -> None:
        processes = ProcessGroup(command, world_size, folder / "log.txt", self._env, self._locks)
        slots = min(world_size, self._lineage.slots)
        self._jobs[name] = _Job(name, folder, processes, slots, result=result)
        self._display.started(name)

    def _check(self, job: _Job) -> None:
        if job.refresh():
            self._display.progress(job.name, job.state)
        failure = job.processes.failure()
        if failure is not None and self._was_stopped(failure):
            self._stopping = True
            job.stopped_at = job.stopped_at or time.monotonic()
            if job.processes.finished() or time.monotonic() - job.stopped_at > _SAVING_SECONDS:
                self._end_stopped(job)
        elif failure is not None:
            job.processes.end()
            error = _error_of(job)
            user = error.get("kind") == "user"
            rank = failure.describe(self._role(job, failure.rank))
            if error:
                rank = f"rank {error['rank']}{self._role(job, error['rank'])}: {error['message']}"
            self._end(
                job, f"{self._title(job)} failed {job.where()}, {rank}; log: {job.folder / 'log.txt'}", user
            )
        elif job.processes.finished():
            if job.result is None or job.result.is_file():
                self._end(job)
            else:
                text = (
                    f"{self._title(job)} ended without a result {job.where()}; log: {job.folder / 'log.txt'}"
                )
                self._end(job, text, False)
        elif job.silent_seconds() > self._lineage.deadline_seconds:
            ranks = ", ".join(f"{rank}{self._role(job, rank)}" for rank in job.processes.alive_ranks())
            behind = heartbeat.describe(job.folder / "heartbeat", time.time())
            job.processes.dump_stacks()
            job.processes.end()
            text = (
                f"{self._title(job)} was silent for {self._lineage.deadline_seconds} s {job.where()} and was ended "
                f"(ranks {ranks}){f'; {behind}' if behind else ''}; their stacks are in {job.folder / 'log.txt'}; "
                "raise deadline_seconds if it was only slow"
            )
            self._end(job, text, False)

    def _was_stopped(self, failure: Failure) -> bool:
        """A rank that had nothing to save, or did not yet listen, may end by the signal itself."""
        by_signal = self._stopping and -failure.returncode in SIGNALS
        return failure.returncode == EXIT_CODE or by_signal

    def _end_stopped(self, job: _Job) -> None:
        job.processes.end()
        del self._jobs[job.name]
        error = _error_of(job)
        said = error.get("message") if error.get("kind") == "stopped" else None
        self._stopped.append(said or f"{self._title(job)} was stopped {job.where()}")
        self._display.ended(job.name, f"{job.name:<12} stopped {job.where()}")

    def _role(self, job: _Job, rank: int) -> str:
        """` (samples)` behind the number of a rank that does not train."""
        samples = job.name in self._lineage.nodes and rank >= self._lineage.layout_of(job.name).world_size
        return " (samples)" if samples else ""

    def _title(self, job: _Job) -> str:
        return "preparing the data" if job.name == _DATA else f"node {job.name}"

    def _end(self, job: _Job, failure: str | None = None, user: bool = False) -> None:
        job.processes.end()
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
        return result_figures(read_json(job.result)) if job.result and job.result.suffix == ".json" else ""


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
