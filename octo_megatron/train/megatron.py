"""One trainer for mid-training and RL: Megatron's model, optimizer and schedules behind three calls."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from octo_megatron.config.accelerators import accelerators
from octo_megatron.config.schema import ComputeConfig, OptimizerConfig, ParallelConfig
from octo_megatron.config.schema.precision import fp8_recipe, is_fp8
from octo_megatron.model.batch import (
    PackedBatch,
    context_indices,
    extended,
    length_multiples,
    slice_for_context_rank,
)
from octo_megatron.model.build import build_model, transformer_config
from octo_megatron.model.vocab_parallel import ENTROPY, logprobs_and_entropy
from octo_megatron.parallel.device import DEVICE, ON_CUDA
from octo_megatron.parallel.world import World
from octo_megatron.train.optimizer import check_moments, distributed_adam

from megatron.core import parallel_state
from megatron.core.distributed import (
    DistributedDataParallel,
    DistributedDataParallelConfig,
    finalize_model_grads,
)
from megatron.core.optimizer.clip_grads import clip_grad_by_total_norm_fp32
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.pipeline_parallel import get_forward_backward_func

_ROW_MULTIPLE = {"fp8-delayed": 16, "fp8-tensorwise": 16, "fp8-blockwise": 128}
"""Tokens of a row on one rank, where a precision asks for a multiple (Transformer Engine's FP8 products)."""

TokenLoss = Callable[[Tensor, PackedBatch], tuple[Tensor, Tensor, dict[str, Tensor]]]
"""(logprobs or values [1, t_local], batch) -> (sum of the loss, tokens that count, figures to add up)."""

Verdict = Callable[[float, float], str | None]
"""(mean loss a token, gradient norm) -> None to take the step, or why not; the same on every rank."""


@dataclass(frozen=True)
class StepResult:
    """What one optimizer step did."""

    grad_norm: float
    """Before clipping."""
    sums: dict[str, float]
    """The loss function's figures added over micro-batches and data-parallel ranks; "loss" is the mean a token."""
    skipped: str | None = None
    """Why the weights were left as they were; None: they were updated."""
    seconds: dict[str, float] = field(default_factory=dict)
    """Of this rank: forward_backward (up to the gradient norm, where the host waits) and optimizer."""


class MegatronTrainer:
    """This rank's shard of a model with its optimizer."""

    def __init__(
        self,
        hf_config: dict[str, Any],
        layout: ParallelConfig,
        precision: str,
        optimizer: OptimizerConfig,
        world: World,
        dropout: float = 0.0,
        compute: ComputeConfig | None = None,
        value_head: bool = False,
    ):
        """Args:
            dropout: of attention weights and of what each block adds to the residual stream.
            value_head: the model gives a value a token instead of logits (a critic); losses then get the values where
                they otherwise get log-probabilities.

        Raises:
            UserError: this machine cannot do the precision or the moments.
        """
        self.hf_config, self.layout, self.precision, self.world = hf_config, layout, precision, world
        self.optimizer_config, self.compute = optimizer, compute or ComputeConfig()
        self.value_head = value_head
        self.config = transformer_config(hf_config, layout, precision, self.compute)
        self.config.attention_dropout = self.config.hidden_dropout = dropout
        check_moments(optimizer)
        if world.is_first and ON_CUDA:
            for found in accelerators(ON_CUDA):
                print(f"{found.what} {found.found}: {found.used}", flush=True)
        chunk = 0 if value_head else self.compute.lm_head_chunk_tokens
        plain = build_model(hf_config, layout, precision, self.config, chunk, value_head)
        fp8_params = is_fp8(precision) and self.compute.fp8_params
        ddp = DistributedDataParallelConfig(
            use_distributed_optimizer=True,
            overlap_grad_reduce=layout.overlap_grad_reduce,
            overlap_param_gather=layout.overlap_grad_reduce,
            grad_reduce_in_fp32=True,
            fp8_param_gather=fp8_params,
        )
        self.models = [
            DistributedDataParallel(self.config, ddp, model, disable_bucketing=index > 0)
            for index, model in enumerate(plain)
        ]
        if layout.overlap_grad_reduce:
            no_sync = [model.no_sync for model in self.models]
            self.config.no_sync_func = no_sync if len(no_sync) > 1 else no_sync[0]
        recipe = fp8_recipe(precision) if fp8_params else None
        self.optimizer = distributed_adam(
            self.models, self.config, optimizer, ddp.overlap_param_gather, recipe
        )
        self.config.finalize_model_grads_func = finalize_model_grads
        self.config.grad_scale_func = self.optimizer.scale_loss
        self._names: dict[TokenLoss, list[str]] = {}
        self.synchronise_replicas()

    @property
    def chunks(self) -> list[torch.nn.Module]:
        """The GPTModels without their data-parallel wrapping, their weights complete; collective.

        With `overlap_grad_reduce` a step leaves each rank its own shard and gathers the others' in the next
        forward pass, too late for whoever saves, exports or digests them now.
        """
        if self.layout.overlap_grad_reduce:
            for model in self.models:
                model.start_param_sync(force_sync=True)
        return [model.module for model in self.models]

    @property
    def parameter_count(self) -> int:
        """Parameters of the whole model, each counted once."""
        local = 0
        for model in self.chunks:
            for name, p in model.named_parameters():
                if getattr(p, "shared", False) or (name == "output_layer.weight" and _tied_copy(model)):
                    continue
                split = getattr(p, "tensor_model_parallel", False)
                if split or parallel_state.get_tensor_model_parallel_rank() == 0:
                    local += p.numel()
        total = torch.tensor([local], dtype=torch.int64, device=DEVICE)
        dist.all_reduce(total, group=parallel_state.get_model_parallel_group())
        return int(total.item())

    def synchronise_replicas(self) -> None:
        """After the weights were written from outside: same on every data-parallel rank, and in the optimizer."""
        for model in self.models:
            model.broadcast_params()
        self.optimizer.reload_model_params()

    def train_step(
        self,
        batches: Sequence[PackedBatch],
        loss: TokenLoss,
        lr: float,
        verdict: Verdict | None = None,
        local: Callable[[], dict[str, float]] | None = None,
        entropy: bool = False,
    ) -> StepResult:
        """Forward, backward, one AdamW step at rate `lr`.

        The gradient is that of (sum of the loss over all micro-batches and ranks) / (all tokens that count),
        however the samples are cut into micro-batches. Every data-parallel rank passes the same number of them.

        Args:
            verdict: decides on loss and gradient norm whether the step is taken. It costs no wait of its own: Megatron
                reads the norm on the host before every update (`get_grad_norm_fp32` ends in `.item()`), and the loss
                comes in the same read.
            local: figures of this rank, asked for after the backward pass and added over all ranks into `sums`.
            entropy: the loss finds the entropy of each token's distribution in `extras[ENTROPY]`.

        Raises:
            FloatingPointError: without a `verdict`, the gradient is not finite; nothing was updated.
        """
        began = time.perf_counter()
        for model in self.models:
            model.zero_grad_buffer()
        self.optimizer.zero_grad()
        figures = self._run(batches, loss, forward_only=False, entropy=entropy)
        names, values = self._add_up(figures, loss, local() if local else {})
        for group in self.optimizer.param_groups:
            group["lr"] = lr * group.get("lr_mult", 1.0)
            group["weight_decay"] = self.optimizer_config.weight_decay * group.get("wd_mult", 1.0)
        self.optimizer.prepare_grads()
        grad_norm = float(self.optimizer.get_grad_norm())
        sums = _mean(dict(zip(names, values.tolist(), strict=True)))  # the host has just waited for the norm
        known = time.perf_counter()
        reason = (verdict or self._finite)(sums["loss"], grad_norm)
        if reason is None:
            self._update(grad_norm)
        seconds = {"forward_backward": known - began, "optimizer": time.perf_counter() - known}
        return StepResult(grad_norm, sums, reason, seconds)

    def _finite(self, loss: float, grad_norm: float) -> None:
        if not math.isfinite(grad_norm):
            raise FloatingPointError(f"rank {self.world.rank}: the gradient is not finite")

    def _update(self, grad_norm: float) -> None:
        """What Megatron's `step` does once the norm is known: clip, AdamW, share the new weights."""
        if self.optimizer_config.clip_grad > 0:
            for part in self.optimizer.chained_optimizers:
                clip_grad_by_total_norm_fp32(
                    part.get_parameters(),
                    self.optimizer_config.clip_grad,
                    grad_norm,
                    part.config.use_precision_aware_optimizer_no_fp8_or_ds_fp8,
                )
        self.optimizer.step_with_ready_grads()

    def evaluate(self, batches: Sequence[PackedBatch], loss: TokenLoss) -> dict[str, float]:
        """The loss function's sums without a gradient; "loss" is the mean a token."""
        with torch.no_grad():
            names, values = self._add_up(self._run(batches, loss, forward_only=True), loss)
            _wait_for_device()
            return _mean(dict(zip(names, values.tolist(), strict=True)))

    def logprobs(self, batches: Sequence[PackedBatch]) -> list[Tensor]:
        """log p(labels) of each batch, float32 [1, t] in row order, on every rank of the model-parallel group."""
        return self._by_token(batches)

    def values(self, batches: Sequence[PackedBatch]) -> list[Tensor]:
        """The value head's numbers, one a token: before the label is known. Shapes and ranks as of `logprobs`."""
        return self._by_token(batches)

    def _by_token(self, batches: Sequence[PackedBatch]) -> list[Tensor]:
        found: list[Tensor] = []

        def keep(values: Tensor, batch: PackedBatch) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
            found.append(self._gather_context(values.detach().float(), batch))
            zero = values.sum() * 0
            return zero, zero.int(), {}

        with torch.no_grad():
            self._run(batches, keep, forward_only=True)
        if self.layout.pipeline_model_parallel_size > 1:
            last = parallel_state.get_pipeline_model_parallel_last_rank()
            lengths = [b.length for b in self._rows(batches)]
            found = found or [torch.empty(1, length, device=DEVICE) for length in lengths]
            for value in found:
                dist.broadcast(value, last, group=parallel_state.get_pipeline_model_parallel_group())
        return [value[:, : b.length] for value, b in zip(found, batches, strict=True)]

    def _run(
        self, batches: Sequence[PackedBatch], loss: TokenLoss, forward_only: bool, entropy: bool = False
    ) -> list[dict[str, Tensor]]:
        """Megatron's schedule over the micro-batches; the figures of each, on the last pipeline stage only."""
        context, rank = self.layout.context_parallel_size, parallel_state.get_context_parallel_rank()
        batches = self._rows(batches)
        for model in self.models:
            model.train(not forward_only)

        def forward(iterator: Iterator[PackedBatch], model: torch.nn.Module) -> tuple[Tensor, Callable]:
            batch = _to_device(slice_for_context_rank(next(iterator), context, rank))
            params = PackedSeqParams(
                qkv_format="thd",
                cu_seqlens_q=batch.cu_seqlens,
                cu_seqlens_kv=batch.cu_seqlens,
                max_seqlen_q=batch.max_seqlen,
                max_seqlen_kv=batch.max_seqlen,
            )
            # without labels the last stage returns its columns of the logits, or the values
            labels = None if entropy or self.value_head else batch.labels
            output = model(batch.tokens, batch.position_ids, None, labels=labels, packed_seq_params=params)

            def reduce(output: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
                if self.value_head:
                    found = output[..., 0]
                elif entropy:
                    group = parallel_state.get_tensor_model_parallel_group()
                    found, batch.extras[ENTROPY] = logprobs_and_entropy(output, batch.labels, group)
                else:
                    found = -output.float()
                total, tokens, figures = loss(found, batch)
                with torch.no_grad():
                    figures = {"loss_sum": total.detach(), "tokens": tokens.detach().float(), **figures}
                return total, tokens.int(), figures

            return output, reduce

        iterators = [iter(batches) for _ in self.models]
        return get_forward_backward_func()(
            forward_step_func=forward,
            data_iterator=iterators if len(iterators) > 1 else iterators[0],
            model=self.models if len(self.models) > 1 else self.models[0],
            num_microbatches=len(batches),
            seq_length=batches[0].length,
            micro_batch_size=1,
            forward_only=forward_only,
        )

    def _rows(self, batches: Sequence[PackedBatch]) -> list[PackedBatch]:
        """Rows as long as a pass needs them: of one length for pipeline stages, which exchange one shape a call; in FP8
        multiples of what the scaling takes."""
        per_row = length_multiples(self.layout)[1] * _ROW_MULTIPLE.get(self.precision, 1)
        lengths = [-(-b.length // per_row) * per_row for b in batches]
        if self.layout.pipeline_model_parallel_size > 1:
            lengths = [max(lengths)] * len(lengths)
        return [extended(b, length) for b, length in zip(batches, lengths, strict=True)]

    def _add_up(
        self, figures: list[dict[str, Tensor]], loss: TokenLoss, local: dict[str, float] | None = None
    ) -> tuple[list[str], Tensor]:
        """Names, and their sums over micro-batches and ranks: float64 on the host, once the device is waited for.

        One reduction over all ranks, so that they hold the same bits. Tensor-parallel ranks compute the same loss: the
        first of them speaks. `local` figures are added over all ranks.
        """
        names = self._names_of(figures, loss)
        total = torch.zeros(len(names), dtype=torch.float64, device=DEVICE)
        if figures and parallel_state.get_tensor_model_parallel_rank() == 0:
            total = torch.stack([torch.stack([f[n].double() for n in names]) for f in figures]).sum(0)
        if local:
            mine = torch.tensor(list(local.values()), dtype=torch.float64)
            total = torch.cat([total, mine.to(DEVICE, non_blocking=True)])
        if self.world.world_size > 1:
            dist.all_reduce(total)
        # pinned, or the copy itself would make the host wait
        host = torch.empty(total.shape, dtype=total.dtype, pin_memory=True)
        host.copy_(total, non_blocking=True)
        return [*names, *(local or {})], host

    def _names_of(self, figures: list[dict[str, Tensor]], loss: TokenLoss) -> list[str]:
        """What a loss function calls its figures; only the last pipeline stage has seen it speak."""
        if loss not in self._names:
            box = [list(figures[0]) if figures else None]
            if self.layout.pipeline_model_parallel_size > 1:
                last = parallel_state.get_pipeline_model_parallel_last_rank()
                group = parallel_state.get_pipeline_model_parallel_group()
                dist.broadcast_object_list(box, last, group=group)
            self._names[loss] = list(box[0] or [])
        return self._names[loss]

    def _gather_context(self, local: Tensor, batch: PackedBatch) -> Tensor:
        size = self.layout.context_parallel_size
        if size == 1:
            return local
        parts = [torch.empty_like(local) for _ in range(size)]
        dist.all_gather(parts, local.contiguous(), group=parallel_state.get_context_parallel_group())
        order = torch.cat([context_indices(batch.cu_seqlens.cpu(), size, r) for r in range(size)])
        out = torch.empty_like(torch.cat(parts, dim=1))
        out[:, order] = torch.cat(parts, dim=1)
        return out


def next_token_loss(logprobs: Tensor, batch: PackedBatch) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Cross entropy: minus the log-probability of each label, summed where the mask is 1."""
    return -(logprobs * batch.loss_mask).sum(), batch.loss_mask.sum(), {}


def _wait_for_device() -> None:
    torch.cuda.current_stream().synchronize()


def _tied_copy(model: torch.nn.Module) -> bool:
    return bool(model.share_embeddings_and_output_weights) and not model.pre_process


def _mean(sums: dict[str, float]) -> dict[str, float]:
    return {**sums, "loss": sums["loss_sum"] / max(1.0, sums["tokens"])}


def _to_device(batch: PackedBatch) -> PackedBatch:
    def move(x: Tensor) -> Tensor:
        return x.to(DEVICE, non_blocking=True)

    return PackedBatch(
        move(batch.tokens),
        move(batch.labels),
        move(batch.loss_mask),
        move(batch.position_ids),
        move(batch.cu_seqlens),
        batch.max_seqlen,
        {k: move(v) for k, v in batch.extras.items()},
    )
