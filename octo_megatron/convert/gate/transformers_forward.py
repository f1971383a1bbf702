"""The reference: `transformers` on a folder, whole where that fits into memory, else a layer's weights at a time."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig
from transformers.utils.logging import disable_progress_bar

from octo_megatron.convert.gate.result import GateError
from octo_megatron.model.build import DTYPES
from octo_megatron.model.hf_folder import HfFolder
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
        self._folder, self._dtype = folder, DTYPES[precision]
        self._model = (_load if self.whole else _without_weights)(folder.path, self._dtype)

    @torch.no_grad()
    def logits(self, documents: list[Tensor]) -> Iterator[Tensor]:
        """Of each document: [tokens, vocab] float32."""
        if self.whole:
            for ids in documents:
                yield self._model(ids[None]).logits[0].float()
        else:
            yield from self._layer_by_layer(documents)

    def _layer_by_layer(self, documents: list[Tensor]) -> Iterator[Tensor]:
        """What the model's own forward does, with all documents through a layer before the next is read."""
        base, rows = self._model.model, [ids[None] for ids in documents]
        places = [torch.arange(len(ids))[None] for ids in documents]
        with self._weights(base.embed_tokens, "model.embed_tokens"):
            hidden = [base.embed_tokens(ids) for ids in rows]
        for index, layer in enumerate(base.layers):
            with self._weights(layer, f"model.layers.{index}"):
                for at, states in enumerate(hidden):
                    angles = base.rotary_emb(states, position_ids=places[at])
                    hidden[at] = layer(
                        states, attention_mask=None, position_ids=places[at], position_embeddings=angles
                    )
        head = "model.embed_tokens" if self._model.config.tie_word_embeddings else "lm_head"
        with self._weights(base.norm, "model.norm"), self._weights(self._model.lm_head, head):
            for states in hidden:
                yield self._model.lm_head(base.norm(states))[0].float()

    @contextmanager
    def _weights(self, module: torch.nn.Module, prefix: str) -> Iterator[None]:
        """Give the parameters of a module their numbers, and take them away again."""
        names = [name for name, _ in module.named_parameters()]
        owners = {name: module.get_submodule(name.rpartition(".")[0]) for name in names}
        empty = {name: owners[name]._parameters[name.rpartition(".")[2]] for name in names}
        for name in names:
            numbers = self._folder.read(f"{prefix}.{name}").to(self._dtype)
            owners[name]._parameters[name.rpartition(".")[2]] = torch.nn.Parameter(
                numbers, requires_grad=False
            )
        try:
            yield
        finally:
            for name in names:
                owners[name]._parameters[name.rpartition(".")[2]] = empty[name]

    @torch.no_grad()
    def generate(self, prompt: Tensor, tokens: int) -> list[int]:
        """Greedy continuation by `generate`, never ended early. Only of a model that was loaded whole."""
        settings = GenerationConfig(
            max_new_tokens=tokens, do_sample=False, eos_token_id=None, pad_token_id=0, use_cache=True
        )
        self._model.generation_config = (
            settings  # what settings leave out, `generate` would take from the folder's
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
    # a tied model may bring its head along (part 4 compares it), old files their rotary tables
    harmless = {"lm_head.weight"} if model.config.tie_word_embeddings else set()
    info["unexpected_keys"] = {
        key
        for key in info["unexpected_keys"]
        if key not in harmless and not key.endswith("rotary_emb.inv_freq")
    }
    for what in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if info[what]:
            raise GateError(
                f"transformers reports {what.replace('_', ' ')} for {path}: {sorted(info[what])[0]}"
            )
    return model.eval()


def _without_weights(path: Path, dtype: torch.dtype) -> Any:
    config = AutoConfig.from_pretrained(path, local_files_only=True)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype).eval()
    model.model.rotary_emb = type(model.model.rotary_emb)(
        config=config
    )  # its tables are computed, not stored
    return model


def _line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
