"""Samples of a mixture: which tokens, in which order, and that only (seed, i) decides."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from octo_megatron.config.errors import UserError
from octo_megatron.config.run_folder import RunFolder, read_json, write_json
from octo_megatron.data.mixture import Mixture, open_mixture, validation

SEQ = 8


def _documents(first: int, lengths: list[int]) -> list[list[int]]:
    """Documents whose tokens tell them apart: `first` + place, never 0 (<eos>)."""
    random = np.random.default_rng(first)
    return [random.integers(2, 300, n).tolist() for n in lengths]


@pytest.fixture
def mixture(run: RunFolder, add_source: Callable[..., None]) -> Mixture:
    add_source("web", _documents(1, [5, 20, 3, 3, 40, 1]), validation=_documents(3, [10, 9]))
    add_source("code", _documents(2, [30, 2, 6]))
    return open_mixture(run, {"web": 0.7, "code": 0.3}, SEQ, seed=0)


def _stream(run: RunFolder, source: str) -> np.ndarray:
    return np.fromfile(run.source(source) / "train/shard-00000.bin", np.uint16)


def test_samples_are_windows_whose_last_token_is_the_next_ones_first(
    run: RunFolder, mixture: Mixture
) -> None:
    for i in range(60):
        sample = mixture.sample(i)
        stream = _stream(run, sample.source)
        windows = [stream[c : c + SEQ + 1].tolist() for c in range(0, len(stream) - SEQ, SEQ)]
        assert sample.tokens.dtype == np.int64 and sample.tokens.tolist() in windows


def test_an_epoch_gives_each_window_once_and_the_next_in_another_order(
    run: RunFolder, mixture: Mixture
) -> None:
    seen = [s.tokens.tolist() for s in map(mixture.sample, range(200)) if s.source == "web"]
    windows = (len(_stream(run, "web")) - 1) // SEQ
    epochs = [seen[e * windows : (e + 1) * windows] for e in range(5)]
    assert all(sorted(epoch) == sorted(epochs[0]) for epoch in epochs)
    assert len({str(epoch) for epoch in epochs}) == 5
    assert len(Counter(map(str, epochs[0]))) == windows


def test_boundaries_and_mask_follow_the_end_of_sequence_ids(mixture: Mixture) -> None:
    for i in range(60):
        sample = mixture.sample(i)
        inputs = sample.tokens[:-1]
        assert sample.cu_seqlens.dtype == np.int32 and sample.loss_mask.dtype == np.float32
        assert sample.loss_mask.tolist() == [0.0 if token == 0 else 1.0 for token in inputs]
        starts = [0] + [p + 1 for p in range(SEQ - 1) if inputs[p] == 0]
        assert sample.cu_seqlens.tolist() == [*starts, SEQ]


def test_a_sample_depends_on_seed_and_position_alone(run: RunFolder, mixture: Mixture) -> None:
    straight = [mixture.sample(i).tokens.tolist() for i in range(100)]
    again = open_mixture(run, {"code": 0.3, "web": 0.7}, SEQ, seed=0)
    backwards = [again.sample(i).tokens.tolist() for i in reversed(range(100))]
    assert backwards[::-1] == straight
    for data_parallel_size, micro_batch_size in ((1, 4), (2, 2), (4, 1), (2, 5)):
        batch = data_parallel_size * micro_batch_size
        taken = {}
        for step in range(100 // batch):
            for rank in range(data_parallel_size):
                for k in range(micro_batch_size):
                    i = step * batch + rank * micro_batch_size + k
                    taken[i] = (
                        open_mixture(run, {"web": 0.7, "code": 0.3}, SEQ, seed=0).sample(i).tokens.tolist()
                    )
        assert [taken[i] for i in range(len(taken))] == straight[: len(taken)]
    other = open_mixture(run, {"web": 0.7, "code": 0.3}, SEQ, seed=1)
    assert [other.sample(i).tokens.tolist() for i in range(100)] != straight


def test_a_source_keeps_its_order_in_another_mixture(run: RunFolder, mixture: Mixture) -> None:
    alone = open_mixture(run, {"web": 1.0}, SEQ, seed=0)
    web = [s.tokens.tolist() for s in map(mixture.sample, range(100)) if s.source == "web"]
    assert web == [alone.sample(i).tokens.tolist() for i in range(len(web))]


def test_validation_is_the_held_out_windows_in_order(run: RunFolder, mixture: Mixture) -> None:
    samples = validation(run, "web", SEQ)
    stream = np.fromfile(run.source("web") / "validation/shard-00000.bin", np.uint16)
    assert [s.tokens.tolist() for s in samples] == [stream[c : c + SEQ + 1].tolist() for c in (0, SEQ)]
    assert validation(run, "code", SEQ) == []
    with pytest.raises(UserError, match=r"raise sources\.web.validation_tokens"):
        validation(run, "web", 64)


def test_what_cannot_be_opened_is_one_line(run: RunFolder, mixture: Mixture) -> None:
    with pytest.raises(UserError, match=r"nowhere/manifest.json is missing"):
        open_mixture(run, {"nowhere": 1.0}, SEQ, 0)
    with pytest.raises(UserError, match=r"raise sources\.code.tokens or lower seq_length"):
        open_mixture(run, {"code": 1.0}, 41, 0)
    manifest = run.source("code") / "train/manifest.json"
    write_json(manifest, read_json(manifest) | {"tokenizer": "0" * 64})
    with pytest.raises(UserError, match="another tokenizer"):
        open_mixture(run, {"code": 1.0}, SEQ, 0)


def test_the_smallest_source_is_one_window(
    run: RunFolder, add_source: Callable[..., None], tmp_path: Path
) -> None:
    add_source("tiny", [list(range(2, 2 + SEQ))])
    mixture = open_mixture(run, {"tiny": 1.0}, SEQ, 0)
    assert [mixture.sample(i).tokens.tolist() for i in range(3)] == [[*range(2, 2 + SEQ), 0]] * 3
