"""A family: its weights, and what each field of its config.json means; the reading of a config through it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from octo_megatron.config.errors import UserError
from octo_megatron.model.families.table import (
    EMBEDDING,
    FINAL_NORM,
    HEAD,
    ModelShape,
    RopeScaling,
    Row,
    words,
)

_ROPE_KEYS = words(
    """rope_theta rope_type type factor low_freq_factor high_freq_factor
    original_max_position_embeddings"""
)

READ = words(
    """architectures model_type vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads
    num_key_value_heads head_dim max_position_embeddings rms_norm_eps rope_theta rope_scaling rope_parameters
    tie_word_embeddings initializer_range"""
)
"""Fields that `Family.shape` reads, of every family."""

HARMLESS = words(
    """_name_or_path transformers_version torch_dtype dtype use_cache bos_token_id eos_token_id pad_token_id
    unk_token_id return_dict output_attentions output_hidden_states is_encoder_decoder problem_type id2label
    label2id chunk_size_feed_forward _attn_implementation"""
)
"""Bookkeeping that no number of a forward pass depends on, of every family."""


@dataclass(frozen=True)
class Family:
    """One architecture: its weights, and what each field of its config.json means here.

    A field is read, harmless, honoured with certain values only, or an error.
    """

    name: str
    architectures: tuple[str, ...]
    model_type: str
    layer_rows: tuple[Row, ...]
    harmless: frozenset[str] = frozenset()
    """Beside HARMLESS."""
    only: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    """Field -> the values that the layers here honour; the first one is what the error recommends."""
    window: str | None = None
    """Field with a sliding window, honoured only where no position is beyond it: null or at least
    max_position_embeddings."""
    window_switch: str | None = None
    """Field without which (true) `window` means nothing."""
    defaults: Mapping[str, int] = field(default_factory=dict)
    """What `transformers` assumes where config.json says nothing and the assumption is the family's own."""
    qkv_bias: bool = False
    qk_norm: bool = False

    def check(self, hf_config: dict[str, Any]) -> None:
        """Raises UserError at the first field that is unknown or has a value that the layers do not honour."""
        _check_fields(self, hf_config)
        _check_window(self, hf_config)

    def shape(self, hf_config: dict[str, Any]) -> ModelShape:
        """The model's shape.

        Raises:
            UserError: a field is missing, impossible, or of a value that the layers here do not honour.
        """
        return _shape(self, hf_config)

    def rows(self, hf_config: dict[str, Any]) -> list[Row]:
        """The model's weight table: embedding, one layer's rows, final norm, and the head unless tied."""
        head = [] if self.shape(hf_config).tied else [HEAD]
        return [EMBEDDING, *self.layer_rows, FINAL_NORM, *head]


def _check_fields(family: Family, hf_config: dict[str, Any]) -> None:
    for key, value in hf_config.items():
        if key in family.only:
            if value not in family.only[key]:
                raise UserError(
                    f"config.json: {key}={value!r} is not supported for {family.name}; only "
                    f"{family.only[key][0]!r} is"
                )
        elif key == "layer_types":
            if set(value or []) - {"full_attention"}:
                raise UserError(
                    f"config.json: layer_types holds {sorted(set(value))}; only full_attention is supported"
                )
        elif key not in READ | HARMLESS | family.harmless | {family.window, family.window_switch}:
            raise UserError(
                f"config.json: unknown field '{key}' for {family.name}; if no number depends on it, add it to "
                "the family's harmless list in octo_megatron/model/families/"
            )


def _check_window(family: Family, hf_config: dict[str, Any]) -> None:
    if family.window is None or (family.window_switch and not hf_config.get(family.window_switch)):
        return
    window = hf_config.get(family.window, family.defaults.get(family.window))
    positions = hf_config.get("max_position_embeddings")
    if window is None or (isinstance(positions, int) and window >= positions):
        return
    said = "" if family.window in hf_config else f" (what {family.name} assumes where the field is missing)"
    raise UserError(
        f"config.json: {family.window}={window}{said} is shorter than max_position_embeddings={positions}, and "
        "attention here has no window; for use within the window set max_position_embeddings to its length"
    )


def _shape(family: Family, hf_config: dict[str, Any]) -> ModelShape:
    heads = _number(hf_config, "num_attention_heads")
    hidden = _number(hf_config, "hidden_size")
    # missing: the family's default; null: every head has its own
    assumed = family.defaults.get("num_key_value_heads", heads)
    groups = _number(
        hf_config, "num_key_value_heads", heads if "num_key_value_heads" in hf_config else assumed
    )
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
        kv_channels=_number(hf_config, "head_dim", family.defaults.get("head_dim", hidden // heads)),
        ffn_hidden_size=_number(hf_config, "intermediate_size"),
        vocab_size=_number(hf_config, "vocab_size"),
        max_position_embeddings=_number(hf_config, "max_position_embeddings"),
        rms_norm_eps=float(hf_config.get("rms_norm_eps", 1e-6)),
        rope_theta=theta,
        rope_scaling=scaling,
        tied=bool(hf_config.get("tie_word_embeddings", False)),
        qkv_bias=family.qkv_bias,
        qk_norm=family.qk_norm,
        initializer_range=float(hf_config.get("initializer_range", 0.02)),
    )


def _number(hf_config: dict[str, Any], key: str, default: int | None = None) -> int:
    value = hf_config.get(key)
    value = default if value is None else value
    if not isinstance(value, int) or value <= 0:
        raise UserError(f"config.json: {key} is {value!r}; it must be a whole number above 0")
    return value


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
