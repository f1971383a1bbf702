"""A Hugging Face tokenizer folder: text -> ids and back, and the fingerprint that names it."""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers

from octo_megatron.config.errors import UserError
from octo_megatron.config.run_folder import read_json
from octo_megatron.data.store import token_type


def fingerprint(folder: Path) -> str:
    """sha256 of tokenizer.json; stands in every manifest and is checked wherever tokens meet a model."""
    return file_sha256(_tokenizer_file(folder))


def file_sha256(path: Path) -> str:
    """sha256 of a small file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


class TextTokenizer:
    """Encodes documents and prompts the same way everywhere.

    Special tokens written out in a text are encoded as ordinary text, so that no document can end itself.
    """

    def __init__(self, folder: Path):
        """Raises UserError when tokenizer.json is missing or damaged, or no eos_token is named."""
        path = _tokenizer_file(folder)
        try:
            self._tokenizer = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises plain Exception
            raise UserError(
                f"{path} is not a tokenizer that this version of `tokenizers` reads: {error}"
            ) from None
        self._tokenizer.encode_special_tokens = True
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self.folder = folder
        self.sha256 = fingerprint(folder)
        eos = self._named_token("eos_token")
        if eos is None:
            raise UserError(
                f"{folder}: no eos_token in tokenizer_config.json; documents cannot be told apart without"
            )
        self.eos_id: int = eos
        self.bos_id: int | None = self._named_token("bos_token")
        self.prefix: list[int] = self._own_prefix()
        """Ids that this tokenizer puts before every text (Llama-3: its begin-of-text id), usually none."""

    def __reduce__(self) -> tuple[type[TextTokenizer], tuple[Path]]:
        """Sent to another process it is opened there anew."""
        return TextTokenizer, (self.folder,)

    @cached_property
    def size(self) -> int:
        """Smallest vocabulary that holds every id."""
        return 1 + max(self._tokenizer.get_vocab(with_added_tokens=True).values())

    @cached_property
    def token_type(self) -> type[np.integer]:
        """`store.token_type` of `size`, which where there are many tokens is known without counting."""
        at_least = token_type(self._tokenizer.get_vocab_size(with_added_tokens=True))
        return at_least if at_least is np.int32 else token_type(self.size)

    def encode(self, text: str) -> list[int]:
        """`prefix` and the ids of the text, as a prompt for generation; no end-of-sequence id."""
        return self.prefix + self._tokenizer.encode(text, add_special_tokens=False).ids

    def encode_documents(self, texts: list[str]) -> list[list[int]]:
        """Ids of whole documents, each `prefix`, text, end-of-sequence id. Runs on all cores."""
        encoded = self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        return [[*self.prefix, *one.ids, self.eos_id] for one in encoded]

    def prompt_lengths(self, texts: list[str], prompt_characters: list[int]) -> list[int]:
        """Leading ids of each document that lie wholly in its first `prompt_characters`, `prefix` included."""
        lengths = []
        for one, characters in zip(
            self._tokenizer.encode_batch(texts, add_special_tokens=False), prompt_characters, strict=True
        ):
            inside = bisect_right(one.offsets, characters, key=lambda span: span[1])
            lengths.append(len(self.prefix) + inside if characters else 0)
        return lengths

    def decode(self, ids: list[int]) -> str:
        """Text of the ids without special tokens."""
        return self._tokenizer.decode(ids, skip_special_tokens=True)

    def _named_token(self, key: str) -> int | None:
        for name in ("tokenizer_config.json", "special_tokens_map.json"):
            path = self.folder / name
            token: Any = read_json(path).get(key) if path.is_file() else None
            text = token["content"] if isinstance(token, dict) else token
            if text is not None:
                found = self._tokenizer.token_to_id(text)
                if found is None:
                    raise UserError(f"{path}: {key} '{text}' is not a token of {self.folder}/tokenizer.json")
                return int(found)
        return None

    def _own_prefix(self) -> list[int]:
        plain = self._tokenizer.encode("1", add_special_tokens=False).ids
        full = self._tokenizer.encode("1", add_special_tokens=True).ids
        for length in range(len(full) - len(plain) + 1):
            if full[length : length + len(plain)] == plain:
                return list(full[:length])
        return []


def _tokenizer_file(folder: Path) -> Path:
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise UserError(
            f"{path} is missing: give a Hugging Face tokenizer folder, or make one with "
            f"transformers.AutoTokenizer.from_pretrained(...).save_pretrained('{folder}')"
        )
    return path
