"""For every test: the environment that `octo run` gives its workers, before anything imports torch or vllm."""

from __future__ import annotations

import os

from octo_megatron.lineage.launch import environment, machine_has_gpu

for _name, _value in environment(threads=1, has_gpu=machine_has_gpu()).items():
    os.environ.setdefault(_name, _value)
