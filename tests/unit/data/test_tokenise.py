"""What `octo tokenize` writes: the right documents, the manifest, and that nothing but the input decides."""

import gzip
import json
import random
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
import zstandard
from tokenise_here import content, tokenise_here, write_rows

from octo_megatron.config.errors import UserError
from octo_megatron.config.run_folder import read_json, write_json
from octo_megatron.data.store import TokenStore, TokenWriter, token_type
from octo_megatron.data.token_set import TokenisedSet
from octo_megatron.data.tokenizer import TextTokenizer

WORDS = ["the", "cat", "sat", "on", "mat", "and", "dog", "ran", "to", "house"]


def texts(count: int, seed: int = 0) -> list[str]:
    rng = random.Random(seed)
    return [" ".join(rng.choices(WORDS, k=rng.randint(1, 60))) for _ in range(count)]


def decoded(folder: Path, tokenizer_folder: Path) -> list[str]:
    tokenizer, made = TextTokenizer(tokenizer_folder), TokenisedSet(folder)
    made.check_files()
    return [tokenizer.decode(made.document(i).tolist()) for i in range(made.documents)]


@pytest.fixture
def mixed(tmp_path: Path) -> tuple[Path, list[str]]:
    """A folder with every kind of file, large and small, and the texts in the order of the files."""
    folder, all_texts = tmp_path / "in", texts(900)
    rows = [{"text": text, "n": i} for i, text in enumerate(all_texts)]
    write_rows(folder / "a.jsonl", rows[:200])
    lines = ["".join(json.dumps(row) + "\n" for row in rows[a : a + 200]).encode() for a in (200, 400)]
    (folder / "b.jsonl.gz").write_bytes(gzip.compress(lines[0]))
    (folder / "c.jsonl.zst").write_bytes(zstandard.ZstdCompressor().compress(lines[1]))
    (folder / "deep").mkdir()
    pyarrow.parquet.write_table(
        pyarrow.Table.from_pylist(rows[600:800]), folder / "deep/d.parquet", row_group_size=70
    )
    (folder / "e.json").write_text(json.dumps(rows[800:897]))
    for i in range(897, 900):
        (folder / f"f{i}.txt").write_text(all_texts[i])
    (folder / "notes.md").write_text("not data")
    return folder, all_texts


@pytest.mark.parametrize("piece_bytes", [0, 300, 5000, 1 << 40])
def test_every_kind_of_file_becomes_the_same_documents(
    mixed: tuple[Path, list[str]], tokenizer_folder: Path, tmp_path: Path, piece_bytes: int
) -> None:
    folder, all_texts = mixed
    made = tokenise_here([folder], tmp_path / "set", tokenizer_folder, piece_bytes=piece_bytes).manifest
    assert decoded(tmp_path / "set", tokenizer_folder) == all_texts
    assert (made["rows"], made["documents"], made["rejected"]) == (900, 900, 0)
    assert [Path(file["path"]).name[0] for file in made["files"]] == list("abcdefff")
    assert [file["rows"] for file in made["files"]] == [200, 200, 200, 200, 97, 1, 1, 1]
    assert len(made["shards"]) == {0: 1, 1 << 40: 1}.get(piece_bytes, len(made["shards"]))
    assert made["tokenizer"] == TextTokenizer(tokenizer_folder).sha256
    assert not (tmp_path / "set" / ".work").exists()


def test_globs_files_and_order(mixed: tuple[Path, list[str]], tokenizer_folder: Path, tmp_path: Path) -> None:
    folder, all_texts = mixed
    inputs = [f"{folder}/**/*.parquet", folder / "a.jsonl", f"{folder}/f*.txt"]
    tokenise_here(inputs, tmp_path / "set", tokenizer_folder)
    assert (
        decoded(tmp_path / "set", tokenizer_folder) == all_texts[600:800] + all_texts[:200] + all_texts[897:]
    )
    for wrong, cause in (
        ([folder / "a.jsonl", folder / "a.jsonl"], "is named twice"),
        ([f"{folder}/*.csv"], "nothing matches"),
        ([folder / "no.jsonl"], r"no\.jsonl does not exist"),
        ([folder / "notes.md"], "its kind is not known"),
    ):
        with pytest.raises(UserError, match=cause):
            tokenise_here(wrong, tmp_path / "other", tokenizer_folder)
    assert not (tmp_path / "other").exists()


def test_a_finished_set_is_left_alone_and_another_one_refused(
    mixed: tuple[Path, list[str]], tokenizer_folder: Path, tmp_path: Path
) -> None:
    folder, _ = mixed
    first = tokenise_here([folder], tmp_path / "set", tokenizer_folder)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "set").iterdir()}
    again = tokenise_here([folder], tmp_path / "set", tokenizer_folder)
    assert again.was_there and not first.was_there and again.manifest == first.manifest
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "set").iterdir()}
    with pytest.raises(UserError, match="holds a set made from other options; choose another folder"):
        tokenise_here([folder], tmp_path / "set", tokenizer_folder, template="{text}")
    with pytest.raises(UserError, match="holds a set made from other files"):
        tokenise_here([folder / "a.jsonl"], tmp_path / "set", tokenizer_folder)


def test_what_is_left_of_another_attempt_goes(tokenizer_folder: Path, tmp_path: Path) -> None:
    """A call that stopped at a bad row goes on when that is mended: with the same bytes as if it had never been."""
    rows = [{"text": text} for text in texts(300)]
    path = write_rows(tmp_path / "in/a.jsonl", [*rows, {"text": 1}])
    write_rows(tmp_path / "in/b.jsonl", rows)
    with pytest.raises(UserError, match=r"a\.jsonl:301: field '\{text\}' is a int, not text"):
        tokenise_here([tmp_path / "in"], tmp_path / "set", tokenizer_folder, piece_bytes=4000)
    assert not (tmp_path / "set/manifest.json").exists() and list((tmp_path / "set").glob("shard-*"))
    write_rows(path, rows[:100])
    tokenise_here([tmp_path / "in"], tmp_path / "set", tokenizer_folder, piece_bytes=4000)
    tokenise_here([tmp_path / "in"], tmp_path / "fresh", tokenizer_folder, piece_bytes=4000)
    assert content(tmp_path / "set") == content(tmp_path / "fresh")


def test_nothing_of_other_options_stays(tokenizer_folder: Path, tmp_path: Path) -> None:
    """Shards, masks, ids and rejects of an unfinished call with other options, and a set inside its own input."""
    rows = [{"text": text, "key": str(i)} for i, text in enumerate(texts(60))]
    write_rows(tmp_path / "in/a.jsonl", [*rows[:30], {"text": "", "key": "x"}, *rows[30:]])
    bad = write_rows(tmp_path / "in/b.jsonl", [{"text": 1, "key": 5}])
    out, rejects = tmp_path / "in/set", tmp_path / "rejects.jsonl"

    with pytest.raises(UserError, match=r"b\.jsonl:1: "):
        tokenise_here(
            [tmp_path / "in"], out, tokenizer_folder, piece_bytes=600, names={"text": "key"},
            id_field="key", mask_prompt=True,
        )  # fmt: skip
    assert list(out.glob("shard-*.mask.bin")) and list(out.glob("shard-*.id.idx"))
    tokenise_here([tmp_path / "in"], out, tokenizer_folder, rejects, 600, bad.unlink)
    write_rows(bad, [{"text": 1}])
    assert len(rejects.read_text().splitlines()) == 2
    manifest = read_json(out / "manifest.json")
    names = {f"{shard['name']}.{kind}" for shard in manifest["shards"] for kind in ("bin", "idx")}
    assert {path.name for path in out.iterdir()} == names | {"manifest.json"}
    bad.unlink()
    with pytest.raises(UserError, match="made from other files"):
        tokenise_here([tmp_path / "in"], out, tokenizer_folder, rejects, 600)


def test_ids_sources_and_masks(tokenizer_folder: Path, tmp_path: Path) -> None:
    rows = [
        {"question": f"the cat {i}?", "answer": f"the dog {i}", "key": f"k-ü{i}", "from": "ab"[i % 2]}
        for i in range(50)
    ]
    write_rows(tmp_path / "qa.jsonl", rows)
    made = tokenise_here(
        [tmp_path / "qa.jsonl"], tmp_path / "set", tokenizer_folder, piece_bytes=900,
        template="question-answer", mask_prompt=True, id_field="key", source_field="from",
    ).manifest  # fmt: skip
    found, tokenizer = TokenisedSet(tmp_path / "set"), TextTokenizer(tokenizer_folder)
    assert len(made["shards"]) > 3 and made["masked"] and made["ids"]
    by_source = {"a": 0, "b": 0}
    for i, row in enumerate(rows):
        assert found.document_id(i) == row["key"]
        ids, prompt = found.document(i).tolist(), found.prompt_tokens(i)
        assert tokenizer.decode(ids[:prompt]) == f"Question: {row['question']}\nAnswer:"
        assert tokenizer.decode(ids[prompt:]) == f" {row['answer']}"
        by_source[row["from"]] += len(ids)
    assert {name: facts["tokens"] for name, facts in made["sources"].items()} == by_source
    assert {name: facts["documents"] for name, facts in made["sources"].items()} == {"a": 25, "b": 25}


def test_megatrons_reader_and_writer_agree_with_ours(tokenizer_folder: Path, tmp_path: Path) -> None:
    indexed = pytest.importorskip(
        "megatron.core.datasets.indexed_dataset", reason="megatron-core is missing: make env"
    )
    torch = pytest.importorskip("torch", reason="torch is missing: make env")
    write_rows(tmp_path / "a.jsonl", [{"text": text} for text in texts(80)])
    tokenise_here([tmp_path / "a.jsonl"], tmp_path / "set", tokenizer_folder, piece_bytes=2000)
    ours = TokenisedSet(tmp_path / "set")
    at = 0
    for shard in ours.manifest["shards"]:
        theirs = indexed.IndexedDataset(str(tmp_path / "set" / shard["name"]))
        assert theirs.document_indices.tolist() == list(range(len(theirs) + 1))
        for i in range(len(theirs)):
            assert theirs[i].tolist() == ours.document(at).tolist()
            at += 1
    assert at == ours.documents == 80
    dtype = token_type(TextTokenizer(tokenizer_folder).size)
    builder = indexed.IndexedDatasetBuilder(str(tmp_path / "theirs.bin"), dtype=dtype)
    for i in range(80):
        builder.add_document(torch.tensor(ours.document(i)), [len(ours.document(i))])
    builder.finalize(str(tmp_path / "theirs.idx"))
    store = TokenStore(tmp_path / "theirs")
    assert [store.document(i).tolist() for i in range(80)] == [ours.document(i).tolist() for i in range(80)]
    writer = TokenWriter(tmp_path / "mine", dtype)
    for i in range(80):
        writer.append(ours.document(i))
    writer.close()
    assert (tmp_path / "mine.idx").read_bytes() == (tmp_path / "theirs.idx").read_bytes()
    assert (tmp_path / "mine.bin").read_bytes() == (tmp_path / "theirs.bin").read_bytes()


def test_a_damaged_manifest_or_none_is_no_set(tokenizer_folder: Path, tmp_path: Path) -> None:
    write_rows(tmp_path / "a.jsonl", [{"text": "the cat"}])
    tokenise_here([tmp_path / "a.jsonl"], tmp_path / "set", tokenizer_folder)
    manifest = read_json(tmp_path / "set/manifest.json")
    write_json(tmp_path / "set/manifest.json", manifest | {"tokenizer": "0" * 64})
    with pytest.raises(UserError, match="made from other tokenizer"):
        tokenise_here([tmp_path / "a.jsonl"], tmp_path / "set", tokenizer_folder)
