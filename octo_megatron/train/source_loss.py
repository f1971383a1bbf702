"""Next-token loss that also says how much of it each source of the mixture had."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from octo_megatron.model.batch import PackedBatch
from octo_megatron.train.batches import SOURCE

_SUM, _TOKENS = "source_loss_sum/", "source_tokens/"


@dataclass(frozen=True)
class SourceLoss:
    """A `TokenLoss`; the figures beside the loss carry no gradient."""

    sources: tuple[str, ...]
    """In the order in which `extras[SOURCE]` numbers them."""

    def __call__(self, logprobs: Tensor, batch: PackedBatch) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Cross entropy: minus the log-probability of each label, summed where the mask is 1."""
        each = -(logprobs * batch.loss_mask)
        figures: dict[str, Tensor] = {}
        with torch.no_grad():
            for index, name in enumerate(self.sources):
                of_it = batch.extras[SOURCE] == index
                figures[_SUM + name] = (each * of_it).sum()
                figures[_TOKENS + name] = (batch.loss_mask * of_it).sum()
        return each.sum(), batch.loss_mask.sum(), figures

    def means(self, sums: dict[str, float]) -> dict[str, float]:
        """loss/<source> -> mean a token, for the sources that the step had tokens of."""
        return {
            f"loss/{name}": sums[_SUM + name] / sums[_TOKENS + name]
            for name in self.sources
            if sums[_TOKENS + name] > 0
        }
