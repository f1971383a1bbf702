"""For every test: the environment that `octo run` gives its workers, before anything imports torch or vllm."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator

import pytest

from octo_megatron.lineage.launch import environment, machine_has_gpu

for _name, _value in environment(threads=1, has_gpu=machine_has_gpu()).items():
    os.environ.setdefault(_name, _value)


@pytest.fixture(scope="module", autouse=True)
def _no_process_group_is_left_behind() -> Iterator[None]:
    """A stage that refuses its input leaves its process group to the end of the process; here others follow."""
    yield
    torch = sys.modules.get("torch")
    if torch is not None and torch.distributed.is_initialized():
        parallel_state = sys.modules.get("megatron.core.parallel_state")
        if parallel_state is not None:
            parallel_state.destroy_model_parallel()
        torch.distributed.destroy_process_group()
