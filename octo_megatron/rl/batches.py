"""Answers as packed micro-batches: bounded in tokens, equal in number on every data-parallel rank."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from octo_megatron.config.schema import ParallelConfig
from octo_megatron.model.batch import Document, PackedBatch, length_multiples, pack
from octo_megatron.rl.losses import ADVANTAGE, ENGINE, FRESH, LENGTH, OLD, RETURN, SEGMENT, VALUE, WEIGHT
from octo_megatron.rl.rollout import Sample


def mini_batches(indices: Sequence[int], count: int, keys: Sequence[int]) -> list[list[int]]:
    """Cut `indices` into at most `count` parts of nearly equal size, in the order of their `keys`.

    The keys are hashes, so each update sees answers to many prompts; fewer answers than parts give fewer parts.
    """
    shuffled = [index for _, index in sorted(zip(keys, indices, strict=True))]
    size = -(-len(shuffled) // count)
    return [shuffled[i : i + size] for i in range(0, len(shuffled), size or 1)]


def bins(lengths: Sequence[int], capacity: int, multiple: int) -> list[list[int]]:
    """Indices in bins of at most `capacity` tokens each; the number of bins is a multiple of `multiple`.

    Longest first into the emptiest bin, with as few bins as that allows; some bins may stay empty. Pure.

    Raises:
        ValueError: one length alone is beyond the capacity.
    """
    if max(lengths) > capacity:
        raise ValueError(f"a sample of {max(lengths)} tokens does not fit {capacity} tokens")
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    count = -(-sum(lengths) // capacity)
    while True:
        count = -(-count // multiple) * multiple
        heap = [(0, number) for number in range(count)]
        found: list[list[int]] = [[] for _ in range(count)]
        for i in order:
            load, number = heap[0]
            if load + lengths[i] > capacity:
                break
            heapq.heapreplace(heap, (load + lengths[i], number))
            found[number].append(i)
        else:
            return found
        count += 1


@dataclass(frozen=True)
class Target:
    """What an update is to do with one answer."""

    advantage: float | Tensor
    """One for the whole answer, or one a token, float32 [answer]."""
    weight: float = 1.0
    """Of each of its tokens (losses/aggregate.py)."""
    fresh: float | Tensor = 1.0
    """1 for tokens of the trainer's present weights, 0 for older ones, which may differ from them."""
    critic: tuple[Tensor, Tensor] | None = None
    """What the critic said before each token, and what it should have said; float32 [answer] both."""


def planned(samples: Sequence[Sample], capacity: int, layout: ParallelConfig, size: int) -> list[list[int]]:
    """Which samples share a micro-batch; data-parallel rank r of `size` runs every size-th from the r-th on."""
    per_document, _ = length_multiples(layout)
    lengths = [-(-_length(s) // per_document) * per_document for s in samples]
    # the interleaved pipeline schedule runs micro-batches in rounds of its stages
    rounds = layout.pipeline_model_parallel_size if layout.virtual_pipeline_model_parallel_size > 1 else 1
    return [sorted(members) for members in bins(lengths, capacity, size * rounds)]


def micro_batches(
    samples: Sequence[Sample],
    targets: Sequence[Target],
    capacity: int,
    layout: ParallelConfig,
    rank: int,
    size: int,
) -> list[PackedBatch]:
    """The packed micro-batches of one update for data-parallel rank `rank` of `size`.

    Args:
        samples: all answers of the update, the same list on every rank.
        capacity: tokens of a micro-batch at the most (`micro_batch_tokens`).
    """
    found = planned(samples, capacity, layout, size)
    documents = [document(s, t) for s, t in zip(samples, targets, strict=True)]
    out = []
    for members in found[rank::size]:
        chosen = [documents[i] for i in members]
        for number, part in enumerate(chosen):
            part.extras[SEGMENT] = torch.full_like(part.loss_mask, number)
        # a rank without work runs any one answer with nothing counted: all ranks must take part
        idle = replace(documents[0], loss_mask=torch.zeros_like(documents[0].loss_mask))
        out.append(pack(chosen or [idle], layout))
    return out


def document(sample: Sample, target: Target) -> Document:
    """Prompt and answer as one attention span; only the answer's tokens count."""
    ids = torch.tensor(sample.prompt_ids + sample.token_ids)
    prompt, answer = len(sample.prompt_ids), len(sample.token_ids)
    mask = torch.zeros(prompt + answer - 1)
    mask[prompt - 1 :] = 1.0

    def placed(values: float | Tensor) -> Tensor:
        out = torch.zeros_like(mask)
        out[prompt - 1 :] = values
        return out

    extras = {
        ADVANTAGE: placed(target.advantage),
        ENGINE: placed(torch.tensor(sample.logprobs)),
        OLD: torch.zeros_like(mask),
        FRESH: placed(target.fresh),
        WEIGHT: placed(target.weight),
        LENGTH: placed(float(answer)),
        SEGMENT: torch.zeros_like(mask),
    }
    if target.critic is not None:
        extras |= {VALUE: placed(target.critic[0]), RETURN: placed(target.critic[1])}
    return Document(tokens=ids[:-1], labels=ids[1:], loss_mask=mask, extras=extras)


def by_sample(batches: Sequence[PackedBatch], values: Sequence[Tensor]) -> list[list[float]]:
    """Values a token, [1, t] a batch, cut into the answers of this rank's batches in their order."""
    out = []
    for batch, value in zip(batches, values, strict=True):
        row, mask = value[0].cpu(), batch.loss_mask[0] > 0
        for first, stop in zip(batch.cu_seqlens[:-1].tolist(), batch.cu_seqlens[1:].tolist(), strict=True):
            answer = row[first:stop][mask[first:stop]]
            if len(answer):
                out.append(answer.tolist())
    return out


def _length(sample: Sample) -> int:
    return len(sample.prompt_ids) + len(sample.token_ids) - 1
