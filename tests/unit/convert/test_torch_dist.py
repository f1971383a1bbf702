"""Records of a distributed checkpoint: found without being taken apart where torch has read such a one before."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch
from torch.distributed.checkpoint import FileSystemReader

from octo_megatron.config.errors import UserError
from octo_megatron.convert import torch_dist
from octo_megatron.convert.torch_dist import DistCheckpoint, Rows
from octo_megatron.convert.torch_dist_writer import Piece, Written, finish, write_pieces
from octo_megatron.model.slots import Slot, slots

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 64,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
}
LAYERS, ROWS, WIDTH = 3, 24, 16
SLOTS = [slot for slot in slots(CONFIG) if slot.megatron.endswith("linear_proj.weight")]


@pytest.fixture
def whole() -> torch.Tensor:
    return torch.randn(LAYERS, ROWS, WIDTH, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def checkpoint(whole: torch.Tensor, tmp_path: Path) -> Path:
    """One parameter of three layers, each in pieces of 16 and 8 rows, which begin anywhere in the file."""
    pieces = [
        (Piece(slot, start, (count, WIDTH)), whole[layer, start : start + count].clone())
        for layer, slot in enumerate(SLOTS)
        for start, count in ((0, 16), (16, 8))
    ]
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    made = write_pieces(folder / "__0_0.distcp", pieces, whole.nbytes)
    written = [Written("__0_0.distcp", [piece for piece, _ in pieces], made["records"])]
    key = SLOTS[0].row.checkpoint_key
    finish(folder, written, {key: (LAYERS, ROWS, WIDTH)}, torch.float32, LAYERS)
    return folder


def _rows(opened: DistCheckpoint, slot: Slot) -> list[Rows]:
    found = opened.whole_rows(slot)
    assert found
    return found


def test_a_record_is_where_torch_finds_it(
    checkpoint: Path, whole: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened, loads = DistCheckpoint(checkpoint), []
    original = torch_dist._load_offset
    monkeypatch.setattr(torch_dist, "_load_offset", lambda *args: loads.append(args) or original(*args))
    data = (checkpoint / "__0_0.distcp").read_bytes()
    for layer, slot in enumerate(SLOTS):
        for rows in _rows(opened, slot):
            begin = opened.offset(rows)
            there = torch.frombuffer(
                bytearray(data[begin : begin + rows.count * WIDTH * 4]), dtype=torch.float32
            )
            assert torch.equal(there.view(-1, WIDTH), whole[layer, rows.start : rows.start + rows.count])
        assert torch.equal(opened.read(slot), whole[layer])
    assert len(loads) == 2  # of six records: one of 16 rows, one of 8


@pytest.mark.parametrize("wrong", ["shape", "dtype"])
def test_a_record_that_is_not_the_chunk_is_refused_after_a_right_one(checkpoint: Path, wrong: str) -> None:
    """`.metadata` gives the second layer's chunks the records of other ones, or the parameter another type."""
    metadata = FileSystemReader(checkpoint).read_metadata()
    opened = DistCheckpoint(checkpoint)
    for rows in _rows(opened, SLOTS[0]):
        opened.offset(rows)
    if wrong == "shape":
        large, small = (
            next(i for i in metadata.storage_data if i.offset == torch.Size((1, start, 0)))
            for start in (0, 16)
        )
        records = metadata.storage_data
        records[large], records[small] = records[small], records[large]
    else:
        metadata.state_dict_metadata[SLOTS[0].row.checkpoint_key].properties.dtype = torch.bfloat16
    (checkpoint / ".metadata").write_bytes(pickle.dumps(metadata))
    changed = DistCheckpoint(checkpoint)
    changed._described |= opened._described
    with pytest.raises(UserError, match=r"__0_0.distcp: the record at byte \d+ is not the chunk"):
        changed.offset(_rows(changed, SLOTS[1])[0])


def test_a_record_without_its_numbers_is_damaged(checkpoint: Path) -> None:
    opened = DistCheckpoint(checkpoint)
    first, second = (_rows(opened, slot)[0] for slot in SLOTS[:2])
    opened.offset(first)
    path = checkpoint / "__0_0.distcp"
    data = bytearray(path.read_bytes())
    at = data.index(b"data/0", second.chunk.offset)
    while (
        0 <= at < second.chunk.offset + second.chunk.length
    ):  # in the local header and in the archive's directory
        data[at : at + 6] = b"data/9"
        at = data.find(b"data/0", at + 1)
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"__0_0.distcp is damaged: no tensor can be read at byte \d+"):
        opened.offset(second)
