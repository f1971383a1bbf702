"""`octo tokenize`: files of text -> a tokenised set, by many workers, whatever their number with the same bytes.

Each piece of the input (`pieces.py`) becomes one shard. Records of finished pieces lie in OUT/.work, so a killed
call goes on where it was; when all pieces are there, the manifest is written from the records and .work goes.
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from octo_megatron.config.errors import UserError
from octo_megatron.config.run_folder import read_json, write_json, write_text
from octo_megatron.data.distribute import Run, prepare_folder
from octo_megatron.data.documents import Document, TextOptions, document
from octo_megatron.data.pieces import InputFile, Piece, Plan, Records, find_files, make_plan, missing
from octo_megatron.data.store import TokenWriter
from octo_megatron.data.template import TemplateError
from octo_megatron.data.token_set import MANIFEST, set_manifest
from octo_megatron.data.tokenizer import TextTokenizer
from octo_megatron.data.tokenizer_files import tokenizer_folder
from octo_megatron.data.work import PieceRows

BATCH_DOCUMENTS, BATCH_CHARACTERS = 256, 200_000
"""Text tokenised at a time; no effect on the result."""
_MOST_SOURCES = 10_000


@dataclass(frozen=True)
class TokeniseJob:
    """What every worker does."""

    tokenizer: TextTokenizer
    text: TextOptions = field(default_factory=TextOptions)

    def open(self) -> _Tokenise:
        return _Tokenise(self)


class _Tokenise:
    """Rows of a piece -> one shard."""

    def __init__(self, job: TokeniseJob):
        self._tokenizer, self._options = job.tokenizer, job.text
        self._dtype = self._tokenizer.token_type
        self.columns = job.text.columns()
        self.max_row_bytes = job.text.max_row_bytes

    def run(self, name: str, rows: PieceRows, folder: Path) -> Callable[[], dict[str, Any]]:
        shard = _Shard(folder, name, self._dtype, self._options)
        batch: list[Document] = []
        characters = 0
        try:
            for place, row in rows:
                try:
                    batch.append(document(row, self._options))
                except TemplateError as error:
                    rows.bad(place, str(error), row)
                    continue
                characters += len(batch[-1].text)
                if len(batch) >= BATCH_DOCUMENTS or characters >= BATCH_CHARACTERS:
                    self._encode(batch, shard)
                    batch, characters = [], 0
                    rows.report(shard.documents, shard.tokens)
            self._encode(batch, shard)
            rows.report(shard.documents, shard.tokens)
        except BaseException:
            shard.abandon()
            raise
        return shard.finish

    def _encode(self, batch: list[Document], shard: _Shard) -> None:
        if not batch:
            return
        texts = [one.text for one in batch]
        ids = self._tokenizer.encode_documents(texts)
        prompts = [0] * len(batch)
        if self._options.mask_prompt:
            prompts = self._tokenizer.prompt_lengths(texts, [one.prompt_characters for one in batch])
        for one, tokens, prompt in zip(batch, ids, prompts, strict=True):
            shard.append(one, tokens, prompt)


class _Shard:
    """The files of one shard; they get their names when all are whole."""

    def __init__(self, folder: Path, name: str, dtype: type[np.integer], options: TextOptions):
        self._folder, self._name, self._dtype, self._options = folder, name, dtype, options
        self._writers: dict[str, TokenWriter] = {}
        self._sources: dict[str, list[int]] = {}
        self.documents = self.tokens = 0

    def append(self, one: Document, ids: list[int], prompt: int) -> None:
        if not self._writers:
            self._open()
        self._writers[""].append(ids)
        if self._options.mask_prompt:
            self._writers[".mask"].append([prompt])
        if self._options.id_field:
            self._writers[".id"].append(np.frombuffer(one.id.encode(), np.uint8))
        if self._options.source_field:
            counts = self._sources.setdefault(one.source, [0, 0])
            counts[0] += 1
            counts[1] += len(ids)
            if len(self._sources) > _MOST_SOURCES:
                raise UserError(
                    f"field '{self._options.source_field}' has more than {_MOST_SOURCES} values in one piece: it "
                    "names no source; leave --source-field out"
                )
        self.documents += 1
        self.tokens += len(ids)

    def finish(self) -> dict[str, Any]:
        """Close and rename; the facts of the shard for the record."""
        shard: dict[str, Any] = {
            "name": f"shard-{self._name}",
            "documents": self.documents,
            "tokens": self.tokens,
        }
        try:
            for kind, writer in self._writers.items():
                key = f"{kind[1:]}_" if kind else ""
                shard |= {f"{key}bytes": writer.bytes, f"{key}sha256": writer.close()}
        finally:
            self.abandon()
        for kind in self._writers:
            for ending in ("bin", "idx"):
                made = self._folder / ".work" / f"{self._name}.part{kind}.{ending}"
                made.rename(self._folder / f"shard-{self._name}{kind}.{ending}")
        return {"shard": shard, "sources": self._sources}

    def abandon(self) -> None:
        for writer in self._writers.values():
            writer.abandon()

    def _open(self) -> None:
        kinds: dict[str, type[np.integer]] = {"": self._dtype}
        if self._options.mask_prompt:
            kinds[".mask"] = np.int32
        if self._options.id_field:
            kinds[".id"] = np.uint8
        for kind, dtype in kinds.items():
            self._writers[kind] = TokenWriter(self._folder / ".work" / f"{self._name}.part{kind}", dtype)


@dataclass(frozen=True)
class Tokenised:
    """What a call has come to."""

    manifest: dict[str, Any]
    was_there: bool
    """Whether the set was finished before."""


def tokenise(
    inputs: list[str],
    out: Path,
    tokenizer: Path,
    text: TextOptions,
    rejects: Path | None,
    run: Run,
    piece_bytes: int = 0,
    eos: str | None = None,
    prepare: Callable[[Path], None] = prepare_folder,
) -> Tokenised:
    """Make the set `out`, or go on making it.

    Args:
        tokenizer: in any form that `tokenizer_files.py` reads; one that is no Hugging Face folder is converted to
            OUT/tokenizer, which a lineage can name as its tokenizer.
        rejects: file for bad rows; None: stop at the first.
        run: who does the pieces (`distribute.with_workers`).
        eos: token that ends a document, where the tokenizer names none.
        piece_bytes: text of a shard before tokenising; 0: by the size of the input.
        prepare: called with `out` before anything is written there for the pieces.

    Raises:
        UserError: an input or a row that does not fit, another set in `out`, a full disk.
        WorkFailed: a worker broke.
    """
    files = find_files(inputs, out)
    folder = tokenizer_folder(tokenizer, out / "tokenizer", eos)
    made_with = TextTokenizer(folder)
    wanted = {"tokenizer": made_with.sha256, "options": text.plain(), "rejects": rejects is not None}
    plan = make_plan(files, wanted, piece_bytes)
    found = _finished(out, plan, wanted)
    if found is not None:
        shutil.rmtree(out / ".work", ignore_errors=True)
        return Tokenised(found, True)
    job = TokeniseJob(made_with, text)
    records = Records(out / ".work", plan)
    prepare(out)
    run(plan, job, out, rejects is not None, records.done())
    done = records.done()
    left = missing(plan, done)
    if left:
        raise UserError(f"{out}: {len(left)} pieces are still missing; give the same command again")
    manifest = _manifest(plan, done, made_with, wanted, text)
    if rejects is not None:
        write_text(rejects, records.all_rejects(done))
    _remove_strangers(out, manifest)
    write_json(out / MANIFEST, manifest)
    shutil.rmtree(out / ".work")
    return Tokenised(manifest, False)


def _finished(out: Path, plan: Plan, wanted: dict[str, Any]) -> dict[str, Any] | None:
    """The manifest of `out` where that is this very set.

    Raises:
        UserError: it is another one.
    """
    if not (out / MANIFEST).is_file():
        return None
    found = read_json(out / MANIFEST)
    mine = {**wanted, "piece_bytes": plan.piece_bytes, "files": [asdict(file) for file in plan.files]}
    theirs = {key: found.get(key) for key in mine}
    theirs["files"] = [
        {key: file.get(key) for key in asdict(InputFile("", 0, 0))} for file in found.get("files", [])
    ]
    for key, value in mine.items():
        if theirs[key] != value:
            raise UserError(
                f"{out} holds a set made from other {key}; choose another folder with --out, or remove it"
            )
    return dict(found)


def _manifest(
    plan: Plan,
    done: dict[Piece, dict[str, Any]],
    tokenizer: TextTokenizer,
    wanted: dict[str, Any],
    text: TextOptions,
) -> dict[str, Any]:
    facts: dict[str, Counter[str]] = {file.path: Counter() for file in plan.files}
    sources: dict[str, Counter[str]] = {}
    for record in done.values():
        for file in record["files"]:
            facts[file["path"]] += Counter({key: file[key] for key in ("rows", "rejects")})
        for source, (documents, tokens) in record["sources"].items():
            sources.setdefault(source, Counter()).update(documents=documents, tokens=tokens)
    total: Counter[str] = sum(facts.values(), Counter())
    files = [
        {**asdict(file), **{key: facts[file.path][key] for key in ("rows", "rejects")}} for file in plan.files
    ]
    by_source = {name: dict(counts) for name, counts in sorted(sources.items())}
    shards = (done[piece]["shard"] for piece in sorted(done, key=lambda one: (one.group, one.index)))
    return set_manifest(
        shards,
        tokenizer.eos_id,
        tokenizer.sha256,
        masked=text.mask_prompt,
        ids=text.id_field is not None,
        rows=total["rows"],
        rejected=total["rejects"],
        template=text.template,
        options=wanted["options"],
        rejects=wanted["rejects"],
        piece_bytes=plan.piece_bytes,
        sources=by_source,
        files=files,
    )


def _remove_strangers(out: Path, manifest: dict[str, Any]) -> None:
    """Shards that an earlier attempt with other files or options has left."""
    kinds = ["", *([".mask"] if manifest["masked"] else []), *([".id"] if manifest["ids"] else [])]
    names = {shard["name"] + kind for shard in manifest["shards"] for kind in kinds}
    for path in out.glob("shard-*"):
        if path.stem not in names:
            path.unlink()
