"""The output layer and its loss a chunk of tokens at a time, so that the logits of a micro-batch never exist together.

A row of 8,192 tokens over 128,256 words is 4.2 GB of FP32 logits, and the loss makes more than one such tensor. Here a
chunk's logits are formed, reduced to two numbers a token, dropped, and formed again in the backward pass: one more
product with the output weights (2 x hidden x vocabulary operations a token) for chunk/row of the memory.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from octo_megatron.parallel import device  # noqa: F401  (before megatron.core)

from megatron.core.models.gpt import GPTModel
from megatron.core.tensor_parallel.mappings import (
    copy_to_tensor_model_parallel_region,
    gather_from_sequence_parallel_region,
)


class ChunkedHeadGPTModel(GPTModel):
    """GPTModel whose loss is `chunked_cross_entropy`; without labels it gives logits as ever."""

    lm_head_chunk_tokens: int
    """Set by `model/build.py`."""

    def _postprocess(
        self, hidden_states: Tensor, *args: Any, labels: Tensor | None = None, **rest: Any
    ) -> Tensor:
        """hidden_states [t, b, h] (t / ranks with sequence parallelism), labels [b, t] -> loss [b, t] float32."""
        if labels is None or not self.post_process:
            return super()._postprocess(hidden_states, *args, labels=labels, **rest)
        weight = self.output_layer.weight
        if self.share_embeddings_and_output_weights:
            weight = self.shared_embedding_or_output_weight()
        group = self.pg_collection.tp
        if self.config.sequence_parallel:
            hidden = gather_from_sequence_parallel_region(hidden_states, group=group)
        else:
            hidden = copy_to_tensor_model_parallel_region(hidden_states, group=group)
        t, b, h = hidden.shape
        fused = self.config.gradient_accumulation_fusion
        loss = chunked_cross_entropy(
            hidden.reshape(t * b, h), weight, labels.t().reshape(-1), group, self.lm_head_chunk_tokens, fused
        )
        return loss.view(t, b).t().contiguous()


def chunked_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    group: dist.ProcessGroup,
    chunk: int,
    into_main_grad: bool = False,
) -> Tensor:
    """-log softmax(hidden weight^T)[labels], float32 [n], over a vocabulary cut along `group`.

    Args:
        hidden: [n, h], the same on every rank; its gradient is this rank's part of a sum over `group`.
        weight: [vocabulary / ranks, h], this rank's rows.
        labels: int64 [n], in the whole vocabulary.
        chunk: tokens whose logits exist at a time.
        into_main_grad: add the weight's gradient to weight.main_grad (FP32) as Megatron's fused output layer does.
    """
    return _ChunkedCrossEntropy.apply(hidden, weight, labels, group, chunk, into_main_grad)


class _ChunkedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        labels: Tensor,
        group: dist.ProcessGroup,
        chunk: int,
        into_main_grad: bool,
    ) -> Tensor:
        words = weight.shape[0]
        local = labels - group.rank() * words
        mine = (local >= 0) & (local < words)
        local = local.clamp(0, words - 1)
        top, total, chosen = (hidden.new_empty(len(hidden), dtype=torch.float32) for _ in range(3))
        for part in _parts(len(hidden), chunk):
            logits = _logits(hidden[part], weight)
            chosen[part] = logits.gather(1, local[part, None])[:, 0]
            top[part] = logits.max(dim=1).values
            total[part] = logits.sub_(top[part, None]).exp_().sum(dim=1)
        if group.size() > 1:
            highest = top.clone()
            dist.all_reduce(highest, dist.ReduceOp.MAX, group=group)
            sums = torch.stack([total * (top - highest).exp(), torch.where(mine, chosen, 0.0)])
            dist.all_reduce(sums, group=group)
            (total, chosen), top = sums, highest
        ctx.save_for_backward(hidden, weight, local, mine, top, total)
        ctx.chunk, ctx.into_main_grad = chunk, into_main_grad
        return total.log() - (chosen - top)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        """gradient: [n]. d loss / d logits = softmax - onehot(label)."""
        hidden, weight, local, mine, top, total = ctx.saved_tensors
        d_hidden = torch.empty_like(hidden)
        d_weight = None if ctx.into_main_grad else torch.zeros_like(weight, dtype=torch.float32)
        for part in _parts(len(hidden), ctx.chunk):
            d = _logits(hidden[part], weight).sub_(top[part, None]).exp_().div_(total[part, None])
            d.scatter_add_(1, local[part, None], -mine[part, None].float())
            d = d.mul_(gradient[part, None]).to(weight.dtype)
            torch.mm(d, weight, out=d_hidden[part])
            if d_weight is None:
                _add_to_main_grad(hidden[part], d, weight)
            elif d.dtype == torch.float32:
                d_weight.addmm_(d.t(), hidden[part])
            else:
                d_weight += d.t() @ hidden[part]
        if d_weight is not None:
            return d_hidden, d_weight.to(weight.dtype), None, None, None, None
        return d_hidden, _placeholder(weight), None, None, None, None


def _parts(count: int, chunk: int) -> list[slice]:
    return [slice(start, min(start + chunk, count)) for start in range(0, count, chunk)]


def _logits(hidden: Tensor, weight: Tensor) -> Tensor:
    """float32 [chunk, words], a tensor of its own."""
    return (hidden @ weight.t()).float()


def _add_to_main_grad(hidden: Tensor, d: Tensor, weight: Any) -> None:
    import fused_weight_gradient_mlp_cuda  # apex's extension, or its stand-in of `model/fusions.py`

    fused_weight_gradient_mlp_cuda.wgrad_gemm_accum_fp32(hidden, d.contiguous(), weight.main_grad)


def _placeholder(weight: Any) -> Tensor:
    """What autograd gets for a gradient that already lies in main_grad; zero where Megatron will add it once more."""
    weight.grad_added_to_main_grad = True
    make = torch.zeros if getattr(weight, "zero_out_wgrad", False) else torch.empty
    return make(weight.shape, dtype=weight.dtype, device=weight.device)
