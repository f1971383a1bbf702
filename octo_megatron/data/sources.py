"""One source of a mixture: its documents, tokenised, with held-out documents in a file of their own.

    RUN/data/<source>/train.bin, train.idx
    RUN/data/<source>/validation.bin, validation.idx     where validation_tokens > 0
    RUN/data/<source>/manifest.json                      what it holds and what it was made from

The folder is made under a temporary name and renamed when whole, so it is there complete or not at all. What
it holds is a pure function of the config, the files, the tokenizer and (built-in text) the seed.
"""

from __future__ import annotations

import hashlib
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from octo_megatron.config.errors import UserError
from octo_megatron.config.loading import digest, to_plain
from octo_megatron.config.run_folder import read_json, write_json
from octo_megatron.config.schema import SourceConfig
from octo_megatron.data import builtin, read
from octo_megatron.data.store import TokenStore, TokenWriter, token_type
from octo_megatron.data.template import TemplateError, render
from octo_megatron.data.tokenizer import TextTokenizer

_BATCH_DOCUMENTS, _BATCH_CHARACTERS = 512, 1_000_000
"""Text tokenised at a time; no effect on the result."""


def prepare_source(
    folder: Path,
    name: str,
    config: SourceConfig,
    tokenizer: TextTokenizer,
    seed: int,
    least_tokens: int,
    report: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Any]:
    """Write the source unless it is there already, made from the same things; returns its manifest.

    Args:
        least_tokens: training tokens below which the source is of no use (one window).
        report: called with (tokens so far, tokens in all or 0 where not known).

    Raises:
        UserError: a file is missing or damaged, a row does not fit the template, too few tokens, a full disk.
    """
    wanted = {
        "source": name,
        "config_digest": digest([to_plain(config), seed if config.builtin else None]),
        "tokenizer_sha256": tokenizer.sha256,
        "inputs": _inputs(config),
    }
    found = _found(folder, wanted)
    if found is not None:
        return found
    temporary = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir(parents=True)
        made = wanted | _write(temporary, name, config, tokenizer, seed, report)
        if made["tokens"] < least_tokens:
            raise UserError(
                f"sources.{name} gave {made['tokens']} training tokens, fewer than one window of "
                f"{least_tokens}: give more files or a smaller seq_length"
            )
        write_json(temporary / "manifest.json", made)
        shutil.rmtree(folder, ignore_errors=True)
        temporary.rename(folder)
    except OSError as error:
        raise UserError(
            f"sources.{name}: cannot write {folder}: {error.strerror or error}; free some space"
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return made


def texts(name: str, config: SourceConfig, seed: int) -> Iterator[str]:
    """Documents of a source in their order, empty ones left out.

    Raises:
        UserError: `file:line: cause` for a row that does not fit.
    """
    if config.builtin:
        yield from builtin.documents(config.builtin, seed)
        return
    for file in config.files:
        for place, row in read.rows(Path(file)):
            try:
                text = _replaced(render(config.text, row), config.replace)
                text.encode()
            except TemplateError as error:
                raise UserError(f"{place}: sources.{name}.text: {error}") from None
            except UnicodeEncodeError as error:
                raise UserError(
                    f"{place}: not valid Unicode text ({error.reason} at {error.start})"
                ) from None
            if text.strip():
                yield text


def _replaced(text: str, replace: dict[str, str]) -> str:
    for pattern, value in replace.items():
        text = re.sub(pattern, value, text)
    return text


def _found(folder: Path, wanted: dict[str, Any]) -> dict[str, Any] | None:
    """The manifest of a source that is whole and made from what is wanted."""
    if not (folder / "manifest.json").is_file():
        return None
    found = read_json(folder / "manifest.json")
    if not wanted.items() <= found.items():
        return None
    try:
        for part in ("train", "validation") if found["validation_tokens"] else ("train",):
            TokenStore(folder / part)
    except UserError:
        return None
    return found


def _write(
    folder: Path,
    name: str,
    config: SourceConfig,
    tokenizer: TextTokenizer,
    seed: int,
    report: Callable[[int, int], None],
) -> dict[str, Any]:
    dtype = token_type(tokenizer.size)
    train = TokenWriter(folder / "train", dtype)
    held_out = TokenWriter(folder / "validation", dtype) if config.validation_tokens else None
    split = _Split(config)
    limit = config.tokens or None
    for batch in _batches(texts(name, config, seed)):
        for text, ids in zip(batch, tokenizer.encode_documents(batch), strict=True):
            if held_out and split.holds_out(text, held_out.tokens):
                held_out.append(ids)
            elif not split.is_held_out(text) and (limit is None or train.tokens < limit):
                train.append(ids)
        report(train.tokens, config.tokens)
        if limit and train.tokens >= limit and (not held_out or held_out.tokens >= config.validation_tokens):
            break
    if held_out and held_out.tokens < config.validation_tokens:
        raise UserError(
            f"sources.{name}: {held_out.tokens} tokens could be held out where validation_tokens asks for "
            f"{config.validation_tokens} (one document in {split.every}); ask for fewer or give more files"
        )
    sha256 = train.close()
    made = {"documents": train.documents, "tokens": train.tokens, "sha256": sha256, "dtype": dtype.__name__}
    made |= {
        "eos_id": tokenizer.eos_id,
        "validation_documents": 0,
        "validation_tokens": 0,
        "validation_sha256": None,
    }
    if held_out:
        sha256 = held_out.close()
        made |= {"validation_documents": held_out.documents, "validation_tokens": held_out.tokens}
        made["validation_sha256"] = sha256
    return made


def _batches(documents: Iterator[str]) -> Iterator[list[str]]:
    batch: list[str] = []
    characters = 0
    for text in documents:
        batch.append(text)
        characters += len(text)
        if len(batch) == _BATCH_DOCUMENTS or characters >= _BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


class _Split:
    """Which documents are held out: by the digest of the text, so equal ones never stand on both sides.

    One document in `every` qualifies; those that do are held out until there are `validation_tokens`, and a
    later document equal to one of them goes nowhere.
    """

    def __init__(self, config: SourceConfig):
        wanted = config.validation_tokens
        self.every = max(2, min(100, config.tokens // wanted)) if wanted and config.tokens else 10
        self._wanted = wanted
        self._held_out: set[bytes] = set()

    def holds_out(self, text: str, held_out_tokens: int) -> bool:
        """Whether this document is to be held out now; `held_out_tokens`: tokens held out so far."""
        if held_out_tokens >= self._wanted:
            return False
        key = _key(text)
        if int.from_bytes(key[:8], "little") % self.every or key in self._held_out:
            return False
        self._held_out.add(key)
        return True

    def is_held_out(self, text: str) -> bool:
        """Whether an equal document has been held out."""
        return bool(self._held_out) and _key(text) in self._held_out


def _key(text: str) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=16).digest()


def _inputs(config: SourceConfig) -> list[list[Any]]:
    """[path, bytes, time of last change in ns] of each file."""
    out = []
    for file in config.files:
        read.check(Path(file))
        stat = Path(file).stat()
        out.append([file, stat.st_size, stat.st_mtime_ns])
    return out
