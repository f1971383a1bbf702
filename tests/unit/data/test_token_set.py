"""Tokenised sets: many shards read as one file, damage named, and sets as sources of a lineage."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from octo_megatron.config.errors import UserError
from octo_megatron.config.run_folder import RunFolder, read_json, write_json
from octo_megatron.config.schema import SourceConfig
from octo_megatron.data.mixture import open_mixture, validation
from octo_megatron.data.sources import prepare_source, source_set
from octo_megatron.data.token_set import SetWriter, TokenisedSet
from octo_megatron.data.tokenizer import TextTokenizer


def _write(
    folder: Path,
    documents: list[list[int]],
    shard_tokens: int,
    tokenizer: str = "t" * 64,
    masked: bool = False,
) -> TokenisedSet:
    writer = SetWriter(folder, np.uint16, masked, shard_tokens)
    for index, ids in enumerate(documents):
        writer.append(ids, index % 7)
    writer.close(0, tokenizer)
    return TokenisedSet(folder)


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    documents=st.lists(st.lists(st.integers(0, 65000), min_size=1, max_size=9), min_size=1, max_size=20),
    shard_tokens=st.integers(1, 40),
)
def test_shards_read_as_one(tmp_path: Path, documents: list[list[int]], shard_tokens: int) -> None:
    made = _write(tmp_path, documents, shard_tokens, masked=True)
    flat = [token for ids in documents for token in ids]
    owner = [index for index, ids in enumerate(documents) for _ in ids]
    assert (made.documents, made.tokens) == (len(documents), len(flat))
    assert [made.document(i).tolist() for i in range(made.documents)] == documents
    assert [made.prompt_tokens(i) for i in range(made.documents)] == [i % 7 for i in range(len(documents))]
    assert [made.document_of(t) for t in range(made.tokens)] == owner
    for start in range(0, len(flat), 3):
        assert made.window(start, len(flat) - start).tolist() == flat[start:]
    for first in range(len(documents)):
        assert made.lengths(first, len(documents) - first).tolist() == [len(d) for d in documents[first:]]
        start, length = made.span(first)
        assert flat[start : start + length] == documents[first]
    with pytest.raises(IndexError):
        made.window(1, len(flat))
    part = TokenisedSet(tmp_path, documents=len(documents) // 2)
    assert part.tokens == sum(map(len, documents[: len(documents) // 2]))


def test_more_shards_than_stay_open(tmp_path: Path) -> None:
    documents = [[i + 1, i + 2, 0] for i in range(400)]
    made = _write(tmp_path, documents, 3)
    assert len(made.manifest["shards"]) == 400
    for _ in range(2):
        assert made.window(0, 1200).tolist() == [token for ids in documents for token in ids]


def test_damage_is_one_line(tmp_path: Path) -> None:
    made = _write(tmp_path, [[1, 2, 0], [4, 0], [5, 0]], 3)
    made.check_files()
    with pytest.raises(UserError, match="was made with another tokenizer than the model's"):
        made.check_tokenizer("x" * 64, "the model's")
    (tmp_path / "shard-00001.bin").unlink()
    with pytest.raises(UserError, match=r"shard-00001\.bin is missing"):
        TokenisedSet(tmp_path).check_files()
    manifest = read_json(tmp_path / "manifest.json")
    for damage, cause in (
        ({"tokens": 8}, "contradicts itself"),
        ({"format": 2}, "not of format 1"),
    ):
        write_json(tmp_path / "manifest.json", manifest | damage)
        with pytest.raises(UserError, match=cause):
            TokenisedSet(tmp_path)
    (tmp_path / "manifest.json").unlink()
    with pytest.raises(UserError, match=r"is not a tokenised set: .* `octo tokenize`"):
        TokenisedSet(tmp_path)


def _documents() -> list[list[int]]:
    rng = np.random.default_rng(0)
    return [[*rng.integers(2, 300, n).tolist(), 0] for n in rng.integers(1, 40, 200)]


def test_a_set_is_a_source(run: RunFolder, add_source: Callable[..., None], tmp_path: Path) -> None:
    """Its last documents are held out, `tokens` cuts it, and the samples are those of the same documents."""
    tokenizer, documents = TextTokenizer(run.tokenizer), _documents()
    origin = _write(tmp_path / "set", documents, 500, tokenizer.sha256)
    config = SourceConfig(tokenized=str(tmp_path / "set"), validation_tokens=300)
    made = prepare_source(run.source("web"), "web", config, tokenizer, 0, 33)
    held_out = made["validation_documents"]
    assert sum(map(len, documents[-held_out:])) >= 300 > sum(map(len, documents[-held_out + 1 :]))
    assert made["documents"] + held_out == origin.documents
    assert made["tokens"] + made["validation_tokens"] == origin.tokens
    kept = source_set(run.source("web"), "validation")
    assert [kept.document(i).tolist() for i in range(held_out)] == documents[-held_out:]
    add_source("copy", [ids[:-1] for ids in documents[:-held_out]])
    windows = {
        name: {
            tuple(open_mixture(run, {name: 1.0}, 32, 0).sample(i).tokens) for i in range(made["tokens"] // 32)
        }
        for name in ("web", "copy")
    }
    assert windows["web"] == windows["copy"]
    assert len(validation(run, "web", 32)) == (made["validation_tokens"] - 1) // 32
    before = {path: path.stat().st_mtime_ns for path in run.source("web").rglob("*")}
    assert prepare_source(run.source("web"), "web", config, tokenizer, 0, 33) == made
    assert before == {path: path.stat().st_mtime_ns for path in run.source("web").rglob("*")}
    cut = prepare_source(run.source("web"), "web", replace(config, tokens=1000), tokenizer, 0, 33)
    assert 1000 <= cut["tokens"] < 1040
    assert cut["tokens"] == sum(map(len, documents[: cut["documents"]]))


def test_a_set_of_another_tokenizer_or_too_small_is_refused(run: RunFolder, tmp_path: Path) -> None:
    tokenizer = TextTokenizer(run.tokenizer)
    _write(tmp_path / "set", _documents(), 500, "0" * 64)
    config = SourceConfig(tokenized=str(tmp_path / "set"))
    with pytest.raises(UserError, match="another tokenizer than that of the lineage"):
        prepare_source(run.source("web"), "web", config, tokenizer, 0, 33)
    _write(tmp_path / "set", _documents(), 500, tokenizer.sha256)
    with pytest.raises(UserError, match="could be held out where validation_tokens asks for 100000"):
        prepare_source(run.source("web"), "web", replace(config, validation_tokens=100000), tokenizer, 0, 33)
    with pytest.raises(UserError, match="no tokenised set at"):
        prepare_source(
            run.source("web"), "web", SourceConfig(tokenized=str(tmp_path / "no")), tokenizer, 0, 33
        )
    with pytest.raises(UserError, match=r"one of builtin: PART, files: \[...\] and tokenized"):
        SourceConfig(tokenized="a", files=["b"])
