"""Part 1: Hugging Face -> Megatron -> Hugging Face bit for bit, for TP x PP in {1,2} x {1,2}.

The cuts are made with the functions that cut and join a live model (model/hf_weights.py), rank by rank in this
process; tests/parallel/test_convert_layouts.py holds real processes to the same bits.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from octo_megatron.convert.gate.result import GateError
from octo_megatron.convert.safetensors_io import HfFolder, bytes_of
from octo_megatron.convert.stream import megatron_shape
from octo_megatron.convert.torch_dist import DistCheckpoint
from octo_megatron.model.families import HEAD, Kind, ModelShape, family_of
from octo_megatron.model.hf_weights import merge, split
from octo_megatron.model.slots import Slot, slots

SIZES = (1, 2)


def check(
    folder: HfFolder,
    checkpoint: DistCheckpoint,
    hf_config: dict[str, Any],
    report: Callable[[int, int], None],
) -> tuple[str, dict[str, Any]]:
    """Compare every tensor of the folder with the checkpoint and with what each layout makes of it.

    Where the two differ in precision, bits are compared in the lower one.

    Returns:
        The line for the report, and figures: tensors, layouts, weights_sha256 (of the checkpoint, as
        checkpoint/digest.py computes it from a live model).

    Raises:
        GateError: the first tensor that differs.
    """
    shape = family_of(hf_config).shape(hf_config)
    tensor_sizes = [size for size in SIZES if _divides(size, shape)]
    pipeline_sizes = [size for size in SIZES if shape.num_layers % size == 0]
    total, count = hashlib.sha256(), 0
    every = slots(hf_config)
    _check_stages(every, shape, pipeline_sizes)
    for index, slot in enumerate(every):
        full = [folder.read(name) for name in slot.hf]
        rows = megatron_shape(slot, shape)[0]
        stored = split(slot.row.kind, [checkpoint.read_rows(slot, 0, rows)], shape)
        for name, there, here in zip(slot.hf, full, stored, strict=True):
            total.update(f"{name} {here.dtype} {tuple(here.shape)}\n".encode())
            total.update(bytes_of(here.contiguous()))
            if not same_numbers(there, here):
                raise GateError(
                    f"tensor {name} of {folder.path} is not the checkpoint's: {_first(there, here)}"
                )
        del stored
        for size in tensor_sizes:
            _round_trip(slot, full, shape, size)
        count += len(full)
        report(index + 1, len(every))
    layouts = [f"TP{t}xPP{p}" for t, p in itertools.product(tensor_sizes, pipeline_sizes)]
    missing = len(SIZES) ** 2 - len(layouts)
    line = f"{count} tensors bit for bit through {', '.join(layouts)}"
    if missing:
        line += f"; {missing} layouts do not divide this model ({shape.num_query_groups} key-value heads, "
        line += f"{shape.num_layers} layers)"
    return line, {"tensors": count, "layouts": layouts, "weights_sha256": total.hexdigest()}


def same_numbers(a: Tensor, b: Tensor) -> bool:
    """Bit for bit in the lower precision of the two; tells 0 from -0 and takes NaN for itself."""
    low = a.dtype if a.dtype.itemsize < b.dtype.itemsize else b.dtype
    a, b = a.to(low).contiguous(), b.to(low).contiguous()
    return a.shape == b.shape and torch.equal(a.view(torch.uint8), b.view(torch.uint8))


def _round_trip(slot: Slot, full: list[Tensor], shape: ModelShape, size: int) -> None:
    rows = sum(tensor.shape[0] for tensor in full)
    cut = slot.row.kind not in (Kind.PLAIN, Kind.ROW)
    each = -(-rows // size) if cut else rows
    parts = [merge(slot.row.kind, full, shape, rank, size, each) for rank in range(size)]
    for name, before, after in zip(slot.hf, full, split(slot.row.kind, parts, shape), strict=True):
        if before.shape != after.shape or not torch.equal(
            before.contiguous().view(torch.uint8), after.contiguous().view(torch.uint8)
        ):
            raise GateError(f"tensor {name} does not come back from {size} tensor-parallel ranks")


def _check_stages(every: list[Slot], shape: ModelShape, sizes: list[int]) -> None:
    """Each parameter is on exactly one pipeline stage; a tied head's stage takes the embedding along."""
    for size in sizes:
        depth = shape.num_layers // size
        held: list[str] = []
        for stage in range(size):
            for slot in every:
                last = slot.row.megatron == HEAD.megatron or slot.row.megatron.startswith("decoder.final")
                where = size - 1 if last else 0 if slot.layer is None else slot.layer // depth
                if where == stage:
                    local = slot.layer if slot.layer is None else slot.layer - stage * depth
                    held.append(slot.row.megatron.format(i=None if local is None else stage * depth + local))
        if sorted(held) != sorted(slot.megatron for slot in every):
            raise GateError(f"{size} pipeline stages do not hold every parameter once")


def _divides(size: int, shape: ModelShape) -> bool:
    return all(
        n % size == 0 for n in (shape.num_attention_heads, shape.num_query_groups, shape.ffn_hidden_size)
    )


def _first(a: Tensor, b: Tensor) -> str:
    """Where two tensors part."""
    if a.shape != b.shape:
        return f"shape {list(a.shape)} against {list(b.shape)}"
    differing = (a.float() != b.float()).reshape(-1)
    index = int(differing.int().argmax())
    place = [int(i) for i in torch.unravel_index(torch.tensor(index), a.shape)]
    return (
        f"{int(differing.sum())} of {a.numel()} numbers differ, the first at {place}: "
        f"{float(a.reshape(-1)[index]):.6g} against {float(b.reshape(-1)[index]):.6g}"
    )
