"""A checkpoint that is cut short or damaged is named, never used."""

from __future__ import annotations

from pathlib import Path

import pytest

from octo_megatron.checkpoint.manifest import (
    finished,
    latest,
    read_extra,
    step_folder,
    verify,
    write_manifest,
)
from octo_megatron.config.errors import UserError


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    folder = step_folder(tmp_path, 20)
    folder.mkdir()
    (folder / "weights.distcp").write_bytes(b"0123456789")
    write_manifest(folder, {"step": 20})
    return folder


def test_intact(checkpoint: Path) -> None:
    verify(checkpoint)
    assert read_extra(checkpoint) == {"step": 20}


def test_newest_finished_one_counts(checkpoint: Path) -> None:
    step_folder(checkpoint.parent, 30).mkdir()  # no manifest: cut short
    (checkpoint.parent / ".step_00000040.partial").mkdir()
    older = step_folder(checkpoint.parent, 10)
    older.mkdir()
    write_manifest(older, {"step": 10})
    assert finished(checkpoint.parent) == [older, checkpoint]
    assert latest(checkpoint.parent) == checkpoint
    assert latest(checkpoint.parent / "nothing") is None


def test_missing(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no checkpoint at"):
        verify(tmp_path / "step_00000001")
    with pytest.raises(UserError, match="no finished checkpoint"):
        verify(tmp_path)


def test_flipped_byte(checkpoint: Path) -> None:
    (checkpoint / "weights.distcp").write_bytes(b"0123456780")
    with pytest.raises(UserError, match=r"weights\.distcp is damaged: its sha256 is"):
        verify(checkpoint)


def test_truncated_and_lost_files(checkpoint: Path) -> None:
    (checkpoint / "weights.distcp").write_bytes(b"0123")
    with pytest.raises(UserError, match=r"weights\.distcp has 4 bytes, the manifest says 10"):
        verify(checkpoint)
    (checkpoint / "weights.distcp").unlink()
    with pytest.raises(UserError, match=r"weights\.distcp is missing"):
        verify(checkpoint)
