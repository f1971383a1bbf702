"""What a Hugging Face config and state dict mean, one declarative table a family.

A family says which `config.json` fields are read, which are harmless, which values are refused, and
how its weights are called on both sides. A field that is on no list is an error that names it: a
model whose config holds something we do not honour must not be converted as if it did not.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

from octo_megatron.config.errors import UserError


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


_VH, _H, _QKV = ("vocab,hidden",), ("hidden",), ("query,hidden", "kv,hidden", "kv,hidden")
_EMBEDDING = Row(Kind.VOCAB, ("model.embed_tokens.weight",), _VH, "embedding.word_embeddings.weight")
_FINAL_NORM = Row(Kind.PLAIN, ("model.norm.weight",), _H, "decoder.final_layernorm.weight")
HEAD = Row(Kind.VOCAB, ("lm_head.weight",), _VH, "output_layer.weight")


def _layer(kind: Kind, hf: str, sizes: tuple[str, ...], megatron: str, te: str | None = None) -> Row:
    ours = "decoder.layers.{i}."
    names = tuple(f"model.layers.{{i}}.{name}" for name in hf.split())
    return Row(kind, names, sizes, ours + megatron, ours + te if te else None)


# fmt: off
_LLAMA_LAYER = (
    _layer(Kind.PLAIN, "input_layernorm.weight", _H,
           "input_layernorm.weight", "self_attention.linear_qkv.layer_norm_weight"),
    _layer(Kind.QKV, "self_attn.q_proj.weight self_attn.k_proj.weight self_attn.v_proj.weight", _QKV,
           "self_attention.linear_qkv.weight"),
    _layer(Kind.ROW, "self_attn.o_proj.weight", ("hidden,query",), "self_attention.linear_proj.weight"),
    _layer(Kind.PLAIN, "post_attention_layernorm.weight", _H,
           "pre_mlp_layernorm.weight", "mlp.linear_fc1.layer_norm_weight"),
    _layer(Kind.GATE_UP, "mlp.gate_proj.weight mlp.up_proj.weight", ("ffn,hidden", "ffn,hidden"),
           "mlp.linear_fc1.weight"),
    _layer(Kind.ROW, "mlp.down_proj.weight", ("hidden,ffn",), "mlp.linear_fc2.weight"),
)
_QKV_BIAS = (
    _layer(Kind.QKV, "self_attn.q_proj.bias self_attn.k_proj.bias self_attn.v_proj.bias",
           ("query", "kv", "kv"), "self_attention.linear_qkv.bias"),
)
_QK_NORM = (
    _layer(Kind.PLAIN, "self_attn.q_norm.weight", ("head",), "self_attention.q_layernorm.weight"),
    _layer(Kind.PLAIN, "self_attn.k_norm.weight", ("head",), "self_attention.k_layernorm.weight"),
)
# fmt: on


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_USED = _words(
    """architectures model_type vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads
    num_key_value_heads head_dim max_position_embeddings rms_norm_eps rope_theta rope_scaling rope_parameters
    tie_word_embeddings initializer_range"""
)
_HARMLESS = _words(
    """_name_or_path transformers_version torch_dtype dtype use_cache bos_token_id eos_token_id pad_token_id
    unk_token_id return_dict output_attentions output_hidden_states is_encoder_decoder problem_type id2label
    label2id chunk_size_feed_forward _attn_implementation is_llama_config transformers.js_config
    max_window_layers sliding_window"""
)
"""Bookkeeping that no number of a forward pass depends on. `sliding_window` and `max_window_layers` say
nothing unless `use_sliding_window` (refused) switches them on."""
_REFUSED: Mapping[str, tuple[Any, ...]] = {
    "hidden_act": ("silu",),
    "attention_bias": (False, None),
    "mlp_bias": (False, None),
    "attention_dropout": (0.0, None),
    "pretraining_tp": (1, None),
    "rope_interleaved": (False, None),
    "partial_rotary_factor": (1.0, None),
    "use_sliding_window": (False, None),
    "use_mrope": (False, None),
}
"""Field -> the only values that the layers here honour."""


@dataclass(frozen=True)
class Family:
    """One architecture: its config fields and its weights."""

    name: str
    architectures: tuple[str, ...]
    model_type: str
    layer_rows: tuple[Row, ...]
    qkv_bias: bool = False
    qk_norm: bool = False
    head_dim: int | None = None
    """Default of `head_dim`; None: hidden_size / num_attention_heads."""

    def rows(self, hf_config: dict[str, Any]) -> list[Row]:
        """The model's weight table: embedding, one layer's rows, final norm, and the head unless tied."""
        head = [] if self.shape(hf_config).tied else [HEAD]
        return [_EMBEDDING, *self.layer_rows, _FINAL_NORM, *head]

    def shape(self, hf_config: dict[str, Any]) -> ModelShape:
        """The model's shape.

        Raises:
            UserError: a field is missing, impossible, or of a value that the layers here do not honour.
        """
        heads = _number(hf_config, "num_attention_heads")
        hidden = _number(hf_config, "hidden_size")
        groups = _number(hf_config, "num_key_value_heads", heads)
        if heads % groups:
            raise UserError(
                f"config.json: num_key_value_heads {groups} does not divide num_attention_heads {heads}"
            )
        theta, scaling = _rope(hf_config)
        return ModelShape(
            num_layers=_number(hf_config, "num_hidden_layers"),
            hidden_size=hidden,
            num_attention_heads=heads,
            num_query_groups=groups,
            kv_channels=_number(hf_config, "head_dim", self.head_dim or hidden // heads),
            ffn_hidden_size=_number(hf_config, "intermediate_size"),
            vocab_size=_number(hf_config, "vocab_size"),
            max_position_embeddings=_number(hf_config, "max_position_embeddings"),
            rms_norm_eps=float(hf_config.get("rms_norm_eps", 1e-6)),
            rope_theta=theta,
            rope_scaling=scaling,
            tied=bool(hf_config.get("tie_word_embeddings", False)),
            qkv_bias=self.qkv_bias,
            qk_norm=self.qk_norm,
            initializer_range=float(hf_config.get("initializer_range", 0.02)),
        )


LLAMA = Family("Llama", ("LlamaForCausalLM",), "llama", _LLAMA_LAYER)
QWEN2 = Family("Qwen2", ("Qwen2ForCausalLM",), "qwen2", (*_LLAMA_LAYER, *_QKV_BIAS), qkv_bias=True)
QWEN3 = Family(
    "Qwen3", ("Qwen3ForCausalLM",), "qwen3", (*_LLAMA_LAYER, *_QK_NORM), qk_norm=True, head_dim=128
)
FAMILIES = (LLAMA, QWEN2, QWEN3)


def family_of(hf_config: dict[str, Any]) -> Family:
    """The family of a Hugging Face config, its fields checked.

    Raises:
        UserError: an unsupported architecture, a field on no list, or a value that is not honoured.
    """
    names = hf_config.get("architectures") or []
    for family in FAMILIES:
        if set(names) & set(family.architectures) or (
            not names and hf_config.get("model_type") == family.model_type
        ):
            _check_fields(hf_config, family)
            return family
    known = ", ".join(a for f in FAMILIES for a in f.architectures)
    what = ", ".join(names) or f"model_type {hf_config.get('model_type')}"
    raise UserError(f"config.json: no family for {what}; supported: {known}")


def _check_fields(hf_config: dict[str, Any], family: Family) -> None:
    for key, value in hf_config.items():
        if key in _REFUSED:
            if value not in _REFUSED[key]:
                only = _REFUSED[key][0]
                raise UserError(
                    f"config.json: {key}={value!r} is not supported for {family.name}; only {only!r} is"
                )
        elif key == "layer_types":
            if set(value or []) - {"full_attention"}:
                raise UserError(
                    f"config.json: layer_types holds {sorted(set(value))}; only full_attention is supported"
                )
        elif key not in _USED and key not in _HARMLESS:
            raise UserError(
                f"config.json: unknown field '{key}' for {family.name}; if no number depends on it, "
                "add it to the harmless list in octo_megatron/model/families.py"
            )


def _number(hf_config: dict[str, Any], key: str, default: int | None = None) -> int:
    value = hf_config.get(key)
    value = default if value is None else value
    if not isinstance(value, int) or value <= 0:
        raise UserError(f"config.json: {key} is {value!r}; it must be a whole number above 0")
    return value


_ROPE_KEYS = _words(
    """rope_theta rope_type type factor low_freq_factor high_freq_factor
    original_max_position_embeddings"""
)


def _rope(hf_config: dict[str, Any]) -> tuple[float, RopeScaling | None]:
    """Rotary base and scaling, spelled `rope_parameters` or `rope_theta` with `rope_scaling`."""
    old, new = hf_config.get("rope_scaling") or {}, hf_config.get("rope_parameters") or {}
    rope = {**old, **new}
    unknown = sorted(set(rope) - _ROPE_KEYS)
    if unknown:
        raise UserError(
            f"config.json: unknown rope field '{unknown[0]}'; known: {', '.join(sorted(_ROPE_KEYS))}"
        )
    theta = rope.get("rope_theta", hf_config.get("rope_theta", 10000.0))
    if hf_config.get("rope_theta") not in (None, theta):
        raise UserError(
            f"config.json: rope_theta {hf_config['rope_theta']} contradicts rope_parameters' {theta}"
        )
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind == "default":
        return float(theta), None
    if kind != "llama3":
        raise UserError(f"config.json: rope_type '{kind}' is not supported; use default or llama3")
    missing = sorted(_ROPE_KEYS - {"rope_theta", "rope_type", "type"} - set(rope))
    if missing:
        raise UserError(f"config.json: rope_type llama3 needs {', '.join(missing)}")
    return float(theta), RopeScaling(
        float(rope["factor"]),
        float(rope["low_freq_factor"]),
        float(rope["high_freq_factor"]),
        int(rope["original_max_position_embeddings"]),
    )
