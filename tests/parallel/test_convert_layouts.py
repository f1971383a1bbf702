"""Any layout reads what was streamed, fills itself from a folder, and writes what exports to the same bits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hf_models import make_folder
from ranks import run_ranks
from safetensors.torch import load_file

from octo_megatron.convert.export_stage import Wish, export_folder
from octo_megatron.convert.import_stage import import_folder

SCRIPT = Path(__file__).with_name("convert_models.py")
pytestmark = pytest.mark.slow

NAMES = ("llama-tied", "llama3-rope", "qwen2", "qwen3")
LAYOUTS: dict[str, tuple[int, dict[str, Any]]] = {
    "TP2+SP": (2, {"tensor_model_parallel_size": 2, "sequence_parallel": True}),
    "PP2": (2, {"pipeline_model_parallel_size": 2}),
    "PP2xVPP2": (2, {"pipeline_model_parallel_size": 2, "virtual_pipeline_model_parallel_size": 2}),
    "CP2": (2, {"context_parallel_size": 2}),
    "DP2": (2, {"data_parallel_size": 2}),
    "TP2xPP2": (4, {"tensor_model_parallel_size": 2, "pipeline_model_parallel_size": 2}),
}


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Path, str]]:
    """Name -> (folder, its streamed checkpoint, the digest of its weights)."""
    root, out = tmp_path_factory.mktemp("sources"), {}
    for name in NAMES:
        folder, checkpoint = make_folder(root / name / "hf", name), root / name / "checkpoint"
        imported = import_folder(folder, checkpoint)
        assert imported
        out[name] = (folder, checkpoint, imported["weights_sha256"])
    return out


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layout_converts_like_one_process(
    layout: str, sources: dict[str, tuple[Path, Path, str]], tmp_path: Path
) -> None:
    world_size, parallel = LAYOUTS[layout]
    models = [
        {"hf": str(folder), "load": str(checkpoint), "save": str(tmp_path / name / "checkpoint")}
        for name, (folder, checkpoint, _) in sources.items()
    ]
    output = run_ranks(SCRIPT, [json.dumps({"layout": parallel, "models": models})], world_size).stdout
    line = next(line for line in output.splitlines() if line.startswith("RESULT "))
    results = json.loads(line.removeprefix("RESULT "))
    for name, result in zip(NAMES, results, strict=True):
        folder, _, sha256 = sources[name]
        assert result["difference"] < 5e-5, name
        assert result["loaded"] == result["filled"] == sha256, name
        export_folder(tmp_path / name / "checkpoint", tmp_path / name / "hf", Wish(gate=False))
        before, after = (
            load_file(folder / "model.safetensors"),
            load_file(tmp_path / name / "hf/model.safetensors"),
        )
        assert before.keys() == after.keys()
        assert all(before[key].equal(after[key]) for key in before), name
