"""The weights of a Megatron model on all ranks into the engines on all ranks, planned once, proven now and then."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist

from octo_megatron.config.schema import ParallelConfig
from octo_megatron.engine.refit.pieces import EngineLayout, hf_pieces, live_pieces, trainer_pieces
from octo_megatron.engine.refit.planner import plan
from octo_megatron.engine.refit.transfer import BUCKET_BYTES, Report, Setting, Transfer
from octo_megatron.engine.sampler import EngineLost, Sampler
from octo_megatron.engine.vllm_engine import Engine
from octo_megatron.model.hf_weights import table_parameters, tensor_shapes
from octo_megatron.parallel.device import DEVICE, ON_CUDA


class Refit:
    """Pushes weights into this rank's engine; every rank of both layouts takes part in each `run`."""

    def __init__(
        self,
        hf_config: dict[str, Any],
        layout: ParallelConfig,
        engine_layout: EngineLayout,
        dtype: torch.dtype,
        proof_interval: int | None = None,
        bucket_bytes: int = BUCKET_BYTES,
        separate: bool = False,
    ):
        """`separate`: engines are samplers, which take whole tensors.
        `proof_interval`: every so many refits are proven by digest; 0: none; None: 1 on CPU, 10 on GPU."""
        default = 10 if ON_CUDA else 1
        self._interval = default if proof_interval is None else proof_interval
        self._hf_config, self._runs = hf_config, 0
        self._live = ON_CUDA and not separate
        targets = (live_pieces if self._live else hf_pieces)(hf_config, engine_layout)
        setting = Setting(
            tensor_shapes(hf_config),
            dist.get_rank() if dist.is_initialized() else 0,
            dtype,
            DEVICE,
            f"training {_words(layout)}, engine {engine_layout}",
            bucket_bytes=bucket_bytes,
        )
        self._transfer = Transfer(plan(trainer_pieces(hf_config, layout), targets), setting)

    def run(self, models: list[torch.nn.Module], engine: Engine | Sampler | None, version: int) -> Report:
        """The weights of `models` into `engine` under `version`. Collective.

        Args:
            models: this rank's model chunks; empty on ranks that only sample.
            engine: this rank's engine; None on ranks that only train. One that dies again and again is said in the
                report.

        Raises:
            RefitMismatch: the proof failed; names tensor, rank and both layouts.
        """
        prove = bool(self._interval) and self._runs % self._interval == 0
        self._runs += 1
        sources = table_parameters(models, self._hf_config) if models else {}
        if self._live and not isinstance(engine, Sampler):
            report = self._transfer.into(sources, engine.live_parameters() if engine else {}, prove)
            if engine:
                engine.weights_written(version)
            return report
        report = Report()
        tensors = self._transfer.stream(sources, report, prove)
        if engine:
            try:
                # a sampler says what reached its process
                report.digests |= engine.load_weights(tensors, version) or {}
            except EngineLost as error:  # the other ranks still wait for this one
                report.lost = str(error)
        else:
            for _ in tensors:
                raise AssertionError("a rank without an engine received a tensor")
        if prove:
            self._transfer.prove(sources, report)
        return report


def _words(layout: ParallelConfig) -> str:
    return (
        f"TP {layout.tensor_model_parallel_size} x PP {layout.pipeline_model_parallel_size} x VPP "
        f"{layout.virtual_pipeline_model_parallel_size} x CP {layout.context_parallel_size} x DP "
        f"{layout.data_parallel_size}"
    )
