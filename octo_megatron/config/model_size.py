"""Parameters and operations of a model, from the fields of its Hugging Face config alone. Pure arithmetic."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class ModelSize:
    """A decoder-only transformer with gated MLP and grouped-query attention."""

    layers: int
    hidden: int
    ffn: int
    query: int
    """Query heads x head width."""
    kv: int
    """Key (or value) heads x head width."""
    vocabulary: int
    tied: bool
    qkv_bias: bool
    head_norm: int
    """Width of the norms on query and key heads; 0: none."""

    @property
    def layer_matrices(self) -> int:
        """Weights of a layer that tensor parallelism cuts: q, k, v, output, gate, up, down."""
        return 2 * self.hidden * self.query + 2 * self.hidden * self.kv + 3 * self.hidden * self.ffn

    @property
    def layer_vectors(self) -> int:
        """A layer's norms and biases."""
        bias = self.query + 2 * self.kv if self.qkv_bias else 0
        return 2 * self.hidden + bias + 2 * self.head_norm

    @property
    def embedding(self) -> int:
        """Weights of the embedding, and as many of the output layer."""
        return self.vocabulary * self.hidden

    @property
    def parameters(self) -> int:
        """All weights, tied ones once."""
        ends = self.embedding * (1 if self.tied else 2) + self.hidden
        return self.layers * (self.layer_matrices + self.layer_vectors) + ends

    def flops_per_token(self, seq_length: int) -> float:
        """Floating-point operations of a training step a token: 3 x forward.

        Forward: 2 for each weight of the layers' matrices and of the output layer, and causal attention over half the
        square: 2 x (seq_length / 2) for each of q k^T and p v. Recomputation and the embedding look-up do not count.
        """
        attention = seq_length * self.query
        return 3.0 * 2 * (self.layers * (self.layer_matrices + attention) + self.embedding)


def model_size(hf_config: Mapping[str, Any]) -> ModelSize:
    """Sizes from a Llama-, Mistral-, Qwen2- or Qwen3-like Hugging Face config."""
    heads, kind = int(hf_config["num_attention_heads"]), hf_config.get("model_type", "")
    width = int(hf_config.get("head_dim") or int(hf_config["hidden_size"]) // heads)
    return ModelSize(
        layers=int(hf_config["num_hidden_layers"]),
        hidden=int(hf_config["hidden_size"]),
        ffn=int(hf_config["intermediate_size"]),
        query=heads * width,
        kv=int(hf_config.get("num_key_value_heads") or heads) * width,
        vocabulary=int(hf_config["vocab_size"]),
        tied=bool(hf_config.get("tie_word_embeddings", kind == "qwen3")),
        qkv_bias=bool(hf_config.get("attention_bias", False)) or kind == "qwen2",
        head_norm=width if kind == "qwen3" else 0,
    )
