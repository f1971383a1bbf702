"""Rank script: refits between real process groups against the slow way (gather everything, cut again), as JSON.

refit_ranks.py '{"layout": {...}, "tied": true, "bucket_bytes": 4096}'
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any


def main(options: dict[str, Any]) -> None:
    import torch
    from torch import Tensor

    from octo_megatron.config.schema import ParallelConfig
    from octo_megatron.engine.refit.pieces import (
        Box,
        EngineLayout,
        Piece,
        hf_pieces,
        live_pieces,
        trainer_pieces,
    )
    from octo_megatron.engine.refit.planner import Move, plan
    from octo_megatron.engine.refit.transfer import RefitMismatch, Report, Setting, Transfer
    from octo_megatron.model.build import build_model
    from octo_megatron.model.hf_weights import export_weights, table_parameters, tensor_shapes
    from octo_megatron.parallel import world as worlds

    hf_config = {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "vocab_size": 208,
        "hidden_size": 32,
        "intermediate_size": 96,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": options["tied"],
    }
    layout = ParallelConfig(**options["layout"])
    world = worlds.start(layout, seed=3, timeout_seconds=120)
    models = build_model(hf_config, layout, "fp32")
    oracle = {name: tensor.clone() for name, tensor in export_weights(models, hf_config)}
    sources, shapes = table_parameters(models, hf_config), tensor_shapes(hf_config)

    def cut(tensor: Tensor, box: Box) -> Tensor:
        matrix = tensor if tensor.dim() > 1 else tensor[:, None]
        return matrix[box.row : box.row + box.rows, box.column : box.column + box.columns]

    def by_oracle(pieces: Sequence[Piece], fill: bool) -> dict[str, Tensor]:
        sizes: dict[str, tuple[int, int]] = {}
        for p in pieces:
            rows, columns = sizes.get(p.parameter, (0, 0))
            sizes[p.parameter] = (max(rows, p.row + p.box.rows), max(columns, p.column + p.box.columns))
        out = {name: torch.zeros(size) for name, size in sizes.items()}
        for p in pieces if fill else []:
            cut(out[p.parameter], p.local(p.box)).copy_(cut(oracle[p.tensor], p.box))
        return out

    class Flipping(Transfer):
        """One bit of one arriving value of a tensor is changed."""

        def _arrived(
            self, bucket: Sequence[Move], held: Mapping[str, Tensor], report: Report
        ) -> Iterator[tuple[Move, Tensor]]:
            for move, values in super()._arrived(bucket, held, report):
                if move.tensor == options["flip"] and world.rank == world.world_size - 1:
                    values = values.clone()
                    values.view(torch.uint8)[0, 0] ^= 1
                yield move, values

    out: dict[str, Any] = {"rank": world.rank}
    source_pieces = trainer_pieces(hf_config, layout)
    for etp in (1, world.world_size):
        engine = EngineLayout(etp, world.world_size // etp)
        for kind in (live_pieces, hf_pieces):
            targets = kind(hf_config, engine)
            name = f"{kind.__name__} {etp}"
            moves = plan(source_pieces, targets)
            words = f"training {layout}, engine {engine}"
            setting = Setting(shapes, world.rank, torch.float32, torch.device("cpu"), words,
                              bucket_bytes=options["bucket_bytes"])  # fmt: skip
            expected = by_oracle(targets[world.rank], True)

            def refit(transfer: Transfer, live: bool) -> tuple[dict[str, Tensor], Report]:
                if live:
                    found = by_oracle(targets[world.rank], False)  # noqa: B023
                    return found, transfer.into(sources, found, True)
                report = Report()
                streamed = {n: t.clone() for n, t in transfer.stream(sources, report, True)}
                transfer.prove(sources, report)
                return streamed, report

            live = kind is live_pieces
            found, report = refit(Transfer(moves, setting), live)
            same = found.keys() == expected.keys() and all(
                torch.equal(found[n].reshape(expected[n].shape), expected[n]) for n in expected
            )
            remote = sum(m.box.size * 4 for m in moves if m.target == world.rank and not m.is_local)
            out[name] = {"same": same, "received": report.bytes_received, "planned": remote}
            try:
                refit(Flipping(moves, setting), live)
                out[name]["error"] = ""
            except RefitMismatch as error:
                out[name]["error"] = str(error)
            world.barrier()
    everything = world.all_gather_object(out)
    if world.is_first:
        print("RESULT " + json.dumps(everything))
    world.stop()


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
