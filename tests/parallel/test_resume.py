"""A resumed run is the undisturbed one bit for bit; under another layout its figures are the same within rounding."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from ranks import run_ranks

from octo_megatron.checkpoint import manifest
from octo_megatron.lineage.launch import free_port

SCRIPT = Path(__file__).with_name("resume_runs.py")
pytestmark = pytest.mark.slow

TP2 = {"tensor_model_parallel_size": 2}
PP2xVPP2 = {"pipeline_model_parallel_size": 2, "virtual_pipeline_model_parallel_size": 2}
DP2 = {"data_parallel_size": 2}
OVERLAPPED = {"data_parallel_size": 2, "overlap_grad_reduce": True}

ONE = {
    "one": {},
    "one dropout": {"dropout": 0.1},
    "one bf16": {"precision": "bf16"},
}
TWO = {
    "TP2": {"layout": TP2},
    "TP2 dropout": {"layout": TP2, "dropout": 0.1},
    "PP2xVPP2": {"layout": PP2xVPP2},
    "DP2 overlapped": {"layout": OVERLAPPED},
    "DP2 bf16 dropout": {"layout": DP2, "precision": "bf16", "dropout": 0.1},
}


def train(folder: Path, runs: list[dict[str, Any]], world_size: int) -> dict[str, Any]:
    ports: list[int] = []
    while len(ports) < len(runs):
        ports = list({*ports, free_port()})
    options = {"folder": str(folder), "ports": ports, "runs": runs}
    output = run_ranks(SCRIPT, [json.dumps(options)], world_size, deadline_seconds=480).stdout
    line = next(line for line in output.splitlines() if line.startswith("RESULT "))
    return json.loads(line.removeprefix("RESULT "))


def _twice(cases: dict[str, Any]) -> list[dict[str, Any]]:
    """Each case undisturbed with a checkpoint at 10, and again from there."""
    runs = []
    for name, case in cases.items():
        runs.append({"name": name, **case, "until": 20, "save_at": [5, 7, 10]})
        runs.append({"name": f"{name}, resumed", **case, "load": name, "until": 20})
    return runs


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return train(tmp_path_factory.mktemp("one"), _twice(ONE), 1)


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    chain = [
        {
            "name": "as PP2",
            "layout": {"pipeline_model_parallel_size": 2},
            "load": "TP2",
            "until": 15,
            "save_at": [15],
        },
        {"name": "as DP2", "layout": DP2, "load": "as PP2", "until": 20},
    ]
    return train(tmp_path_factory.mktemp("two"), _twice(TWO) + chain, 2)


@pytest.mark.parametrize("name", [*ONE, *TWO])
def test_resume_is_bitwise(name: str, request: pytest.FixtureRequest) -> None:
    figures = request.getfixturevalue("one" if name in ONE else "two")
    whole, resumed = figures[name], figures[f"{name}, resumed"]
    assert [row["step"] for row in resumed["rows"]] == list(range(11, 21))
    assert resumed["rows"] == whole["rows"][10:]
    assert resumed["weights"] == whole["weights"]


def test_dropout_did_drop(one: dict[str, Any], two: dict[str, Any]) -> None:
    """Otherwise the comparison above would say nothing about the random generators."""
    assert one["one dropout"]["rows"][0]["loss"] != one["one"]["rows"][0]["loss"]
    assert two["TP2 dropout"]["rows"][0]["loss"] != two["TP2"]["rows"][0]["loss"]


def test_from_tensor_to_pipeline_to_data_parallel(two: dict[str, Any]) -> None:
    got = two["as PP2"]["rows"] + two["as DP2"]["rows"]
    assert [row["step"] for row in got] == list(range(11, 21))
    for row, want in zip(got, two["TP2"]["rows"][10:], strict=True):
        assert row["loss"] == pytest.approx(want["loss"], abs=2e-6)
        assert row["grad_norm"] == pytest.approx(want["grad_norm"], abs=1e-5)


def test_a_damaged_checkpoint_is_named_and_the_one_before_it_used(tmp_path: Path) -> None:
    whole = train(tmp_path, [{"name": "run", "until": 20, "save_at": [10, 15, 17]}], 1)["run"]
    newest, older = (manifest.step_folder(tmp_path / "run", step) for step in (17, 15))
    damaged = newest / "__0_0.distcp"
    content = bytearray(damaged.read_bytes())
    content[len(content) // 2] ^= 1
    damaged.write_bytes(content)
    (older / "random_00000.safetensors").unlink()
    resumed = train(tmp_path, [{"name": "again", "load": "run", "until": 20}], 1)["again"]
    assert resumed["rows"] == whole["rows"][10:]
    assert f"{newest}: __0_0.distcp is damaged: its sha256 is" in resumed["said"][0]
    assert f"{older}: random_00000.safetensors is missing; trying the one before it" in resumed["said"][1]
