"""The corpus's own tokenizer: byte-level BPE in which a digit is always one token."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from octo_megatron.config.errors import UserError
from octo_megatron.data.builtin.corpus import documents

EOS = "<eos>"
"""Between documents, and at the end of an answer. Id 0."""

PAD = "<pad>"
"""Never in text; for tools that want a padding token. Id 1."""

_DOCUMENTS = {"general": 1500, "web": 1500, "short": 500, "long": 500}


def train_tokenizer(seed: int, vocab_size: int = 512) -> Tokenizer:
    """A tokenizer trained on the built-in corpus, a pure function of its arguments.

    `encode` adds no special tokens. An answer's first character never joins the last of its prompt, so
    encode(prompt) + encode(answer) is encode(prompt + answer).

    Raises:
        UserError: vocab_size does not hold all bytes and the special tokens.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    if vocab_size < len(alphabet) + 2:
        raise UserError(f"vocab_size {vocab_size} is too small: all bytes and two special tokens need 258")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=[EOS, PAD], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(_texts(seed), trainer)
    return tokenizer


def _texts(seed: int) -> Iterator[str]:
    for part, number in _DOCUMENTS.items():
        yield from islice(documents(part, seed), number)


def save_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """Write the Hugging Face files, which `transformers.AutoTokenizer.from_pretrained(folder)` reads."""
    folder.mkdir(parents=True, exist_ok=True)
    # Not tokenizer.save: on a full disk that raises a bare Exception, this an OSError.
    (folder / "tokenizer.json").write_text(tokenizer.to_str(pretty=True), encoding="utf-8")
    special = {"eos_token": EOS, "pad_token": PAD}
    config = special | {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "model_max_length": 1_000_000_000,
    }
    for name, content in (("tokenizer_config.json", config), ("special_tokens_map.json", special)):
        (folder / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
