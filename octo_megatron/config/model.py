"""The Hugging Face config of a lineage's model, read without loading a model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from octo_megatron.config.errors import UserError, reading
from octo_megatron.config.loading import CONFIGS


def read_hf_config(model: str) -> dict[str, Any]:
    """The config.json of `LineageConfig.model`: a Hugging Face folder, or a YAML file of such fields.

    A YAML path that is not found as given is looked up under `configs/`.

    Raises:
        UserError: nothing there, or it does not parse.
    """
    path = Path(model)
    if path.is_dir():
        path = path / "config.json"
    elif not path.is_file() and (CONFIGS / model).is_file():
        path = CONFIGS / model
    if not path.is_file():
        raise UserError(
            f"model: no Hugging Face folder and no YAML file at '{model}' (YAML also under {CONFIGS})"
        )
    try:
        with reading(path):
            text = path.read_text(encoding="utf-8")
        fields = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except (ValueError, yaml.YAMLError) as error:
        raise UserError(f"model: {path} does not parse: {str(error).splitlines()[0]}") from error
    if not isinstance(fields, dict) or "architectures" not in fields:
        raise UserError(f"model: {path} is no Hugging Face config: it has no field `architectures`")
    return fields
