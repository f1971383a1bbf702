"""The output layer in chunks: Megatron's own loss and gradients in less memory. (Over ranks: tests/parallel.)"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from octo_megatron.config.schema import ParallelConfig
from octo_megatron.model.lm_head import chunked_cross_entropy
from octo_megatron.parallel import world as worlds

from megatron.core import parallel_state
from megatron.core.tensor_parallel import vocab_parallel_cross_entropy

CLEAR = Path("/proc/self/clear_refs")


@pytest.fixture(scope="module", autouse=True)
def _world() -> Iterator[None]:
    world = worlds.start(ParallelConfig(), seed=1)
    yield
    world.stop()


def plain(hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    return vocab_parallel_cross_entropy((hidden @ weight.t()).float(), labels)


def chunked(chunk: int) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    group = parallel_state.get_tensor_model_parallel_group()
    return lambda hidden, weight, labels: chunked_cross_entropy(hidden, weight, labels, group, chunk)


def inputs(tokens: int, width: int, words: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(2)
    hidden = torch.randn(tokens, width, generator=generator).to(dtype).requires_grad_()
    weight = (torch.randn(words, width, generator=generator) / width**0.5).to(dtype).requires_grad_()
    labels = torch.randint(0, words, (tokens,), generator=generator)
    return hidden, weight, labels, torch.rand(tokens, generator=generator)


@pytest.mark.parametrize("chunk", [1, 7, 64, 1000])
def test_the_loss_and_its_gradients_are_megatrons(chunk: int) -> None:
    hidden, weight, labels, upstream = inputs(67, 32, 130)
    want, got = plain(hidden, weight, labels), chunked(chunk)(hidden, weight, labels)
    assert (want - got).abs().max() < 1e-6
    for a, b in zip(*(torch.autograd.grad(x, (hidden, weight), upstream) for x in (want, got)), strict=True):
        assert (a - b).abs().max() < 1e-6


def test_bf16_rounds_no_more_than_megatron() -> None:
    hidden, weight, labels, upstream = inputs(64, 32, 130, torch.bfloat16)
    exact = plain(hidden.float(), weight.float(), labels)
    want, got = plain(hidden, weight, labels), chunked(16)(hidden, weight, labels)
    assert (got - exact).abs().max() <= (want - exact).abs().max() + 1e-6
    for a, b in zip(*(torch.autograd.grad(x, (hidden, weight), upstream) for x in (want, got)), strict=True):
        assert (a.float() - b.float()).abs().max() < 2e-2 * a.float().abs().max()


def peak_bytes(run: Callable[[], object]) -> int:
    """Highest resident memory of this process while `run` runs, above what it had before."""

    def status(field: str) -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return 1024 * int(next(line for line in lines if line.startswith(field)).split()[1])

    CLEAR.write_text("5")  # the peak starts anew
    before = status("VmRSS")
    run()
    return status("VmHWM") - before


@pytest.mark.skipif(not CLEAR.exists(), reason="the peak of resident memory is read from Linux's /proc")
def test_the_peak_is_that_of_a_chunk() -> None:
    hidden, weight, labels, upstream = inputs(4096, 64, 16384)  # logits of 268 MB

    def step(loss: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Callable[[], object]:
        return lambda: torch.autograd.grad(loss(hidden, weight, labels), (hidden, weight), upstream)

    small, whole = peak_bytes(step(chunked(128))), peak_bytes(step(plain))
    logits = 4096 * 16384 * 4
    print(f"peak {small / 2**20:.0f} MiB in chunks of 128, {whole / 2**20:.0f} MiB whole")
    assert whole > 0.9 * logits
    assert small < 0.4 * whole
