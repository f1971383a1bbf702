"""A rank that samples: whom it lets in, what its engines see, and that it ends with the ranks it serves."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from octo_megatron.config.errors import WorkFailed
from octo_megatron.engine import address
from octo_megatron.engine.contact import Contact
from octo_megatron.engine.sampling_rank import Serving, engine_environment


class Rank:
    """Rank 2 of a launch, which samples for the training ranks 0 and 1, in a thread; its engines only wait."""

    def __init__(self, folder: Path, patience_seconds: float = 20.0):
        self.folder = folder
        self._listener, self.address = address.listen(2, "localhost", 1)
        self.serving = Serving("rank 2 (samples)", frozenset({0, 1}), self.address.token, dict(os.environ))
        self.address.publish(folder)
        self.error: Exception | None = None
        self._thread = threading.Thread(target=self._run, args=(patience_seconds,))
        self._thread.start()

    def _run(self, patience_seconds: float) -> None:
        try:
            self.serving.until_they_leave(self._listener, patience_seconds)
        except WorkFailed as error:
            self.error = error
        self._listener.close()

    def ended(self, seconds: float = 5.0) -> bool:
        self._thread.join(seconds)
        return not self._thread.is_alive()


def test_it_ends_when_its_training_ranks_have_left(tmp_path: Path) -> None:
    rank = Rank(tmp_path)
    contacts = [Contact(tmp_path, 2, trainer, 5.0) for trainer in (0, 1)]
    assert str(contacts[0]) == f"rank 2 (samples, on {socket.gethostname()})"
    contacts[0].close()
    assert not rank.ended(1.0)
    assert contacts[1].end_engine(0.0) is None, "there is none yet"
    contacts[1].close()
    assert rank.ended() and rank.error is None
    with pytest.raises(WorkFailed, match=r"rank 2 \(samples, on .*\) is gone"):
        contacts[1].new_engine()


def test_it_ends_when_nobody_comes(tmp_path: Path) -> None:
    rank = Rank(tmp_path, patience_seconds=0.3)
    assert rank.ended() and "rank 2 (samples): no training rank came within 0 s" in str(rank.error)


def test_strangers_are_refused_and_disturb_nobody(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    rank = Rank(tmp_path)
    where = (rank.address.address, rank.address.port)
    assert where[0] == "127.0.0.1", "not on an interface that the run does not use"
    silent = socket.create_connection(where)
    for said in (
        b"GET / HTTP/1.1\r\n\r\n",
        b'{"rank": 0, "wants": "attend", "proof": "x"}\n',
        b"[1]\n",
        b"x" * 9000,
    ):
        with socket.create_connection(where, timeout=5) as stranger:
            stranger.recv(4096)
            stranger.sendall(said)
            assert stranger.recv(4096) == b"", "no answer, and closed"
    for wrong in (replace(rank.address, token="0" * 64), rank.address):
        with pytest.raises((OSError, ValueError)):
            address.connect(wrong, 0 if wrong is not rank.address else 7, "attend").receive()
    contact = Contact(tmp_path, 2, 0, 5.0)
    contact.close()
    assert rank.ended()
    silent.close()
    out = capfd.readouterr().out
    assert out.count("refused a connection from 127.0.0.1") == 6, out
    assert "it does not know the run's token" in out and "rank 7 has no place here" in out


def test_a_file_of_an_earlier_start_leads_nowhere(tmp_path: Path) -> None:
    """Nobody is at its port now, or the rank of the new start with another token."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        address.Address(2, "here", "127.0.0.1", other.getsockname()[1], "00").publish(tmp_path)
        other.close()
        with pytest.raises(WorkFailed, match=r"rank 2, which samples for rank 0, did not come within 0 s"):
            Contact(tmp_path, 2, 0, 0.0)
    rank = Rank(tmp_path)
    replace(rank.address, token="00").publish(tmp_path)
    threading.Timer(0.5, rank.address.publish, (tmp_path,)).start()
    Contact(tmp_path, 2, 0, 10.0).close()
    assert rank.ended()


def test_only_the_owner_can_read_the_token(tmp_path: Path) -> None:
    address.Address(2, "here", "127.0.0.1", 1, "secret").publish(tmp_path)
    [file] = tmp_path.glob("*.json")
    assert file.stat().st_mode & 0o077 == 0
    assert address.read(tmp_path, 2).token == "secret"


def test_an_engine_sees_one_device_and_no_launcher() -> None:
    launcher = {
        "RANK": "5",
        "WORLD_SIZE": "6",
        "LOCAL_RANK": "1",
        "TORCHELASTIC_RUN_ID": "x",
        "HOME": "/root",
    }
    assert engine_environment(launcher) == {"HOME": "/root", "CUDA_VISIBLE_DEVICES": "1"}
    two = {**launcher, "CUDA_VISIBLE_DEVICES": "4,GPU-b"}
    assert engine_environment(two)["CUDA_VISIBLE_DEVICES"] == "GPU-b"


_PROCESS = """
import json, os, sys, time
from pathlib import Path
from octo_megatron.config.errors import WorkFailed
from octo_megatron.engine import address
from octo_megatron.engine.sampling_rank import Serving
listener, where = address.listen(1, "localhost", 1)
assert "torch" not in sys.modules
where.publish(Path(sys.argv[1]))
Serving("rank 1 (samples)", frozenset({0}), where.token, dict(os.environ)).until_they_leave(listener, 20)
"""


def test_its_engine_dies_with_it_however_it_dies(tmp_path: Path) -> None:
    """And no signal that is meant for the ranks of the run ends an engine."""
    rank = subprocess.Popen(
        [sys.executable, "-c", _PROCESS, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    contact = Contact(tmp_path, 1, 0, 20.0)
    contact.new_engine()
    assert rank.stdout is not None
    pid = int(rank.stdout.readline().partition("(pid ")[2].rstrip(")\n"))
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
        os.kill(pid, number)
    time.sleep(0.3)
    assert _alive(pid)
    rank.kill()
    rank.wait()
    deadline = time.monotonic() + 5
    while _alive(pid):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    with pytest.raises(WorkFailed):
        contact.end_engine(0.0)


def _alive(pid: int) -> bool:
    try:
        return (Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_heartbeat_of_a_rank_that_follows(tmp_path: Path) -> None:
    """It is behind only where it is silent: waiting for orders is no hang."""
    from octo_megatron.parallel.heartbeat import describe

    now = time.time()

    def beat(rank: int, count: int, age: float, follows: bool) -> None:
        fields = {"rank": rank, "host": "h", "pid": 1, "phase": "p", "count": count, "since": now - 500}
        text = json.dumps({**fields, "time": now - age, "follows": follows})
        (tmp_path / f"{rank:05d}.json").write_text(text)

    beat(1, 0, 1.0, True)
    assert describe(tmp_path, now) is None
    beat(0, 40, 1.0, False)
    assert str(describe(tmp_path, now)).startswith("rank 0 is behind")
    beat(1, 0, 60.0, True)
    assert str(describe(tmp_path, now)).startswith("rank 1 (samples) is behind")
