"""The one place that decides between CUDA and CPU. Import it before `megatron.core`.

Without a CUDA device it applies the substitutions of `cpu_substitutions.py`, so that the unmodified
Megatron-Core runs on CPU with gloo; nothing else in the package asks which of the two it is on.
"""

from __future__ import annotations

import os
import warnings

import torch

from octo_megatron.parallel import cpu_substitutions, transformer_engine

ON_CUDA = torch.cuda.is_available()
DEVICE = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0"))) if ON_CUDA else torch.device("cpu")
BACKEND = "nccl" if ON_CUDA else "gloo"

# Megatron-Core repeats in every process which optional CUDA packages it did not find; `octo doctor` says it once.
warnings.filterwarnings("ignore", module=r"megatron\.")
warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.distributed")

if ON_CUDA:
    torch.cuda.set_device(DEVICE)
    transformer_engine.stand_in_for_apex()
else:
    cpu_substitutions.substitute()
