"""`octo import` and `octo export`: conversion outside a lineage, in a process with a stage's environment."""

from __future__ import annotations

import os
import subprocess
import sys

from octo_megatron.lineage.launch import environment, machine_has_gpu


def convert(arguments: list[str]) -> int:
    """Run `octo_megatron.convert.command` with `arguments`, on our terminal; returns its exit code."""
    threads = len(os.sched_getaffinity(0))
    env = {**os.environ, **environment(threads, machine_has_gpu())}
    return subprocess.run(
        [sys.executable, "-m", "octo_megatron.convert.command", *arguments], env=env
    ).returncode
