"""Part 1: Hugging Face -> Megatron -> Hugging Face bit for bit, for TP x PP in {1,2} x {1,2}.

The cuts are made with the functions that fill a live model and gather it again (model/hf_weights.py), rank by rank in
this process, and the stages are those that Megatron builds; tests/parallel/test_convert_layouts.py holds real processes
of these layouts to the same bits.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from octo_megatron.config.schema import ParallelConfig
from octo_megatron.convert.gate.result import GateError
from octo_megatron.convert.torch_dist import DistCheckpoint
from octo_megatron.model.build import transformer_config
from octo_megatron.model.families import EMBEDDING, FINAL_NORM, HEAD, Kind, ModelShape, family_of
from octo_megatron.model.hf_folder import HfFolder, bytes_of
from octo_megatron.model.hf_weights import merge, split
from octo_megatron.model.slots import Slot, slots

from megatron.core.transformer.transformer_block import get_num_layers_to_build
from megatron.core.transformer.transformer_layer import get_transformer_layer_offset

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
    _check_stages(every, hf_config, pipeline_sizes)
    for index, slot in enumerate(every):
        full = [folder.read(name) for name in slot.hf]
        stored = split(slot.row.kind, [checkpoint.read(slot)], shape)
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


def _check_stages(every: list[Slot], hf_config: dict[str, Any], sizes: list[int]) -> None:
    """Each parameter is on exactly one pipeline stage, with the layers that Megatron builds and numbers there."""
    for size in sizes:
        layout = ParallelConfig(pipeline_model_parallel_size=size)
        config = transformer_config(hf_config, layout, "fp32")
        holders = dict.fromkeys((slot.megatron for slot in every), 0)
        for stage in range(size):
            first = get_transformer_layer_offset(config, pp_rank=stage)
            layers = range(first, first + get_num_layers_to_build(config, pp_rank=stage))
            # a GPTModel has the embedding where it begins (pre_process), norm and head where it ends (post_process)
            outside = [
                row.megatron for row in (EMBEDDING,) * (stage == 0) + (FINAL_NORM, HEAD) * (stage == size - 1)
            ]
            for slot in every:
                holders[slot.megatron] += (
                    slot.megatron in outside if slot.layer is None else slot.layer in layers
                )
        for name, count in holders.items():
            if count != 1:
                raise GateError(f"of {size} pipeline stages {count} hold parameter {name}, instead of one")


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
