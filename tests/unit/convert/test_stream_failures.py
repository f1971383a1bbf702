"""A conversion that is broken off, or reads files that are not what they were: a right result, or none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hf_models import make_folder

from octo_megatron.convert import import_stream, stream
from octo_megatron.convert.export_stage import Wish, export_folder
from octo_megatron.convert.import_stage import import_folder
from octo_megatron.convert.journal import Journal
from octo_megatron.convert.publish import aside_of
from octo_megatron.model.hf_folder import HfFolder

PLAIN = Wish(gate=False)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folder(tmp_path_factory.mktemp("source") / "hf", "llama-untied")


@pytest.fixture
def checkpoint(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """In many files."""
    monkeypatch.setattr(import_stream, "PIECE_BYTES", 20_000)
    monkeypatch.setattr(stream, "PART_BYTES", 100_000)
    import_folder(source, tmp_path / "checkpoint", gate=False)
    return tmp_path / "checkpoint"


@pytest.mark.parametrize(("before", "then"), [(5_000_000_000, 300_000), (1_000_000, 1_050_000)])
def test_a_killed_export_begins_again_for_files_of_another_size(
    source: Path, checkpoint: Path, tmp_path: Path, before: int, then: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`--shard-gb` changes where a tensor lies, with 1 MB and 1.05 MB in files of the same names."""

    class Killed(BaseException):
        """Goes through every handler, as a kill does."""

    finish, done = Journal.finish, 0

    def stop(self: Journal, part: int, facts: dict[str, Any]) -> None:
        nonlocal done
        finish(self, part, facts)
        done += 1
        if done == 12:
            raise Killed

    out = tmp_path / "out"
    with monkeypatch.context() as patched, pytest.raises(Killed):
        patched.setattr(Journal, "finish", stop)
        export_folder(checkpoint, out, Wish(gate=False, max_shard_bytes=before))
    assert aside_of(out).is_dir()
    export_folder(checkpoint, out, Wish(gate=False, max_shard_bytes=then))
    expected, found = HfFolder(source), HfFolder(out)
    assert sorted(expected.names) == sorted(found.names) and len(found.files) > 3
    assert all(torch.equal(expected.read(name), found.read(name)) for name in found.names)
