"""A conversion that is broken off, or reads files that are not what they were: a right result, or none."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from hf_models import make_folder

from octo_megatron.checkpoint.manifest import MANIFEST
from octo_megatron.config.errors import UserError
from octo_megatron.convert import export_stream, import_stream, stream
from octo_megatron.convert.export_stage import Wish, export_folder, verify_folder
from octo_megatron.convert.import_stage import import_folder
from octo_megatron.convert.journal import Journal, Share
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


def test_damaged_metadata_is_named_whatever_is_wrong_with_it(checkpoint: Path, tmp_path: Path) -> None:
    """It is a pickle: read as it is, it fails in a dozen ways or says that numbers are somewhere else."""
    file = checkpoint / ".metadata"
    whole = file.read_bytes()
    for at in range(0, len(whole), len(whole) // 60):
        data = bytearray(whole)
        data[at] ^= 1
        file.write_bytes(data)
        with pytest.raises(UserError, match=r"checkpoint: \.metadata is damaged: its sha256 is") as caught:
            export_folder(checkpoint, tmp_path / "out", PLAIN)
        assert "\n" not in str(caught.value)
    file.write_bytes(whole[:-10])
    with pytest.raises(UserError, match=r"\.metadata has .* bytes, the manifest says"):
        export_folder(checkpoint, tmp_path / "out", PLAIN)
    file.unlink()
    with pytest.raises(UserError, match=r"\.metadata is missing"):
        export_folder(checkpoint, tmp_path / "out", PLAIN)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]


def test_a_manifest_without_its_numbers_is_damaged(checkpoint: Path, tmp_path: Path) -> None:
    whole = (checkpoint / MANIFEST).read_text()
    for broken in ("[]", "{}", whole.replace('"sha256"', '"sha257"', 1), whole.replace('"extra"', '"extrb"')):
        (checkpoint / MANIFEST).write_text(broken)
        with pytest.raises(UserError, match=f"{MANIFEST} is damaged"):
            export_folder(checkpoint, tmp_path / "out", PLAIN)


@pytest.mark.parametrize("name", ["__0_0.distcp", "common.pt", ".metadata", "octo_manifest.json"])
def test_a_file_of_another_user_is_named(source: Path, checkpoint: Path, tmp_path: Path, name: str) -> None:
    (checkpoint / name).chmod(0)
    with _nobody(tmp_path), pytest.raises(UserError, match=f"{name} cannot be read: Permission denied"):
        export_folder(checkpoint, tmp_path / "out", PLAIN)
    with _nobody(tmp_path), pytest.raises(UserError, match=f"{name} cannot be read: Permission denied"):
        verify_folder(checkpoint, source)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
def test_a_file_of_a_folder_of_another_user_is_named(tmp_path: Path, name: str) -> None:
    source = make_folder(tmp_path / "hf", "qwen2")
    for file in source.iterdir():
        file.chmod(0 if file.name == name else 0o644)
    with _nobody(tmp_path), pytest.raises(UserError, match=f"{name} cannot be read: Permission denied"):
        import_folder(source, tmp_path / "checkpoint", gate=False)
    assert [path.name for path in tmp_path.iterdir()] == ["hf"]


class _nobody:
    """Not root, to whom every file is open; `folder` and those above it are made passable before."""

    def __init__(self, folder: Path):
        self._folder, self._root = folder, os.geteuid() == 0

    def __enter__(self) -> None:
        if self._root:
            self._folder.chmod(0o777)
            for parent in self._folder.parents[:2]:
                parent.chmod(0o755)
            os.seteuid(65534)

    def __exit__(self, *_: object) -> None:
        if self._root:
            os.seteuid(0)


@pytest.mark.parametrize("way", ["damaged file", "another rank"])
def test_a_failure_does_not_wait_for_large_files(
    source: Path, tmp_path: Path, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file of a checkpoint may take minutes; whoever is in the middle of one ends there."""
    checkpoint = tmp_path / "checkpoint"
    import_folder(source, checkpoint, gate=False)  # one large file
    monkeypatch.setattr(export_stream, "BLOCK_BYTES", 4096)
    monkeypatch.setattr("octo_megatron.convert.journal.os.sched_getaffinity", lambda pid: range(2))
    blocks, original = 0, export_stream.fill

    def slowly(file: int, path: Path, *rest: Any) -> None:
        nonlocal blocks
        if path.name == "__0_0.distcp":
            blocks += 1
            time.sleep(0.05)  # 800 blocks: 40 s
        original(file, path, *rest)

    def check() -> None:
        if way == "another rank" and blocks:
            raise UserError("rank 1 of 2: no space left")

    monkeypatch.setattr(export_stream, "fill", slowly)
    if way == "damaged file":
        data = (checkpoint / "common.pt").read_bytes()
        (checkpoint / "common.pt").write_bytes(b"#" + data[1:])
    message = {"damaged file": "common.pt is damaged", "another rank": "rank 1 of 2"}[way]
    began = time.monotonic()
    with pytest.raises(UserError, match=message):
        export_folder(checkpoint, tmp_path / "out", PLAIN, Share(0, 1, check))
    assert time.monotonic() - began < 10 and blocks < 200


_SLOW = """
import signal, sys, time
from octo_megatron.convert import command, export_stream
signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in a shell's background has it ignored
export_stream.BLOCK_BYTES, blocks, original = 4096, 0, export_stream.fill
def slowly(file, path, *rest):
    global blocks
    blocks += path.name == "__0_0.distcp"
    if blocks == 10:
        print("reading", flush=True)
    time.sleep(0.05 * (path.name == "__0_0.distcp"))  # 800 blocks: 40 s
    original(file, path, *rest)
export_stream.fill = slowly
try:
    command.main(sys.argv[1:])
except KeyboardInterrupt:
    print("interrupted after", blocks, flush=True)
"""


def test_ctrl_c_does_not_wait_for_large_files(source: Path, tmp_path: Path) -> None:
    checkpoint = tmp_path / "checkpoint"
    import_folder(source, checkpoint, gate=False)
    process = subprocess.Popen(
        [sys.executable, "-c", _SLOW, "export", str(checkpoint), str(tmp_path / "out")],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout and process.stdout.readline() == "reading\n"
    process.send_signal(signal.SIGINT)
    said, _ = process.communicate(timeout=60)
    assert said.startswith("interrupted after") and int(said.split()[-1]) < 200


def test_ranks_end_with_the_first_one(checkpoint: Path, tmp_path: Path) -> None:
    """The first one is killed while the other one begins, and would wait half an hour for it."""
    command = [sys.executable, "-m", "octo_megatron.convert.command", "export", checkpoint, tmp_path / "out"]
    first = subprocess.Popen([*map(str, command), "--processes", "2"], stderr=subprocess.DEVNULL)
    children = Path(f"/proc/{first.pid}/task/{first.pid}/children")
    deadline = time.monotonic() + 60
    while not (numbers := children.read_text().split()):
        assert time.monotonic() < deadline and first.poll() is None
        time.sleep(0.001)
    status = Path("/proc") / numbers[0] / "status"
    first.send_signal(signal.SIGSTOP)
    time.sleep(1)
    assert _runs(status)
    first.kill()
    first.wait()
    while _runs(status):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def _runs(status: Path) -> bool:
    try:
        return "(zombie)" not in status.read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
