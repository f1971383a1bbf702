"""Every layout gives the one-process numbers, and a resumed run is the uninterrupted one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from ranks import run_ranks

SCRIPT = Path(__file__).with_name("train_some_steps.py")
pytestmark = pytest.mark.slow

LAYOUTS: dict[str, dict[str, Any]] = {
    "TP2": {"tensor_model_parallel_size": 2},
    "TP2+SP": {"tensor_model_parallel_size": 2, "sequence_parallel": True},
    "PP2": {"pipeline_model_parallel_size": 2},
    "PP2xVPP2": {"pipeline_model_parallel_size": 2, "virtual_pipeline_model_parallel_size": 2},
    "CP2": {"context_parallel_size": 2},
    "DP2": {"data_parallel_size": 2},
    "DP2 overlapped": {"data_parallel_size": 2, "overlap_grad_reduce": True},
}


def train(world_size: int = 1, **options: Any) -> dict[str, Any]:
    """The figures that rank 0 of a job printed."""
    output = run_ranks(SCRIPT, [json.dumps(options)], world_size).stdout
    line = next(line for line in output.splitlines() if line.startswith("RESULT "))
    return json.loads(line.removeprefix("RESULT "))


@pytest.fixture(scope="module")
def one_process(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A checkpoint after 2 steps of one process, and its undisturbed figures up to step 8."""
    folder = tmp_path_factory.mktemp("one") / "step_00000002"
    return folder, train(steps=8, save=str(folder), save_at=2)


@pytest.mark.parametrize("name", LAYOUTS)
def test_layout_matches_one_process(name: str, one_process: tuple[Path, dict[str, Any]]) -> None:
    folder, reference = one_process
    figures = train(2, layout=LAYOUTS[name], steps=8, load=str(folder))
    assert figures["parameters"] == reference["parameters"]
    expected = reference["rows"][2:]
    assert [row["step"] for row in figures["rows"]] == [row["step"] for row in expected]
    for got, want in zip(figures["rows"], expected, strict=True):
        assert got["loss"] == pytest.approx(want["loss"], abs=2e-6)
        assert got["grad_norm"] == pytest.approx(want["grad_norm"], abs=1e-5)
    for got, want in zip(figures["logprobs"], reference["logprobs"], strict=True):
        assert got == pytest.approx(want, abs=2e-5)


@pytest.mark.parametrize(
    ("world_size", "layout", "precision"),
    [(1, {}, "fp32"), (1, {}, "bf16"), (2, LAYOUTS["TP2"], "fp32"), (2, LAYOUTS["DP2"], "fp32")],
    ids=["one process", "one process bf16", "TP2", "DP2"],
)
def test_resume_is_bitwise(world_size: int, layout: dict[str, Any], precision: str, tmp_path: Path) -> None:
    folder = tmp_path / "step_00000004"
    options = {"layout": layout, "precision": precision, "steps": 8}
    whole = train(world_size, **options, save=str(folder), save_at=4)
    resumed = train(world_size, **options, load=str(folder))
    assert len(resumed["rows"]) == 4
    assert resumed["rows"] == whole["rows"][4:]
    assert resumed["logprobs"] == whole["logprobs"]


def test_untied_head_over_pipeline_stages(tmp_path: Path) -> None:
    folder = tmp_path / "step_00000002"
    reference = train(tied=False, steps=4, save=str(folder), save_at=2)
    figures = train(2, tied=False, layout=LAYOUTS["PP2"], steps=4, load=str(folder))
    assert figures["parameters"] == reference["parameters"]
    for got, want in zip(figures["rows"], reference["rows"][2:], strict=True):
        assert got["loss"] == pytest.approx(want["loss"], abs=2e-6)
