"""A model's parameters one by one, and which rows of which Hugging Face tensor each is made of. No torch here.

In whole (tensor-parallel size 1) every Megatron parameter is its Hugging Face tensors laid one above the other in
some order of row ranges. That order is all a conversion has to know, so it can move a few rows at a time.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from octo_megatron.config.errors import UserError
from octo_megatron.model.families import HEAD, Kind, ModelShape, Row, family_of


@dataclass(frozen=True)
class Slot:
    """One Megatron parameter of the whole model: a row of the table at one layer."""

    row: Row
    megatron: str
    hf: tuple[str, ...]
    layer: int | None
    """Counted over the whole model; None outside the layers."""


@dataclass(frozen=True)
class RowRange:
    """`count` rows that stand at `start` of a Megatron parameter in whole and at `hf_start` of a tensor."""

    tensor: int
    """Which of the slot's Hugging Face tensors."""
    hf_start: int
    start: int
    count: int


def slots(hf_config: dict[str, Any]) -> list[Slot]:
    """All parameters of the model, in the order of its forward pass."""
    family = family_of(hf_config)
    num_layers = family.shape(hf_config).num_layers
    out = []
    for repeated, group in itertools.groupby(family.rows(hf_config), lambda row: "{i}" in row.megatron):
        rows = list(group)
        for i in range(num_layers) if repeated else (None,):
            out += [Slot(r, r.megatron.format(i=i), tuple(n.format(i=i) for n in r.hf), i) for r in rows]
    return out


def row_ranges(kind: Kind, heights: Iterable[int], shape: ModelShape) -> list[RowRange]:
    """The order of a Megatron parameter's rows, from its first to its last.

    Args:
        heights: rows of each of its Hugging Face tensors.
    """
    heights = list(heights)
    if kind is not Kind.QKV:
        starts = itertools.accumulate(heights, initial=0)
        return [
            RowRange(i, 0, start, rows) for i, (start, rows) in enumerate(zip(starts, heights, strict=False))
        ]
    out, position = [], 0
    for group in range(shape.num_query_groups):
        for tensor, height in enumerate(heights):
            rows = height // shape.num_query_groups
            out.append(RowRange(tensor, group * rows, position, rows))
            position += rows
    return out


def tensor_shapes(hf_config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor of the Hugging Face state dict, in the order of `slots`."""
    shape = family_of(hf_config).shape(hf_config)
    return {
        name: shape.size(size)
        for slot in slots(hf_config)
        for name, size in zip(slot.hf, slot.row.sizes, strict=True)
    }


def parameter_count(hf_config: dict[str, Any]) -> int:
    """Numbers in the model's state dict."""
    return sum(math.prod(shape) for shape in tensor_shapes(hf_config).values())


def check_names(names: Iterable[str], hf_config: dict[str, Any], where: str) -> None:
    """Compare the tensors of a Hugging Face folder with what its config asks for.

    A tied model may bring its head along (it is the embedding again), old files their rotary tables.

    Raises:
        UserError: the first tensor that is missing, or that has no place in the model.
    """
    expected, found = set(tensor_shapes(hf_config)), set(names)
    allowed = {HEAD.hf[0]} if family_of(hf_config).shape(hf_config).tied else set()
    missing = sorted(expected - found)
    extra = sorted(n for n in found - expected - allowed if not n.endswith("rotary_emb.inv_freq"))
    wrong = "the weights do not belong to this config.json"
    if missing:
        raise UserError(f"{where}: tensor {missing[0]} is missing ({len(missing)} in all); {wrong}")
    if extra:
        raise UserError(
            f"{where}: tensor {extra[0]} has no place in the model ({len(extra)} in all); {wrong}"
        )
