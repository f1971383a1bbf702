"""The gate: is a Hugging Face folder the same model as a Megatron one, bit for bit and in its logits?"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM
from transformers.utils.logging import disable_progress_bar

from octo_megatron.config.errors import UserError
from octo_megatron.config.schema import ParallelConfig
from octo_megatron.convert.safetensors_io import HfFolder
from octo_megatron.model.batch import Document, PackedBatch, pack, slice_for_context_rank
from octo_megatron.model.build import build_model
from octo_megatron.model.hf_weights import export_weights, import_weights
from octo_megatron.parallel.device import DEVICE
from octo_megatron.parallel.world import World

from megatron.core import parallel_state
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.pipeline_parallel import get_forward_backward_func

LIMIT = 1e-4
"""Largest |Megatron - transformers| of a logit in fp32."""
PROMPT_TOKENS = (16, 48, 64)
"""Lengths of the fixed prompts."""
_ROW = "row"


@dataclass(frozen=True)
class Verified:
    """What the gate measured."""

    max_logit_difference: float
    positions: int
    """Token positions compared, over the whole vocabulary each."""


def verify(folder: HfFolder, models: list[torch.nn.Module], world: World) -> Verified:
    """Compare a folder with a model; collective.

    1. Folder -> Megatron gives the model's parameters bit for bit.
    2. Model -> Hugging Face gives the folder's tensors bit for bit.
    3. In fp32 with the folder's weights, Megatron's logits are those of `transformers` to LIMIT.

    Where folder and model differ in precision, bits are compared in the lower one.

    Raises:
        UserError: the first tensor that differs, or the worst position of the logits.
    """
    fresh: list[torch.nn.Module] = list(build_model(folder.config, world.layout, "fp32"))
    import_weights(fresh, folder.config, folder.read)
    _compare_parameters(folder, models, fresh, world)
    _compare_tensors(folder, models, world)
    documents = prompts(int(folder.config["vocab_size"]))
    reference = _transformers_logits(folder, documents) if world.is_first else torch.empty(0)
    reference = world.broadcast_object(reference)
    found = _largest_difference(fresh, world.layout, documents, reference)
    difference, position, token = max(world.all_gather_object(found))
    if not difference <= LIMIT:
        raise UserError(
            f"{folder.path}: logits differ from transformers by {difference:.3g} (limit {LIMIT:g}), worst at "
            f"prompt position {position}, token {token}: one side reads config.json or weights differently"
        )
    return Verified(difference, sum(PROMPT_TOKENS))


def prompts(vocab_size: int) -> list[Tensor]:
    """The fixed prompts: token ids from a seeded generator, spread over the vocabulary."""
    generator = torch.Generator().manual_seed(20)
    return [torch.randint(0, vocab_size, (n,), generator=generator) for n in PROMPT_TOKENS]


def _lower(a: torch.dtype, b: torch.dtype) -> torch.dtype:
    return a if a.itemsize < b.itemsize else b


def _compare_parameters(
    folder: HfFolder, models: list[torch.nn.Module], fresh: list[torch.nn.Module], world: World
) -> None:
    dtype = folder.read(folder.names[0]).dtype
    differing = None
    for model, again in zip(models, fresh, strict=True):
        expected = dict(again.named_parameters())
        for name, parameter in model.named_parameters():
            low = _lower(dtype, parameter.dtype)
            if differing is None and not _same_bits(parameter.to(low), expected[name].to(low)):
                differing = name
    problems = [p for p in world.all_gather_object(differing) if p]
    if problems:
        raise UserError(
            f"{folder.path}: parameter {problems[0]} does not come back bit for bit from the folder"
        )


def _compare_tensors(folder: HfFolder, models: list[torch.nn.Module], world: World) -> None:
    differing = None
    for name, tensor in export_weights(models, folder.config):
        if world.is_first and differing is None:
            stored = folder.read(name)
            low = _lower(stored.dtype, tensor.dtype)
            if not _same_bits(stored.to(low), tensor.to("cpu", low)):
                differing = name
    differing = world.broadcast_object(differing)
    if differing:
        raise UserError(f"{folder.path}: tensor {differing} differs from the model's")


def _same_bits(a: Tensor, b: Tensor) -> bool:
    """Unlike `torch.equal`, tells 0 from -0 and takes NaN for itself."""
    return torch.equal(a.detach().contiguous().view(torch.uint8), b.detach().contiguous().view(torch.uint8))


@torch.no_grad()
def _transformers_logits(folder: HfFolder, documents: list[Tensor]) -> Tensor:
    """[tokens of all documents, vocab] in fp32 from the folder as a user would load it."""
    disable_progress_bar()
    model = AutoModelForCausalLM.from_pretrained(
        folder.path, dtype=torch.float32, local_files_only=True
    ).eval()
    return torch.cat([model(ids[None]).logits[0] for ids in documents])


def _largest_difference(
    models: list[torch.nn.Module], layout: ParallelConfig, documents: list[Tensor], reference: Tensor
) -> tuple[float, int, int]:
    """(|difference|, row of `reference`, token) where this rank's share of the logits is furthest off.

    Each rank compares what it holds: its positions (context parallel) of its rows of the vocabulary (tensor
    parallel) on the last pipeline stage; others say 0.
    """
    whole = _packed(documents, layout)
    batch = slice_for_context_rank(
        whole, layout.context_parallel_size, parallel_state.get_context_parallel_rank()
    )
    for model in models:
        model.eval()

    def compare(logits: Tensor, non_loss_data: bool = True) -> tuple[float, int, int]:
        real = batch.loss_mask[0] > 0
        ours = logits[0].float().cpu()[real]
        first = parallel_state.get_tensor_model_parallel_rank() * ours.shape[1]
        theirs = reference[batch.extras[_ROW][0][real].long(), first : first + ours.shape[1]]
        gap = (ours[:, : theirs.shape[1]] - theirs).abs().nan_to_num(nan=float("inf"))
        row, column = divmod(int(gap.argmax()), gap.shape[1])
        return float(gap.max()), int(batch.extras[_ROW][0][real][row]), first + column

    def forward(iterator: Iterator[PackedBatch], model: torch.nn.Module) -> tuple[Tensor, Any]:
        item = next(iterator)
        cu_seqlens = item.cu_seqlens.to(DEVICE)
        params = PackedSeqParams(
            qkv_format="thd",
            cu_seqlens_q=cu_seqlens,
            cu_seqlens_kv=cu_seqlens,
            max_seqlen_q=item.max_seqlen,
            max_seqlen_kv=item.max_seqlen,
        )
        return model(
            item.tokens.to(DEVICE), item.position_ids.to(DEVICE), None, packed_seq_params=params
        ), compare

    # the interleaved schedule asks for a micro-batch for every pipeline stage
    count = layout.pipeline_model_parallel_size if len(models) > 1 else 1
    iterators = [iter([batch] * count) for _ in models]
    with torch.no_grad():
        found = get_forward_backward_func()(
            forward_step_func=forward,
            data_iterator=iterators if len(models) > 1 else iterators[0],
            model=models if len(models) > 1 else models[0],
            num_microbatches=count,
            seq_length=whole.length,
            micro_batch_size=1,
            forward_only=True,
            collect_non_loss_data=True,
        )
    return found[0] if found else (0.0, 0, 0)


def _packed(documents: list[Tensor], layout: ParallelConfig) -> PackedBatch:
    """One row; extras say which row of the reference each position is."""
    start, packed = 0, []
    for ids in documents:
        rows = torch.arange(start, start + len(ids), dtype=torch.float32)
        packed.append(Document(ids, ids, torch.ones(len(ids)), {_ROW: rows}))
        start += len(ids)
    return pack(packed, layout)
