"""The frozen reference: the parent's weights, changed places with the trained ones while it is asked.

A second model would cost its memory all the time, on the device. Here this rank's shard of the reference lies
in host memory (pinned where there is a GPU) and is exchanged in place, one parameter after the other, so that
the device holds one parameter more than without it. The gradients, the optimizer and the master weights are not
touched; the trained weights come back bit for bit.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from octo_megatron.model.batch import PackedBatch
from octo_megatron.parallel.device import ON_CUDA
from octo_megatron.train.megatron import MegatronTrainer


class Reference:
    """This rank's shard of the parent's weights."""

    def __init__(self, trainer: MegatronTrainer, fill: Callable[[], object]):
        """`fill` puts the parent's weights into the trainer's chunks, whose own are afterwards what they were.

        Collective where `fill` is.
        """
        self._trainer = trainer
        self._held = [_host_copy(p) for p in self._parameters()]
        fill()
        # now the model holds the reference, and the host the trained weights
        self._exchange()

    def logprobs(self, batches: Sequence[PackedBatch]) -> list[Tensor]:
        """The reference's log p(labels) of each batch, float32 [1, t]; collective."""
        with self._in_place():
            return self._trainer.logprobs(batches)

    @contextlib.contextmanager
    def _in_place(self) -> Iterator[None]:
        overlapped = self._trainer.layout.overlap_grad_reduce
        # the forward hooks of an overlapped gather would bring the trained weights back
        for model in self._trainer.models if overlapped else []:
            model.disable_forward_pre_hook()
        self._exchange()
        try:
            yield
        finally:
            self._exchange()
            for model in self._trainer.models if overlapped else []:
                model.enable_forward_pre_hook()

    @torch.no_grad()
    def _exchange(self) -> None:
        for parameter, held in zip(self._parameters(), self._held, strict=True):
            mine = parameter.detach().to(held.device, copy=True)
            parameter.copy_(held)
            held.copy_(mine)

    def _parameters(self) -> list[Tensor]:
        return [p for model in self._trainer.chunks for p in model.parameters()]


def _host_copy(parameter: Tensor) -> Tensor:
    host = parameter.detach().to("cpu", copy=True)
    return host.pin_memory() if ON_CUDA else host
