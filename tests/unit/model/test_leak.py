"""Documents of one packed row do not see each other."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from octo_megatron.config.schema import ParallelConfig
from octo_megatron.model.batch import Document, PackedBatch, pack
from octo_megatron.model.build import build_model
from octo_megatron.parallel import world as worlds

from megatron.core.packed_seq_params import PackedSeqParams

HF_CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "hidden_act": "silu",
    "initializer_range": 0.2,
    "tie_word_embeddings": False,
}
LAYOUT = ParallelConfig()


@pytest.fixture(scope="module")
def model() -> Iterator[torch.nn.Module]:
    world = worlds.start(LAYOUT, seed=5)
    yield build_model(HF_CONFIG, LAYOUT, "fp32")[0].eval()
    world.stop()


def tokens(length: int, seed: int) -> torch.Tensor:
    return torch.randint(0, 64, (length,), generator=torch.Generator().manual_seed(seed))


def row(*documents: torch.Tensor) -> PackedBatch:
    return pack([Document(d, d, torch.ones(len(d))) for d in documents], LAYOUT)


def logits(model: torch.nn.Module, batch: PackedBatch) -> torch.Tensor:
    """[t, vocabulary]"""
    params = PackedSeqParams(
        "thd",
        batch.cu_seqlens,
        batch.cu_seqlens,
        max_seqlen_q=batch.max_seqlen,
        max_seqlen_kv=batch.max_seqlen,
    )
    with torch.no_grad():
        return model(batch.tokens, batch.position_ids, None, packed_seq_params=params)[0]


@pytest.mark.parametrize(("a", "b"), [(20, 28), (3, 90), (300, 5), (200, 7)])
def test_changing_one_document_moves_no_bit_of_another(model: torch.nn.Module, a: int, b: int) -> None:
    tail = [tokens(4, seed) for seed in range(40)]  # many short ones: exercises both ways of batching them
    other = tokens(b, 2)
    one = logits(model, row(tokens(a, 1), other, *tail))
    two = logits(model, row((tokens(a, 1) + 7) % 64, other, *tail))
    assert not torch.equal(one[:a], two[:a])
    assert torch.equal(one[a:], two[a:])


def test_packed_equals_alone(model: torch.nn.Module) -> None:
    a, b = tokens(20, 1), tokens(28, 2)
    packed = logits(model, row(a, b))
    alone = torch.cat([logits(model, row(a)), logits(model, row(b))])
    assert (packed - alone).abs().max() < 1e-5


def test_later_tokens_do_not_reach_back(model: torch.nn.Module) -> None:
    a = tokens(30, 3)
    changed = torch.cat([a[:20], (a[20:] + 1) % 64])
    assert torch.equal(logits(model, row(a))[:20], logits(model, row(changed))[:20])
