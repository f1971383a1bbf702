"""The one place that decides between CUDA and CPU. Import it before `megatron.core`.

Without a CUDA device it applies the substitutions of `cpu_substitutions.py`, so that the unmodified
Megatron-Core runs on CPU with gloo; nothing else in the package asks which of the two it is on.
"""

from __future__ import annotations

import os

import torch

from octo_megatron.parallel import cpu_substitutions

ON_CUDA = torch.cuda.is_available()
DEVICE = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0"))) if ON_CUDA else torch.device("cpu")
BACKEND = "nccl" if ON_CUDA else "gloo"

if ON_CUDA:
    torch.cuda.set_device(DEVICE)
else:
    cpu_substitutions.substitute()
