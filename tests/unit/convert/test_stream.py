"""The streaming itself: many parts, killed and gone on with, shared among processes, within a bound of memory."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from hf_models import make_folder

from octo_megatron.checkpoint.manifest import MANIFEST, verify
from octo_megatron.config.errors import UserError
from octo_megatron.convert import export_stream, import_stream, stream
from octo_megatron.convert.export_stage import Wish, export_folder
from octo_megatron.convert.import_stage import import_folder
from octo_megatron.convert.journal import Journal, Share
from octo_megatron.convert.publish import aside_of
from octo_megatron.model import hf_folder
from octo_megatron.model.hf_folder import HfFolder

PLAIN = Wish(gate=False)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folder(tmp_path_factory.mktemp("source") / "hf", "qwen2")


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pieces of a few rows and many parts, as a large model has."""
    monkeypatch.setattr(import_stream, "PIECE_BYTES", 20_000)
    monkeypatch.setattr(export_stream, "ROWS_BYTES", 20_000)
    monkeypatch.setattr(export_stream, "BLOCK_BYTES", 20_000)
    monkeypatch.setattr(stream, "PART_BYTES", 100_000)


def _weights(folder: Path) -> dict[str, torch.Tensor]:
    opened = HfFolder(folder)
    return {name: opened.read(name) for name in opened.names}


def _same(a: Path, b: Path) -> bool:
    before, after = _weights(a), _weights(b)
    return before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.usefixtures("small_parts")
@pytest.mark.parametrize("name", ["llama-tied", "qwen2", "qwen3"])
def test_many_small_parts_make_the_same_model(name: str, tmp_path: Path) -> None:
    source = make_folder(tmp_path / "hf", name)
    imported = import_folder(source, tmp_path / "checkpoint")  # its gate reads the checkpoint back
    assert imported and len(list((tmp_path / "checkpoint").glob("__[0-9]*_0.distcp"))) > 20
    verify(tmp_path / "checkpoint")
    export_folder(tmp_path / "checkpoint", tmp_path / "out", PLAIN)
    assert _same(source, tmp_path / "out")


def _bytes_read() -> int:
    """By this process, from files in the page cache or not."""
    return next(
        int(line.split()[1]) for line in Path("/proc/self/io").read_text().splitlines() if "rchar" in line
    )


def test_an_export_reads_every_byte_of_the_checkpoint_once(source: Path, tmp_path: Path) -> None:
    checkpoint = tmp_path / "checkpoint"
    import_folder(source, checkpoint, gate=False)
    weights = sum(path.stat().st_size for path in checkpoint.glob("__*.distcp"))
    export_folder(checkpoint, tmp_path / "first", PLAIN)  # what is imported late is read here
    before = _bytes_read()
    export_folder(checkpoint, tmp_path / "out", PLAIN)
    # the rest: manifest, .metadata and the records' headers
    assert weights <= _bytes_read() - before < 1.5 * weights


def test_a_thread_hashes_on_while_another_one_writes(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody holds the output: a thread fills its blocks, waits, and loses nothing."""
    monkeypatch.setattr(export_stream, "BLOCK_BYTES", 4096)
    import_folder(source, tmp_path / "checkpoint", gate=False)
    original, writers, held = export_stream.TensorWriter.prepare, [], threading.Event()

    def prepare(self: Any) -> None:
        original(self)
        self._turns[tmp_path / ".out.partial/model.safetensors"].acquire()
        writers.append(self)

    read = 0

    def fill(*args: Any) -> None:
        nonlocal read
        read += 1
        if read >= 8 and not held.is_set():
            held.set()
            turn = writers[0]._turns[tmp_path / ".out.partial/model.safetensors"]
            threading.Timer(0.3, turn.release).start()
        hf_folder.fill(*args)

    monkeypatch.setattr(export_stream.TensorWriter, "prepare", prepare)
    monkeypatch.setattr(export_stream, "fill", fill)
    export_folder(tmp_path / "checkpoint", tmp_path / "out", PLAIN)
    assert held.is_set() and read > 100 and _same(source, tmp_path / "out")


def test_a_file_that_the_manifest_does_not_know_is_refused(source: Path, tmp_path: Path) -> None:
    checkpoint = tmp_path / "checkpoint"
    import_folder(source, checkpoint, gate=False)
    facts = json.loads((checkpoint / MANIFEST).read_text())
    del facts["files"]["__0_0.distcp"]
    (checkpoint / MANIFEST).write_text(json.dumps(facts))
    with pytest.raises(UserError, match=r".metadata names __0_0.distcp, its manifest does not"):
        export_folder(checkpoint, tmp_path / "out", PLAIN)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint"]


@pytest.mark.usefixtures("small_parts")
def test_a_stopped_import_does_not_repeat_its_parts(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        """Goes through every handler, as a kill does."""

    finish, done = Journal.finish, 0

    def stop(self: Journal, part: int, facts: dict[str, Any]) -> None:
        nonlocal done
        finish(self, part, facts)
        done += 1
        if done == 12:
            raise Killed

    with monkeypatch.context() as patched, pytest.raises(Killed):
        patched.setattr(Journal, "finish", stop)
        import_folder(source, tmp_path / "checkpoint", gate=False)
    aside = aside_of(tmp_path / "checkpoint")
    assert not (tmp_path / "checkpoint").exists()
    before = {path.name: path.stat().st_mtime_ns for path in aside.glob("__[0-9]*_0.distcp")}
    kept = {json.loads(path.read_text())["file"] for path in (aside / "octo_parts").glob("0*.json")}
    assert len(kept) >= 11
    import_folder(source, tmp_path / "checkpoint", gate=False)
    after = {
        path.name: path.stat().st_mtime_ns for path in (tmp_path / "checkpoint").glob("__[0-9]*_0.distcp")
    }
    assert all(before[name] == after[name] for name in kept) and len(after) > len(kept)
    export_folder(tmp_path / "checkpoint", tmp_path / "out", PLAIN)
    assert _same(source, tmp_path / "out")


def test_another_conversion_does_not_go_on_with_these_parts(source: Path, tmp_path: Path) -> None:
    target = tmp_path / "out"
    import_folder(source, tmp_path / "checkpoint", gate=False)
    aside = aside_of(target)
    Journal(aside, {"another": "conversion"}, Share()).finish(0, {})
    (aside / "rubbish.safetensors").write_text("left over")
    export_folder(tmp_path / "checkpoint", target, PLAIN)
    assert _same(source, target) and not (target / "rubbish.safetensors").exists()


_HALF = """
import os, sys
from octo_megatron.convert import command, export_stream, import_stream, stream
import_stream.PIECE_BYTES, export_stream.BLOCK_BYTES, stream.PART_BYTES = 20_000, 20_000, 100_000
count = 0
def slowly(original):
    def call(*args, **keywords):
        global count
        count += 1
        if count == 60:
            print("half way", flush=True)
        if count >= 60:  # every thread
            import time; time.sleep(600)
        return original(*args, **keywords)
    return call
if "slow" in sys.argv[1]:
    import_stream.HfFolder.read_rows = slowly(import_stream.HfFolder.read_rows)
    export_stream.TensorWriter.write_numbers = slowly(export_stream.TensorWriter.write_numbers)
sys.exit(command.main(sys.argv[2:]))
"""


def _start(way: str, *arguments: object, **env: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", _HALF, way, *map(str, arguments)],
        env={**os.environ, **env},
        stdout=subprocess.PIPE,
        text=True,
    )


@pytest.mark.slow
def test_kill_9_in_the_middle_and_again(source: Path, tmp_path: Path) -> None:
    """Import and export, each killed with SIGKILL half way and run again: whole, and the done parts not repeated."""
    checkpoint, out = tmp_path / "checkpoint", tmp_path / "out"
    skip = ["--skip", "vllm", "--skip", "bf16", "--skip", "generation"]
    for target, arguments in (
        (checkpoint, ["import", source, checkpoint]),
        (out, ["export", checkpoint, out, *skip]),
    ):
        process = _start("slow", *arguments)
        assert process.stdout and process.stdout.readline() == "half way\n"
        time.sleep(0.3)  # what was written before is noted by a thread
        process.send_signal(signal.SIGKILL)
        process.wait()
        noted = {
            path.name: path.stat().st_mtime_ns for path in (aside_of(target) / "octo_parts").glob("0*.json")
        }
        assert noted and not target.exists()
        again = _start("straight", *arguments)
        kept: dict[str, int] = {}
        while again.poll() is None:
            for path in (aside_of(target) / "octo_parts").glob("0*.json"):
                try:
                    kept[path.name] = path.stat().st_mtime_ns
                except FileNotFoundError:  # published meanwhile
                    continue
            time.sleep(0.01)
        assert again.returncode == 0 and target.is_dir() and not aside_of(target).exists()
        assert all(kept.get(name, at) == at for name, at in noted.items())
    verify(checkpoint)
    assert _same(source, out)


@pytest.mark.slow
def test_processes_share_the_work(source: Path, tmp_path: Path) -> None:
    """Three ranks as a launcher starts them, in many small parts; then ranks that `--processes` starts."""
    checkpoint, out = tmp_path / "checkpoint", tmp_path / "out"
    ranks = [
        _start("straight", "import", source, checkpoint, RANK=str(rank), WORLD_SIZE="3") for rank in range(3)
    ]
    assert [process.wait(120) for process in ranks] == [0, 0, 0]
    assert len(list(checkpoint.glob("__[0-9]*_0.distcp"))) > 3
    command = [sys.executable, "-m", "octo_megatron.convert.command", "export", str(checkpoint), str(out)]
    options = ["--processes", "2", "--skip", "vllm", "--skip", "bf16"]
    subprocess.run([*command, *options], check=True, timeout=240)
    assert _same(source, out)


@pytest.mark.usefixtures("small_parts")
def test_shares_are_disjoint_and_whole(source: Path, tmp_path: Path) -> None:
    """Three ranks one after the other, the first one last: it finds the others' parts done."""
    opened = HfFolder(source)
    aside = tmp_path / "aside"
    key = import_stream._import_key(opened, torch.float32)
    Journal(aside, key, Share())  # what the first rank does before anything else
    for rank in (2, 1):
        assert import_stream.import_tensors(opened, opened.config, aside, torch.float32, Share(rank, 3)) == {}
    others = len(list(aside.glob("__[0-9]*_0.distcp")))
    files = import_stream.import_tensors(opened, opened.config, aside, torch.float32, Share(0, 3))
    assert 0 < others < len(files) == len(list(aside.glob("__[0-9]*_0.distcp")))


@pytest.mark.usefixtures("small_parts")
def test_a_rank_that_fails_is_named(source: Path, tmp_path: Path) -> None:

    def gone() -> None:
        raise UserError("rank 1 of 2: no space left")

    with pytest.raises(UserError, match="rank 1 of 2: no space left"):
        import_folder(source, tmp_path / "checkpoint", share=Share(0, 2, gone), gate=False)
    assert list(tmp_path.iterdir()) == []


def test_a_rank_without_the_first_one_gives_up(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("octo_megatron.convert.journal._SILENCE_SECONDS", 0.1)
    with pytest.raises(UserError, match="rank 0 has not begun the conversion within"):
        import_folder(source, tmp_path / "checkpoint", share=Share(1, 2), gate=False)


def _benchmark() -> Any:
    """benchmarks/convert.py, which measures the same with a larger model."""
    path = Path(__file__).resolve().parents[3] / "benchmarks/convert.py"
    spec = importlib.util.spec_from_file_location("benchmark_convert", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_memory_stays_below_the_largest_tensor_and_does_not_grow_with_the_model(tmp_path: Path) -> None:
    """1.1 GB and 0.7 GB of random weights: both take the same few pieces, far below the promised bound."""
    if os.statvfs(tmp_path).f_bavail * os.statvfs(tmp_path).f_frsize < 8 << 30:
        pytest.skip("needs 8 GB of free disk")
    benchmark, peaks = _benchmark(), {}
    for layers in (1, 3):
        size = benchmark.random_folder(tmp_path / f"hf{layers}", layers)
        assert size > (0.6e9 if layers == 1 else 1e9)
        for way, a, b in (
            ("import", tmp_path / f"hf{layers}", tmp_path / f"checkpoint{layers}"),
            ("export", tmp_path / f"checkpoint{layers}", tmp_path / f"out{layers}"),
        ):
            peaks[way, layers] = benchmark.measure(way, a, b)["peak"]
    assert (tmp_path / "hf3/model.safetensors").read_bytes() == (
        tmp_path / "out3/model.safetensors"
    ).read_bytes()
    largest = 32000 * 2048 * 4
    for (way, layers), peak in peaks.items():
        assert peak < 200e6 < largest, (way, layers, peaks)
    for way in ("import", "export"):
        assert abs(peaks[way, 3] - peaks[way, 1]) < 60e6, peaks


def test_the_manifest_of_a_streamed_checkpoint_holds(source: Path, tmp_path: Path) -> None:
    import_folder(source, tmp_path / "checkpoint", gate=False)
    verify(tmp_path / "checkpoint")
    facts = json.loads((tmp_path / "checkpoint" / MANIFEST).read_text())
    assert facts["extra"]["hf_config"] == HfFolder(source).config
    assert "hf_files/tokenizer.json" in facts["files"] and ".metadata" in facts["files"]
    assert not any("octo_parts" in name for name in facts["files"])
