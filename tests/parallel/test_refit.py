"""Refits between processes: bit for bit what gathering and cutting gives, and one flipped bit stops them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from ranks import run_ranks

pytestmark = pytest.mark.slow
SCRIPT = Path(__file__).with_name("refit_ranks.py")
LAYOUTS: list[dict[str, Any]] = [
    {"tensor_model_parallel_size": 2},
    {"pipeline_model_parallel_size": 2, "virtual_pipeline_model_parallel_size": 2},
    {"data_parallel_size": 2},
]


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("layout", LAYOUTS, ids=["TP2", "PP2xVPP2", "DP2"])
def test_fast_and_slow_agree_and_a_flipped_bit_is_found(layout: dict[str, Any], tied: bool) -> None:
    flip = "model.layers.1.mlp.up_proj.weight"
    options = {"layout": layout, "tied": tied, "bucket_bytes": 4096, "flip": flip}
    output = run_ranks(SCRIPT, [json.dumps(options)], 2).stdout
    ranks = json.loads(
        next(x for x in output.splitlines() if x.startswith("RESULT ")).removeprefix("RESULT ")
    )
    for rank in ranks:
        for name, found in rank.items():
            if name == "rank":
                continue
            assert found["same"], name
            assert found["received"] == found["planned"], name
            # the other rank's tensors are whole
            last = rank["rank"] == 1
            assert bool(found["error"]) == last, name
            if last:
                assert f"rank 1: tensor {flip}" in found["error"]
                assert "training ParallelConfig" in found["error"] and "engine EngineLayout" in found["error"]
