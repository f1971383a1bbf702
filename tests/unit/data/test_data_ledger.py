"""The ledger against counting sample by sample, and prefix stability of what it counts."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from octo_megatron.config.errors import UserError
from octo_megatron.config.schema import ParallelConfig, TrainNode
from octo_megatron.data import concat, epoch
from octo_megatron.data.mixture import Mixture
from octo_megatron.data.prefetch import Prefetcher
from octo_megatron.data.sample import PADDING
from octo_megatron.data.token_set import SetWriter, TokenisedSet
from octo_megatron.train.batches import affordable_steps, micro_batches, sample_positions

SEQ = 8
SHARES = {"web": 0.7, "code": 0.3}
Sets = Mapping[str, TokenisedSet]


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> Sets:
    """Two sets in several shards; documents shorter and longer than a sample."""
    out = {}
    for number, (name, documents) in enumerate((("web", 150), ("code", 40))):
        random = np.random.default_rng(number)
        writer = SetWriter(tmp_path_factory.mktemp("sets") / name, np.uint16, shard_tokens=300)
        for length in random.integers(1, 30, documents):
            writer.append([*random.integers(1, 500, length), 0])
        folder = writer._folder
        writer.close(0, "t" * 64)
        out[name] = TokenisedSet(folder)
    return out


@pytest.fixture(params=["one group", "many groups"])
def groups(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """As sets of this size are ordered, and as sets of millions of samples are, in small."""
    if request.param == "many groups":
        monkeypatch.setattr(epoch, "GROUP", 3)
        monkeypatch.setattr(concat, "BLOCK", 4)
    return request.param


@pytest.mark.parametrize("packing", ["concat", "whole"])
def test_it_equals_counting_sample_by_sample(sets: Sets, packing: str, groups: str) -> None:
    mixture = Mixture(sets, SHARES, SEQ, 5, packing)
    per_epoch = {name: Mixture(sets, {name: 1.0}, SEQ, 5, packing) for name in sets}
    samples = {name: round(1 / per_epoch[name].epochs(1)[name]) for name in sets}
    counted: dict[str, list[Counter[str]]] = defaultdict(list)
    drawn: Counter[str] = Counter()
    for n in range(1, 1200):
        sample = mixture.sample(n - 1)
        number = drawn[sample.source] // samples[sample.source]
        drawn[sample.source] += 1
        rows = counted[sample.source]
        if number == len(rows):
            rows.append(Counter())
        begun = (sample.documents != PADDING) & (sample.offsets == 0)
        rows[number].update(samples=1, tokens=sample.real_tokens, documents=int(begun.sum()))
        if n % 37 and n < 1190:
            continue
        ledger = mixture.ledger(n)
        for name, row in ledger.items():
            assert row["samples"] == drawn[name]
            for key in ("tokens", "documents"):
                assert row[key] == sum(part[key] for part in counted[name])
            spread = [part for part in row["epochs"] for _ in range(part["first"], part["last"] + 1)]
            assert [{k: part[k] for k in ("samples", "tokens", "documents")} for part in spread] == [
                {k: part[k] for k in ("samples", "tokens", "documents")} for part in counted[name]
            ]
    assert len(counted["code"]) > 1, "the test goes through more than one epoch"


@settings(max_examples=15, deadline=None)
@given(n=st.integers(0, 10**12))
def test_it_is_as_quick_at_any_position(sets: Sets, n: int) -> None:
    ledger = Mixture(sets, SHARES, SEQ, 5).ledger(n)
    assert sum(row["samples"] for row in ledger.values()) == n
    assert sum(row["tokens"] for row in ledger.values()) == n * SEQ
    assert all(len(row["epochs"]) <= 2 for row in ledger.values())


def _content(mixture: Mixture, i: int) -> tuple[str, bytes, bytes, bytes]:
    sample = mixture.sample(i)
    return sample.source, sample.tokens.tobytes(), sample.cu_seqlens.tobytes(), sample.loss_mask.tobytes()


@pytest.mark.parametrize("packing", ["concat", "whole"])
@settings(max_examples=25, deadline=None)
@given(
    global_batch=st.sampled_from([4, 8, 12, 24]),
    micro_batch=st.sampled_from([1, 2]),
    world_size=st.sampled_from([1, 2]),
    steps=st.integers(1, 40),
    depth=st.integers(1, 9),
    workers=st.integers(1, 4),
)
def test_the_first_samples_depend_on_nothing_but_the_seed(
    sets: Sets,
    packing: str,
    global_batch: int,
    micro_batch: int,
    world_size: int,
    steps: int,
    depth: int,
    workers: int,
) -> None:
    """World size, micro and global batch, planned length, number of loader workers and how far ahead they load."""
    straight = [_content(Mixture(sets, SHARES, SEQ, 5, packing), i) for i in range(global_batch)]
    node = TrainNode(
        tokens=steps * global_batch * SEQ,
        seq_length=SEQ,
        micro_batch_size=micro_batch,
        global_batch_size=global_batch,
        mixture=SHARES,
        packing=packing,
    )
    taken: dict[int, tuple[str, bytes, bytes, bytes]] = {}
    for rank in range(world_size):
        mixture = Mixture(sets, SHARES, SEQ, 5, packing)

        def make(step: int, rank: int = rank, mixture: Mixture = mixture) -> dict[int, tuple]:
            positions = sample_positions(node, step, rank, world_size)
            return {i: _content(mixture, i) for micro in positions for i in micro}

        with Prefetcher(make, 0, node.steps, 60, depth=depth, workers=workers) as stream:
            for _ in range(node.steps):
                taken.update(stream.next())
    assert sorted(taken) == list(range(node.steps * global_batch))
    assert [taken[i] for i in range(global_batch)] == straight
    whole = Mixture(sets, SHARES, SEQ, 5, packing)
    assert all(taken[i] == _content(whole, i) for i in range(0, len(taken), 5))


@pytest.mark.parametrize("packing", ["concat", "whole"])
def test_more_epochs_change_nothing_before_them(sets: Sets, packing: str, groups: str) -> None:
    short = Mixture(sets, SHARES, SEQ, 5, packing, {"web": 1, "code": 1})
    end = short.end()
    assert end is not None
    longer = Mixture(sets, SHARES, SEQ, 5, packing, {"web": 9})
    assert [_content(short, i) for i in range(end[0])] == [_content(longer, i) for i in range(end[0])]


def test_micro_batches_of_whole_samples_carry_documents_and_padding(sets: Sets) -> None:
    mixture = Mixture(sets, SHARES, SEQ, 5, "whole")
    node = TrainNode(tokens=64, seq_length=SEQ, micro_batch_size=2, global_batch_size=4, mixture=SHARES)
    for k, batch in enumerate(micro_batches(node, mixture.sample, 1, 0, 1, ParallelConfig())):
        samples = [mixture.sample(4 + 2 * k + j) for j in range(2)]
        assert batch.tokens.shape == (1, 2 * SEQ)
        assert batch.position_ids[0].tolist() == [p for s in samples for p in s.position_ids.tolist()]
        assert batch.cu_seqlens.tolist() == [
            *samples[0].cu_seqlens.tolist(),
            *(samples[1].cu_seqlens[1:] + SEQ).tolist(),
        ]
        assert batch.loss_mask[0].tolist() == [m for s in samples for m in s.loss_mask.tolist()]


@pytest.mark.parametrize("packing", ["concat", "whole"])
def test_a_source_ends_where_its_epochs_do(sets: Sets, packing: str) -> None:
    mixture = Mixture(sets, SHARES, SEQ, 5, packing, {"code": 2})
    end = mixture.end()
    assert end is not None and end[1] == "code"
    assert mixture.epochs(end[0])["code"] == 2
    for i in range(end[0]):
        mixture.sample(i)
    with pytest.raises(UserError, match=rf"sample {end[0]} .* max_epochs of source 'code'"):
        mixture.sample(end[0])
    assert Mixture(sets, SHARES, SEQ, 5, packing).end() is None


def test_a_budget_beyond_max_epochs_is_refused_or_cut_as_the_config_says(sets: Sets) -> None:
    end = Mixture(sets, SHARES, SEQ, 5, max_epochs={"code": 1}).end()
    assert end is not None

    def node(steps: int, when: str) -> TrainNode:
        return TrainNode(
            tokens=steps * 4 * SEQ,
            seq_length=SEQ,
            global_batch_size=4,
            mixture=SHARES,
            max_epochs={"code": 1},
            when_exhausted=when,
        )

    within = end[0] // 4
    assert affordable_steps("n", node(within, "error"), end) == within
    assert affordable_steps("n", node(10_000, "stop"), end) == within
    with pytest.raises(
        UserError, match=rf"nodes\.n: source 'code' .* after {within} of 10000 steps: raise max_epochs"
    ):
        affordable_steps("n", node(10_000, "error"), end)
