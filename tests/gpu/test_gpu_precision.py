"""Precisions, moments, recomputation and the chunked output layer with Transformer Engine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from octo_megatron.checkpoint import store
from octo_megatron.config.schema import ComputeConfig, OptimizerConfig, ParallelConfig
from octo_megatron.model.batch import Document, PackedBatch, pack
from octo_megatron.parallel import transformer_engine
from octo_megatron.parallel import world as worlds
from octo_megatron.train.megatron import MegatronTrainer, next_token_loss

LAYOUT = ParallelConfig()
HF_CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 1024,
    "hidden_size": 512,
    "intermediate_size": 1024,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 64,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "hidden_act": "silu",
    "initializer_range": 0.02,
    "tie_word_embeddings": True,
}
STEPS = 30


def batch(index: int) -> PackedBatch:
    """Two documents whose next token is a fixed function of the last one, so that there is something to learn."""
    documents = []
    for length in (700, 323):  # no multiple of what FP8 takes: the trainer pads
        start = torch.randint(0, 1024, (1,), generator=torch.Generator().manual_seed(1000 * index + length))
        tokens = [int(start)]
        for _ in range(length):
            tokens.append((tokens[-1] * 5 + 7) % 1024)
        text = torch.tensor(tokens)
        documents.append(Document(text[:-1], text[1:], torch.ones(length)))
    return pack(documents, LAYOUT)


def losses(precision: str, load: Path | None = None, save: Path | None = None, **options: Any) -> list[float]:
    """Loss of each step of a small model from the same weights."""
    world = worlds.start(LAYOUT, seed=3)
    try:
        optimizer = OptimizerConfig(moments=options.pop("moments", "fp32"))
        compute = ComputeConfig(**options)
        trainer = MegatronTrainer(HF_CONFIG, LAYOUT, precision, optimizer, world, compute=compute)
        first = int(store.load(load, trainer)["step"]) if load else 0
        out = []
        for step in range(first, STEPS):
            out.append(
                trainer.train_step([batch(2 * step), batch(2 * step + 1)], next_token_loss, 1e-3).sums["loss"]
            )
            if save and step + 1 == STEPS // 2:
                store.save(save, trainer, {"step": step + 1})
        return out
    finally:
        world.stop()


@pytest.fixture(scope="module")
def bf16() -> list[float]:
    return losses("bf16")


def check(got: list[float], want: list[float], near: float) -> None:
    assert want[-1] < 0.8 * want[0], "the yardstick itself learns"
    assert got[-1] < 0.85 * got[0]
    assert sum(abs(a - b) for a, b in zip(got, want, strict=True)) / len(want) < near * want[0]


def fp8_or_skip(precision: str) -> None:
    problem = transformer_engine.fp8_problem(precision.removeprefix("fp8-"))
    if problem:
        pytest.skip(problem)


@pytest.mark.parametrize("fp8_params", [False, True], ids=["", "fp8 params"])
@pytest.mark.parametrize("precision", ["fp8-delayed", "fp8-tensorwise", "fp8-blockwise"])
def test_fp8_learns_as_bf16_does(precision: str, fp8_params: bool, bf16: list[float]) -> None:
    fp8_or_skip(precision)
    check(losses(precision, fp8_params=fp8_params), bf16, 0.05)


def test_first_and_last_layers_in_bf16(bf16: list[float]) -> None:
    fp8_or_skip("fp8-tensorwise")
    check(losses("fp8-tensorwise", bf16_first_layers=1, bf16_last_layers=1), bf16, 0.05)


@pytest.mark.parametrize("moments", ["bf16", "fp8"])
def test_small_moments_learn_as_fp32_ones_do(moments: str, bf16: list[float]) -> None:
    check(losses("bf16", moments=moments), bf16, 0.03)


@pytest.mark.parametrize("options", [
    {"recompute": "full"},
    {"recompute": "selective"},
    {"recompute": "selective", "recompute_modules": ["mlp"]},
    {"recompute": "selective", "recompute_modules": ["layernorm"]},
    {"lm_head_chunk_tokens": 256},
], ids=str)  # fmt: skip
def test_memory_measures_move_the_loss_by_noise_only(options: dict[str, Any], bf16: list[float]) -> None:
    check(losses("bf16", **options), bf16, 0.01)


@pytest.mark.parametrize(
    ("precision", "options"),
    [
        ("bf16", {}),
        ("bf16", {"moments": "bf16"}),
        ("fp8-delayed", {}),
        ("fp8-tensorwise", {"fp8_params": True}),
    ],
    ids=str,
)
def test_a_resumed_run_goes_on(precision: str, options: dict[str, Any], tmp_path: Path) -> None:
    if precision.startswith("fp8"):
        fp8_or_skip(precision)
    folder = tmp_path / f"step_{STEPS // 2:08d}"
    whole = losses(precision, save=folder, **options)
    resumed = losses(precision, load=folder, **options)
    assert resumed == pytest.approx(whole[STEPS // 2 :], abs=0.02 * whole[0])


def test_the_stand_in_for_apex_adds_into_fp32() -> None:
    import fused_weight_gradient_mlp_cuda

    inputs, gradient = (torch.randn(256, n, device="cuda").bfloat16() for n in (128, 192))
    total = torch.randn(192, 128, device="cuda")
    want = total + gradient.float().t() @ inputs.float()
    fused_weight_gradient_mlp_cuda.wgrad_gemm_accum_fp32(inputs, gradient, total)
    assert total.dtype == torch.float32 and (total - want).abs().max() < 1e-2
