"""Operations and rates by hand, and rows in the loggers that are installed."""

from __future__ import annotations

import importlib.util
import json
import math
from pathlib import Path

import pytest

from octo_megatron.config.errors import UserError
from octo_megatron.config.model import read_hf_config
from octo_megatron.config.run_folder import NodeContext, RunFolder
from octo_megatron.config.schema import LineageConfig, TrainNode
from octo_megatron.model.families import family_of
from octo_megatron.train.flops import peak_tflops, training_flops
from octo_megatron.train.metrics import Metrics, memory_gib, speed


def _llama_1b() -> dict[str, object]:
    return {
        **read_hf_config("model/tiny.yaml"),
        "vocab_size": 128256,
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 64,
    }


def test_operations_of_a_1b_model_are_those_of_the_baseline_table() -> None:
    """54,697 tokens/s at length 8192 were 494 TFLOP/s, by the same formula in another program."""
    shape = family_of(_llama_1b()).shape(_llama_1b())
    a_token = training_flops(shape, [8192]) / 8192
    assert a_token * 54697 / 1e12 == pytest.approx(494, abs=0.6)


def test_attention_costs_the_square_of_each_document_not_of_the_row() -> None:
    shape = family_of(_llama_1b()).shape(_llama_1b())
    whole, halves = training_flops(shape, [2048]), training_flops(shape, [1024, 1024])
    assert whole - halves == pytest.approx(6 * 16 * 2048 * (2048**2 - 2 * 1024**2))
    assert training_flops(shape, []) == 0


def test_rates() -> None:
    got = speed(tokens=1000, flops=4e12, seconds=2.0, devices=4)
    assert got["tokens_per_second"] == 500 and got["tflops_per_second"] == 0.5
    assert peak_tflops("NVIDIA H100 80GB HBM3") == 989.4 and peak_tflops("NVIDIA H100 PCIe") == 756.5
    assert peak_tflops("AMD EPYC") is None
    assert 0.01 < memory_gib() < 1000


def _context(folder: Path, loggers: list[str]) -> NodeContext:
    node = TrainNode(kind="train", tokens=4096, mixture={"web": 1.0})
    lineage = LineageConfig(name="logged", model="model/tiny.yaml", nodes={"base": node}, loggers=loggers)
    return NodeContext(RunFolder(folder), lineage, "base")


def _write_and_resume(folder: Path, loggers: list[str]) -> NodeContext:
    """Steps 1 to 4, then again from step 2 on: a killed run that went on."""
    ctx = _context(folder, loggers)
    for resume, steps, loss in ((0, (1, 2, 3, 4), 5.0), (2, (3, 4, 5), 7.0)):
        metrics = Metrics(ctx, resume, enabled=True)
        for step in steps:
            metrics.write({"step": step, "loss": loss + step, "skipped": "text"})
        metrics.close()
    return ctx


def test_json_lines_always(tmp_path: Path) -> None:
    ctx = _write_and_resume(tmp_path, [])
    rows = [json.loads(line) for line in ctx.folder.metrics.read_text().splitlines()]
    assert [(row["step"], row["loss"]) for row in rows] == [(1, 6), (2, 7), (3, 10), (4, 11), (5, 12)]


def test_other_ranks_write_nothing(tmp_path: Path) -> None:
    metrics = Metrics(_context(tmp_path, ["mlflow"]), 0, enabled=False)
    metrics.write({"step": 1, "loss": 1.0})
    metrics.close()
    assert not list(tmp_path.iterdir())


def test_tensorboard(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="needs tensorboard: pip install tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    ctx = _write_and_resume(tmp_path, ["tensorboard"])
    events = EventAccumulator(str(ctx.folder.root / "tensorboard"))
    events.Reload()
    assert events.Tags()["scalars"] == ["loss"]
    assert [(e.step, e.value) for e in events.Scalars("loss")] == [(1, 6), (2, 7), (3, 10), (4, 11), (5, 12)]


def test_wandb_offline(tmp_path: Path) -> None:
    pytest.importorskip("wandb", reason="needs wandb: pip install wandb")
    ctx = _write_and_resume(tmp_path, ["wandb-offline"])
    assert list((ctx.folder.root / "wandb").glob("offline-run-*/*.wandb"))


def test_mlflow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow", reason="needs mlflow: pip install mlflow")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    ctx = _write_and_resume(tmp_path, ["mlflow"])
    run = json.loads((ctx.folder.root / "mlflow.json").read_text())["run_id"]
    history = mlflow.MlflowClient().get_metric_history(run, "loss")
    assert {m.step for m in history} == {1, 2, 3, 4, 5} and not any(math.isnan(m.value) for m in history)


def test_one_that_is_not_installed_is_named(tmp_path: Path) -> None:
    missing = [name for name in ("mlflow", "wandb") if importlib.util.find_spec(name) is None]
    if not missing:
        pytest.skip("needs a machine without mlflow or without wandb: here both are installed")
    with pytest.raises(
        UserError, match=f"{missing[0]} needs the package {missing[0]}, which is not installed"
    ):
        Metrics(_context(tmp_path, [missing[0]]), 0, enabled=True)
    with pytest.raises(UserError, match="there is no 'tensorbord'"):
        _context(tmp_path, ["tensorbord"])
