"""A rank that fills itself from a folder brings its own rows into memory, not the others'."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from octo_megatron.model.families import Kind, family_of
from octo_megatron.model.hf_folder import HfFolder
from octo_megatron.model.hf_weights import merge
from octo_megatron.model.slots import slots, tensor_shapes

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 8192,
    "hidden_size": 2048,
    "intermediate_size": 4096,
    "num_hidden_layers": 1,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "head_dim": 256,
    "max_position_embeddings": 64,
    "tie_word_embeddings": True,
}
_AROUND = 2 << 20
"""The kernel maps pages of the page cache in pieces of up to 2 MiB: so much more at each end of what is read."""


def _resident(file: Path) -> int:
    """Bytes of a file's maps that are in this process's memory."""
    total, inside = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        first = line.split()[0]
        if "-" in first and not first.endswith(":"):
            inside = line.endswith(str(file))
        elif inside and first == "Rss:":
            total += int(line.split()[1]) * 1024
    return total


@pytest.mark.parametrize("kind", [Kind.VOCAB, Kind.QKV, Kind.GATE_UP])
def test_only_the_ranks_rows_come_into_memory(kind: Kind, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    tensors = {name: torch.randn(shape) for name, shape in tensor_shapes(CONFIG).items()}
    file = tmp_path / "model.safetensors"
    save_file(tensors, file)
    folder, shape = HfFolder(tmp_path), family_of(CONFIG).shape(CONFIG)
    slot = next(slot for slot in slots(CONFIG) if slot.row.kind is kind)
    mapped = [folder.mapped(name) for name in slot.hf]
    size, rows = 4, sum(tensor.shape[0] for tensor in mapped) // 4
    whole = sum(tensor.nbytes for tensor in mapped)
    assert _resident(file) < 0.05 * whole  # looked at, not read
    part = merge(kind, mapped, shape, 2, size, rows)
    assert part.equal(merge(kind, [tensors[name] for name in slot.hf], shape, 2, size, rows))
    assert 0.2 * whole < _resident(file) <= 0.25 * whole + 2 * _AROUND * len(mapped)
