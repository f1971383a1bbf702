"""One number a token in place of the logits: what turns a language model into PPO's critic."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from octo_megatron.parallel import device  # noqa: F401  (before megatron.core)

from megatron.core.tensor_parallel.mappings import gather_from_sequence_parallel_region
from megatron.core.transformer import TransformerConfig


class ValueHead(torch.nn.Module):
    """value = <hidden, weight>, summed in FP32; takes the place of a GPTModel's `output_layer`.

    Every tensor-parallel rank holds the whole weight (hidden numbers). It starts at zero, so that the first values are
    zero under every layout and from whatever weights the critic starts.
    """

    def __init__(self, config: TransformerConfig, group: Any):
        """`group`: tensor-parallel ranks, over which sequence parallelism cuts the tokens."""
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1, config.hidden_size, dtype=config.params_dtype))
        # each rank sees its part of the tokens: Megatron then adds the gradients up
        self.weight.sequence_parallel = config.sequence_parallel  # type: ignore[attr-defined]
        self._group, self._cut = group, config.sequence_parallel

    def forward(
        self, hidden: Tensor, weight: Tensor | None = None, runtime_gather_output: bool | None = None
    ) -> tuple[Tensor, None]:
        """hidden [t, b, h] (t / ranks with sequence parallelism) -> (values [t, b, 1] float32, None: no bias).

        The other arguments are those of the layer it replaces.
        """
        values = hidden.float() @ self.weight.float().t()
        if self._cut:
            # all ranks go on with the same loss, so each takes its own part of the gradient back
            values = gather_from_sequence_parallel_region(
                values, tensor_parallel_output_grad=False, group=self._group
            )
        return values, None
