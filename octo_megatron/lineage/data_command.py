"""Verbs that work on data, in a process of their own: the command line itself loads no tokenizer."""

from __future__ import annotations

import subprocess
import sys


def run_data_command(name: str, arguments: list[str]) -> int:
    """Run `octo_megatron.data.<name>` with `arguments`, on our terminal; returns its exit code."""
    return subprocess.run([sys.executable, "-m", f"octo_megatron.data.{name}", *arguments]).returncode
