"""The CPU layer spec: what Megatron-Core's local (non-TE) spec lacks.

Its norm refuses sequence parallelism, and its attention refuses context parallelism and packed documents.
On GPU, Transformer Engine brings all three (`model/build.py` chooses).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from octo_megatron.model.batch import context_indices
from octo_megatron.parallel import device  # noqa: F401  (before megatron.core)

from megatron.core import parallel_state, tensor_parallel
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.transformer import TransformerConfig
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules, get_num_layers_to_build

_LENGTH_STEP = 32
"""Documents whose lengths differ by less than this many tokens may be attended to in one call."""


class RMSNorm(torch.nn.RMSNorm):
    """RMSNorm that allows sequence parallelism: the mark on the weight makes Megatron all-reduce its gradient.

    In BF16 it rounds where `transformers` and vLLM do, before the multiplication with the weight and after it.
    """

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float = 1e-5, **_: Any):
        super().__init__(hidden_size, eps=eps)
        self.weight.sequence_parallel = config.sequence_parallel  # type: ignore[attr-defined]

    def forward(self, x: Tensor) -> Tensor:
        """x [..., hidden] -> the same shape and type."""
        if x.dtype == torch.float32:
            return super().forward(x)
        return F.rms_norm(x.float(), self.normalized_shape, eps=self.eps).to(x.dtype) * self.weight


class QkvLinear(tensor_parallel.ColumnParallelLinear):
    """Query, key and value; in BF16 on one tensor-parallel rank a bias is added before the product is rounded.

    That is where `transformers` adds it; Megatron's own layer rounds the product and then the sum.
    """

    def _forward_impl(
        self,
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        allreduce_dgrad: bool = False,
        sequence_parallel: bool = False,
        **rest: Any,
    ) -> Tensor:
        if bias is not None and input.dtype != torch.float32 and not (allreduce_dgrad or sequence_parallel):
            return F.linear(input, weight, bias)
        return super()._forward_impl(
            input=input,
            weight=weight,
            bias=bias,
            allreduce_dgrad=allreduce_dgrad,
            sequence_parallel=sequence_parallel,
            **rest,
        )


class DocumentAttention(MegatronModule):
    """Causal attention within each document of a packed row (PyTorch SDPA).

    With context parallelism the keys and values of all ranks are gathered and put in order first.
    """

    def __init__(
        self,
        config: TransformerConfig,
        layer_number: int,
        attn_mask_type: Any,
        attention_type: str,
        attention_dropout: float | None = None,
        softmax_scale: float | None = None,
        cp_comm_type: str | None = None,
        pg_collection: Any = None,
        **_: Any,
    ):
        super().__init__(config=config)
        self.scale = softmax_scale
        self.context_group = (
            pg_collection.cp if pg_collection is not None else parallel_state.get_context_parallel_group()
        )
        self.dropout = config.attention_dropout if attention_dropout is None else attention_dropout

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        attn_mask_type: Any = None,
        attention_bias: Tensor | None = None,
        packed_seq_params: PackedSeqParams | None = None,
    ) -> Tensor:
        """query [t, heads, d], key and value [t, groups, d] -> [t, heads, d]."""
        if packed_seq_params is None:
            raise ValueError(
                "DocumentAttention takes packed rows only: pass packed_seq_params (model/batch.py)"
            )
        cu_seqlens = packed_seq_params.cu_seqlens_q
        if self.context_group.size() > 1:
            return self._across_ranks(query, key, value, cu_seqlens)
        starts, lengths = cu_seqlens[:-1].tolist(), (cu_seqlens[1:] - cu_seqlens[:-1]).tolist()
        if len(starts) == 1:
            return self._attend(query[None], key[None], value[None], causal=True)[0]
        rows, outputs = [], []
        for members, padded in _by_length(lengths):
            own = torch.tensor([lengths[i] for i in members])
            offsets = torch.arange(padded)
            # [documents, padded]: what lies past a document's end repeats some row, and causal attention never
            # lets a document's own tokens see it
            index = (torch.tensor([starts[i] for i in members])[:, None] + offsets).clamp(max=len(query) - 1)
            real = offsets < own[:, None]
            outputs.append(self._attend(query[index], key[index], value[index], causal=True)[real])
            rows.append(index[real])
        return torch.cat(outputs)[torch.cat(rows).argsort()]

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, causal: bool, mask: Tensor | None = None) -> Tensor:
        """[documents, length, heads, d] -> the same; one set of heads may serve several query heads."""
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        dropout = self.dropout if self.training else 0.0
        if k.shape[1] != q.shape[1]:
            k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (k, v))

        def run() -> Tensor:
            return F.scaled_dot_product_attention(
                q, k, v, attn_mask=mask, is_causal=causal, scale=self.scale, dropout_p=dropout
            )

        if dropout == 0.0:
            return run().transpose(1, 2)
        with tensor_parallel.get_cuda_rng_tracker().fork():
            return run().transpose(1, 2)

    def _across_ranks(self, q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor) -> Tensor:
        """Queries of this rank against the keys of all; document and order kept by an explicit mask."""
        size, rank = self.context_group.size(), self.context_group.rank()
        held = [context_indices(cu_seqlens, size, r) for r in range(size)]
        order = torch.cat(held).argsort()
        k, v = (
            tensor_parallel.gather_from_sequence_parallel_region(x, group=self.context_group)[order]
            for x in (k, v)
        )
        position = torch.arange(k.shape[0])
        document = torch.bucketize(position, cu_seqlens[1:].long(), right=True)
        mine = held[rank]
        mask = (document[mine, None] == document[None]) & (mine[:, None] >= position[None])
        return self._attend(q[None], k[None], v[None], causal=False, mask=mask)[0]

    def sharded_state_dict(self, prefix: str = "", sharded_offsets: tuple = (), metadata: Any = None) -> dict:
        """No parameters, nothing to save."""
        return {}


def _by_length(lengths: list[int]) -> list[tuple[list[int], int]]:
    """Documents of nearly equal length together: (their indices, the length to pad them to).

    Attention costs the square of the padded length, so documents of 10 and of 200 tokens are not padded alike.
    """
    groups: dict[int, list[int]] = {}
    for index, length in enumerate(lengths):
        groups.setdefault(-(-length // _LENGTH_STEP), []).append(index)
    return [(members, max(lengths[i] for i in members)) for _, members in sorted(groups.items())]


def cpu_block_spec(config: TransformerConfig, vp_stage: int | None = None) -> TransformerBlockSubmodules:
    """Megatron's local layers with the norm and the attention above."""
    layer = get_gpt_layer_local_spec(normalization=config.normalization, qk_layernorm=config.qk_layernorm)
    parts = layer.submodules
    parts.input_layernorm = parts.pre_mlp_layernorm = RMSNorm
    parts.self_attention.submodules.core_attention = DocumentAttention
    parts.self_attention.submodules.linear_qkv = QkvLinear
    if config.qk_layernorm:
        parts.self_attention.submodules.q_layernorm = RMSNorm
        parts.self_attention.submodules.k_layernorm = RMSNorm
    count = get_num_layers_to_build(config, vp_stage=vp_stage)
    return TransformerBlockSubmodules(layer_specs=[layer] * count, layer_norm=RMSNorm)
