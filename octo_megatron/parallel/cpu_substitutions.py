"""What Megatron-Core asks of CUDA, given by a CPU: applied by `device.py` where there is no CUDA device.

`torch.cuda.is_available()` stays False: libraries that ask first are not misled. The substitutions are
numbered; `tests/unit/parallel/test_device.py` leaves each out in turn and shows what fails without it. They
were found by running Megatron-Core 0.16.1 and reading where it stopped.
"""

from __future__ import annotations

import contextlib
import functools
import logging
from collections.abc import Callable
from typing import Any

import torch
from torch.utils._device import _device_constructors

CPU = torch.device("cpu")


class _InOrder:
    """Stands for a CUDA stream or event: work on a CPU is already in order."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def _nothing(self, *args: Any, **kwargs: Any) -> None:
        return None

    synchronize = wait_stream = wait_event = record_event = record = wait = _nothing


def _current_device() -> None:
    """1: about sixty sites create tensors on torch.cuda.current_device()."""
    torch.cuda.current_device = lambda: CPU  # type: ignore[assignment, return-value]


def _streams() -> None:
    """2: point-to-point, timers and the checkpoint writer synchronise streams."""
    cuda: Any = torch.cuda
    cuda.synchronize = lambda *args, **kwargs: None
    cuda.current_stream = cuda.default_stream = lambda *args, **kwargs: _InOrder()
    cuda.Stream = cuda.Event = _InOrder
    cuda.stream = lambda stream: contextlib.nullcontext()
    cuda.empty_cache = lambda: None


def _cuda_generator() -> None:
    """3: the CUDA random generator is the CPU generator."""
    cuda: Any = torch.cuda
    cuda.get_rng_state = cuda.random.get_rng_state = lambda device=None: torch.get_rng_state()
    cuda.set_rng_state = cuda.random.set_rng_state = lambda state, device=None: torch.set_rng_state(state)
    cuda.manual_seed = cuda.manual_seed_all = lambda seed: torch.default_generator.manual_seed(seed)


def _device_literals() -> None:
    """4: `device="cuda"` literals (gradient norm, number of tokens, causal mask) and pinned host memory."""
    # `with torch.device(...)` knows the factories by identity: let it note the originals. Otherwise
    # transformers, which builds models that way, loads them with rotary tables that were never written.
    _device_constructors()

    def on_cpu(factory: Callable) -> Callable:
        @functools.wraps(factory)
        def call(*args: Any, **kwargs: Any) -> Any:
            device = kwargs.get("device")
            if device is not None and torch.device(device).type == "cuda":
                kwargs["device"] = CPU
            kwargs.pop("pin_memory", None)
            return factory(*args, **kwargs)

        return call

    for name in ("tensor", "zeros", "ones", "empty", "empty_like", "full", "arange"):
        setattr(torch, name, on_cpu(getattr(torch, name)))


def _cuda_methods() -> None:
    """5: `x.cuda()` where tied embeddings meet across pipeline stages, and in Megatron's own loading of checkpoints."""
    torch.Tensor.cuda = lambda self, *args, **kwargs: self  # type: ignore[method-assign, assignment]
    torch.nn.Module.cuda = lambda self, *args, **kwargs: self  # type: ignore[method-assign]


def _type_strings() -> None:
    """6: the optimizer sorts parameters by the string 'torch.cuda.FloatTensor'."""
    plain = torch.Tensor.type

    def type_(self: torch.Tensor, dtype: Any = None, *args: Any, **kwargs: Any) -> Any:
        if dtype is None:
            return plain(self).replace("torch.", "torch.cuda.", 1)
        return plain(self, dtype, *args, **kwargs)

    torch.Tensor.type = type_  # type: ignore[method-assign, assignment]


def _tracker_state() -> None:
    """7: the RNG tracker goes to torch.cuda.default_generators; without this it silently keeps no state."""
    from megatron.core.tensor_parallel import random as megatron_random

    megatron_random._get_cuda_rng_state = lambda *args, **kwargs: torch.get_rng_state()
    megatron_random._set_cuda_rng_state = lambda state, *args, **kwargs: torch.set_rng_state(state)


class _NoForkWarning(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        return "CPU RNG state changed" not in record.getMessage()


def _tracker_log() -> None:
    """8: fork() warns whenever the CPU state moves inside it, which here is what it is for."""
    from megatron.core.tensor_parallel import random as megatron_random

    logging.getLogger(megatron_random.__name__).addFilter(_NoForkWarning())


def _no_compile() -> None:
    """9: Megatron's @jit_fuser is torch.compile; on a CPU that would ask for a C++ compiler."""
    import torch._dynamo

    torch._dynamo.config.disable = True


BEFORE_MEGATRON: dict[int, Callable[[], None]] = {
    1: _current_device,
    2: _streams,
    3: _cuda_generator,
    4: _device_literals,
    5: _cuda_methods,
    6: _type_strings,
    9: _no_compile,
}
AFTER_MEGATRON: dict[int, Callable[[], None]] = {7: _tracker_state, 8: _tracker_log}


def substitute() -> None:
    """Apply all of them, once a process, before anything else imports `megatron.core`."""
    for apply in BEFORE_MEGATRON.values():
        apply()
    import megatron.core.optimizer  # noqa: F401  (some of it runs on import: after the first group)

    for apply in AFTER_MEGATRON.values():
        apply()
