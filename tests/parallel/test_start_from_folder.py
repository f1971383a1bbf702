"""A node that starts from a Hugging Face folder has, bit for bit, what the checkpoint of an import would give it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hf_models import make_folder
from ranks import run_ranks

from octo_megatron.config.run_folder import RunFolder
from octo_megatron.convert.import_stage import import_folder

SCRIPT = Path(__file__).with_name("start_from_folder.py")
LAYOUTS: dict[str, tuple[int, dict[str, Any]]] = {
    "one process": (1, {}),
    "TP2": (2, {"tensor_model_parallel_size": 2}),
    "PP2": (2, {"pipeline_model_parallel_size": 2}),
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A folder, a run of its model, and its imports in both precisions with their digests."""
    root = tmp_path_factory.mktemp("start")
    folder = make_folder(root / "hf", "qwen2", shard_size="500KB")
    run = RunFolder(root / "run")
    run.root.mkdir()
    run.hf_config.write_bytes((folder / "config.json").read_bytes())
    checkpoints, digests = {}, {}
    for precision in ("fp32", "bf16"):
        checkpoints[precision] = str(root / precision)
        imported = import_folder(folder, root / precision, precision)
        assert imported
        digests[precision] = imported["weights_sha256"]
    other = make_folder(root / "other", "llama-tied")
    options = {"run": str(run.root), "hf": str(folder), "other": str(other), "checkpoints": checkpoints}
    return {"options": options, "digests": digests}


@pytest.mark.parametrize(
    "layout",
    [pytest.param(name, marks=pytest.mark.slow if ranks > 1 else ()) for name, (ranks, _) in LAYOUTS.items()],
)
def test_a_start_from_a_folder_is_that_of_its_import(layout: str, made: dict[str, Any]) -> None:
    world_size, parallel = LAYOUTS[layout]
    options = {**made["options"], "layout": parallel}
    output = run_ranks(SCRIPT, [json.dumps(options)], world_size).stdout
    line = next(line for line in output.splitlines() if line.startswith("RESULT "))
    results = json.loads(line.removeprefix("RESULT "))
    for precision, sha256 in made["digests"].items():
        found = results[precision]
        assert found["started"] == [sha256] * 3, precision
        assert len(set(found["trained"])) == 1 and found["trained"][0] != sha256, precision
        assert found["reference"] == sha256, precision
        assert found["critic"] == [True] * world_size
        fact = {"step": 0, "hf": options["hf"], "hf_weights_sha256": sha256}
        assert found["facts"] == [fact, fact]
    assert len(results["refused"]) == world_size and len(set(results["refused"])) == 1
    assert "UserError: " in results["refused"][0]
    assert "is another model than the lineage's: its qkv_bias is False, not True" in results["refused"][0]
