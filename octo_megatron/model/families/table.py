"""The words that a family's table is written in: weight rows, the model's shape."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Kind(Enum):
    """How a Megatron parameter is made of Hugging Face tensors, and how tensor parallelism cuts it."""

    PLAIN = "plain"
    """One tensor, the same on every tensor-parallel rank."""
    VOCAB = "vocab"
    """One tensor [vocab, hidden], padded to a multiple of the ranks and cut along the vocabulary."""
    ROW = "row"
    """One tensor [out, in], cut along `in`."""
    QKV = "qkv"
    """q, k, v -> for each query group its query heads, its key, its value; cut by groups along `out`."""
    GATE_UP = "gate_up"
    """gate, up -> on each rank its part of gate, then its part of up."""


@dataclass(frozen=True)
class Row:
    """One Megatron parameter. `{i}` in its names is the layer, counted over the whole model."""

    kind: Kind
    hf: tuple[str, ...]
    sizes: tuple[str, ...]
    """Shape of each Hugging Face tensor, as `ModelShape.size` names: "query,hidden"."""
    megatron: str
    """Name under our own layer spec (CPU)."""
    te: str | None = None
    """Name under the Transformer Engine spec where it differs (norms fused into the following linear)."""

    @property
    def checkpoint_key(self) -> str:
        """Key in a Megatron distributed checkpoint, where all layers' parameters are one tensor [layers, ...]."""
        return (self.te or self.megatron).replace(".{i}.", ".")


@dataclass(frozen=True)
class RopeScaling:
    """`rope_type: llama3`: wavelengths beyond the original context are stretched by `factor`."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position_embeddings: int


@dataclass(frozen=True)
class ModelShape:
    """Everything that the numbers of a model depend on, in Megatron's words."""

    num_layers: int
    hidden_size: int
    num_attention_heads: int
    num_query_groups: int
    kv_channels: int
    """Width of one attention head."""
    ffn_hidden_size: int
    vocab_size: int
    """Rows of the embedding without padding."""
    max_position_embeddings: int
    rms_norm_eps: float
    rope_theta: float
    rope_scaling: RopeScaling | None
    tied: bool
    """The output layer uses the embedding's weights."""
    qkv_bias: bool
    qk_norm: bool
    initializer_range: float

    def size(self, names: str) -> tuple[int, ...]:
        """ "query,hidden" -> (num_attention_heads * kv_channels, hidden_size)."""
        sizes = {
            "hidden": self.hidden_size,
            "vocab": self.vocab_size,
            "ffn": self.ffn_hidden_size,
            "head": self.kv_channels,
            "query": self.num_attention_heads * self.kv_channels,
            "kv": self.num_query_groups * self.kv_channels,
        }
        return tuple(sizes[name] for name in names.split(","))


_VH, _H = ("vocab,hidden",), ("hidden",)
EMBEDDING = Row(Kind.VOCAB, ("model.embed_tokens.weight",), _VH, "embedding.word_embeddings.weight")
FINAL_NORM = Row(Kind.PLAIN, ("model.norm.weight",), _H, "decoder.final_layernorm.weight")
HEAD = Row(Kind.VOCAB, ("lm_head.weight",), _VH, "output_layer.weight")


def layer_row(kind: Kind, hf: str, sizes: tuple[str, ...], megatron: str, te: str | None = None) -> Row:
    """A row that every layer has: names without the prefix, several Hugging Face ones with spaces between."""
    ours = "decoder.layers.{i}."
    names = tuple(f"model.layers.{{i}}.{name}" for name in hf.split())
    return Row(kind, names, sizes, ours + megatron, ours + te if te else None)


def words(text: str) -> frozenset[str]:
    """A list of names as people write it."""
    return frozenset(text.split())
