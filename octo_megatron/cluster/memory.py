"""GPU memory of a training step by part, as a pure function; held against measured peaks by its test.

Bytes a parameter follow from Megatron's mixed precision with the distributed optimizer: BF16 weights, FP32 gradients,
FP32 master weights and two moments, the last two shared by data- and context-parallel ranks. Activations are what
Transformer Engine's layers keep for the backward pass, counted tensor by tensor.
"""

from __future__ import annotations

from dataclasses import dataclass

from octo_megatron.config.model_size import ModelSize
from octo_megatron.config.schema import ComputeConfig, ParallelConfig
from octo_megatron.config.schema.precision import is_fp8

GIB = 2**30
WORKSPACE = 0.5 * GIB
"""Assumed: products' workspaces, rotary tables, the batch, what kernels hold for a moment."""

_MOMENT_BYTES = {"fp32": 8, "bf16": 4, "fp8": 2}


@dataclass(frozen=True)
class Memory:
    """Bytes on the GPU that needs most."""

    weights: float
    fp8_weights: float
    gradients: float
    master_weights: float
    moments: float
    activations: float
    logits: float
    workspace: float = WORKSPACE

    @property
    def total(self) -> float:
        """Bytes in all."""
        return sum(self.parts().values())

    def parts(self) -> dict[str, float]:
        """Bytes by part, in the order of a report."""
        return {name.replace("_", " "): getattr(self, name) for name in self.__dataclass_fields__}


@dataclass(frozen=True)
class Step:
    """What a step is made of, beside the model and the layout."""

    seq_length: int
    micro_batch_size: int
    micro_batches: int = 1
    """Of one data-parallel rank."""
    precision: str = "bf16"
    moments: str = "fp32"


def memory(size: ModelSize, layout: ParallelConfig, step: Step, compute: ComputeConfig) -> Memory:
    """Peak of a training step on the pipeline stage that needs most."""
    stages = [
        _stage(size, layout, step, compute, stage) for stage in {0, layout.pipeline_model_parallel_size - 1}
    ]
    return max(stages, key=lambda m: m.total)


def _stage(size: ModelSize, layout: ParallelConfig, step: Step, compute: ComputeConfig, stage: int) -> Memory:
    tensor, pipeline = layout.tensor_model_parallel_size, layout.pipeline_model_parallel_size
    layers = size.layers / pipeline
    first, last = stage == 0, stage == pipeline - 1
    ends = int(first) + int(last and not (size.tied and first))  # tied stages at both ends hold a copy each
    matrices = layers * size.layer_matrices / tensor
    parameters = matrices + layers * size.layer_vectors + ends * size.embedding / tensor + last * size.hidden
    width = 4 if step.precision == "fp32" else 2
    shards = layout.data_parallel_size * layout.context_parallel_size
    fp8_layers = max(0, size.layers - compute.bf16_layers) / size.layers if is_fp8(step.precision) else 0.0
    # an FP8 weight is kept twice, as it is and transposed; as a parameter it takes the BF16 one's place
    own = matrices * fp8_layers if compute.fp8_params else 0.0
    tokens = step.seq_length * step.micro_batch_size / layout.context_parallel_size
    return Memory(
        weights=width * (parameters - own),
        fp8_weights=2 * matrices * fp8_layers,
        gradients=4 * parameters,
        master_weights=0 if step.precision == "fp32" else 4 * parameters / shards,
        moments=_MOMENT_BYTES[step.moments] * parameters / shards,
        activations=tokens * layers * _in_flight(layout, step, stage) * _kept(size, layout, step, compute, fp8_layers)
        + (_working(size, layout, tokens, width) if compute.recompute == "full" else 0),
        logits=_logits(size, tensor, tokens, step.precision, compute) if last else 0,
    )  # fmt: skip


def _in_flight(layout: ParallelConfig, step: Step, stage: int) -> float:
    """Micro-batches whose activations a stage holds at once (1F1B; interleaved: Narayanan et al. 2021, section 2.2)."""
    pipeline, virtual = layout.pipeline_model_parallel_size, layout.virtual_pipeline_model_parallel_size
    if virtual > 1:
        return min(step.micro_batches, pipeline + (pipeline - 1) / virtual) if stage == 0 else pipeline
    return min(step.micro_batches, pipeline - stage)


def _kept(
    size: ModelSize, layout: ParallelConfig, step: Step, compute: ComputeConfig, fp8_layers: float
) -> float:
    """Bytes a token and layer that stay for the backward pass on one tensor-parallel rank."""
    tensor = layout.tensor_model_parallel_size
    width = 4 if step.precision == "fp32" else 2
    stream = tensor if layout.sequence_parallel else 1
    residual = 2 * size.hidden * width / stream  # inputs of both norms
    if compute.recompute == "full":
        return size.hidden * width / stream
    normed = 2 * size.hidden * width / stream  # inputs of the q, k, v and of the gate and up products
    attention = (
        (2 * size.query + 2 * size.kv) * width / tensor
    )  # q, k, v and the output, which the projection reads
    gate_up, activated = 2 * size.ffn * width / tensor, size.ffn * width / tensor
    if fp8_layers:  # inputs of products are kept in FP8; the attention's output for the projection as well
        normed *= 1 - fp8_layers / 2
        activated *= 1 - fp8_layers / 2
        attention += fp8_layers * size.query / tensor
    if compute.recompute == "selective" and "mlp" in compute.recompute_modules:
        gate_up = activated = 0.0
        normed /= 2
    if compute.recompute == "selective" and "layernorm" in compute.recompute_modules:
        normed = 0.0
    return residual + normed + attention + gate_up + activated


def _working(size: ModelSize, layout: ParallelConfig, tokens: float, width: int) -> float:
    """Full recomputation holds one layer's activations at a time."""
    tensor = layout.tensor_model_parallel_size
    stream = tensor if layout.sequence_parallel else 1
    per_token = 4 * size.hidden / stream + (2 * size.query + 2 * size.kv + 3 * size.ffn) / tensor
    return tokens * width * per_token


def _logits(size: ModelSize, tensor: int, tokens: float, precision: str, compute: ComputeConfig) -> float:
    """Logits of a micro-batch, which the fused loss turns into their gradient in place; FP32 twice where chunked."""
    width = 4 if precision == "fp32" else 2
    if compute.lm_head_chunk_tokens:
        chunk = min(tokens, compute.lm_head_chunk_tokens)
        return chunk * size.vocabulary / tensor * (4 + width) + size.embedding / tensor * 4
    return tokens * size.vocabulary / tensor * width
