"""The plan of a refit for every pair of layouts, on tensors of one process; no engine and no process group."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import numpy as np
import pytest

from octo_megatron.config.schema import ParallelConfig
from octo_megatron.engine.refit.pieces import Box, EngineLayout, Piece, hf_pieces, live_pieces, trainer_pieces
from octo_megatron.engine.refit.planner import Move, buckets, plan
from octo_megatron.model.families import family_of
from octo_megatron.model.hf_weights import tensor_shapes

LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 208,
    "hidden_size": 16,
    "intermediate_size": 48,
    "num_hidden_layers": 8,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 4,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
}
QWEN2 = {**LLAMA, "architectures": ["Qwen2ForCausalLM"]}
QWEN3 = {**LLAMA, "architectures": ["Qwen3ForCausalLM"]}
LAYOUTS = [(1, 1), (2, 1), (2, 2), (4, 1), (4, 2)]
"""(PP, VPP)"""
SIZES = (1, 2, 4, 8)


def whole(hf_config: dict[str, Any]) -> dict[str, np.ndarray]:
    """Every Hugging Face tensor, each element another number."""
    out, at = {}, 1
    for name, shape in tensor_shapes(hf_config).items():
        size = int(np.prod(shape))
        out[name] = np.arange(at, at + size, dtype=np.int64).reshape(shape[0], -1)
        at += size
    return out


def cut(tensor: np.ndarray, box: Box) -> np.ndarray:
    return tensor[box.row : box.row + box.rows, box.column : box.column + box.columns]


def filled(pieces: list[Piece], tensors: dict[str, np.ndarray], empty: bool = False) -> dict[str, np.ndarray]:
    """A rank's parameters: with the pieces cut out of the whole tensors (the oracle), or zeros."""
    sizes: dict[str, tuple[int, int]] = defaultdict(lambda: (0, 0))
    for p in pieces:
        rows, columns = sizes[p.parameter]
        sizes[p.parameter] = (max(rows, p.row + p.box.rows), max(columns, p.column + p.box.columns))
    out = {name: np.zeros(size, dtype=np.int64) for name, size in sizes.items()}
    for p in pieces if not empty else []:
        cut(out[p.parameter], p.local(p.box))[:] = cut(tensors[p.tensor], p.box)
    return out


def carried_out(
    moves: list[Move], sources: list[dict[str, np.ndarray]], targets: dict[int, dict[str, np.ndarray]]
) -> None:
    for m in moves:
        place = cut(targets[m.target][m.target_parameter], m.target_box)
        assert (place == 0).all(), "written twice"
        place[:] = cut(sources[m.source][m.source_parameter], m.source_box)


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("family", [LLAMA, QWEN2, QWEN3], ids=["llama", "qwen2", "qwen3"])
@pytest.mark.parametrize("tp", SIZES)
def test_every_pair_of_layouts_writes_every_element_once(tp: int, family: dict[str, Any], tied: bool) -> None:
    hf_config = {**family, "tie_word_embeddings": tied}
    tensors = whole(hf_config)
    for pp, vpp in LAYOUTS:
        layout = ParallelConfig(
            tensor_model_parallel_size=tp,
            pipeline_model_parallel_size=pp,
            virtual_pipeline_model_parallel_size=vpp,
        )
        source_pieces = trainer_pieces(hf_config, layout)
        sources = [filled(pieces, tensors) for pieces in source_pieces]
        for etp in SIZES:
            for kind in (live_pieces, hf_pieces):
                target_pieces = kind(hf_config, EngineLayout(etp, first_rank=(etp % 3) * 8))
                moves = plan(source_pieces, target_pieces)
                targets = {
                    rank: filled(pieces, tensors, empty=True) for rank, pieces in target_pieces.items()
                }
                carried_out(moves, sources, targets)
                for rank, pieces in target_pieces.items():
                    oracle = filled(pieces, tensors)
                    for name, expected in oracle.items():
                        assert (targets[rank][name] == expected).all(), (pp, vpp, etp, rank, name)
                assert sent(moves) == minimum(source_pieces, target_pieces)


def sent(moves: list[Move]) -> int:
    return sum(m.box.size for m in moves if not m.is_local)


def minimum(sources: list[list[Piece]], targets: dict[int, list[Piece]]) -> int:
    """Elements of each target that its own rank does not hold, counted one by one."""
    total = 0
    for rank, pieces in targets.items():
        own: dict[str, list[Box]] = defaultdict(list)
        for piece in sources[rank] if rank < len(sources) else []:
            if piece.box not in own[piece.tensor]:
                own[piece.tensor].append(piece.box)
        for piece in pieces:
            parts = [box.meet(piece.box) for box in own[piece.tensor]]
            total += piece.box.size - sum(part.size for part in parts if part)
    return total


def test_sources_are_balanced_over_copies() -> None:
    """Four data-parallel copies feed an engine of two ranks elsewhere: each sends a quarter, give or take a tensor."""
    layout = ParallelConfig(tensor_model_parallel_size=2, data_parallel_size=4)
    moves = plan(trainer_pieces(LLAMA, layout), live_pieces(LLAMA, EngineLayout(2, first_rank=8)))
    by_rank: dict[int, int] = defaultdict(int)
    for move in moves:
        by_rank[move.source] += move.box.size
    largest = max(move.box.size for move in moves)
    assert set(by_rank) == set(range(8))
    for tensor_rank in range(2):
        loads = [by_rank[rank] for rank in range(8) if rank % 2 == tensor_rank]
        assert max(loads) - min(loads) <= largest


def test_a_colocated_engine_of_the_trainers_layout_sends_nothing() -> None:
    layout = ParallelConfig(tensor_model_parallel_size=2, data_parallel_size=2)
    moves = plan(trainer_pieces(LLAMA, layout), live_pieces(LLAMA, EngineLayout(2, 2)))
    assert sent([m for m in moves if "embed" not in m.tensor and "lm_head" not in m.tensor]) == 0
    assert sent(moves) > 0  # vLLM pads the vocabulary before it cuts it: 208 rows are 128 + 80, not 104 + 104


def test_more_engine_ranks_than_key_value_heads_repeat_them() -> None:
    hf_config = {**LLAMA, "num_key_value_heads": 2}
    shape = family_of(hf_config).shape(hf_config)
    pieces = live_pieces(hf_config, EngineLayout(8))
    keys = [p for r in range(8) for p in pieces[r] if p.tensor == "model.layers.0.self_attn.k_proj.weight"]
    assert [p.box.row // shape.kv_channels for p in keys] == [0, 0, 0, 0, 1, 1, 1, 1]
    moves = plan(trainer_pieces(hf_config, ParallelConfig()), pieces)
    tensors = whole(hf_config)
    targets = {rank: filled(p, tensors, empty=True) for rank, p in pieces.items()}
    carried_out(moves, [filled(p, tensors) for p in trainer_pieces(hf_config, ParallelConfig())], targets)
    for rank, own in pieces.items():
        assert all((targets[rank][n] == x).all() for n, x in filled(own, tensors).items())


@pytest.mark.parametrize("limit", [1, 100, 1000, 10**9])
def test_buckets_bound_what_a_rank_holds_and_lose_nothing(limit: int) -> None:
    layout = ParallelConfig(tensor_model_parallel_size=2, pipeline_model_parallel_size=2)
    sources, targets = trainer_pieces(LLAMA, layout), live_pieces(LLAMA, EngineLayout(2, first_rank=2))
    moves = plan(sources, targets)
    found = buckets(moves, limit)
    widest = max(1, limit, max(m.box.columns for m in moves))  # a row is the smallest part
    for bucket in found:
        load: dict[tuple[str, int], int] = defaultdict(int)
        for move in bucket:
            if not move.is_local:
                load["send", move.source] += move.box.size
                load["receive", move.target] += move.box.size
        assert max(load.values(), default=0) <= widest
    tensors = whole(LLAMA)
    written = {rank: filled(p, tensors, empty=True) for rank, p in targets.items()}
    carried_out([m for b in found for m in b], [filled(p, tensors) for p in sources], written)
    for rank, pieces in targets.items():
        assert all((written[rank][n] == x).all() for n, x in filled(pieces, tensors).items())
    if limit == 10**9:
        assert len(found) == 1 and found[0] == moves


def test_a_missing_source_is_named() -> None:
    sources = trainer_pieces(LLAMA, ParallelConfig())
    broken = [[p for p in sources[0] if p.parameter != "decoder.final_layernorm.weight"]]
    with pytest.raises(ValueError, match=r"16 of 16 elements of model\.norm\.weight"):
        plan(broken, live_pieces(LLAMA, EngineLayout()))
