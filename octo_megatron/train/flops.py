"""Floating-point operations of a training step, and what a device could do at best."""

from __future__ import annotations

from collections.abc import Sequence

from octo_megatron.model.families import ModelShape

PEAK_TFLOPS = {
    "H200": 989.4,
    "H100 NVL": 835.5,
    "H100 PCIe": 756.5,
    "H100": 989.4,
    "A100": 312.0,
    "B200": 2250.0,
}
"""Dense BF16 tensor-core peak by a part of the device's name (NVIDIA's data sheets; the first that matches counts)."""


def training_flops(shape: ModelShape, lengths: Sequence[int]) -> float:
    """Operations of forward and backward over documents of these lengths (tokens each).

    6 x (projections + MLP + LM head) a token, and causal attention at half the square: 6 x length^2 x heads x
    head width a layer and document for its two matrix products (Kaplan et al., arXiv 2001.08361, section 2.1;
    Megatron-LM, arXiv 2104.04473, appendix, without its recomputation). The embedding look-up counts nothing.
    """
    query = shape.num_attention_heads * shape.kv_channels
    key_value = shape.num_query_groups * shape.kv_channels
    projections = shape.hidden_size * (query + 2 * key_value) + query * shape.hidden_size
    mlp = 3 * shape.hidden_size * shape.ffn_hidden_size
    matrices = shape.num_layers * (projections + mlp) + shape.hidden_size * shape.vocab_size
    squares = sum(length * length for length in lengths)
    return 6.0 * sum(lengths) * matrices + 6.0 * shape.num_layers * query * squares


def peak_tflops(device_name: str) -> float | None:
    """Dense BF16 peak of one device, None where it is not known (a CPU)."""
    return next((peak for name, peak in PEAK_TFLOPS.items() if name in device_name), None)
