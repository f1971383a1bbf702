"""The random generators of one rank as plain tensors, and their seeds."""

from __future__ import annotations

import torch
from torch import Tensor

from octo_megatron.parallel.device import ON_CUDA

from megatron.core.tensor_parallel import get_cuda_rng_tracker, model_parallel_cuda_manual_seed

_TRACKER = "tracker/"


def seed_everything(seed: int) -> None:
    """The same on every rank; Megatron's tracker then gives each tensor-parallel rank a stream of its own."""
    torch.manual_seed(seed)
    model_parallel_cuda_manual_seed(seed)


def random_state() -> dict[str, Tensor]:
    """uint8 tensors by name: torch's generator on the CPU, that of the GPU, the streams of Megatron's tracker."""
    states = {"cpu": torch.get_rng_state()}
    if ON_CUDA:
        states["cuda"] = torch.cuda.get_rng_state()
    for name, state in get_cuda_rng_tracker().get_states().items():
        states[_TRACKER + name] = state.clone()
    return states


def set_random_state(states: dict[str, Tensor]) -> None:
    """Go on where `random_state` was taken."""
    torch.set_rng_state(states["cpu"])
    if ON_CUDA:
        torch.cuda.set_rng_state(states["cuda"])
    get_cuda_rng_tracker().set_states(
        {name.removeprefix(_TRACKER): state for name, state in states.items() if name.startswith(_TRACKER)}
    )
