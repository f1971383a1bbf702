"""Start and disturb the real command, for the tests of this folder."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil

from octo_megatron.config.run_folder import RunFolder


class OctoRun:
    """`octo ARGUMENTS` in a process group of its own, its output in a file."""

    def __init__(self, *arguments: str | Path, output: Path):
        self.output = output
        with output.open("ab") as file:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "octo_megatron.cli.main", *map(str, arguments)],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env={**os.environ, "COLUMNS": "200"},
                # a shell lets what it starts in the background ignore SIGINT, and a child inherits that
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
            )

    def wait(self, seconds: float = 540.0) -> int:
        return self.process.wait(timeout=seconds)

    def said(self) -> str:
        return self.output.read_text(encoding="utf-8", errors="replace")

    def family(self) -> list[psutil.Process]:
        """This process and everything it started, by whatever way."""
        try:
            own = psutil.Process(self.process.pid)
            return [own, *own.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    def workers(self, node: str) -> list[psutil.Process]:
        """The ranks of a node, by rank."""
        ranks = [
            p
            for p in self.family()
            if p.cmdline()[-1:] == [node] and "octo_megatron.lineage.worker" in p.cmdline()
        ]
        return sorted(ranks, key=lambda process: int(process.environ()["RANK"]))

    def wait_for(self, condition_file: Path, contains: str = "", seconds: float = 300.0) -> bool:
        """Wait until a file is there and contains a text; False when the command ended before."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if condition_file.is_file() and contains in condition_file.read_text(encoding="utf-8"):
                return True
            if self.process.poll() is not None:
                return False
            time.sleep(0.02)
        raise AssertionError(
            f"{condition_file} without '{contains}' for {seconds} s; output: {self.said()[-2000:]}"
        )


def all_gone(processes: list[psutil.Process], seconds: float = 15.0) -> bool:
    """Whether all of them end in time (zombies have ended)."""
    _, alive = psutil.wait_procs(processes, timeout=seconds)
    return not [process for process in alive if process.status() != psutil.STATUS_ZOMBIE]


def weights(root: Path) -> dict[str, str]:
    """Node -> digest of its final weights."""
    results = {
        path.parent.name: RunFolder(root).node(path.parent.name).result()
        for path in root.glob("nodes/*/done.json")
    }
    return {name: str(done["weights_sha256"]) for name, done in results.items() if "weights_sha256" in done}
