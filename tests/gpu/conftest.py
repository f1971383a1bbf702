"""Everything here is marked `gpu` and says what is missing where it cannot run."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from octo_megatron.config.accelerators import version_of

sys.path.append(str(Path(__file__).resolve().parents[1] / "parallel"))


def _missing() -> str | None:
    if not torch.cuda.is_available():
        return "needs a CUDA device: run `pytest -m gpu` on a machine that has one"
    if version_of("transformer-engine") is None:
        return "needs Transformer Engine: pip install 'octo-megatron[gpu]'"
    return None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    missing = _missing()
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.gpu)
            item.add_marker(pytest.mark.timeout(1200))
            if missing:
                item.add_marker(pytest.mark.skip(reason=missing))
