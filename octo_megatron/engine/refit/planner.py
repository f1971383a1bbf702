"""The plan of a refit: which rank sends which rectangle of which tensor to which rank. Pure; no process, no tensor.

Every element of every target is written once, by the target's own rank where it has the element, otherwise by the
copy (data- or context-parallel, or a tied head) that has least to send so far. Nothing is gathered.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from octo_megatron.engine.refit.pieces import Box, Piece


@dataclass(frozen=True)
class Move:
    """One rectangle from a parameter of one rank to a parameter of another (or of the same)."""

    tensor: str
    """Hugging Face name."""
    box: Box
    """In the Hugging Face tensor."""
    source: int
    source_parameter: str
    source_box: Box
    target: int
    target_parameter: str
    target_box: Box

    @property
    def is_local(self) -> bool:
        return self.source == self.target


def plan(sources: Sequence[Sequence[Piece]], targets: Mapping[int, Sequence[Piece]]) -> list[Move]:
    """All moves, tensor by tensor in the targets' order; the same list on every rank.

    Args:
        sources: pieces by global training rank.
        targets: global engine rank -> its pieces.

    Raises:
        ValueError: an element that a target waits for is on no rank.
    """
    held: dict[str, dict[Box, list[tuple[int, Piece]]]] = defaultdict(lambda: defaultdict(list))
    for rank, pieces in enumerate(sources):
        for piece in pieces:
            held[piece.tensor][piece.box].append((rank, piece))
    order = {
        tensor: i for i, tensor in enumerate(dict.fromkeys(p.tensor for ps in targets.values() for p in ps))
    }
    wanted = [(order[piece.tensor], rank, piece) for rank, pieces in targets.items() for piece in pieces]
    sent: dict[int, int] = defaultdict(int)
    moves: list[Move] = []
    for _, rank, piece in sorted(wanted, key=lambda w: (w[0], w[1], w[2].box)):
        found = 0
        for box, holders in held[piece.tensor].items():
            part = box.meet(piece.box)
            if part is None:
                continue
            found += part.size
            source, holder = _chosen(holders, rank, sent)
            if source != rank:
                sent[source] += part.size
            moves.append(
                Move(
                    piece.tensor,
                    part,
                    source,
                    holder.parameter,
                    holder.local(part),
                    rank,
                    piece.parameter,
                    piece.local(part),
                )
            )
        if found != piece.box.size:
            raise ValueError(
                f"rank {rank}: {piece.box.size - found} of {piece.box.size} elements of {piece.tensor} have no source"
            )
    return moves


def _chosen(holders: list[tuple[int, Piece]], target: int, sent: Mapping[int, int]) -> tuple[int, Piece]:
    """The target itself where it holds the rectangle, else the holder that has sent least."""
    for rank, piece in holders:
        if rank == target:
            return rank, piece
    return min(holders, key=lambda h: (sent[h[0]], h[0]))


def buckets(moves: Sequence[Move], limit: int) -> list[list[Move]]:
    """The moves in order, cut so that no rank sends or receives more than `limit` elements in one bucket.

    A move that is larger alone is cut along its rows. Local moves cost nothing. At least one row goes at a time,
    whatever the limit.
    """
    out: list[list[Move]] = [[]]
    load: dict[tuple[str, int], int] = defaultdict(int)
    for move in moves:
        for part in [move] if move.is_local else _split(move, limit):
            keys = (("send", part.source), ("receive", part.target))
            if not part.is_local and out[-1] and any(load[key] + part.box.size > limit for key in keys):
                out.append([])
                load.clear()
            if not part.is_local:
                for key in keys:
                    load[key] += part.box.size
            out[-1].append(part)
    return [bucket for bucket in out if bucket]


def _split(move: Move, limit: int) -> list[Move]:
    step = max(1, limit // max(1, move.box.columns))
    return [
        replace(
            move,
            box=_rows(move.box, first, step),
            source_box=_rows(move.source_box, first, step),
            target_box=_rows(move.target_box, first, step),
        )
        for first in range(0, move.box.rows, step)
    ]


def _rows(box: Box, first: int, count: int) -> Box:
    return Box(box.row + first, min(count, box.rows - first), box.column, box.columns)
