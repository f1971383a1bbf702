"""Where the elements of each Hugging Face tensor lie: on a rank of a Megatron layout, on a rank of an engine.

Both sides are described alike: a rank's parameter is a list of `Piece`s, each a rectangle of one Hugging Face tensor
at a place in the parameter. The planner only intersects rectangles; it knows no model. Pure arithmetic.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from octo_megatron.config.schema import ParallelConfig
from octo_megatron.model.families import EMBEDDING, HEAD, Kind, ModelShape, family_of
from octo_megatron.model.slots import slots

_VOCAB_PADDING = 64
"""vLLM pads the vocabulary to a multiple of this before it cuts it (vllm DEFAULT_VOCAB_PADDING_SIZE)."""


@dataclass(frozen=True, order=True)
class Box:
    """Rows row .. row + rows and columns column .. column + columns of a matrix; a vector has one column."""

    row: int
    rows: int
    column: int
    columns: int

    @property
    def size(self) -> int:
        """Elements."""
        return self.rows * self.columns

    def meet(self, other: Box) -> Box | None:
        """What both cover, None where that is nothing."""
        row, column = max(self.row, other.row), max(self.column, other.column)
        rows = min(self.row + self.rows, other.row + other.rows) - row
        columns = min(self.column + self.columns, other.column + other.columns) - column
        return Box(row, rows, column, columns) if rows > 0 and columns > 0 else None


@dataclass(frozen=True)
class Piece:
    """A rectangle of a Hugging Face tensor within a parameter of one rank."""

    tensor: str
    box: Box
    """In the Hugging Face tensor."""
    parameter: str
    row: int
    """Of the piece's first element in the parameter."""
    column: int

    def local(self, box: Box) -> Box:
        """Where the part `box` of the tensor lies in the parameter."""
        return Box(
            self.row + box.row - self.box.row,
            box.rows,
            self.column + box.column - self.box.column,
            box.columns,
        )


@dataclass(frozen=True)
class EngineLayout:
    """How the engine's copies are cut and on which global ranks they are."""

    tensor_parallel_size: int = 1
    data_parallel_size: int = 1
    first_rank: int = 0
    """Global rank of the engine's first rank: 0 colocated, the number of training ranks in separate mode."""

    @property
    def world_size(self) -> int:
        return self.tensor_parallel_size * self.data_parallel_size

    def ranks(self) -> range:
        """Global ranks of the engine."""
        return range(self.first_rank, self.first_rank + self.world_size)


def trainer_pieces(hf_config: dict[str, Any], layout: ParallelConfig) -> list[list[Piece]]:
    """Pieces on every rank of a training layout, under the names of the family's table.

    Ranks are Megatron's: tensor fastest, then context, data, pipeline. Data- and context-parallel ranks hold
    copies; a tied model's last pipeline stage holds the embedding again as its head.
    """
    shape = family_of(hf_config).shape(hf_config)
    tensor, pipeline = layout.tensor_model_parallel_size, layout.pipeline_model_parallel_size
    copies = layout.context_parallel_size * layout.data_parallel_size
    by_stage = [
        [list(_stage_pieces(hf_config, shape, layout, stage, rank)) for rank in range(tensor)]
        for stage in range(pipeline)
    ]
    return [by_stage[rank // (tensor * copies)][rank % tensor] for rank in range(tensor * copies * pipeline)]


def hf_pieces(hf_config: dict[str, Any], engine: EngineLayout) -> dict[int, list[Piece]]:
    """An engine that takes whole Hugging Face tensors on every rank and cuts them itself (vLLM's reload on CPU)."""
    shape = family_of(hf_config).shape(hf_config)
    whole = [
        Piece(name, _box(shape.size(size)), name, 0, 0)
        for slot in slots(hf_config)
        for name, size in zip(slot.hf, slot.row.sizes, strict=True)
    ]
    return dict.fromkeys(engine.ranks(), whole)


def live_pieces(hf_config: dict[str, Any], engine: EngineLayout) -> dict[int, list[Piece]]:
    """vLLM's own parameters of a Llama or Qwen model: q, k, v and gate, up fused, cut over the engine's tensor ranks.

    With more tensor ranks than key-value heads every head is held by several ranks (vllm QKVParallelLinear).
    """
    shape = family_of(hf_config).shape(hf_config)
    size = engine.tensor_parallel_size
    cut = [list(_live(hf_config, shape, rank, size)) for rank in range(size)]
    return {rank: cut[(rank - engine.first_rank) % size] for rank in engine.ranks()}


def _box(size: tuple[int, ...]) -> Box:
    return Box(0, size[0], 0, size[1] if len(size) > 1 else 1)


def _stage_pieces(
    hf_config: dict[str, Any], shape: ModelShape, layout: ParallelConfig, stage: int, rank: int
) -> Iterator[Piece]:
    stages, chunks = layout.pipeline_model_parallel_size, layout.virtual_pipeline_model_parallel_size
    a_chunk, size = shape.num_layers // (stages * chunks), layout.tensor_model_parallel_size
    first, last = stage == 0, stage == stages - 1
    for slot in slots(hf_config):
        boxes, is_embedding = [_box(shape.size(s)) for s in slot.row.sizes], slot.row is EMBEDDING
        here = (
            slot.layer // a_chunk % stages == stage
            if slot.layer is not None
            else first
            if is_embedding
            else last
        )
        names = [slot.megatron] if here else []
        if is_embedding and shape.tied and last and not first:
            names.append(HEAD.megatron)
        for name in names:
            yield from _cut(slot.row.kind, name, slot.hf, boxes, shape, rank, size)


def _cut(
    kind: Kind,
    parameter: str,
    names: Sequence[str],
    boxes: list[Box],
    shape: ModelShape,
    rank: int,
    size: int,
) -> Iterator[Piece]:
    """The pieces of one Megatron parameter on tensor-parallel rank `rank` of `size`."""
    if kind is Kind.PLAIN:
        yield Piece(names[0], boxes[0], parameter, 0, 0)
    elif kind is Kind.ROW:
        columns = boxes[0].columns // size
        yield Piece(names[0], Box(0, boxes[0].rows, rank * columns, columns), parameter, 0, 0)
    elif kind is Kind.VOCAB:
        rows = -(-boxes[0].rows // size)
        own = Box(rank * rows, rows, 0, boxes[0].columns).meet(boxes[0])
        if own:
            yield Piece(names[0], own, parameter, 0, 0)
    elif kind is Kind.GATE_UP:
        rows = boxes[0].rows // size
        for place, (name, box) in enumerate(zip(names, boxes, strict=True)):
            yield Piece(name, Box(rank * rows, rows, 0, box.columns), parameter, place * rows, 0)
    else:
        yield from _megatron_qkv(parameter, names, boxes[0].columns, shape, rank, size)


def _megatron_qkv(
    parameter: str, names: Sequence[str], columns: int, shape: ModelShape, rank: int, size: int
) -> Iterator[Piece]:
    groups, d = shape.num_query_groups // size, shape.kv_channels
    heads = shape.num_attention_heads // shape.num_query_groups
    place = 0
    for group in range(rank * groups, (rank + 1) * groups):
        for name, rows in zip(names, (heads * d, d, d), strict=True):
            yield Piece(name, Box(group * rows, rows, 0, columns), parameter, place, 0)
            place += rows


_FUSED = {Kind.QKV: ("q_proj", "qkv_proj"), Kind.GATE_UP: ("gate_proj", "gate_up_proj")}
"""Kind -> what vLLM calls the fused parameter instead of its first part."""


def _live(hf_config: dict[str, Any], shape: ModelShape, rank: int, size: int) -> Iterator[Piece]:
    for slot in slots(hf_config):
        row, names, boxes = slot.row, slot.hf, [_box(shape.size(s)) for s in slot.row.sizes]
        old, new = _FUSED.get(row.kind, ("", ""))
        parameter = names[0].replace(old, new) if old else names[0]
        if row.kind is Kind.QKV:
            yield from _live_qkv(parameter, names, boxes[0].columns, shape, rank, size)
        elif row.kind is Kind.VOCAB:
            rows = math.ceil(boxes[0].rows / _VOCAB_PADDING) * _VOCAB_PADDING // size
            own = Box(rank * rows, rows, 0, boxes[0].columns).meet(boxes[0])
            if own:
                yield Piece(names[0], own, parameter, 0, 0)
        else:
            yield from _cut(row.kind, parameter, names, boxes, shape, rank, size)


def _live_qkv(
    parameter: str, names: Sequence[str], columns: int, shape: ModelShape, rank: int, size: int
) -> Iterator[Piece]:
    d, groups = shape.kv_channels, shape.num_query_groups
    queries = shape.num_attention_heads // size * d
    held = max(1, groups // size)
    first = rank * groups // size
    place = 0
    for name, start, rows in (
        (names[0], rank * queries, queries),
        (names[1], first * d, held * d),
        (names[2], first * d, held * d),
    ):
        yield Piece(name, Box(start, rows, 0, columns), parameter, place, 0)
        place += rows
