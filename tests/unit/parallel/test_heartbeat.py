"""Who is behind, from what the ranks last said; with real ranks: tests/slow/test_training_dies.py."""

from __future__ import annotations

import json
import threading
from dataclasses import asdict
from pathlib import Path

from octo_megatron.parallel.heartbeat import Beat, Heartbeat, clear, describe

NOW = 1000.0


def _write(folder: Path, rank: int, count: int, phase: str, since: float, time: float) -> None:
    folder.mkdir(exist_ok=True)
    beat = Beat(rank, f"node{rank}", 100 + rank, phase, count, since, time)
    (folder / f"{rank:05d}.json").write_text(json.dumps(asdict(beat)))


def test_the_rank_with_the_fewest_phases_is_behind(tmp_path: Path) -> None:
    _write(tmp_path, 0, 41, "optimizer", NOW - 60, NOW - 1)
    _write(tmp_path, 1, 39, "data", NOW - 61, NOW - 1)
    _write(tmp_path, 2, 41, "optimizer", NOW - 60, NOW - 1)
    assert describe(tmp_path, NOW) == "rank 1 is behind (pid 101 on node1): in phase data for 61 s"


def test_among_equals_the_one_that_has_fallen_silent(tmp_path: Path) -> None:
    for rank in range(3):
        _write(tmp_path, rank, 40, "forward-backward", NOW - 50, NOW - (48 if rank == 2 else 1))
    text = "rank 2 is behind (pid 102 on node2): in phase forward-backward for 50 s, no sign of life for 48 s"
    assert describe(tmp_path, NOW) == text


def test_nothing_there_and_half_a_file(tmp_path: Path) -> None:
    assert describe(tmp_path, NOW) is None
    (tmp_path / "00000.json").write_text('{"rank": 0, "ho')
    assert describe(tmp_path, NOW) is None
    clear(tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_phase_that_outlives_the_deadline_is_reported_by_the_rank_itself(tmp_path: Path) -> None:
    said: list[str] = []
    noticed = threading.Event()

    def on_miss(message: str) -> None:
        said.append(message)
        noticed.set()

    heart = Heartbeat(tmp_path, 3, 0.2, on_miss, grace_seconds=0.0)
    heart.enter("data")
    assert noticed.wait(20)
    assert said[0].startswith(
        "rank 3 has been in phase data for 0 s (deadline_seconds is 0.2); rank 3 is behind (pid "
    )
    heart.close()
    assert not list(tmp_path.glob("*.json"))
