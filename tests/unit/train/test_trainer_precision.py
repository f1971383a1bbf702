"""What the trainer itself refuses, for whoever starts it without `octo run`."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest
import torch

from octo_megatron.config.accelerators import accelerators, version_of
from octo_megatron.config.errors import UserError
from octo_megatron.config.model import read_hf_config
from octo_megatron.config.schema import OptimizerConfig, ParallelConfig
from octo_megatron.parallel import transformer_engine
from octo_megatron.parallel import world as worlds
from octo_megatron.train.megatron import MegatronTrainer

HF_CONFIG = read_hf_config("model/tiny.yaml")
pytestmark = pytest.mark.skipif(
    torch.cuda.is_available() and version_of("transformer-engine") is not None,
    reason="this machine can do FP8; tests/gpu trains in it",
)


@pytest.fixture(scope="module")
def world() -> Iterator[worlds.World]:
    world = worlds.start(ParallelConfig(), seed=1)
    yield world
    world.stop()


@pytest.mark.parametrize("recipe", ["delayed", "tensorwise", "blockwise"])
def test_fp8_is_never_something_else(recipe: str, world: worlds.World) -> None:
    problem = transformer_engine.fp8_problem(recipe)
    assert problem and "FP8 needs" in problem
    with pytest.raises(UserError, match=f"precision fp8-{recipe}: FP8 needs .*; use precision=bf16"):
        MegatronTrainer(HF_CONFIG, ParallelConfig(), f"fp8-{recipe}", OptimizerConfig(), world)


@pytest.mark.parametrize("moments", ["bf16", "fp8"])
def test_small_moments_are_never_fp32(moments: str, world: worlds.World) -> None:
    with pytest.raises(
        UserError, match=f"optimizer.moments {moments} needs Transformer Engine's fused AdamW"
    ):
        MegatronTrainer(HF_CONFIG, ParallelConfig(), "bf16", OptimizerConfig(moments=moments), world)


def test_the_stand_in_for_apex_is_not_taken_for_apex(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transformer_engine, "version_of", lambda name: "2.11.0")
    monkeypatch.delitem(sys.modules, "fused_weight_gradient_mlp_cuda", raising=False)
    transformer_engine.stand_in_for_apex()
    try:
        import fused_weight_gradient_mlp_cuda

        assert fused_weight_gradient_mlp_cuda.wgrad_gemm_accum_fp32 is transformer_engine._add_weight_gradient
        used = {row.what: row for row in accelerators(has_gpu=True)}
        assert used["apex"].found == "not installed"
    finally:
        sys.modules.pop("fused_weight_gradient_mlp_cuda", None)


def test_no_extension_is_asked_for_on_a_cpu() -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a CUDA device")
    assert not transformer_engine.adds_weight_gradients()
    tensor = torch.ones(2)
    assert transformer_engine.high_precision(tensor) is tensor
