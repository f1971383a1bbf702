"""How a node is cut over processes."""

from __future__ import annotations

from dataclasses import dataclass

from octo_megatron.config.schema.checks import require


@dataclass(frozen=True)
class ParallelConfig:
    """How one node's model is cut over processes. World size = tensor x pipeline x context x data."""

    tensor_model_parallel_size: int = 1
    pipeline_model_parallel_size: int = 1
    virtual_pipeline_model_parallel_size: int = 1
    """Model chunks per pipeline stage; above 1 the interleaved schedule runs."""
    context_parallel_size: int = 1
    data_parallel_size: int = 1
    sequence_parallel: bool = False
    """Splits norms and dropouts along the sequence over the tensor-parallel ranks; needs tensor size > 1."""
    overlap_grad_reduce: bool = False
    """Reduce gradients and gather parameters of the distributed optimizer while computing."""

    def __post_init__(self) -> None:
        for name in ("tensor_model_parallel", "pipeline_model_parallel", "virtual_pipeline_model_parallel",
                     "context_parallel", "data_parallel"):  # fmt: skip
            value = getattr(self, f"{name}_size")
            require(value >= 1, f"parallel.{name}_size is {value}; it must be at least 1")
        require(
            not self.sequence_parallel or self.tensor_model_parallel_size > 1,
            "parallel.sequence_parallel=true needs parallel.tensor_model_parallel_size above 1",
        )
        require(
            self.virtual_pipeline_model_parallel_size == 1 or self.pipeline_model_parallel_size > 1,
            "parallel.virtual_pipeline_model_parallel_size above 1 needs parallel.pipeline_model_parallel_size above 1",
        )

    @property
    def short(self) -> str:
        """For messages: "TP2+SP x PP2 x DP4"; "1 process" where nothing is cut."""
        sizes = {
            "TP": self.tensor_model_parallel_size,
            "PP": self.pipeline_model_parallel_size,
            "VPP": self.virtual_pipeline_model_parallel_size,
            "CP": self.context_parallel_size,
            "DP": self.data_parallel_size,
        }
        parts = [
            f"{name}{size}" + ("+SP" if name == "TP" and self.sequence_parallel else "")
            for name, size in sizes.items()
            if size > 1
        ]
        return " x ".join(parts) or "1 process"

    @property
    def world_size(self) -> int:
        """Processes that the layout needs."""
        return (
            self.tensor_model_parallel_size
            * self.pipeline_model_parallel_size
            * self.context_parallel_size
            * self.data_parallel_size
        )
