"""Weights between a Megatron model, cut any way, and the full tensors of a Hugging Face state dict.

Both directions walk the family's table (families/) and move one tensor at a time, so what is held
beside the model never exceeds the largest parameter and its parts.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

import octo_megatron.parallel.device  # noqa: F401  (before megatron)
from octo_megatron.config.errors import UserError
from octo_megatron.model.families import HEAD, Kind, ModelShape, family_of
from octo_megatron.model.slots import check_names, slots, tensor_shapes
from octo_megatron.parallel.transformer_engine import high_precision

from megatron.core import parallel_state

__all__ = [
    "check_names",
    "export_weights",
    "import_weights",
    "merge",
    "split",
    "table_parameters",
    "tensor_shapes",
]

_LAYER = re.compile(r"decoder\.layers\.(\d+)\.(.+)")


@torch.no_grad()
def export_weights(models: list[torch.nn.Module], hf_config: dict[str, Any]) -> Iterator[tuple[str, Tensor]]:
    """Full Hugging Face tensors of a model cut over tensor- and pipeline-parallel ranks.

    Collective over both groups: every rank must walk the whole iterator, and gets every tensor, in the
    same order. Padding rows of the vocabulary are left out. A tensor may share memory with the model;
    it is valid until the weights change, and not to be written to.

    Args:
        models: the model chunks of this rank (one per virtual pipeline stage), wrapped or not.
    """
    shape = family_of(hf_config).shape(hf_config)
    mine = _parameters(models, hf_config)
    owners, dtypes = _owners(mine)
    stage = parallel_state.get_pipeline_model_parallel_rank()
    device = next(iter(mine.values())).device
    for slot in slots(hf_config):
        owner, dtype = owners[slot.megatron], dtypes[slot.megatron]
        if owner == stage:
            parts = split(slot.row.kind, _gather_tensor_parallel(mine[slot.megatron], slot.row.kind), shape)
        else:
            parts = [torch.empty(shape.size(s), dtype=dtype, device=device) for s in slot.row.sizes]
        for name, part in zip(slot.hf, parts, strict=True):
            yield name, _broadcast_pipeline(part, owner)


@torch.no_grad()
def import_weights(
    models: list[torch.nn.Module], hf_config: dict[str, Any], read: Callable[[str], Tensor]
) -> None:
    """Fill a model from full Hugging Face tensors; each rank reads what its stage needs and keeps its slices.

    Args:
        models: the model chunks of this rank, wrapped or not.
        read: gives the tensor of a name; raises UserError when there is none.

    Raises:
        UserError: a tensor has another shape than the config says.
    """
    shape = family_of(hf_config).shape(hf_config)
    mine = _parameters(models, hf_config)
    rank = parallel_state.get_tensor_model_parallel_rank()
    size = parallel_state.get_tensor_model_parallel_world_size()
    for slot in slots(hf_config):
        targets = [mine[slot.megatron]] if slot.megatron in mine else []
        if slot.row.kind is Kind.VOCAB and shape.tied and HEAD.megatron in mine:
            # the last pipeline stage of a tied model holds its own copy of the embedding as its head
            targets.append(mine[HEAD.megatron])
        if targets:
            parts = [
                _read_checked(read, n, shape.size(s)) for n, s in zip(slot.hf, slot.row.sizes, strict=True)
            ]
            for target in targets:
                target.copy_(merge(slot.row.kind, parts, shape, rank, size, target.shape[0]))


def table_parameters(models: list[torch.nn.Module], hf_config: dict[str, Any]) -> dict[str, Tensor]:
    """This rank's parameters under the names of the family's table, layers counted over the whole model."""
    return _parameters(models, hf_config)


def _parameters(models: list[torch.nn.Module], hf_config: dict[str, Any]) -> dict[str, Tensor]:
    """This rank's parameters under the table's names, layers counted over the whole model."""
    rows = [*family_of(hf_config).rows(hf_config), HEAD]
    table = {name: row.megatron for row in rows for name in (row.megatron, row.te) if name}
    out: dict[str, Tensor] = {}
    for model in models:
        chunk: Any = model
        while isinstance(getattr(chunk, "module", None), torch.nn.Module):
            chunk = chunk.module
        for name, parameter in chunk.named_parameters():
            match = _LAYER.fullmatch(name)
            layer = chunk.decoder.layers[int(match[1])].layer_number - 1 if match else 0
            pattern = f"decoder.layers.{{i}}.{match[2]}" if match else name
            if pattern not in table:
                raise RuntimeError(f"parameter {name} is in no row of the table in model/families/")
            out[table[pattern].format(i=layer)] = parameter
    return out


def _owners(mine: dict[str, Tensor]) -> tuple[dict[str, int], dict[str, torch.dtype]]:
    """Parameter -> the first pipeline stage that holds it, and its dtype."""
    size = parallel_state.get_pipeline_model_parallel_world_size()
    described = {name: p.dtype for name, p in mine.items()}
    stages: list[Any] = [described]
    if size > 1:
        stages = [None] * size
        dist.all_gather_object(stages, described, group=parallel_state.get_pipeline_model_parallel_group())
    owners: dict[str, int] = {}
    dtypes: dict[str, torch.dtype] = {}
    for stage, names in enumerate(stages):
        for name, dtype in names.items():
            if owners.setdefault(name, stage) == stage:
                dtypes[name] = dtype
    return owners, dtypes


def _gather_tensor_parallel(parameter: Tensor, kind: Kind) -> list[Tensor]:
    """The parameter's parts on all tensor-parallel ranks, in rank order; one part if they are equal."""
    size = parallel_state.get_tensor_model_parallel_world_size()
    local = high_precision(parameter.detach())
    if kind is Kind.PLAIN or size == 1:
        return [local]
    parts = [torch.empty_like(local) for _ in range(size)]
    dist.all_gather(parts, local.contiguous(), group=parallel_state.get_tensor_model_parallel_group())
    return parts


def _broadcast_pipeline(tensor: Tensor, owner: int) -> Tensor:
    """The tensor of pipeline stage `owner` on every stage."""
    if parallel_state.get_pipeline_model_parallel_world_size() == 1:
        return tensor
    group = parallel_state.get_pipeline_model_parallel_group()
    tensor = tensor.contiguous()
    dist.broadcast(tensor, src=dist.get_global_rank(group, owner), group=group)
    return tensor


def split(kind: Kind, parts: list[Tensor], shape: ModelShape) -> list[Tensor]:
    """Parts of one Megatron parameter on all tensor-parallel ranks, in rank order -> its full Hugging Face tensors.

    Padding rows of the vocabulary are cut off. The results may share memory with the parts.
    """
    if kind is Kind.PLAIN:
        return [parts[0]]
    if kind is Kind.ROW:
        return [torch.cat(parts, dim=1)]
    if kind is Kind.VOCAB:
        return [torch.cat(parts)[: shape.vocab_size]]
    if kind is Kind.GATE_UP:
        halves = [part.chunk(2) for part in parts]
        return [torch.cat([half[which] for half in halves]) for which in (0, 1)]
    d, per_group = shape.kv_channels, shape.num_attention_heads // shape.num_query_groups
    full = torch.cat(parts)
    rest = full.shape[1:]
    groups = full.view(shape.num_query_groups, (per_group + 2) * d, *rest)
    return [piece.reshape(-1, *rest) for piece in groups.split([per_group * d, d, d], dim=1)]


def merge(kind: Kind, full: list[Tensor], shape: ModelShape, rank: int, size: int, rows: int) -> Tensor:
    """Full Hugging Face tensors -> the part of the Megatron parameter on tensor-parallel rank `rank` of `size`.

    Of tensors that are maps of a file, only that part is read.

    Args:
        rows: of the parameter on each rank; a vocabulary that does not fill them is padded with zeros.
    """
    if kind is Kind.PLAIN:
        return full[0]
    if kind is Kind.ROW:
        return full[0].chunk(size, dim=1)[rank]
    if kind is Kind.VOCAB:
        part = full[0][rank * rows : (rank + 1) * rows]
        return torch.nn.functional.pad(part, (0, 0, 0, rows - part.shape[0]))
    if kind is Kind.GATE_UP:
        return torch.cat([tensor.chunk(size)[rank] for tensor in full])
    g, d = shape.num_query_groups, shape.kv_channels
    rest = full[0].shape[1:]
    groups = torch.cat([tensor.view(g, -1, *rest).chunk(size)[rank] for tensor in full], dim=1)
    assert groups.shape[1] == (shape.num_attention_heads // g + 2) * d
    return groups.reshape(-1, *rest)


def _read_checked(read: Callable[[str], Tensor], name: str, expected: tuple[int, ...]) -> Tensor:
    tensor = read(name)
    if tuple(tensor.shape) != expected:
        raise UserError(
            f"tensor {name} has shape {list(tensor.shape)}, config.json asks for {list(expected)}"
        )
    return tensor
