"""FP8 where it cannot be had is refused in one line, never trained in something else."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from octo_megatron.cluster import precision
from octo_megatron.cluster.doctor import examine
from octo_megatron.config.accelerators import accelerators, version_of
from octo_megatron.config.errors import UserError
from octo_megatron.config.loading import from_plain

sys.path.append(str(Path(__file__).resolve().parents[1] / "cli"))
from octo_command import octo, refusal

PLAIN: dict[str, Any] = {
    "name": "small",
    "model": "model/tiny.yaml",
    "sources": {"web": {"builtin": "web", "tokens": 4000}},
    "nodes": {"base": {"kind": "train", "tokens": 2048, "mixture": {"web": 1.0}}},
}


def lineage(**changes: Any) -> Any:
    return from_plain({**PLAIN, **changes})


@pytest.mark.skipif(
    version_of("transformer-engine") is not None, reason="Transformer Engine is installed here"
)
@pytest.mark.parametrize("value", ["fp8-delayed", "fp8-tensorwise", "fp8-blockwise"])
def test_fp8_without_transformer_engine(value: str, tmp_path: Path) -> None:
    line = refusal(octo("run", "tiny.yaml", f"precision={value}", "--out", tmp_path / "run", cwd=tmp_path))
    assert f"precision {value}: FP8 needs Transformer Engine, which is not installed" in line
    assert line.endswith("use precision=bf16")
    assert not (tmp_path / "run").exists(), "nothing may be written before the refusal"


@pytest.mark.skipif(
    version_of("transformer-engine") is not None, reason="Transformer Engine is installed here"
)
def test_small_moments_without_transformer_engine() -> None:
    node = {**PLAIN["nodes"]["base"], "optimizer": {"moments": "bf16"}}
    with pytest.raises(UserError, match=r"nodes.base: optimizer.moments bf16: .* use optimizer.moments=fp32"):
        precision.check_precisions(lineage(nodes={"base": node}), ["base"])


@pytest.mark.parametrize(
    ("value", "capability", "message"),
    [
        ("fp8-delayed", None, "FP8 needs a CUDA device, and this machine has none"),
        ("fp8-delayed", 8.0, "FP8 needs compute capability 8.9, and this device has 8.0"),
        ("fp8-blockwise", 8.9, "FP8 needs compute capability 9.0, and this device has 8.9"),
        ("fp8-tensorwise", 9.0, None),
        ("bf16", None, None),
    ],
)
def test_fp8_on_a_device_that_cannot(
    monkeypatch: pytest.MonkeyPatch, value: str, capability: float | None, message: str | None
) -> None:
    monkeypatch.setattr(precision, "version_of", lambda name: "2.11.0")
    if message is None:
        precision.check_precisions(lineage(precision=value), ["base"], lambda: capability)
        return
    with pytest.raises(UserError, match=message):
        precision.check_precisions(lineage(precision=value), ["base"], lambda: capability)


def test_a_node_may_have_a_precision_of_its_own() -> None:
    node = {**PLAIN["nodes"]["base"], "precision": "fp8-blockwise", "compute": {"bf16_first_layers": 1}}
    made = lineage(nodes={"base": node}, precision="bf16")
    assert (made.precision_of("base"), made.dtype_of("base")) == ("fp8-blockwise", "bf16")
    assert made.compute_of("base").bf16_layers == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"precision": "fp16"}, "precision is 'fp16'; use fp32, bf16, fp8-delayed, fp8-tensorwise or fp8-blockwise"),
        ({"compute": {"recompute": "some"}}, "compute.recompute is 'some'; use none, selective or full"),
        ({"compute": {"recompute_modules": ["moe"]}}, "use core_attn, mlp and layernorm"),
        ({"precision": "fp8-delayed", "compute": {"bf16_last_layers": 1}}, "fp8-delayed keeps no layers in BF16"),
    ],
)  # fmt: skip
def test_values_that_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        lineage(**changes)


def test_the_doctor_says_what_the_trainer_uses(tmp_path: Path) -> None:
    rows = {f.what: f.value for f in examine(tmp_path)}
    for found in accelerators(has_gpu=version_of("transformer-engine") is not None):
        assert rows[f"trainer: {found.what}"].startswith(found.found)


def test_each_accelerator_has_its_use_or_its_stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    from octo_megatron.config import accelerators as module

    monkeypatch.setattr(
        module, "version_of", lambda *names: "2.11.0" if names[0] == "transformer-engine" else None
    )
    used = {row.what: row.used for row in accelerators(has_gpu=True)}
    assert "layers, attention, cross entropy, AdamW" in used["transformer-engine"]
    assert "not needed: Transformer Engine" in used["apex"]
