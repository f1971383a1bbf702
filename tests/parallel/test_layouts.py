"""Every layout gives the one-process numbers, recomputation moves no bit, and a resumed run is the uninterrupted one.

The runs of a table share their processes (importing the engines costs more than twenty steps of this model): one
launch of 1, of 2 and of 4 processes does them all, and each test looks at one run's figures.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from ranks import run_ranks

SCRIPT = Path(__file__).with_name("train_some_steps.py")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]  # the first test waits for all runs

SAVED, LAST = 2, 22
"""The shared checkpoint is of step 2 (the optimizer has a state then); twenty steps follow."""

TP2 = {"tensor_model_parallel_size": 2}
SP = TP2 | {"sequence_parallel": True}
PP2 = {"pipeline_model_parallel_size": 2}
VPP2 = PP2 | {"virtual_pipeline_model_parallel_size": 2}
CP2 = {"context_parallel_size": 2}
DP2 = {"data_parallel_size": 2}
OVERLAPPED = DP2 | {"overlap_grad_reduce": True}
TWO: dict[str, dict[str, Any]] = {
    "TP2": TP2,
    "TP2+SP": SP,
    "PP2": PP2,
    "PP2xVPP2": VPP2,
    "CP2": CP2,
    "DP2": DP2,
    "DP2 overlapped": OVERLAPPED,
}
FOUR: dict[str, dict[str, Any]] = {
    "TP2xPP2": TP2 | PP2,
    "TP2xDP2+SP": SP | DP2,
    "TP2xCP2+SP": SP | CP2,
    "PP2xDP2": PP2 | DP2,
}
MODELS: dict[str, dict[str, Any]] = {
    "tied": {},
    # at 1e-2 these amplify rounding from step to step, in one process as in several
    "untied": {"tied": False, "lr": 1e-3},
    "bf16": {"precision": "bf16", "lr": 1e-3},
}
FULL, SELECTIVE = {"recompute": "full"}, {"recompute": "selective"}
MLP, CHUNKED = {**SELECTIVE, "recompute_modules": ["core_attn", "mlp"]}, {"lm_head_chunk_tokens": 24}

RUNS: dict[int, dict[str, dict[str, Any]]] = {
    1: {
        "full recompute": {"compute": FULL},
        "selective recompute": {"compute": SELECTIVE},
        "mlp recompute": {"compute": MLP},
        "bf16, full recompute": {"compute": FULL, "model": "bf16"},
        "micro-batches of 2": {"micro_batch_size": 2},
        "micro-batches of 4": {"micro_batch_size": 4},
        "chunked head": {"compute": CHUNKED},
        "untied, chunked head": {"compute": CHUNKED, "model": "untied"},
    },
    2: {name: {"layout": layout} for name, layout in TWO.items()}
    | {f"untied, {name}": {"layout": TWO[name], "model": "untied"} for name in ("TP2+SP", "PP2xVPP2", "DP2")}
    | {
        f"bf16, {name}": {"layout": TWO[name], "model": "bf16"}
        for name in ("TP2+SP", "PP2", "DP2 overlapped")
    }
    | {
        "TP2+SP, full recompute": {"layout": SP, "compute": FULL},
        "TP2+SP, selective recompute": {"layout": SP, "compute": SELECTIVE},
        "PP2xVPP2, full recompute": {"layout": VPP2, "compute": FULL},
        "CP2, selective recompute": {"layout": CP2, "compute": SELECTIVE},
        "TP2, chunked head": {"layout": TP2, "compute": CHUNKED},
        "TP2+SP, chunked head": {"layout": SP, "compute": CHUNKED},
        "untied, PP2, chunked head": {"layout": PP2, "compute": CHUNKED, "model": "untied"},
        "DP2, micro-batches of 2": {"layout": DP2, "micro_batch_size": 2},
    },
    4: {name: {"layout": layout} for name, layout in FOUR.items()},
}
TOLERANCE = {"fp32": (2e-6, 1e-5), "bf16": (5e-3, 5e-2)}
"""Of losses and of gradient norms."""

Figures = dict[str, Any]


def train_all(world_size: int, runs: list[dict[str, Any]]) -> list[Figures]:
    """The figures that rank 0 printed for each run, all in the same processes."""
    output = run_ranks(SCRIPT, [json.dumps({"runs": runs})], world_size, deadline_seconds=1200).stdout
    lines = [line for line in output.splitlines() if line.startswith("RESULT ")]
    return [json.loads(line.removeprefix("RESULT ")) for line in lines]


def train(world_size: int = 1, **options: Any) -> Figures:
    """The figures that rank 0 of a job printed."""
    return train_all(world_size, [options])[0]


@pytest.fixture(scope="module")
def one_process(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Figures]]:
    """For each model its checkpoint of step 2, and the undisturbed figures of one process."""
    folders = {name: tmp_path_factory.mktemp(name) / "step_00000002" for name in MODELS}
    runs = [
        {**options, "steps": LAST, "save": str(folders[name]), "save_at": SAVED}
        for name, options in MODELS.items()
    ]
    return {name: (folders[name], f) for name, f in zip(MODELS, train_all(1, runs), strict=True)}


@pytest.fixture(scope="module")
def table(one_process: dict[str, tuple[Path, Figures]]) -> dict[str, Figures]:
    """The figures of every run, each from its model's checkpoint."""
    figures: dict[str, Figures] = {}
    for world_size, runs in RUNS.items():
        options = []
        for run in runs.values():
            name = run.get("model", "tied")
            rest = {key: value for key, value in run.items() if key != "model"}
            options.append({**MODELS[name], **rest, "steps": LAST, "load": str(one_process[name][0])})
        figures |= dict(zip(runs, train_all(world_size, options), strict=True))
    return figures


@pytest.mark.parametrize("name", [name for runs in RUNS.values() for name in runs])
def test_matches_one_process(
    name: str, table: dict[str, Figures], one_process: dict[str, tuple[Path, Figures]]
) -> None:
    run = next(runs[name] for runs in RUNS.values() if name in runs)
    model = run.get("model", "tied")
    figures, (_, reference) = table[name], one_process[model]
    loss, norm = TOLERANCE[MODELS[model].get("precision", "fp32")]
    assert figures["parameters"] == reference["parameters"]
    expected = reference["rows"][SAVED:]
    assert [row["step"] for row in figures["rows"]] == list(range(SAVED + 1, LAST + 1))
    for got, want in zip(figures["rows"], expected, strict=True):
        assert got["loss"] == pytest.approx(want["loss"], abs=loss)
        assert got["grad_norm"] == pytest.approx(want["grad_norm"], abs=norm)
    for got, want in zip(figures["logprobs"], reference["logprobs"], strict=True):
        assert got == pytest.approx(want, abs=2e-5 if norm < 1e-4 else 0.2)


@pytest.mark.parametrize(
    ("name", "plain"),
    [
        ("TP2+SP, full recompute", "TP2+SP"),
        ("TP2+SP, selective recompute", "TP2+SP"),
        ("PP2xVPP2, full recompute", "PP2xVPP2"),
        ("CP2, selective recompute", "CP2"),
    ],
)
def test_recomputation_moves_no_bit(name: str, plain: str, table: dict[str, Figures]) -> None:
    assert table[name]["rows"] == table[plain]["rows"]
    assert table[name]["logprobs"] == table[plain]["logprobs"]


@pytest.mark.parametrize(
    ("name", "model"),
    [
        ("full recompute", "tied"),
        ("selective recompute", "tied"),
        ("mlp recompute", "tied"),
        ("bf16, full recompute", "bf16"),
    ],
)
def test_recomputation_in_one_process_moves_no_bit(
    name: str, model: str, table: dict[str, Figures], one_process: dict[str, tuple[Path, Figures]]
) -> None:
    assert table[name]["rows"] == one_process[model][1]["rows"][SAVED:]


@pytest.mark.parametrize(
    ("world_size", "layout", "precision"),
    [(1, {}, "fp32"), (1, {}, "bf16"), (2, TP2, "fp32"), (2, DP2, "fp32")],
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
