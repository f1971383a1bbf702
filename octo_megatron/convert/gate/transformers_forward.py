"""The reference: `transformers` on a folder, whole where that fits into memory, else a layer's weights at a time."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig
from transformers.utils.logging import disable_progress_bar

from octo_megatron.convert.gate.result import GateError
from octo_megatron.convert.safetensors_io import HfFolder
from octo_megatron.model.build import DTYPES
from octo_megatron.model.slots import tensor_shapes

_SHARE_OF_MEMORY = 0.5
"""A model is loaded whole when its weights take less than this of the memory that is free."""


class Reference:
    """`transformers`' model of a folder.

    Args:
        precision: fp32 or bf16.
        whole: load it as any user does; None: where memory allows.

    Raises:
        GateError: `transformers` does not load it, or misses or ignores tensors of it.
    """

    def __init__(self, folder: HfFolder, precision: str, whole: bool | None = None):
        disable_progress_bar()
        self.whole = fits(folder, precision) if whole is None else whole
        self._model = (
            _load(folder.path, DTYPES[precision]) if self.whole else _streamed(folder, DTYPES[precision])
        )

    @torch.no_grad()
    def logits(self, documents: list[Tensor]) -> Iterator[Tensor]:
        """Of each document: [tokens, vocab] float32. Documents are padded at their end, where nothing sees it."""
        longest = max(len(ids) for ids in documents)
        batch = torch.stack([torch.nn.functional.pad(ids, (0, longest - len(ids))) for ids in documents])
        if self.whole:
            for ids in documents:
                yield self._model(ids[None]).logits[0].float()
            return
        hidden = self._model.model(batch).last_hidden_state
        for ids, states in zip(documents, hidden, strict=True):
            yield self._model.lm_head(states[: len(ids)]).float()

    @torch.no_grad()
    def generate(self, prompt: Tensor, tokens: int) -> list[int]:
        """Greedy continuation by `generate`, never ended early. Only of a model that was loaded whole."""
        settings = GenerationConfig(
            max_new_tokens=tokens, do_sample=False, eos_token_id=None, pad_token_id=0, use_cache=True
        )
        out = self._model.generate(
            prompt[None], attention_mask=torch.ones_like(prompt[None]), generation_config=settings
        )
        return [int(token) for token in out[0, len(prompt) :]]


def fits(folder: HfFolder, precision: str) -> bool:
    """Whether the model's weights take less than half of the free memory."""
    numbers = sum(math.prod(shape) for shape in tensor_shapes(folder.config).values())
    return numbers * DTYPES[precision].itemsize < _SHARE_OF_MEMORY * psutil.virtual_memory().available


def _load(path: Path, dtype: torch.dtype) -> Any:
    try:
        model, info = AutoModelForCausalLM.from_pretrained(
            path, dtype=dtype, local_files_only=True, output_loading_info=True
        )
    except Exception as error:  # whatever it is, a user of the folder would meet it too
        raise GateError(f"transformers does not load {path}: {_line(error)}") from error
    for what in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if info[what]:
            raise GateError(
                f"transformers reports {what.replace('_', ' ')} for {path}: {sorted(info[what])[0]}"
            )
    return model.eval()


def _streamed(folder: HfFolder, dtype: torch.dtype) -> Any:
    """The model without weights: each module that has some reads them when it is called and drops them afterwards."""
    config = AutoConfig.from_pretrained(folder.path, local_files_only=True)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype).eval()
    model.model.rotary_emb = type(model.model.rotary_emb)(
        config=config
    )  # its tables are computed, not stored
    embedding = "model.embed_tokens.weight"
    for prefix, module in model.named_modules():
        own = [name for name, value in module._parameters.items() if value is not None]
        if own:
            names = {name: f"{prefix}.{name}" for name in own}
            if prefix == "lm_head" and config.tie_word_embeddings:
                names["weight"] = embedding
            _read_when_called(module, names, folder, dtype)
    return model


def _read_when_called(
    module: torch.nn.Module, names: dict[str, str], folder: HfFolder, dtype: torch.dtype
) -> None:
    empty = {name: module._parameters[name] for name in names}

    def before(module: torch.nn.Module, args: Any) -> None:
        for own, name in names.items():
            module._parameters[own] = torch.nn.Parameter(folder.read(name).to(dtype), requires_grad=False)

    def after(module: torch.nn.Module, args: Any, output: Any) -> None:
        module._parameters.update(empty)

    module.register_forward_pre_hook(before)
    module.register_forward_hook(after)


def _line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
