"""One row a step: into metrics.jsonl always, and to the loggers that the lineage asks for."""

from __future__ import annotations

import resource
from typing import Any

import torch

from octo_megatron.config.run_folder import MetricsFile, NodeContext
from octo_megatron.parallel.device import ON_CUDA
from octo_megatron.train.flops import peak_tflops
from octo_megatron.train.loggers import Logger, open_loggers


class Metrics:
    """The rows of one node; silent on every rank but the first."""

    def __init__(self, ctx: NodeContext, resume_step: int, enabled: bool):
        """Rows of steps after `resume_step` are dropped first: they will be written again.

        Raises:
            UserError: a logger is asked for that is not installed.
        """
        self._file = MetricsFile(ctx.folder.metrics, resume_step, enabled)
        self._loggers: list[Logger] = open_loggers(ctx, resume_step) if enabled else []

    def write(self, row: dict[str, Any]) -> None:
        """`row` must hold "step"."""
        self._file.write(row)
        numbers = {
            name: float(value)
            for name, value in row.items()
            if isinstance(value, int | float) and name != "step"
        }
        for logger in self._loggers:
            logger.log(int(row["step"]), numbers)

    def close(self) -> None:
        self._file.close()
        for logger in self._loggers:
            logger.close()


def speed(tokens: int, flops: float, seconds: float, devices: int) -> dict[str, float]:
    """tokens_per_second of the whole run; tflops_per_second of one device, and mfu where its peak is known.

    mfu (Chowdhery et al., arXiv 2204.02311, appendix B) = `flops.training_flops` a second and device / the device's
    dense BF16 peak, in FP8 runs too; recomputed operations do not count.
    """
    tflops = flops / seconds / devices / 1e12
    out = {"tokens_per_second": tokens / seconds, "tflops_per_second": tflops}
    peak = peak_tflops(torch.cuda.get_device_name()) if ON_CUDA else None
    return {**out, "mfu": tflops / peak} if peak else out


def memory_gib() -> float:
    """Peak of this rank up to now: of the GPU's allocator, without a GPU of the process's resident memory."""
    if ON_CUDA:
        return torch.cuda.max_memory_allocated() / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
