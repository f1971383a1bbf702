"""Documents of one packed row do not see each other on a GPU either."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from octo_megatron.config.schema import ParallelConfig
from octo_megatron.model.batch import Document, PackedBatch, pack
from octo_megatron.model.build import build_model
from octo_megatron.parallel import world as worlds
from octo_megatron.parallel.device import DEVICE

from megatron.core.packed_seq_params import PackedSeqParams

HF_CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 512,
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "hidden_act": "silu",
    "initializer_range": 0.05,
    "tie_word_embeddings": False,
}
LAYOUT = ParallelConfig()


@pytest.fixture(scope="module")
def model() -> Iterator[torch.nn.Module]:
    world = worlds.start(LAYOUT, seed=5)
    yield build_model(HF_CONFIG, LAYOUT, "bf16")[0].eval()
    world.stop()


def tokens(length: int, seed: int) -> torch.Tensor:
    return torch.randint(0, 512, (length,), generator=torch.Generator().manual_seed(seed))


def logits(model: torch.nn.Module, *documents: torch.Tensor) -> torch.Tensor:
    """float32 [t, vocabulary] of documents packed into one row."""
    batch: PackedBatch = pack([Document(d, d, torch.ones(len(d))) for d in documents], LAYOUT)
    cu_seqlens = batch.cu_seqlens.to(DEVICE)
    params = PackedSeqParams(
        "thd", cu_seqlens, cu_seqlens, max_seqlen_q=batch.max_seqlen, max_seqlen_kv=batch.max_seqlen
    )
    with torch.no_grad():
        out = model(batch.tokens.to(DEVICE), batch.position_ids.to(DEVICE), None, packed_seq_params=params)
    return out[0].float()


@pytest.mark.parametrize(("a", "b"), [(100, 28), (3, 900), (700, 500)])
def test_changing_one_document_moves_another_by_no_more_than_noise(
    model: torch.nn.Module, a: int, b: int
) -> None:
    """The control: how far BF16 moves document B when only its place in the row changes, beside the same text."""
    first, other = tokens(a, 1), tokens(b, 2)
    one = logits(model, first, other)
    two = logits(model, (first + 7) % 512, other)
    control = (logits(model, other, first)[:b] - one[a:]).abs().max()
    moved = (two[a:] - one[a:]).abs().max()
    assert (two[:a] - one[:a]).abs().max() > 20 * max(float(control), 1e-3), "the change itself is visible"
    assert moved <= control, f"document B moved by {moved}, the control by {control}"


def test_packed_is_alone_up_to_noise(model: torch.nn.Module) -> None:
    a, b = tokens(200, 1), tokens(280, 2)
    packed, alone = logits(model, a, b), torch.cat([logits(model, a), logits(model, b)])
    spread = packed.std()
    assert (packed - alone).abs().max() < 0.05 * spread
