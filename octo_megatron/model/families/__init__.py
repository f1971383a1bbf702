"""What a Hugging Face config and state dict mean, one declarative table a family.

A family says which `config.json` fields are read, which are harmless, which values are refused, and
how its weights are called on both sides. A field that is on no list is an error that names it: a
model whose config holds something we do not honour must not be converted as if it did not.
"""

from __future__ import annotations

from typing import Any

from octo_megatron.config.errors import UserError
from octo_megatron.model.families.family import Family
from octo_megatron.model.families.llama import LLAMA
from octo_megatron.model.families.mistral import MISTRAL
from octo_megatron.model.families.qwen2 import QWEN2
from octo_megatron.model.families.qwen3 import QWEN3
from octo_megatron.model.families.table import (
    EMBEDDING,
    FINAL_NORM,
    HEAD,
    Kind,
    ModelShape,
    RopeScaling,
    Row,
)

__all__ = [
    "EMBEDDING",
    "FAMILIES",
    "FINAL_NORM",
    "HEAD",
    "LLAMA",
    "MISTRAL",
    "QWEN2",
    "QWEN3",
    "Family",
    "Kind",
    "ModelShape",
    "RopeScaling",
    "Row",
    "family_of",
]

FAMILIES = (LLAMA, QWEN2, QWEN3, MISTRAL)


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
            family.check(hf_config)
            return family
    known = ", ".join(a for f in FAMILIES for a in f.architectures)
    what = ", ".join(names) or f"model_type {hf_config.get('model_type')}"
    raise UserError(f"config.json: no family for {what}; supported: {known}")
