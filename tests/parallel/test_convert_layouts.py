"""Any layout imports, exports and reads others' checkpoints with the same bits and logits as one process."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hf_models import make_folder
from ranks import run_ranks

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


def convert(
    world_size: int, layout: dict[str, Any], root: Path, hf: Path, loads: Path | None
) -> list[dict[str, Any]]:
    """Run the script over all models; `root` takes its results, `loads` holds the one-process checkpoints."""
    models = []
    for name in NAMES:
        paths = {"hf": hf / name, "save": root / name / "checkpoint", "out": root / name / "hf"}
        if loads:
            paths |= {"load": loads / name / "checkpoint", "out_loaded": root / name / "hf-loaded"}
        models.append({key: str(path) for key, path in paths.items()})
    options = json.dumps({"layout": layout, "models": models})
    output = run_ranks(SCRIPT, [options], world_size).stdout
    line = next(line for line in output.splitlines() if line.startswith("RESULT "))
    return json.loads(line.removeprefix("RESULT "))


@pytest.fixture(scope="module")
def one_process(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, list[dict[str, Any]]]:
    root = tmp_path_factory.mktemp("one")
    for name in NAMES:
        make_folder(root / "source" / name, name)
    return root, root / "source", convert(1, {}, root / "alone", root / "source", None)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layout_converts_like_one_process(
    layout: str, one_process: tuple[Path, Path, list[dict[str, Any]]], tmp_path: Path
) -> None:
    root, source, reference = one_process
    world_size, parallel = LAYOUTS[layout]
    results = convert(world_size, parallel, tmp_path, source, root / "alone")
    for name, result, alone in zip(NAMES, results, reference, strict=True):
        assert result["import"] < 5e-5, name
        assert result["export"] < 5e-5, name
        assert result["weights_sha256"] == alone["weights_sha256"], name
        expected = (root / "alone" / name / "hf/model.safetensors").read_bytes()
        assert (tmp_path / name / "hf/model.safetensors").read_bytes() == expected, name
        assert (tmp_path / name / "hf-loaded/model.safetensors").read_bytes() == expected, name
