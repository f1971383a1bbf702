"""A real SLURM on this machine for the tests of this folder: `box/` has the scripts, this the deadlines."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

BOX = Path(__file__).parent / "box"
REPOSITORY = Path(__file__).resolve().parents[2]
INSTALL = "apt-get install --no-install-recommends slurmctld slurmd slurm-client munge iproute2"
ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "DEADLINE")


def missing() -> str:
    """Why there can be no cluster here, empty when there can."""
    path = f"{os.environ['PATH']}:/usr/sbin:/sbin"
    tools = [t for t in ("slurmctld", "slurmd", "sbatch", "munged", "ip") if not shutil.which(t, path=path)]
    if tools:
        return f"needs SLURM ({', '.join(tools)} not found): {INSTALL}"
    if os.geteuid() != 0:
        return "needs root (namespaces for the simulated nodes): run the tests as root, for example in a container"
    return ""


class Cluster:
    """Three nodes `node1`..`node3` and a login host, all namespaces of this machine; ends by itself."""

    def __init__(self, nodes: int = 3, max_seconds: int = 2400):
        started, self.nodes = time.monotonic(), [f"node{i}" for i in range(1, nodes + 1)]
        command = [str(BOX / "start.sh"), "--nodes", str(nodes), "--max-seconds", str(max_seconds)]
        self.root = Path(_run(command, 60).stdout.strip())
        self.start_seconds = time.monotonic() - started

    def stop(self) -> None:
        _run([str(BOX / "stop.sh"), str(self.root), "--remove"], 60)

    def run(self, *command: str | Path, on: str = "", deadline_seconds: float = 60, check: bool = True,
            **env: str) -> subprocess.CompletedProcess[str]:  # fmt: skip
        """A command on the login host, or on a node."""
        words = [str(self.root / "box"), *(["-N", on] if on else []), *map(str, command)]
        return _run(words, deadline_seconds, check, env)

    def sbatch(self, *arguments: str | Path, **env: str) -> str:
        """Submit; returns the job id."""
        return self.run("sbatch", "--parsable", *arguments, **env).stdout.strip()

    def job(self, job: str) -> dict[str, str]:
        """Fields of `scontrol show job`; empty while slurmctld does not answer."""
        done = self.run("scontrol", "show", "job", "-o", job, check=False)
        return dict(re.findall(r"(\S+?)=(\S*)", done.stdout)) if done.returncode == 0 else {}

    def wait(self, job: str, seconds: float) -> dict[str, str]:
        """Wait until a job has ended for good."""
        self.until(lambda: self.job(job).get("JobState", "") in ENDED, seconds, f"job {job} to end")
        return self.job(job)

    def until(self, condition: Callable[[], bool], seconds: float, what: str) -> None:
        """Wait for a condition; beyond the deadline the queue and the ends of the logs are shown."""
        deadline = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > deadline:
                queue = self.run("scontrol", "show", "job", "-o", check=False).stdout[-4000:]
                raise AssertionError(f"waited {seconds:.0f} s for {what}; queue:\n{queue}\n{self.logs()}")
            time.sleep(0.2)

    def node(self, verb: str, name: str) -> None:
        """off (power cut), on, kill-slurmd, start-slurmd."""
        _run([str(BOX / "node.sh"), str(self.root), verb, name], 60)

    def node_state(self, name: str) -> str:
        return self.run("sinfo", "-h", "-n", name, "-p", "batch", "-o", "%T").stdout.strip()

    def tidy(self) -> None:
        """Cancel what is queued or runs, boot what is off."""
        self.run("scancel", "--user=root", check=False)
        states = {name: self.node_state(name) for name in self.nodes}
        for name in (name for name, state in states.items() if "down" in state or "*" in state):
            self.node("on", name)
        self.until(lambda: not self.run("squeue", "-h").stdout.strip(), 60, "the queue to be empty")
        self.until(lambda: all(self.node_state(n) == "idle" for n in self.nodes), 60, "all nodes to be idle")

    def logs(self) -> str:
        """The ends of the daemons' logs."""
        return "\n".join(f"{path.name}: {_end(path)}" for path in sorted(self.root.glob("log/slurm*.log")))


def site_file(path: Path, **more: str) -> Path:
    """What a user's site.env says, for these nodes: the environment of these tests, no GPUs, one process a node."""
    values = {
        "OCTO_HOME": str(REPOSITORY),
        "OCTO_RUNTIME": "venv",
        "OCTO_VENV": str(Path(sys.executable).parent.parent),
        "OCTO_GPUS_PER_NODE": "1",
        "OCTO_CPU_ONLY": "1",
        "OCTO_PREFLIGHT": "0",
        "OCTO_EXCLUDE_BAD_NODES": "0",
        **more,
    }
    path.write_text("".join(f"export {name}={value}\n" for name, value in values.items()))
    return path


class OnOneMachine:
    """`octo run LINEAGE` in the background, outside of the cluster."""

    def __init__(self, lineage: Path, root: Path, *words: str):
        self.root, self._log = root, root.with_suffix(".txt")
        command = [
            sys.executable,
            "-m",
            "octo_megatron.cli.main",
            "run",
            str(lineage),
            *words,
            "--out",
            str(root),
        ]
        with self._log.open("w") as log:
            self._process = subprocess.Popen(
                command, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )

    def weights(self, node: str, seconds: float = 500) -> str:
        """Digest of a node's final weights, once it is done."""
        done = self.root / "nodes" / node / "done.json"
        deadline = time.monotonic() + seconds
        while not done.is_file():
            running = self._process.poll() is None
            assert running and time.monotonic() < deadline, (
                f"no {node} after {seconds} s: {self._log.read_text()}"
            )
            time.sleep(0.2)
        return weights_of(self.root, node)

    def wait(self, seconds: float = 400) -> None:
        assert self._process.wait(timeout=seconds) == 0, self._log.read_text()

    def end(self) -> None:
        if self._process.poll() is None:
            self._process.terminate()
            self._process.wait(timeout=30)


def weights_of(root: Path, node: str) -> str:
    return str(json.loads((root / "nodes" / node / "done.json").read_text())["weights_sha256"])


def step_of(root: Path, node: str) -> int:
    """Last step in a node's metrics, 0 while there is none."""
    metrics = root / "nodes" / node / "metrics.jsonl"
    rows = metrics.read_text().split("\n")[:-1] if metrics.is_file() else []
    return max((int(json.loads(row)["step"]) for row in rows), default=0)


def events(root: Path, node: str) -> list[dict[str, Any]]:
    """Starts and ends of a node's jobs."""
    path = root / "nodes" / node / "jobs.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def _end(path: Path) -> str:
    return path.read_text(errors="replace")[-1500:]


def _run(
    command: list[str], deadline_seconds: float, check: bool = True, env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        command, env={**os.environ, **(env or {})}, capture_output=True, text=True, timeout=deadline_seconds
    )
    assert not check or done.returncode == 0, f"{command}: {done.stdout[-3000:]}{done.stderr[-6000:]}"
    return done
