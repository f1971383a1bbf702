"""The layouts of tests/parallel with NCCL and Transformer Engine, as far as this machine's GPUs go."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from ranks import run_ranks
from test_layouts import FOUR, SCRIPT, TWO

GPUS = torch.cuda.device_count()
LAYOUTS = {name: (2, layout) for name, layout in TWO.items()} | {
    name: (4, layout) for name, layout in FOUR.items()
}


def train(world_size: int, **options: Any) -> list[float]:
    arguments = [json.dumps({"precision": "bf16", "lr": 1e-3, "steps": 12, **options})]
    output = run_ranks(SCRIPT, arguments, world_size, deadline_seconds=600).stdout
    line = next(line for line in output.splitlines() if line.startswith("RESULT "))
    return [row["loss"] for row in json.loads(line.removeprefix("RESULT "))["rows"]]


@pytest.fixture(scope="module")
def one_gpu(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, list[float]]:
    folder = str(tmp_path_factory.mktemp("one") / "step_00000002")
    return folder, train(1, save=folder, save_at=2)


@pytest.mark.parametrize("name", LAYOUTS)
def test_layout_matches_one_gpu_up_to_bf16(name: str, one_gpu: tuple[str, list[float]]) -> None:
    world_size, layout = LAYOUTS[name]
    if world_size > GPUS:
        pytest.skip(f"needs {world_size} GPUs, this machine has {GPUS}")
    assert train(world_size, layout=layout, load=one_gpu[0]) == pytest.approx(one_gpu[1][2:], abs=1e-2)
