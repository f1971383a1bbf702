"""The nodes that read and write Hugging Face folders."""

from __future__ import annotations

from dataclasses import dataclass, field

from octo_megatron.config.schema.checks import require
from octo_megatron.config.schema.node import NodeConfig

GATE_PARTS = ("files", "round-trip", "logits", "generation", "bf16", "vllm")
"""What an export is proven by; vllm is its share of the generation."""


@dataclass(frozen=True)
class ImportNode(NodeConfig):
    """Hugging Face folder -> Megatron checkpoint."""

    kind: str = "import"
    hf: str = ""
    """Folder with config.json and safetensors; empty: the lineage's `model`."""


@dataclass(frozen=True)
class ExportNode(NodeConfig):
    """Megatron checkpoint -> Hugging Face folder."""

    kind: str = "export"
    dtype: str = "fp32"
    """fp32 or bf16."""
    skip: list[str] = field(default_factory=list)
    """Parts of the gate (GATE_PARTS) to leave out; the export's report says so."""

    def __post_init__(self) -> None:
        require(self.dtype in ("fp32", "bf16"), f"export dtype is '{self.dtype}'; use fp32 or bf16")
        for part in self.skip:
            require(part in GATE_PARTS, f"skip names '{part}'; the gate's parts are {', '.join(GATE_PARTS)}")
