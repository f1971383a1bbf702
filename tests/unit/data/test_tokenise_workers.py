"""Many workers, MPI ranks and kills: whatever happens on the way, the bytes at the end are the same."""

from __future__ import annotations

import io
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest
import zstandard
from rich.console import Console
from tokenise_here import MPI_MISSING, MPIRUN, content, has_mpi, mpi_environment, tokenise_here, write_rows

from octo_megatron.config.errors import UserError, WorkFailed
from octo_megatron.data.coordinate import Coordinator, Totals
from octo_megatron.data.distribute import Display, prepare_folder, with_workers
from octo_megatron.data.documents import TextOptions
from octo_megatron.data.mpi import under_mpi
from octo_megatron.data.pieces import InputFile, Piece, Plan, Queue, make_plan
from octo_megatron.data.tokenise import tokenise

PIECE = 40_000
_CALL = """
import sys
from pathlib import Path
from octo_megatron.data import distribute
from octo_megatron.data.documents import TextOptions
from octo_megatron.data.tokenise import tokenise
source, out, tokenizer, rejects, workers, piece = sys.argv[1:]
def call(run):
    def ready(*arguments):
        distribute.prepare_folder(Path(out))
        run(*arguments)
    tokenise([source], Path(out), Path(tokenizer), TextOptions(), Path(rejects), ready, int(piece))
    return 0
sys.exit(distribute.with_workers(call, int(workers)))
"""
"""`octo tokenize` with pieces smaller than its options allow."""


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """One large compressed file, one plain, some small; here and there a bad row. About 60 pieces."""
    rng = random.Random(0)
    words = ["the", "cat", "sat", "on", "mat", "and", "dog", "ran", "to", "house"]
    rows = [{"text": " ".join(rng.choices(words, k=rng.randint(0, 400)))} for _ in range(2500)]
    folder = tmp_path / "in"
    write_rows(folder / "a.jsonl", rows[:1500])
    (folder / "a.jsonl.zst").write_bytes(
        zstandard.ZstdCompressor().compress((folder / "a.jsonl").read_bytes())
    )
    write_rows(folder / "a.jsonl", rows[1500:2400])
    for i in range(10):
        write_rows(folder / f"small{i}.jsonl", rows[2400 + 10 * i : 2410 + 10 * i])
    return folder


def _command(corpus: Path, out: Path, tokenizer: Path, workers: int) -> list[str]:
    paths = [str(corpus), str(out), str(tokenizer), f"{out}.rejects"]
    return [sys.executable, "-c", _CALL, *paths, str(workers), str(PIECE)]


@pytest.fixture
def undisturbed(corpus: Path, tokenizer_folder: Path, tmp_path: Path) -> dict[str, bytes]:
    """What one worker in this process makes of the corpus."""
    out = tmp_path / "one"
    tokenise_here([corpus], out, tokenizer_folder, Path(f"{out}.rejects"), PIECE)
    made = content(out)
    assert sum(name.endswith(".bin") for name in made) > 50
    return made | {"rejects": Path(f"{out}.rejects").read_bytes()}


def _made(out: Path) -> dict[str, bytes]:
    return content(out) | {"rejects": Path(f"{out}.rejects").read_bytes()}


@pytest.mark.parametrize("workers", [1, 3])
def test_the_bytes_do_not_depend_on_the_number_of_processes(
    workers: int, corpus: Path, undisturbed: dict[str, bytes], tokenizer_folder: Path, tmp_path: Path
) -> None:
    subprocess.run(_command(corpus, tmp_path / "out", tokenizer_folder, workers), check=True, timeout=300)
    assert _made(tmp_path / "out") == undisturbed


def test_nor_on_mpi(
    corpus: Path, undisturbed: dict[str, bytes], tokenizer_folder: Path, tmp_path: Path
) -> None:
    if not has_mpi():
        pytest.skip(MPI_MISSING)
    command = [*MPIRUN, *_command(corpus, tmp_path / "out", tokenizer_folder, 0)]
    done = subprocess.run(command, env=mpi_environment(), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert _made(tmp_path / "out") == undisturbed


def test_a_bad_row_on_one_rank_ends_all_with_one_line(tokenizer_folder: Path, tmp_path: Path) -> None:
    if not has_mpi():
        pytest.skip(MPI_MISSING)
    write_rows(tmp_path / "a.jsonl", [*[{"text": "the cat"}] * 50, {"text": 1}])
    command = [*MPIRUN, sys.executable, "-m", "octo_megatron.cli.main", "tokenize", str(tmp_path / "a.jsonl")]
    command += ["--out", str(tmp_path / "set"), "--tokenizer", str(tokenizer_folder)]
    done = subprocess.run(command, env=mpi_environment(), capture_output=True, text=True, timeout=300)
    assert done.returncode == 2
    assert done.stderr.count("octo: error:") == 1
    assert "a.jsonl:51: field '{text}' is a int, not text" in done.stderr


@pytest.mark.slow
def test_killed_twenty_times_it_ends_in_the_same_bytes(
    corpus: Path, undisturbed: dict[str, bytes], tokenizer_folder: Path, tmp_path: Path
) -> None:
    """`kill -9` of the command after a random number of changes of its folder; its workers die with it."""
    out, rng, killed = tmp_path / "out", random.Random(3), 0
    for attempt in range(20):
        process = subprocess.Popen(_command(corpus, out, tokenizer_folder, 1 + attempt % 3))
        changes, seen, wanted = 0, _names(out), rng.randint(1, 12)
        deadline = time.monotonic() + 120
        while changes < wanted and process.poll() is None:
            assert time.monotonic() < deadline
            now = _names(out)
            changes, seen = changes + len(now ^ seen), now
        workers = [child.pid for child in psutil.Process(process.pid).children()] if changes >= wanted else []
        process.send_signal(signal.SIGKILL)
        killed += process.wait() == -signal.SIGKILL
        while any(psutil.pid_exists(pid) and psutil.Process(pid).status() != "zombie" for pid in workers):
            assert time.monotonic() < deadline, "a worker outlives the command"
            time.sleep(0.01)
    assert killed >= 12, f"only {killed} kills came before the end: the corpus is too small"
    subprocess.run(_command(corpus, out, tokenizer_folder, 2), check=True, timeout=300)
    assert _made(out) == undisturbed


def _names(out: Path) -> set[str]:
    folders = [folder for folder in (out, out / ".work") if folder.is_dir()]
    return {name for folder in folders for name in os.listdir(folder)}


def test_a_killed_worker_is_named_with_its_file(corpus: Path, tokenizer_folder: Path, tmp_path: Path) -> None:
    def kill_one() -> None:
        for _ in range(3000):
            children = multiprocessing.active_children()
            if children and list((tmp_path / "out/.work").glob("*.json")):
                children[0].kill()
                return
            time.sleep(0.01)

    def call(run: object) -> int:
        prepare_folder(tmp_path / "out")
        tokenise(
            [str(corpus)], tmp_path / "out", tokenizer_folder, TextOptions(), tmp_path / "rejects", run, 4000
        )  # type: ignore[arg-type]
        return 0

    thread = threading.Thread(target=kill_one)
    thread.start()
    with pytest.raises(
        WorkFailed, match=r"worker \d was killed by SIGKILL \(out of memory\?\) \(piece \d+ of .*in/"
    ):
        with_workers(call, 2)
    thread.join()
    assert not (tmp_path / "out/manifest.json").exists()


def _plan(files: int, pieces: int) -> Plan:
    return make_plan([InputFile(f"{i}.jsonl.gz", pieces * 1000, 0) for i in range(files)], "job", 1000)


def test_the_queue_gives_every_piece_once_and_keeps_workers_in_their_files() -> None:
    plan = _plan(5, 7)
    done = {Piece(2, index): {"pieces": 7 if index == 6 else None} for index in (0, 1, 6)}
    queue, rng = Queue(plan, done), random.Random(0)
    held: dict[int, Piece | None] = dict.fromkeys(range(3))
    given: list[Piece] = []
    changes = 0
    active = set(held)
    while active:
        worker = rng.choice(sorted(active))
        now = held[worker]
        piece = queue.claim(now, 7 if now and now.index >= 6 else None)
        if piece is None:
            active.discard(worker)
            continue
        changes += now is None or piece.group != now.group
        held[worker] = piece
        if piece.index < 7:
            given.append(piece)
    wanted = {Piece(group, index) for group in range(5) for index in range(7)} - set(done)
    assert sorted(given, key=str) == sorted(wanted, key=str)
    assert changes <= 5 + 2 * 3


def test_silence_is_told_with_worker_and_file(monkeypatch: pytest.MonkeyPatch) -> None:
    coordinator = Coordinator(_plan(1, 3), {}, lambda totals: None)
    assert coordinator.answer(0, ("claim", None, None)) == (True, Piece(0, 0))
    coordinator.check_deadline([0])
    assert coordinator.failure is None
    monkeypatch.setattr("octo_megatron.data.coordinate.DEADLINE_SECONDS", -1.0)
    coordinator.check_deadline([0])
    assert "worker 0 has said nothing for 0 s (piece 0 of 0.jsonl.gz)" in str(coordinator.failure)
    assert coordinator.answer(0, ("progress", 1, 1, 1)) == (False, None)


@pytest.mark.parametrize("terminal", [True, False])
def test_progress_shows_documents_speed_and_time_left(
    terminal: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("octo_megatron.data.distribute._QUIET_SECONDS", -1.0)
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=150) if terminal else None
    totals = Totals(documents=1234, tokens=5_000_000, disk_bytes=1750, started=time.monotonic() - 10)
    with Display(_plan(1, 7), {Piece(0, 0): {"disk_bytes": 1750}}, console) as display:
        display.show(totals)
    text = out.getvalue() if terminal else capsys.readouterr().err
    for words in ("50%", "1,234 documents", "5.00M tokens", "tokens/s", "left"):
        assert words in text
    assert ("about 0:00:20 left\n" in text) != terminal


def test_several_tasks_without_mpi_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OMPI_COMM_WORLD_RANK", "PMIX_RANK", "PMI_RANK", "SLURM_STEP_ID", "SLURM_STEP_NUM_TASKS"):
        monkeypatch.delenv(name, raising=False)
    assert not under_mpi()
    monkeypatch.setenv("SLURM_STEP_ID", "0")
    assert not under_mpi()
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "4")
    with pytest.raises(UserError, match="several tasks without MPI: say srun --mpi=pmix"):
        under_mpi()
