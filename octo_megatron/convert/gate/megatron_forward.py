"""Megatron's forward pass with one decoder layer in memory, whatever the model's depth.

A GPTModel of a single layer is built once; for each layer in turn the folder's weights are put into it and all
documents go through. It is the model that trains, only with its layers one after the other in the same place.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from octo_megatron.config.schema import ParallelConfig
from octo_megatron.model.batch import Document, PackedBatch, pack
from octo_megatron.model.build import build_model
from octo_megatron.model.families import ModelShape, family_of
from octo_megatron.model.hf_weights import merge
from octo_megatron.model.slots import Slot, slots
from octo_megatron.parallel.device import DEVICE

from megatron.core.models.gpt import GPTModel
from megatron.core.packed_seq_params import PackedSeqParams


@torch.no_grad()
def megatron_logits(
    read: Callable[[str], Tensor], hf_config: dict[str, Any], precision: str, documents: list[Tensor]
) -> Iterator[Tensor]:
    """Logits of each document, one after the other: [tokens, vocab] float32 on the CPU.

    Args:
        read: gives a Hugging Face tensor of the model.
        precision: fp32 or bf16, of weights and computation.
        documents: token ids, int64 [tokens] each.
    """
    shape = family_of(hf_config).shape(hf_config)
    one = {key: value for key, value in hf_config.items() if key != "layer_types"} | {"num_hidden_layers": 1}
    model = build_model(one, ParallelConfig(), precision)[0].eval()
    final_norm = model.decoder.final_layernorm
    every = slots(hf_config)
    _fill(model, [slot for slot in every if slot.layer is None], read, shape)
    hidden: list[Tensor | None] = [None] * len(documents)
    for layer in range(shape.num_layers):
        _fill(model, [slot for slot in every if slot.layer == layer], read, shape)
        last = layer == shape.num_layers - 1
        # what a pipeline stage with this layer alone would be
        model.post_process = last
        model.decoder.final_layernorm = final_norm if last else None
        for index, ids in enumerate(documents):
            out = _forward(model, ids, hidden[index])
            hidden[index] = None if last else out
            if last:
                yield out[0, :, : shape.vocab_size].float().cpu()


def _fill(model: GPTModel, chosen: list[Slot], read: Callable[[str], Tensor], shape: ModelShape) -> None:
    parameters = dict(model.named_parameters())
    for slot in chosen:
        names = [name.format(i=0) for name in (slot.row.megatron, slot.row.te) if name]
        parameter = next(parameters[name] for name in names if name in parameters)
        full = [read(name) for name in slot.hf]
        parameter.copy_(merge(slot.row.kind, full, shape, 0, 1, parameter.shape[0]))


def _forward(model: GPTModel, ids: Tensor, decoder_input: Tensor | None) -> Tensor:
    """One document through the stage, from the embedding where there is no `decoder_input` [s, 1, h].

    Returns hidden states [s, 1, h], or logits [1, s, vocab] from the last stage.
    """
    item: PackedBatch = pack([Document(ids, ids, torch.ones(len(ids)))], ParallelConfig())
    cu_seqlens = item.cu_seqlens.to(DEVICE)
    params = PackedSeqParams(
        qkv_format="thd",
        cu_seqlens_q=cu_seqlens,
        cu_seqlens_kv=cu_seqlens,
        max_seqlen_q=item.max_seqlen,
        max_seqlen_kv=item.max_seqlen,
    )
    tokens, positions = item.tokens.to(DEVICE), item.position_ids.to(DEVICE)
    return model(tokens, positions, None, decoder_input=decoder_input, packed_seq_params=params)
