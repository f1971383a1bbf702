"""Token files: what is written is read, here and by Megatron's own reader."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from octo_megatron.config.errors import UserError
from octo_megatron.data.store import TokenStore, TokenWriter, token_type


def _write(prefix: Path, documents: list[list[int]], vocab_size: int) -> str:
    writer = TokenWriter(prefix, token_type(vocab_size))
    for ids in documents:
        writer.append(ids)
    return writer.close()


@pytest.mark.parametrize("vocab_size", [300, 128256])
def test_megatrons_reader_reads_the_same_documents(tmp_path: Path, vocab_size: int) -> None:
    indexed_dataset = pytest.importorskip(
        "megatron.core.datasets.indexed_dataset", reason="megatron-core is missing: make env"
    )
    random = np.random.default_rng(0)
    documents = [random.integers(0, vocab_size, n).tolist() for n in (1, 7, 500, 2, 30)]
    _write(tmp_path / "train", documents, vocab_size)
    theirs = indexed_dataset.IndexedDataset(str(tmp_path / "train"))
    assert [theirs[i].tolist() for i in range(len(theirs))] == documents
    assert theirs.document_indices.tolist() == list(range(len(documents) + 1))
    assert theirs.index.dtype is token_type(vocab_size)


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(documents=st.lists(st.lists(st.integers(0, 65000), min_size=1, max_size=20), min_size=1, max_size=20))
def test_windows_and_documents_are_what_was_written(tmp_path: Path, documents: list[list[int]]) -> None:
    sha256 = _write(tmp_path / "train", documents, 65001)
    store = TokenStore(tmp_path / "train")
    flat = [token for ids in documents for token in ids]
    assert (store.tokens, store.documents) == (len(flat), len(documents))
    assert [store.document(i).tolist() for i in range(store.documents)] == documents
    for start in range(0, len(flat), 3):
        assert store.window(start, len(flat) - start).tolist() == flat[start:]
    assert hashlib.sha256((tmp_path / "train.bin").read_bytes()).hexdigest() == sha256
    with pytest.raises(IndexError):
        store.window(1, len(flat))


def test_damage_is_one_line(tmp_path: Path) -> None:
    _write(tmp_path / "train", [[1, 2, 3], [4]], 300)
    data, index = tmp_path / "train.bin", tmp_path / "train.idx"
    whole = index.read_bytes()
    for damaged, words in (
        (whole[:20], "not an index"),
        (b"x" * 99, "not an index"),
        (whole[:-30], "cut short"),
    ):
        index.write_bytes(damaged)
        with pytest.raises(UserError, match=words):
            TokenStore(tmp_path / "train")
    index.write_bytes(whole)
    data.write_bytes(data.read_bytes()[:-2])
    with pytest.raises(UserError, match="holds 6 bytes where its index says 8"):
        TokenStore(tmp_path / "train")
    data.unlink()
    with pytest.raises(UserError, match=r"train\.bin is missing"):
        TokenStore(tmp_path / "train")
