"""Prompts, seeds and packing are pure; what is packed is what was sampled."""

import random
from collections import Counter

import pytest
import torch

pytest.importorskip("vllm", reason="needs vllm: `make env` installs it")

from octo_megatron.config.schema import ParallelConfig
from octo_megatron.engine.seeds import sample_seed
from octo_megatron.rl.batches import Target, bins, by_sample, document, micro_batches, mini_batches, planned
from octo_megatron.rl.losses import ADVANTAGE, ENGINE, FRESH, WEIGHT
from octo_megatron.rl.rollout import Sample, drawn


def test_prompts_are_a_pure_function_of_seed_and_step():
    steps = [drawn(50, 7, first, 16) for first in range(0, 400, 16)]
    assert steps[10] == drawn(50, 7, 160, 16)
    assert steps != [drawn(50, 8, first, 16) for first in range(0, 400, 16)]
    flat = [p for step in steps for p in step]
    for epoch in range(len(flat) // 50):
        assert sorted(flat[50 * epoch : 50 * epoch + 50]) == list(range(50))
    assert flat[:50] != flat[50:100]


def test_more_prompts_than_problems_repeat_evenly():
    assert Counter(drawn(3, 0, 0, 12)) == Counter({0: 4, 1: 4, 2: 4})


def test_seeds_do_not_collide():
    seeds = {sample_seed(0, "rl", s, p, n) for s in range(1, 26) for p in range(16) for n in range(8)}
    assert len(seeds) == 25 * 16 * 8
    assert all(0 <= s < 2**63 for s in seeds)
    assert sample_seed(0, "rl", 1, 2, 3) != sample_seed(0, "rl", 12, 3) != sample_seed(1, "rl", 12, 3)


@pytest.mark.parametrize("seed", range(20))
def test_bins_hold_everything_once_within_capacity(seed):
    r = random.Random(seed)
    lengths = [r.randrange(1, 100) for _ in range(r.randrange(1, 150))]
    capacity, multiple = r.choice([100, 128, 1000, 10**6]), r.choice([1, 2, 3, 8])
    found = bins(lengths, capacity, multiple)
    assert sorted(i for members in found for i in members) == list(range(len(lengths)))
    assert all(sum(lengths[i] for i in members) <= capacity for members in found)
    assert len(found) % multiple == 0
    assert found == bins(lengths, capacity, multiple)
    if sum(lengths) <= capacity:
        assert len(found) == multiple


def test_a_sample_beyond_the_capacity_is_refused():
    with pytest.raises(ValueError, match="101 tokens does not fit 100"):
        bins([5, 101], 100, 1)


def test_mini_batches_partition_and_shuffle():
    indices = list(range(0, 60, 2))
    keys = [sample_seed(i) for i in indices]
    parts = mini_batches(indices, 4, keys)
    assert sorted(i for p in parts for i in p) == indices
    assert [len(p) for p in parts] == [8, 8, 8, 6]
    assert parts[0] != indices[:8]
    assert mini_batches([], 2, []) == []
    assert [len(p) for p in mini_batches([3], 2, [9])] == [1]


def sample(r: random.Random, finished=True) -> Sample:
    prompt = [r.randrange(1, 30) for _ in range(r.randrange(1, 8))]
    answer = [r.randrange(1, 30) for _ in range(r.randrange(1, 20))]
    return Sample(0, prompt, answer, [-r.random() - 0.1 for _ in answer], finished, 0, "", 1.0)


def test_a_document_counts_the_answer_only():
    s = Sample(0, [11, 12, 13], [21, 22], [-0.5, -0.25], True, 0, "", 1.0)
    d = document(s, Target(2.0, 0.5))
    assert d.tokens.tolist() == [11, 12, 13, 21]
    assert d.labels.tolist() == [12, 13, 21, 22]
    assert d.loss_mask.tolist() == [0, 0, 1, 1]
    assert d.extras[ENGINE].tolist() == [0, 0, -0.5, -0.25]
    assert d.extras[WEIGHT].tolist() == [0, 0, 0.5, 0.5]
    assert d.extras[ADVANTAGE].tolist() == [0, 0, 2.0, 2.0]


@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize("context", [1, 2])
def test_ranks_share_all_samples_in_equally_many_batches(size, context):
    r = random.Random(1)
    samples = [sample(r) for _ in range(23)]
    layout = ParallelConfig(context_parallel_size=context, data_parallel_size=size)
    ranks = [micro_batches(samples, [Target(1.0)] * 23, 64, layout, rank, size) for rank in range(size)]
    assert len({len(batches) for batches in ranks}) == 1
    batches = [b for part in ranks for b in part]
    assert all(b.length <= 64 for b in batches)
    assert sum(b.loss_mask.sum().item() for b in batches) == sum(len(s.token_ids) for s in samples)
    found = Counter(
        tuple(row.tolist())
        for b in batches
        for a, z in zip(b.cu_seqlens[:-1], b.cu_seqlens[1:], strict=True)
        if (row := b.labels[0, a:z][b.loss_mask[0, a:z] > 0]).numel()
    )
    assert found == Counter(tuple(s.token_ids) for s in samples)


def test_ranks_without_work_still_take_part():
    samples = [sample(random.Random(2))]
    ranks = [
        micro_batches(samples, [Target(1.0)], 64, ParallelConfig(data_parallel_size=3), rank, 3)
        for rank in range(3)
    ]
    assert [len(batches) for batches in ranks] == [1, 1, 1]
    assert sorted(int(b[0].loss_mask.sum()) for b in ranks) == [0, 0, len(samples[0].token_ids)]


@pytest.mark.parametrize("context", [1, 2])
def test_values_of_a_batch_come_back_by_answer(context):
    r = random.Random(3)
    samples = [sample(r) for _ in range(11)]
    layout = ParallelConfig(context_parallel_size=context, data_parallel_size=2)
    for rank in range(2):
        batches = micro_batches(samples, [Target(1.0)] * 11, 64, layout, rank, 2)
        order = [i for members in planned(samples, 64, layout, 2)[rank::2] for i in members]
        found = by_sample(batches, [b.extras[ENGINE] for b in batches])
        assert found == [pytest.approx(samples[i].logprobs) for i in order]


def test_token_advantages_stand_at_their_tokens():
    s = Sample(0, [11, 12, 13], [21, 22], [-0.5, -0.25], True, 0, "", 1.0)
    d = document(s, Target(torch.tensor([3.0, -1.0])))
    assert d.extras[ADVANTAGE].tolist() == [0, 0, 3.0, -1.0]


def test_only_tokens_of_the_present_weights_are_fresh():
    s = Sample(0, [1], [2, 3, 4], [-1.0] * 3, True, 5, "", versions=[[5, 2], [7, 1]])
    assert s.fresh(7) == [0.0, 0.0, 1.0] and s.fresh(5) == [1.0, 1.0, 0.0]
    assert Sample(0, [1], [2, 3], [-1.0] * 2, True, 5, "").fresh(5) == [1.0, 1.0]
    d = document(s, Target(1.0, fresh=torch.tensor(s.fresh(7))))
    assert d.extras[FRESH].tolist() == [0.0, 0.0, 1.0]
