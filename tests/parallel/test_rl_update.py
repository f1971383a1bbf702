"""The same answers give the same gradient norms however they are cut: micro-batches, packing, layouts; critic too."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from ranks import run_ranks

pytest.importorskip("vllm", reason="needs vllm: `make env` installs it")
pytestmark = pytest.mark.slow
SCRIPT = Path(__file__).with_name("rl_update_norms.py")
LAYOUTS: dict[str, dict[str, Any]] = {
    "TP2+SP": {"tensor_model_parallel_size": 2, "sequence_parallel": True},
    "PP2": {"pipeline_model_parallel_size": 2},
    "CP2": {"context_parallel_size": 2},
    "DP2": {"data_parallel_size": 2},
    "DP2 overlapped": {"data_parallel_size": 2, "overlap_grad_reduce": True},
}


def norms(folder: Path, world_size: int = 1, **options: Any) -> dict[str, list[float]]:
    output = run_ranks(SCRIPT, [json.dumps({"folder": str(folder), **options})], world_size).stdout
    line = next(line for line in output.splitlines() if line.startswith("RESULT "))
    return json.loads(line.removeprefix("RESULT "))


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, list[float]]]:
    """The checkpoints, and the figures of one process with all answers in one row."""
    folder = tmp_path_factory.mktemp("norms")
    figures = norms(folder, capacity=4096, make=True)
    assert all(found[2] == 1 for found in figures.values())
    assert len({round(found[0], 3) for found in figures.values()}) == len(figures)  # the losses differ
    return folder, figures


def check(figures: dict[str, list[float]], expected: dict[str, list[float]]) -> None:
    for name, (norm, loss, _, *others) in expected.items():
        assert figures[name][0] == pytest.approx(norm, abs=1e-5), name
        assert figures[name][1] == pytest.approx(loss, abs=1e-5), name
        # of the critic: sums over hundreds of tokens, so relative
        assert figures[name][3:] == pytest.approx(others, rel=1e-5, abs=1e-5), name


def test_micro_batching_changes_nothing(one: tuple[Path, dict[str, list[float]]]) -> None:
    folder, expected = one
    figures = norms(folder, capacity=48)
    assert all(found[2] > 4 for found in figures.values())
    check(figures, expected)


@pytest.mark.parametrize("name", LAYOUTS)
def test_layouts_change_nothing(name: str, one: tuple[Path, dict[str, list[float]]]) -> None:
    folder, expected = one
    check(norms(folder, 2, layout=LAYOUTS[name], capacity=96), expected)


def test_an_untied_model_gives_its_critic_all_but_the_head(tmp_path: Path) -> None:
    """The script asserts that the critic's head is zero after its start, and that it learns."""
    assert norms(tmp_path, capacity=4096, make=True, tied=False)["critic"][0] > 0
