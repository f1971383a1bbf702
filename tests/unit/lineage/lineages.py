"""Small lineages for the tests of this folder, as plain data."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

from octo_megatron.config.loading import from_plain
from octo_megatron.config.schema import LineageConfig

HF = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 128,
    "intermediate_size": 320,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "vocab_size": 512,
}
"""A Hugging Face config of four layers."""

PLAIN: dict[str, Any] = {
    "name": "small",
    "model": "model/tiny.yaml",
    "sources": {"general": {"builtin": "general", "tokens": 4000}, "web": {"builtin": "web", "tokens": 4000}},
    "problems": {"rl": {"builtin": "rl", "count": 8}, "same": {"builtin": "same", "count": 8}},
    "nodes": {
        "base": {"kind": "train", "tokens": 2048, "mixture": {"general": 1.0}},
        "stable": {"kind": "train", "parent": "base", "tokens": 2048, "mixture": {"web": 1.0}},
        "rl": {"kind": "rl", "parent": "stable", "evaluate": ["same"]},
        "evaluate": {"kind": "evaluate", "of": ["base", "rl"], "problems": ["same"]},
        "export": {"kind": "export", "parent": "rl"},
    },
}
"""A lineage with a node of every kind but import."""


def lineage(**changes: Any) -> LineageConfig:
    """`PLAIN` with changes; keys are dotted paths with `__` for the dots, None deletes."""
    plain = deepcopy(PLAIN)
    for path, value in changes.items():
        *folders, key = path.split("__")
        place = plain
        for folder in folders:
            place = place.setdefault(folder, {})
        if value is None:
            place.pop(key)
        else:
            place[key] = value
    return from_plain(plain)
