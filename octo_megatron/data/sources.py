"""One source of a mixture: its documents, tokenised, with held-out documents in a file of their own.

    RUN/data/<source>/train/           a tokenised set (`token_set.py`); not there where `tokenized` names one
    RUN/data/<source>/validation/      the same, where validation_tokens > 0
    RUN/data/<source>/manifest.json    what both hold and what they were made from

The folder is made under a temporary name and renamed when whole, so it is there complete or not at all. What
it holds is a pure function of the config, the files, the tokenizer and (built-in text) the seed.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from octo_megatron.config.errors import UserError
from octo_megatron.config.loading import digest, to_plain
from octo_megatron.config.run_folder import read_json, write_json, write_text
from octo_megatron.config.schema import SourceConfig
from octo_megatron.data import builtin, read
from octo_megatron.data.documents import Document, TextOptions, document
from octo_megatron.data.row import BadRow
from octo_megatron.data.template import TemplateError
from octo_megatron.data.token_set import SetWriter, TokenisedSet, open_source
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
        "inputs": _inputs(name, config),
    }
    found = _found(folder, wanted)
    if found is not None:
        return found
    temporary = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir(parents=True)
        if config.tokenized:
            made = wanted | _divide(temporary, name, config, tokenizer)
        else:
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


def source_set(folder: Path, part: str = "train") -> TokenisedSet:
    """The set of a prepared source; `part` is train or validation.

    Raises:
        UserError: the source is not prepared or damaged.
    """
    manifest = read_json(folder / "manifest.json")
    if part == "train" and manifest["tokenized"]:
        return TokenisedSet(Path(manifest["tokenized"]), manifest["documents"])
    return TokenisedSet(folder / part)


def documents(
    name: str, config: SourceConfig, seed: int, reject: Callable[[dict[str, Any]], None] | None = None
) -> Iterator[Document]:
    """Documents of a source in their order.

    Args:
        reject: takes bad rows; None: stop at the first.

    Raises:
        UserError: `file:line: cause` for a row that does not fit.
    """
    if config.builtin:
        yield from map(Document, builtin.documents(config.builtin, seed))
        return
    options = text_options(config)
    for file in config.files:
        read.check(Path(file))
        reader = read.open_pieces(Path(file), read.WHOLE, options.max_row_bytes, options.columns())
        for number, row in reader.piece(0):
            try:
                if isinstance(row, BadRow):
                    raise TemplateError(row.cause)
                yield document(row, options)
            except TemplateError as error:
                if reject is None:
                    raise UserError(f"{reader.place(0, number)}: sources.{name}.text: {error}") from None
                reject({"place": reader.place(0, number), "cause": str(error)})
        reader.close()


def text_options(config: SourceConfig) -> TextOptions:
    """How rows of a source become documents.

    Raises:
        UserError: the options contradict each other.
    """
    return TextOptions(
        template=config.text, names=config.fields, replace=config.replace, mask_prompt=config.mask_prompt
    )


def _found(folder: Path, wanted: dict[str, Any]) -> dict[str, Any] | None:
    """The manifest of a source that is whole and made from what is wanted."""
    if not (folder / "manifest.json").is_file():
        return None
    found = read_json(folder / "manifest.json")
    if not wanted.items() <= found.items():
        return None
    try:
        for part in ("train", "validation") if found["validation_tokens"] else ("train",):
            source_set(folder, part).check_files()
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
    dtype = tokenizer.token_type
    masked = config.mask_prompt
    train = SetWriter(folder / "train", dtype, masked)
    held_out = SetWriter(folder / "validation", dtype, masked) if config.validation_tokens else None
    rejects: list[dict[str, Any]] = []
    rows = documents(name, config, seed, rejects.append if config.rejects else None)
    split = _Split(config)
    limit = config.tokens or None
    for batch in _batches(rows):
        texts = [one.text for one in batch]
        prompts = [0] * len(batch)
        if masked:
            prompts = tokenizer.prompt_lengths(texts, [one.prompt_characters for one in batch])
        for text, ids, prompt in zip(texts, tokenizer.encode_documents(texts), prompts, strict=True):
            if held_out and split.holds_out(text, held_out.tokens):
                held_out.append(ids, prompt)
            elif not split.is_held_out(text) and (limit is None or train.tokens < limit):
                train.append(ids, prompt)
        report(train.tokens, config.tokens)
        if limit and train.tokens >= limit and (not held_out or held_out.tokens >= config.validation_tokens):
            break
    if held_out and held_out.tokens < config.validation_tokens:
        raise _too_few_held_out(name, config, held_out.tokens, f"one document in {split.every}")
    if config.rejects:
        write_text(folder / "rejects.jsonl", "".join(json.dumps(row) + "\n" for row in rejects))
    return {"rejected": len(rejects)} | _facts(
        train.close(tokenizer.eos_id, tokenizer.sha256),
        held_out.close(tokenizer.eos_id, tokenizer.sha256) if held_out else None,
    )


def _divide(folder: Path, name: str, config: SourceConfig, tokenizer: TextTokenizer) -> dict[str, Any]:
    """Where a set is there already: its last documents are held out (copied), `tokens` cuts off the rest."""
    origin = open_source(name, config)
    origin.check_tokenizer(tokenizer.sha256, f"that of the lineage, {tokenizer.folder}")
    origin.check_files()
    documents, first = division(name, config, origin)
    held_out = None
    if config.validation_tokens:
        held_out = SetWriter(folder / "validation", tokenizer.token_type, origin.masked)
        for index in range(first, origin.documents):
            held_out.append(origin.document(index), origin.prompt_tokens(index))
    tokens = sum(origin.span(documents - 1)) if documents else 0
    train = {**origin.manifest, "documents": documents, "tokens": tokens}
    made = _facts(train, held_out.close(origin.eos_id, origin.tokenizer) if held_out else None)
    return made | {"tokenized": str(origin.folder.resolve())}


def division(name: str, config: SourceConfig, origin: TokenisedSet) -> tuple[int, int]:
    """How a source divides the set that it names: (documents that are trained on, first that is held out).

    Raises:
        UserError: nothing would be left to train on.
    """
    first = origin.documents
    if config.validation_tokens:
        while first > 0 and origin.tokens - origin.span(first - 1)[0] < config.validation_tokens:
            first -= 1
        first -= 1
        if first <= 0:
            raise _too_few_held_out(name, config, origin.tokens, "the last documents")
    if config.tokens and first and config.tokens < sum(origin.span(first - 1)):
        return origin.document_of(config.tokens - 1) + 1, first
    return first, first


def _facts(train: dict[str, Any], held_out: dict[str, Any] | None) -> dict[str, Any]:
    """What a source's own manifest says of its two sets."""
    made = {key: train[key] for key in ("documents", "tokens", "sha256", "eos_id")}
    made["tokenized"] = None
    for key in ("documents", "tokens", "sha256"):
        made[f"validation_{key}"] = held_out[key] if held_out else None if key == "sha256" else 0
    return made


def _too_few_held_out(name: str, config: SourceConfig, tokens: int, which: str) -> UserError:
    return UserError(
        f"sources.{name}: {tokens} tokens could be held out where validation_tokens asks for "
        f"{config.validation_tokens} ({which}); ask for fewer or give more files"
    )


def _batches(rows: Iterator[Document]) -> Iterator[list[Document]]:
    batch: list[Document] = []
    characters = 0
    for one in rows:
        batch.append(one)
        characters += len(one.text)
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


def _inputs(name: str, config: SourceConfig) -> list[list[Any]]:
    """[path, bytes, time of last change in ns] of each file, or [folder, sha256] of a tokenised set."""
    if config.tokenized:
        return [[config.tokenized, open_source(name, config).manifest["sha256"]]]
    out = []
    for file in config.files:
        read.check(Path(file))
        stat = Path(file).stat()
        out.append([file, stat.st_size, stat.st_mtime_ns])
    return out
