"""Carrying out a plan: local copies, one message a pair of ranks and bucket, proof by digest.

Two kinds of target. `live`: the engine's own parameters, written in place (GPU; a captured CUDA graph goes on
reading the same memory). `stream`: whole Hugging Face tensors for an engine that only has a reload interface (CPU);
each is handed over as soon as it is complete.
"""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from torch import Tensor

from octo_megatron.engine.refit.digest import digest_part, wrapped
from octo_megatron.engine.refit.pieces import Box
from octo_megatron.engine.refit.planner import Move, buckets

BUCKET_BYTES = 256 << 20
"""What a rank sends or receives at a time, at most; the largest extra memory of a refit on GPU."""


class RefitMismatch(RuntimeError):
    """A tensor in the engine is not the trainer's; the message names tensor, rank and both layouts."""


@dataclass
class Report:
    """What one refit moved, seen from one rank."""

    bytes_local: int = 0
    bytes_received: int = 0
    bytes_sent: int = 0
    seconds: float = 0.0
    seconds_proof: float = 0.0
    digests: dict[str, int] = field(default_factory=dict)
    """Tensor -> digest of what this rank received; empty without proof."""
    lost: str = ""
    """Why this rank's engine did not take the weights."""


@dataclass(frozen=True)
class Setting:
    """What a transfer needs to know beside the plan."""

    shapes: Mapping[str, tuple[int, ...]]
    """Of the Hugging Face tensors, in their order."""
    rank: int
    dtype: torch.dtype
    device: torch.device
    layouts: str
    """Both, in words, for errors."""
    group: dist.ProcessGroup | None = None
    """All ranks of the plan; None: the default group."""
    bucket_bytes: int = BUCKET_BYTES


class Transfer:
    """One rank's part in a plan; made once, run at every refit."""

    def __init__(self, moves: Sequence[Move], setting: Setting):
        self._set, self._moves = setting, list(moves)
        self._buckets = buckets(moves, max(1, setting.bucket_bytes // setting.dtype.itemsize))
        self._targets = sorted({move.target for move in moves})
        self._order = {name: i for i, name in enumerate(setting.shapes)}

    def into(self, sources: Mapping[str, Tensor], parameters: Mapping[str, Tensor], prove: bool) -> Report:
        """Write the engine's live parameters. Collective.

        Raises:
            RefitMismatch: the proof failed.
        """
        report, began = Report(), time.perf_counter()
        for bucket in self._buckets:
            for move, values in self._arrived(bucket, sources, report):
                _cut(parameters[move.target_parameter], move.target_box).copy_(values)
        report.seconds = time.perf_counter() - began
        if prove:
            for move in self._moves:
                if move.target == self._set.rank:
                    values = _cut(parameters[move.target_parameter], move.target_box)
                    self._add(report, move, values)
            self.prove(sources, report)
        return report

    def stream(
        self, sources: Mapping[str, Tensor], report: Report, prove: bool
    ) -> Iterator[tuple[str, Tensor]]:
        """Whole tensors in the order in which they are complete; walk it to the end. Collective.

        The proof is of the tensors as they are handed over and stands in `report.digests`; call `prove` afterwards.
        """
        pending: dict[str, Tensor] = {}
        left = {name: math.prod(shape) for name, shape in self._set.shapes.items()}
        for bucket in self._buckets:
            began = time.perf_counter()
            ready = []
            for move, values in self._arrived(bucket, sources, report):
                name, shape = move.tensor, self._set.shapes[move.tensor]
                if move.box.size == left[name] == math.prod(shape):
                    pending[name] = values.reshape(shape)
                else:
                    if name not in pending:
                        pending[name] = torch.empty(shape, dtype=self._set.dtype, device=self._set.device)
                    _cut(pending[name], move.target_box).copy_(values)
                left[name] -= move.box.size
                if not left[name]:
                    ready.append(name)
            report.seconds += time.perf_counter() - began
            for name in ready:
                tensor = pending.pop(name)
                if prove:
                    began = time.perf_counter()
                    width = self._width(name)
                    report.digests[name] = digest_part(tensor, Box(0, len(tensor), 0, width), width)
                    report.seconds_proof += time.perf_counter() - began
                yield name, tensor

    def prove(self, sources: Mapping[str, Tensor], report: Report) -> None:
        """Compare what arrived with what every source rank holds. Collective.

        Raises:
            RefitMismatch: naming the first tensor that differs, the rank and both layouts.
        """
        began = time.perf_counter()
        expected = torch.zeros(len(self._targets), len(self._order), dtype=torch.int64)
        for move in self._moves:
            if move.source == self._set.rank:
                values = _cut(sources[move.source_parameter], move.source_box)
                place = self._targets.index(move.target), self._order[move.tensor]
                expected[place] += digest_part(values, move.box, self._width(move.tensor))
        if dist.is_initialized() and dist.get_world_size(self._set.group) > 1:
            on_device = expected.to(self._set.device)
            dist.all_reduce(on_device, group=self._set.group)
            expected = on_device.cpu()
        report.seconds_proof += time.perf_counter() - began
        if self._set.rank not in self._targets:
            return
        row = expected[self._targets.index(self._set.rank)].tolist()
        wrong = [name for name, i in self._order.items() if wrapped(report.digests.get(name, 0)) != row[i]]
        if wrong:
            raise RefitMismatch(
                f"rank {self._set.rank}: tensor {wrong[0]} in the engine is not the trainer's after the refit "
                f"({len(wrong)} of {len(self._order)} tensors differ; {self._set.layouts})"
            )

    def _add(self, report: Report, move: Move, values: Tensor) -> None:
        began = time.perf_counter()
        part = digest_part(values, move.box, self._width(move.tensor))
        report.digests[move.tensor] = wrapped(report.digests.get(move.tensor, 0) + part)
        report.seconds_proof += time.perf_counter() - began

    def _width(self, tensor: str) -> int:
        shape = self._set.shapes[tensor]
        return shape[1] if len(shape) > 1 else 1

    def _arrived(
        self, bucket: Sequence[Move], sources: Mapping[str, Tensor], report: Report
    ) -> Iterator[tuple[Move, Tensor]]:
        """This rank's share of a bucket: (move, its values) for each that ends here."""
        incoming: dict[int, list[Move]] = defaultdict(list)
        outgoing: dict[int, list[Move]] = defaultdict(list)
        for move in bucket:
            if move.target == self._set.rank and move.is_local:
                report.bytes_local += move.box.size * self._set.dtype.itemsize
                yield move, _cut(sources[move.source_parameter], move.source_box)
            elif move.target == self._set.rank:
                incoming[move.source].append(move)
            elif move.source == self._set.rank:
                outgoing[move.target].append(move)
        yield from self._exchanged(incoming, outgoing, sources, report)

    def _exchanged(
        self,
        incoming: Mapping[int, list[Move]],
        outgoing: Mapping[int, list[Move]],
        sources: Mapping[str, Tensor],
        report: Report,
    ) -> Iterator[tuple[Move, Tensor]]:
        if not incoming and not outgoing:
            return
        operations: list[dist.P2POp] = []
        received: dict[int, Tensor] = {}
        for target, moves in sorted(outgoing.items()):
            parts = [_cut(sources[m.source_parameter], m.source_box).reshape(-1) for m in moves]
            message = torch.cat(parts)
            report.bytes_sent += message.nbytes
            operations.append(dist.P2POp(dist.isend, message, target, self._set.group))
        for source, moves in sorted(incoming.items()):
            size = sum(m.box.size for m in moves)
            message = torch.empty(size, dtype=self._set.dtype, device=self._set.device)
            received[source] = message
            report.bytes_received += message.nbytes
            operations.append(dist.P2POp(dist.irecv, message, source, self._set.group))
        for work in dist.batch_isend_irecv(operations):
            work.wait()
        for source, moves in sorted(incoming.items()):
            message, at = received[source], 0
            for move in moves:
                yield move, message[at : at + move.box.size].view(move.box.rows, move.box.columns)
                at += move.box.size


def _cut(tensor: Tensor, box: Box) -> Tensor:
    """The rectangle of a matrix, or of a vector as one column; shares its memory."""
    matrix = tensor.detach() if tensor.dim() > 1 else tensor.detach()[:, None]
    return matrix[box.row : box.row + box.rows, box.column : box.column + box.columns]
