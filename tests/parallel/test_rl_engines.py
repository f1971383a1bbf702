"""Engines apart from the trainer's layout: tensor-parallel, in a process of their own, behind, killed and hung."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from rich.console import Console
from rl_runs import all_rows, copy, make_run, rows, shown, start, wait

from octo_megatron.lineage.display import Lines
from octo_megatron.lineage.run_state import load_run
from octo_megatron.lineage.runner import Runner, StageFailed
from octo_megatron.lineage.stopping import Asked, Stopped

pytest.importorskip("vllm", reason="needs vllm: `make env` installs it")
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("engines") / "run")


@pytest.fixture(scope="module")
def colocated(made: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = copy(made, tmp_path_factory.mktemp("colocated") / "run", steps=3, evaluate=[])
    wait(start(root), root)
    return root


SEPARATE = {"placement": "separate"}


def engine_of(root: Path) -> int | None:
    """The process of the newest engine, from the log: a step takes a tenth of a second, asking `ps` half of that."""
    found = re.findall(r"the engine for rank 0 starts \(pid (\d+)\)", (root / "log.txt").read_text())
    return int(found[-1]) if found else None


def test_a_dead_engine_is_replaced_and_nothing_changes(made: Path, colocated: Path, tmp_path: Path) -> None:
    """One rank trains, one samples: the engine killed once and stopped once, the run is the colocated one."""
    changes = {"steps": 3, "evaluate": [], "engine": {**SEPARATE, "deadline_seconds": 30.0}}
    root = copy(made, tmp_path / "run", **changes)
    group = start(root, processes=2)
    for mark, number in (("phases/step_00001/drawn_0.json", signal.SIGKILL),
                         ("phases/step_00002/drawn_0.json", signal.SIGSTOP)):  # fmt: skip
        deadline = time.monotonic() + 600
        while not (root / "nodes/rl" / mark).exists():
            assert group.failure() is None and time.monotonic() < deadline, (root / "log.txt").read_text()[
                -3000:
            ]
            time.sleep(0.001)
        pid = engine_of(root)
        assert pid is not None
        os.kill(pid, number)
    wait(group, root)
    assert rows(root) == rows(colocated)
    assert shown(root) == shown(colocated)
    log = (root / "log.txt").read_text()
    assert "died (exit code -9)" in log and "the engine hung" in log


def test_an_engine_that_is_a_step_behind_stamps_its_answers(made: Path, tmp_path: Path) -> None:
    root = copy(made, tmp_path / "run", steps=4, evaluate=[], engine={**SEPARATE, "lag": 1})
    wait(start(root, processes=2), root)
    found = all_rows(root)
    assert [row["step"] for row in found] == [1, 2, 3, 4]
    assert found[0]["staleness"] == 0
    for before, row in itertools.pairwise(found):
        assert row["staleness"] == (2 if before["live_groups"] > 0 else 0)  # two updates a step
    first = [json.loads(line) for line in shown(root)[2].splitlines()]
    assert {row["weight_version"] for row in first} == {found[1]["weight_version"] - found[2]["staleness"]}


def test_an_engine_that_never_lives_saves_and_says_so(made: Path, tmp_path: Path) -> None:
    changes = {"steps": 3, "evaluate": [], "engine": SEPARATE, "checkpoint_interval": 0}
    root = copy(made, tmp_path / "run", **changes)
    group, killed = start(root, processes=2), set[int]()
    deadline = time.monotonic() + 600
    while group.failure() is None and not group.finished() and time.monotonic() < deadline:
        if (root / "nodes/rl/phases/step_00002/drawn_0.json").exists():
            pid = engine_of(root)
            if pid is not None and pid not in killed:
                killed.add(pid)
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        time.sleep(0.001)
    failure = group.failure()
    group.end()
    assert failure is not None and failure.returncode == 2, (root / "log.txt").read_text()[-3000:]
    log = (root / "log.txt").read_text()
    # killed while it sampled for step 2, or on a loaded machine while it took that step's weights
    saved = re.search(r"3 times in one step; the weights after step ([12]) are saved", log)
    assert saved, log[-3000:]
    assert (root / f"nodes/rl/checkpoints/step_0000000{saved[1]}").is_dir()
    wait(start(root, processes=2), root)
    assert (root / "nodes/rl/done.json").exists()


def run_node(root: Path, mark: str = "*", disturb: Callable[[Asked], None] = lambda _: None) -> None:
    """Node `rl` as `octo run` starts it: as many ranks as it needs, watched; `disturb` it once `mark` matches."""
    (root / "nodes/base/done.json").write_text("{}")
    (run, lineage), asked, over = load_run(root), Asked(), threading.Event()

    def beside() -> None:
        while not any((root / "nodes/rl").glob(mark)):
            if over.wait(0.001):
                return
        disturb(asked)

    with ThreadPoolExecutor(1) as thread:
        disturbed = thread.submit(beside)
        try:
            Runner(run, lineage, Lines(Console(quiet=True)), (), asked).run_nodes(["rl"])
        finally:
            over.set()
            disturbed.result()


def test_a_rank_that_samples_for_two_stops_with_them_and_may_die(
    made: Path, colocated: Path, tmp_path: Path
) -> None:
    """Asked to stop, then the rank that samples killed, then to the end: the tokens of the colocated run."""
    engine, layout = {**SEPARATE, "ranks": 1}, {"data_parallel_size": 2}
    root = copy(made, tmp_path / "run", steps=6, evaluate=[], parallel=layout, engine=engine)
    log, beat = root / "nodes/rl/log.txt", root / "nodes/rl/heartbeat/00002.json"

    with pytest.raises(Stopped, match=r"node rl was asked to stop: saved after step [1-5] of 6"):
        run_node(root, "phases/step_00001/drawn_0.json", lambda asked: asked._receive(signal.SIGTERM, None))
    said = log.read_text()
    assert said.count("the engine for rank 0 starts") == 1 and "died" not in said and not beat.exists()

    with pytest.raises(
        StageFailed,
        match=r"node rl failed .*, rank (2 \(samples\) was killed by SIGKILL|[01]: .*rank 2 \(samples, on)",
    ):
        run_node(
            root,
            "phases/step_*/drawn_0.json",
            lambda _: os.kill(json.loads(beat.read_text())["pid"], signal.SIGKILL),
        )
    assert not (root / "nodes/rl/done.json").exists()

    run_node(root)
    assert shown(root)[0] == shown(colocated)[0]
    found, one = rows(root), rows(colocated)
    assert [row["step"] for row in found] == [1, 2, 3, 4, 5, 6] and found[0]["reward"] == one[0]["reward"]
    assert found[0]["grad_norm"] == pytest.approx(one[0]["grad_norm"], abs=1e-5)
    assert not list((root / "nodes/rl/samplers").glob("*.json")), "withdrawn at the end"
    assert "rank 2 (samples): for training ranks 0, 1 on 127.0.0.1:" in log.read_text()


def test_too_few_processes_are_refused(made: Path, tmp_path: Path) -> None:
    root = copy(made, tmp_path / "run", engine=SEPARATE)
    group = start(root, processes=1)
    while not group.finished():
        time.sleep(0.05)
    group.end()
    assert (
        "nodes.rl needs 1 processes that train and 1 that sample (engine.placement=separate), but 1 were"
        in (root / "log.txt").read_text()
    )


@pytest.fixture
def left_by_a_killed_run() -> Iterator[None]:
    """Shared memory under the names that vLLM gives it by itself."""
    paths = [Path(f"/dev/shm/-tp:0-[0-1]-cpushm_{rank}") for rank in range(2)]
    mine = [path for path in paths if not path.exists()]
    for path in mine:
        path.touch()
    yield
    for path in mine:
        path.unlink()


@pytest.mark.usefixtures("left_by_a_killed_run")
def test_a_tensor_parallel_engine_samples_the_same(made: Path, colocated: Path, tmp_path: Path) -> None:
    """Trainer data-parallel 2, engine tensor-parallel 2."""
    before = set(Path("/dev/shm").iterdir())
    layout = {"data_parallel_size": 2}
    root = copy(
        made, tmp_path / "run", steps=2, evaluate=[], parallel=layout, engine={"tensor_parallel_size": 2}
    )
    wait(start(root, processes=2), root)
    assert shown(root)[0] == shown(colocated)[0]
    assert rows(root)[0]["grad_norm"] == pytest.approx(rows(colocated)[0]["grad_norm"], abs=1e-5)
    assert not {path.name for path in set(Path("/dev/shm").iterdir()) - before if "cpushm" in path.name}
