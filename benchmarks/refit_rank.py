"""One rank of a row of refit.py: Megatron's weights into a running vLLM; rank 0 prints the figures as JSON."""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist

from octo_megatron.config.schema import ParallelConfig
from octo_megatron.engine.refit.pieces import EngineLayout
from octo_megatron.engine.refit.refit import Refit
from octo_megatron.engine.vllm_engine import Engine
from octo_megatron.model.build import build_model
from octo_megatron.model.hf_weights import export_weights
from octo_megatron.parallel import world as worlds
from octo_megatron.parallel.device import DEVICE, ON_CUDA
from octo_megatron.parallel.world import World


def main() -> None:
    """argv[1]: JSON with hf_config, layout, engine_tp, repeats."""
    options = json.loads(sys.argv[1])
    hf_config, layout = options["hf_config"], ParallelConfig(**options["layout"])
    world, precision = worlds.start(layout, 0), "bf16" if ON_CUDA else "fp32"
    models = build_model(hf_config, layout, precision)
    engine_layout = EngineLayout(options["engine_tp"], world.world_size // options["engine_tp"])
    engine = Engine.of(hf_config, precision, 512, 4, options["engine_tp"])
    dtype = next(models[0].parameters()).dtype

    began = time.perf_counter()
    refit = Refit(hf_config, layout, engine_layout, dtype, proof_interval=0)
    planned = (time.perf_counter() - began) * 1e3
    moving: list[float] = []

    def push() -> None:
        moving.append(refit.run(models, engine, 1).seconds * 1e3)

    found = {"plan": planned, "refit": _median(push, options["repeats"])}
    report = Refit(hf_config, layout, engine_layout, dtype, proof_interval=1).run(models, engine, 2)
    size = report.bytes_local + report.bytes_received
    found |= {
        "moving": statistics.median(moving[1:]),
        "proof": report.seconds_proof * 1e3,
        "bytes": size,
        "over_the_wire": report.bytes_received,
        "copy": _copy(size // dtype.itemsize, dtype, options["repeats"]),
    }
    if world.world_size == 1:
        found["load_weights"] = _load_weights(
            engine, list(export_weights(models, hf_config)), options["repeats"]
        )
    _tell(world, found)


def _copy(elements: int, dtype: torch.dtype, repeats: int) -> float:
    """Of as many bytes as the refit writes, on all ranks at once."""
    source = torch.ones(elements, dtype=dtype, device=DEVICE)
    target = torch.empty_like(source)
    return _median(lambda: target.copy_(source), repeats)


def _load_weights(engine: Engine, weights: list[tuple[str, torch.Tensor]], repeats: int) -> float:
    """vLLM's own interface, given whole tensors that are already where it wants them."""
    if not ON_CUDA:
        return _median(lambda: engine.load_weights(weights, 3), repeats)
    return _median(lambda: engine._llm.apply_model(lambda model: model.load_weights(weights)), repeats)


def _median(work: Callable[[], Any], repeats: int) -> float:
    """Milliseconds until all ranks have done it, after one warm run."""
    taken = []
    for _ in range(repeats + 1):
        _wait()
        began = time.perf_counter()
        work()
        _wait()
        taken.append((time.perf_counter() - began) * 1e3)
    return statistics.median(taken[1:])


def _wait() -> None:
    if ON_CUDA:
        torch.cuda.synchronize()
    if dist.get_world_size() > 1:
        dist.barrier()


def _tell(world: World, found: dict[str, float]) -> None:
    if world.is_first:
        print("RESULT " + json.dumps(found), flush=True)
    world.barrier()
    os._exit(0)  # not through vLLM's destructors


if __name__ == "__main__":
    main()
