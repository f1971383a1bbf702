"""The distributed optimizer's state as boxes of the model's parameters: nothing is gathered, nothing is copied.

The distributed optimizer of a data-parallel rank owns a flat range of each parameter. Such a range is at most a few
boxes (the end of one row, whole rows, the start of another), and a box is an ordinary shard of Megatron's distributed
checkpoints. So every rank writes what it owns, every layout can read what any other wrote, and reading goes straight
into the optimizer's own memory. Keys and shapes are those of Megatron's `fully_reshardable` format, which instead
gathers the whole state on every rank before it saves.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor

from octo_megatron.parallel import device  # noqa: F401  (before megatron.core)

from megatron.core.dist_checkpointing import ShardedTensor
from megatron.core.dist_checkpointing.dict_utils import nested_values
from megatron.core.dist_checkpointing.mapping import ShardedTensorFactory

PREFIX = "optimizer.state"
"""Keys are optimizer.state.<param, exp_avg or exp_avg_sq>.<key of the parameter>."""


class Box(NamedTuple):
    """A part of a row-major array that is contiguous in memory."""

    offset: tuple[int, ...]
    shape: tuple[int, ...]
    start: int
    """Of its first element, in the flattened array."""


def boxes(start: int, stop: int, shape: tuple[int, ...]) -> list[Box]:
    """The elements start..stop of a flattened row-major array as boxes, in order; at most 2 dimensions - 1."""
    if start >= stop:
        return []
    if len(shape) == 1:
        return [Box((start,), (stop - start,), start)]
    inner = prod(shape[1:])
    first, last = -(-start // inner), stop // inner
    # cuts: into a row, at its end, at the start of the last row, into it
    cuts = sorted({start, min(first * inner, stop), max(last * inner, start), stop})
    out = []
    for a, b in pairwise(cuts):
        row = a // inner
        if a % inner == 0 and b % inner == 0:
            out.append(Box((row, *(0,) * (len(shape) - 1)), ((b - a) // inner, *shape[1:]), a))
        else:
            for box in boxes(a - row * inner, b - row * inner, shape[1:]):
                out.append(Box((row, *box.offset), (1, *box.shape), row * inner + box.start))
    return out


def sharded_optimizer_state(optimizer: Any, model_state: dict[str, Any]) -> dict[str, ShardedTensor]:
    """This rank's optimizer state, as views of the optimizer's own memory.

    Args:
        optimizer: Megatron's chained optimizer of distributed optimizers; its state must exist (`prime`).
        model_state: the model chunks' `sharded_state_dict`s; they say where a parameter lies in the whole model.
    """
    described = {id(entry.data): entry for entry in nested_values(model_state) if hasattr(entry, "data")}
    out: dict[str, ShardedTensor] = {}
    for part, parameter, start, stop in _owned(optimizer):
        for name, values in _tensors(part, parameter).items():
            for piece in _pieces(described[id(parameter)], name, values, start, stop, part):
                out[str(len(out))] = piece
    return out


def prime(optimizer: Any) -> None:
    """Give Adam its state before the first step: it is described when saving and filled when loading."""
    for part in optimizer.chained_optimizers:
        inner = part.optimizer
        part.init_state_fn(inner, part.config)
        if isinstance(inner, torch.optim.AdamW):
            # torch counts steps a parameter; TE's and apex's FusedAdam in the parameter group
            for p in (p for group in inner.param_groups for p in group["params"]):
                inner.state[p].setdefault("step", torch.tensor(0.0))


def step_count(optimizer: Any) -> int:
    """Updates behind the optimizer's state (Adam's t)."""
    for part in optimizer.chained_optimizers:
        inner = part.optimizer
        for group in inner.param_groups:
            if "step" in group:
                return int(group["step"])
            for p in group["params"]:
                return int(inner.state[p]["step"])
    return 0


def finish_load(optimizer: Any, loaded: dict[str, ShardedTensor], steps: int) -> None:
    """After the pieces were filled: Adam's t, and what a precision-aware optimizer keeps in its own scale."""
    position = 0
    for part, parameter, start, stop in _owned(optimizer):
        tensors = _tensors(part, parameter)
        if part.config.use_precision_aware_optimizer_no_fp8_or_ds_fp8:
            # the pieces were FP32 copies, in the order of `sharded_optimizer_state`
            for name, values in tensors.items():
                done = 0
                while done < stop - start:
                    data = loaded[str(position)].data.flatten()
                    values[done : done + len(data)].copy_(data)
                    done, position = done + len(data), position + 1
                tensors[name] = values
            part._set_main_param_and_optimizer_states(parameter, tensors)
    for part in optimizer.chained_optimizers:
        for group in part.optimizer.param_groups:
            if "step" in group or not isinstance(part.optimizer, torch.optim.AdamW):
                group["step"] = steps
                continue
            for p in group["params"]:
                part.optimizer.state[p]["step"] = torch.tensor(float(steps))


def _owned(optimizer: Any) -> Iterator[tuple[Any, Tensor, int, int]]:
    """(optimizer, parameter, start, stop): this rank owns elements start..stop of its flattened local parameter."""
    for part in optimizer.chained_optimizers:
        for buffer in part.gbuf_ranges:
            for buckets in buffer.values():
                for bucket in buckets:
                    for parameter, ranges in bucket["param_map"].items():
                        yield part, parameter, ranges["param"].start, ranges["param"].end


def _tensors(part: Any, parameter: Tensor) -> dict[str, Tensor]:
    """FP32 weights and moments of the owned range, flat."""
    found = part._get_main_param_and_optimizer_states(parameter)
    return {name: found[name].detach() for name in ("param", "exp_avg", "exp_avg_sq")}


def _pieces(
    entry: ShardedTensor | ShardedTensorFactory, name: str, values: Tensor, start: int, stop: int, part: Any
) -> Iterator[ShardedTensor]:
    """The boxes of one flat state tensor. A factory cuts a parameter in several (gate and up), one after the other."""
    whole = entry.data
    blocks = list(nested_values(entry.build())) if isinstance(entry, ShardedTensorFactory) else [entry]
    at = 0
    for block in blocks:
        size = block.data.numel()
        if block.data.data_ptr() != whole.data_ptr() + at * whole.element_size():
            raise RuntimeError(
                f"{block.key} is no run of rows of its parameter: its optimizer state cannot be cut"
            )
        for box in boxes(max(start, at) - at, min(stop, at + size) - at, tuple(block.local_shape)):
            first = at + box.start - start
            ones = block.prepend_axis_num
            offset = block.global_offset
            yield replace(
                block,
                key=f"{PREFIX}.{name}.{block.key}",
                data=values[first : first + prod(box.shape)].view((1,) * ones + box.shape),
                dtype=values.dtype,
                local_shape=(1,) * ones + box.shape,
                global_offset=(
                    *offset[:ones],
                    *(a + b for a, b in zip(offset[ones:], box.offset, strict=True)),
                ),
                axis_fragmentations=None,
                prepend_axis_num=0,
                allow_shape_mismatch=False,
                # every data-parallel rank holds another part, none a copy
                replica_id=(*block.replica_id[:2], part.distributed_optimizer_instance_id),
            )
        at += size
