"""A tokenised set: shards of documents with one manifest, read by index as if they were one file.

    SET/manifest.json                    format, shards (documents, tokens, bytes, sha256), totals, tokenizer, ...
    SET/shard-00000-00000.bin, .idx      documents in Megatron's format (`store.py`)
    SET/shard-00000-00000.mask.bin, .idx where "masked": leading prompt tokens of each document, one number each
    SET/shard-00000-00000.id.bin, .idx   where "ids": each document's id as UTF-8 bytes

The manifest's order of shards is the order of documents; a shard without documents is not written. Opening
a set reads the manifest; shards are opened when first read and the most recent ones stay open, so that
neither memory nor open files grow with the set.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections.abc import Iterable
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from octo_megatron.config.errors import UserError
from octo_megatron.config.run_folder import read_json, write_json
from octo_megatron.data.store import TokenStore, TokenWriter

if TYPE_CHECKING:
    from octo_megatron.config.schema import SourceConfig

FORMAT = 1
MANIFEST = "manifest.json"
_OPEN_SHARDS = 128
"""Shards of a set that stay open: each holds two or four open files, of 1024 that a process has by default."""


class TokenisedSet:
    """Documents and token windows of a set, by index across its shards.

    `window`, `document`, `span` and the like read only the pages they touch. Tokens are numbered through the
    whole set, documents too.
    """

    def __init__(self, folder: Path, documents: int | None = None):
        """Open a set, or its first `documents` documents.

        Raises:
            UserError: no set is there, or its manifest is of another format or contradicts itself.
        """
        self.folder = folder
        self.manifest = _manifest(folder)
        shards = self.manifest["shards"]
        self._names = [shard["name"] for shard in shards]
        self._document_ends = list(accumulate(shard["documents"] for shard in shards))
        self._token_ends = list(accumulate(shard["tokens"] for shard in shards))
        self._shard = lru_cache(_OPEN_SHARDS)(self._open)
        self._extra = lru_cache(_OPEN_SHARDS)(self._open_extra)
        self.documents: int = self._document_ends[-1] if shards else 0
        self.tokens: int = self._token_ends[-1] if shards else 0
        if (self.documents, self.tokens) != (self.manifest["documents"], self.manifest["tokens"]):
            raise UserError(f"{folder}/{MANIFEST} contradicts itself: its shards do not sum to its totals")
        self.eos_id: int = self.manifest["eos_id"]
        self.tokenizer: str = self.manifest["tokenizer"]
        """Fingerprint of the tokenizer that made the set."""
        self.masked: bool = self.manifest.get("masked", False)
        if documents is not None:
            if not 0 <= documents <= self.documents:
                raise UserError(f"{folder} holds {self.documents} documents, not {documents}")
            self.tokens = sum(self.span(documents - 1)) if documents else 0
            self.documents = documents

    def check_tokenizer(self, fingerprint: str, whose: str) -> None:
        """Raises UserError unless the set was made with the tokenizer of this fingerprint."""
        if self.tokenizer != fingerprint:
            raise UserError(
                f"{self.folder} was made with another tokenizer than {whose} (sha256 {self.tokenizer[:12]} and "
                f"{fingerprint[:12]}): its ids mean other text; tokenise it again with that one"
            )

    def check_files(self) -> None:
        """Raises UserError unless every shard's files are there with the sizes that the manifest says."""
        for index, shard in enumerate(self.manifest["shards"]):
            store = self._shard(index)
            if (store.documents, store.tokens) != (shard["documents"], shard["tokens"]):
                raise UserError(f"{store.path} is not the shard that {self.folder}/{MANIFEST} describes")

    def window(self, start: int, length: int) -> np.ndarray:
        """Tokens start..start+length of the set as int64 [length]; may cross shards."""
        if not 0 <= start <= start + length <= self.tokens:
            raise IndexError(f"tokens {start}..{start + length} of {self.folder}, which holds {self.tokens}")
        parts = []
        while length > 0:
            shard, first = self._of_token(start)
            take = min(length, self._token_ends[shard] - start)
            parts.append(self._shard(shard).window(start - first, take))
            start, length = start + take, length - take
        return parts[0] if len(parts) == 1 else np.concatenate(parts or [np.empty(0, np.int64)])

    def document(self, index: int) -> np.ndarray:
        """Tokens of one document as int64 [length], its end-of-sequence id included."""
        shard, first = self._of_document(index)
        return self._shard(shard).document(index - first)

    def span(self, index: int) -> tuple[int, int]:
        """(first token within the set, tokens) of a document."""
        shard, first = self._of_document(index)
        start, length = self._shard(shard).span(index - first)
        return start + (self._token_ends[shard - 1] if shard else 0), length

    def document_of(self, token: int) -> int:
        """Index of the document that holds this token."""
        shard, first = self._of_token(token)
        before = self._document_ends[shard - 1] if shard else 0
        return before + self._shard(shard).document_of(token - first)

    def lengths(self, first: int, count: int) -> np.ndarray:
        """Tokens of `count` documents from `first` on as int32 [count]."""
        if not 0 <= first <= first + count <= self.documents:
            raise IndexError(f"documents {first}..{first + count} of {self.folder}: it has {self.documents}")
        parts = []
        while count > 0:
            shard, before = self._of_document(first)
            take = min(count, self._document_ends[shard] - first)
            parts.append(self._shard(shard).lengths(first - before, take))
            first, count = first + take, count - take
        return np.concatenate(parts or [np.empty(0, np.int32)])

    def prompts(self, first: int, count: int) -> np.ndarray:
        """Leading tokens that a masking template counts as prompt, of `count` documents from `first` on; int64 [count].

        All 0 where no template masks.
        """
        if not self.masked:
            return np.zeros(count, np.int64)
        parts = []
        while count > 0:
            shard, before = self._of_document(first)
            take = min(count, self._document_ends[shard] - first)
            parts.append(self._extra(shard, "mask").window(first - before, take))
            first, count = first + take, count - take
        return np.concatenate(parts or [np.empty(0, np.int64)])

    def prompt_tokens(self, index: int) -> int:
        """The same for one document."""
        return int(self.prompts(index, 1)[0])

    def document_id(self, index: int) -> str | None:
        """The document's id in the files it came from; None where the set keeps none."""
        if not self.manifest.get("ids", False):
            return None
        shard, first = self._of_document(index)
        return self._extra(shard, "id").document(index - first).astype(np.uint8).tobytes().decode()

    def _open(self, shard: int) -> TokenStore:
        return TokenStore(self.folder / self._names[shard])

    def _open_extra(self, shard: int, kind: str) -> TokenStore:
        return TokenStore(self.folder / f"{self._names[shard]}.{kind}")

    def _of_token(self, token: int) -> tuple[int, int]:
        """(shard, its first token within the set)."""
        if not 0 <= token < self.tokens:
            raise IndexError(f"token {token} of {self.folder}, which holds {self.tokens}")
        shard = bisect_right(self._token_ends, token)
        return shard, self._token_ends[shard - 1] if shard else 0

    def _of_document(self, index: int) -> tuple[int, int]:
        """(shard, its first document within the set)."""
        if not 0 <= index < self._document_ends[-1]:
            raise IndexError(f"document {index} of {self.folder}, which holds {self.documents}")
        shard = bisect_right(self._document_ends, index)
        return shard, self._document_ends[shard - 1] if shard else 0


def open_source(name: str, source: SourceConfig) -> TokenisedSet:
    """The tokenised set that a source names.

    Raises:
        UserError: it is not there; says where it is published and which command makes it, as far as the source does.
    """
    folder = Path(str(source.tokenized))
    if not (folder / MANIFEST).is_file():
        published = f", published as {source.published}" if source.published else ""
        command = source.tokenize or f"octo tokenize FILES --out {folder}"
        raise UserError(
            f"set '{name}' is missing: no tokenised set at {folder}{published}; make it with `{command}`"
        )
    return TokenisedSet(folder)


def set_manifest(
    shards: Iterable[dict[str, Any]], eos_id: int, tokenizer: str, **facts: Any
) -> dict[str, Any]:
    """The manifest of a set: `shards` with name, documents, tokens, bytes and sha256, and their totals.

    `sha256` of the whole is that of the shards' digests, one after another in hexadecimal.
    """
    kept = [shard for shard in shards if shard["documents"]]
    return {
        "format": FORMAT,
        "documents": sum(shard["documents"] for shard in kept),
        "tokens": sum(shard["tokens"] for shard in kept),
        "bytes": sum(shard["bytes"] for shard in kept),
        "sha256": hashlib.sha256("".join(shard["sha256"] for shard in kept).encode()).hexdigest(),
        "eos_id": eos_id,
        "tokenizer": tokenizer,
        "masked": False,
        "ids": False,
        **facts,
        "shards": kept,
    }


class SetWriter:
    """Writes a set in one process, document by document; a new shard begins after `shard_tokens` tokens.

    The folder is the caller's: it makes it under a temporary name and renames it when `close` is done.
    """

    def __init__(
        self, folder: Path, dtype: type[np.integer], masked: bool = False, shard_tokens: int = 1 << 26
    ):
        folder.mkdir(parents=True, exist_ok=True)
        self._folder, self._dtype, self._masked, self._shard_tokens = folder, dtype, masked, shard_tokens
        self._shards: list[dict[str, Any]] = []
        self._writers: list[TokenWriter] = []
        self.tokens = 0
        self.documents = 0

    def append(self, ids: list[int] | np.ndarray, prompt_tokens: int = 0) -> None:
        """Add one document, which ends with the end-of-sequence id."""
        if not self._writers:
            name = f"shard-{len(self._shards):05d}"
            self._writers = [TokenWriter(self._folder / name, self._dtype)]
            if self._masked:
                self._writers.append(TokenWriter(self._folder / f"{name}.mask", np.int32))
        self._writers[0].append(ids)
        for mask in self._writers[1:]:
            mask.append([prompt_tokens])
        self.tokens += len(ids)
        self.documents += 1
        if self._writers[0].tokens >= self._shard_tokens:
            self._finish_shard()

    def close(self, eos_id: int, tokenizer: str, **facts: Any) -> dict[str, Any]:
        """Finish the last shard and write the manifest, which is returned."""
        self._finish_shard()
        manifest = set_manifest(self._shards, eos_id, tokenizer, **facts, masked=self._masked)
        write_json(self._folder / MANIFEST, manifest)
        return manifest

    def _finish_shard(self) -> None:
        if not self._writers:
            return
        tokens, *masks = self._writers
        self._writers = []
        facts = {"documents": tokens.documents, "tokens": tokens.tokens, "bytes": tokens.bytes}
        shard = {"name": f"shard-{len(self._shards):05d}", **facts, "sha256": tokens.close()}
        for mask in masks:
            shard["mask_sha256"] = mask.close()
        self._shards.append(shard)


def _manifest(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST
    if not path.is_file():
        raise UserError(
            f"{folder} is not a tokenised set: {path.name} is missing; make it with `octo tokenize`"
        )
    manifest = read_json(path)
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT or "shards" not in manifest:
        raise UserError(f"{path} is not of format {FORMAT}: make the set again with `octo tokenize`")
    return manifest
