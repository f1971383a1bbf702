"""Run the real command in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path


def octo(
    *arguments: str | Path,
    cwd: Path,
    env: dict[str, str] | None = None,
    before: Callable[[], None] | None = None,
    python: list[str] | None = None,
) -> subprocess.CompletedProcess[str]:
    """`octo ARGUMENTS`; `before` runs in the child before it starts (limits), `python` replaces the interpreter."""
    command = [*(python or [sys.executable]), "-m", "octo_megatron.cli.main", *map(str, arguments)]
    return subprocess.run(
        command,
        cwd=cwd,
        env={**os.environ, "COLUMNS": "200", **(env or {})},
        capture_output=True,
        text=True,
        timeout=300,
        preexec_fn=before,
    )


def refusal(done: subprocess.CompletedProcess[str]) -> str:
    """The one line of a refused command: exit code 2, `octo: error: ...`, no traceback."""
    assert done.returncode == 2, (done.returncode, done.stdout, done.stderr)
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("octo: error: "), done.stderr
    return lines[0]
