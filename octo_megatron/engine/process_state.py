"""Keeps what vLLM does to its process from reaching the rest of it."""

from __future__ import annotations

import contextlib
import gc
import os
import random
import warnings
from collections.abc import Iterator

import numpy as np
import torch


@contextlib.contextmanager
def random_state_kept() -> Iterator[None]:
    """Python's, NumPy's and torch's global generators leave as they came.

    vLLM seeds all of them when an engine starts, and on CPU draws from torch's in every sampling step even
    when each request has its own seed; Megatron keeps its states there.
    """
    python, numpy, cpu = random.getstate(), np.random.get_state(), torch.get_rng_state()
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        torch.set_rng_state(cpu)
        if cuda:
            torch.cuda.set_rng_state_all(cuda)


@contextlib.contextmanager
def process_kept() -> Iterator[None]:
    """Environment, thread count, random states, warning filters and the collector leave as they came.

    - The environment: vLLM writes LD_PRELOAD, LOCAL_WORLD_SIZE, VLLM_WORKER_MULTIPROC_METHOD, TORCHINDUCTOR_*
      and more; children would inherit them.
    - `torch.set_num_threads`: replaced by a function that does nothing.
    - The garbage collector: off meanwhile, and what exists is set aside first. vLLM collects five times while
      it starts; over the objects of torch and Megatron that alone is more than a second.
    """
    environment, set_num_threads = dict(os.environ), torch.set_num_threads
    threads, collecting = torch.get_num_threads(), gc.isenabled()
    gc.disable()
    gc.freeze()
    try:
        with random_state_kept(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for name in set(os.environ) - set(environment):
            del os.environ[name]
        for name, value in environment.items():
            if os.environ.get(name) != value:
                os.environ[name] = value
        torch.set_num_threads = set_num_threads
        if torch.get_num_threads() != threads:
            torch.set_num_threads(threads)
        if collecting:
            gc.enable()
