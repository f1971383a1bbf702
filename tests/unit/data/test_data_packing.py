"""The two packings: which tokens a sample has, its boundaries, positions and mask."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from octo_megatron.data import read
from octo_megatron.data.concat import ConcatPacking
from octo_megatron.data.sample import PADDING, Sample
from octo_megatron.data.token_set import SetWriter, TokenisedSet
from octo_megatron.data.tokenizer import TextTokenizer
from octo_megatron.data.whole import WholePacking, best_fit, bin_counts

MakeSet = Callable[..., TokenisedSet]


@pytest.fixture(scope="module")
def make_set(tmp_path_factory: pytest.TempPathFactory) -> MakeSet:
    """make(lengths, prompts=None): documents of these lengths, token = 1 + its number through the set, <eos> = 0."""

    def make(
        lengths: list[int], prompts: list[int] | None = None, shard_tokens: int = 1 << 26
    ) -> TokenisedSet:
        folder = tmp_path_factory.mktemp("set") / "set"
        writer = SetWriter(folder, np.int32, masked=prompts is not None, shard_tokens=shard_tokens)
        at = 1
        for i, length in enumerate(lengths):
            writer.append([*range(at, at + length - 1), 0], prompts[i] if prompts else 0)
            at += length
        writer.close(0, "t" * 64)
        return TokenisedSet(folder)

    return make


def _check(sample: Sample, tokens: TokenisedSet, seq: int) -> list[tuple[int, int, int]]:
    """Everything a sample says about itself holds; returns its pieces (document, offset, length)."""
    assert sample.tokens.shape == (seq + 1,) and sample.loss_mask.shape == (seq,)
    assert (
        sample.cu_seqlens[0] == 0 and sample.cu_seqlens[-1] == seq and (np.diff(sample.cu_seqlens) > 0).all()
    )
    pieces = []
    for i, document in enumerate(sample.documents.tolist()):
        a, b = sample.cu_seqlens[i : i + 2].tolist()
        assert sample.position_ids[a:b].tolist() == list(range(b - a))
        if document == PADDING:
            assert i == len(sample.documents) - 1 and not sample.loss_mask[a:b].any()
            continue
        offset, content = int(sample.offsets[i]), tokens.document(document)
        assert sample.tokens[a:b].tolist() == content[offset : offset + b - a].tolist()
        prompt = tokens.prompt_tokens(document)
        for place in range(a, b):
            label = offset + place - a + 1
            counts = label < len(content) and label >= prompt
            assert sample.loss_mask[place] == counts
            if counts:
                assert sample.tokens[place + 1] == content[label]
        pieces.append((document, offset, b - a))
    assert sample.real_tokens == sum(length for _, _, length in pieces)
    return pieces


_lengths = st.lists(st.integers(1, 40), min_size=1, max_size=60)


@settings(max_examples=40, deadline=None)
@given(lengths=_lengths, seq=st.integers(4, 16), masked=st.booleans(), shard=st.sampled_from([20, 1 << 20]))
def test_concat_is_the_row_of_tokens_cut(
    make_set: MakeSet, lengths: list[int], seq: int, masked: bool, shard: int
) -> None:
    tokens = make_set(lengths, [length // 2 for length in lengths] if masked else None, shard)
    packing = ConcatPacking(tokens, seq, "web")
    assert packing.samples == (sum(lengths) - 1) // seq
    row = np.concatenate([tokens.document(i) for i in range(len(lengths))])
    for c in range(packing.samples):
        sample = packing.sample(c)
        assert sample.tokens.tolist() == row[c * seq : (c + 1) * seq + 1].tolist()
        assert sum(length for _, _, length in _check(sample, tokens, seq)) == seq


@settings(max_examples=40, deadline=None)
@given(lengths=_lengths, seq=st.integers(4, 16), masked=st.booleans(), shard=st.sampled_from([20, 1 << 20]))
def test_whole_has_every_token_once_and_cuts_only_what_does_not_fit(
    make_set: MakeSet, lengths: list[int], seq: int, masked: bool, shard: int
) -> None:
    tokens = make_set(lengths, [length // 2 for length in lengths] if masked else None, shard)
    packing = WholePacking(tokens, seq, "web")
    seen: Counter[tuple[int, int]] = Counter()
    for index in range(packing.samples):
        for document, offset, length in _check(packing.sample(index), tokens, seq):
            seen.update((document, offset + k) for k in range(length))
            assert length == lengths[document] or lengths[document] > seq
            if length < lengths[document]:
                assert offset % seq == 0 and (length == seq or offset + length == lengths[document])
    assert seen == Counter((d, k) for d, length in enumerate(lengths) for k in range(length))


@settings(max_examples=200, deadline=None)
@given(lengths=st.lists(st.integers(1, 50), max_size=80), capacity=st.integers(50, 70))
def test_best_fit_takes_the_fullest_bin_that_has_room(lengths: list[int], capacity: int) -> None:
    """Against the definition with loops."""
    bins_of, bins = best_fit(np.array(lengths, np.int64), capacity)
    rooms: list[int] = []
    wanted = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    for item in wanted:
        fitting = [room for room in rooms if room >= lengths[item]]
        chosen = int(bins_of[item])
        if fitting:
            assert rooms[chosen] == min(fitting)
        else:
            assert chosen == len(rooms)
            rooms.append(capacity)
        rooms[chosen] -= lengths[item]
    assert bins == len(rooms)


@given(
    lists=st.lists(st.lists(st.integers(1, 50), max_size=40), min_size=1, max_size=6),
    capacity=st.sampled_from([50, 70, 65535, 65536]),
)
def test_the_bins_of_many_lists_are_counted_at_once(lists: list[list[int]], capacity: int) -> None:
    sizes = np.zeros((len(lists), max(1, *map(len, lists), 1)), np.int32)
    for row, items in zip(sizes, lists, strict=True):
        row[: len(items)] = [item * capacity // 50 for item in items]
    counts = bin_counts(sizes, capacity)
    assert counts.tolist() == [best_fit(row[row > 0], capacity)[1] for row in sizes]


def test_the_table_is_kept_beside_the_set_and_made_once(make_set: MakeSet) -> None:
    tokens = make_set([7, 9, 30, 2] * 50)
    reports: list[tuple[int, int]] = []
    first = WholePacking(tokens, 16, "web", lambda *progress: reports.append(progress))
    (table,) = (tokens.folder / "packing").iterdir()
    assert reports and table.name.startswith("whole-16-")
    again = WholePacking(tokens, 16, "web", lambda *progress: pytest.fail("made again"))
    assert again.firsts.tolist() == first.firsts.tolist()
    part = WholePacking(TokenisedSet(tokens.folder, 40), 16, "web")
    assert part.totals() == (sum([7, 9, 30, 2] * 10), 40)


def test_a_set_that_cannot_be_written_to_is_packed_all_the_same(make_set: MakeSet) -> None:
    tokens = make_set([7, 9] * 40)
    (tokens.folder / "packing").write_text("in the way")
    assert WholePacking(tokens, 16, "web").samples == 40


def test_several_windows_hold_what_one_would(make_set: MakeSet) -> None:
    """Documents are long against a window: windows of 16 documents, the last one short."""
    lengths = np.random.default_rng(0).integers(1, 4000, 100).tolist()
    tokens = make_set(lengths)
    packing = WholePacking(tokens, 16, "web")
    assert len(packing.firsts) == 8
    total = sum(packing.sample(i).real_tokens for i in range(0, packing.samples))
    assert total == sum(lengths)


def test_fill_of_gsm8k_rows_at_2048(
    real_data: Path, tokenizer_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """At least 97 % of the places hold a token, and no row is cut."""
    tokenizer = TextTokenizer(tokenizer_folder)
    texts = [
        f"Question: {r['question']}\nAnswer: {r['answer']}"
        for _, r in read.rows(real_data / "train/gsm8k.jsonl")
    ]
    writer = SetWriter(tmp_path / "gsm8k", np.uint16)
    for ids in tokenizer.encode_documents(texts):
        writer.append(ids[-2048:])
    writer.close(tokenizer.eos_id, tokenizer.sha256)
    packing = WholePacking(TokenisedSet(tmp_path / "gsm8k"), 2048, "gsm8k")
    with capsys.disabled():
        print(f"\nwhole packing of {len(texts)} GSM8K rows at 2048: fill {packing.fill:.2%}")
    assert packing.fill >= 0.97
    assert all((packing.sample(i).offsets == 0).all() for i in range(0, packing.samples, 7))
