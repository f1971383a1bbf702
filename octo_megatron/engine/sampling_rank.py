"""A rank that samples: it holds a device and a port, and starts an engine for each training rank that connects.

It knows nothing of weights or prompts: the engine's process (`sampler_process.py`) gets the accepted connection and
talks to the training rank itself. It ends when its training ranks have come and are done or gone; it loads no torch.
"""

from __future__ import annotations

import contextlib
import math
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass

from octo_megatron.config.errors import WorkFailed
from octo_megatron.config.run_folder import NodeContext
from octo_megatron.engine.address import ATTEND, ENGINE, HELLO_SECONDS, greet, listen
from octo_megatron.engine.messages import Channel
from octo_megatron.parallel.hangup import kill_on_hangup
from octo_megatron.parallel.heartbeat import Heartbeat
from octo_megatron.parallel.stop import STOP

_LOOK_SECONDS = 0.2
_LAUNCHER = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
_SIGNALS = {signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2}
"""For the ranks of a run; an engine ends when its training rank does. It opens SIGUSR2 itself."""


def run(ctx: NodeContext) -> None:
    """Serve this rank's share of the training ranks until they leave.

    Raises:
        WorkFailed: none of them came in time.
    """
    rank, training = int(os.environ["RANK"]), ctx.lineage.layout_of(ctx.name).world_size
    mine = range(rank - training, training, ctx.lineage.sampling_ranks_of(ctx.name))
    beats = Heartbeat(ctx.folder.heartbeat, rank, math.inf, print, follows=True)
    listener, address = listen(rank, os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]))
    with contextlib.closing(beats), listener:
        serving = Serving(f"rank {rank} (samples)", frozenset(mine), address.token, engine_environment())
        address.publish(ctx.folder.samplers)
        beats.enter("serve")
        serving.say(f"for training ranks {', '.join(map(str, mine))} on {address.address}:{address.port}")
        try:
            serving.until_they_leave(listener, max(600.0, ctx.lineage.deadline_seconds))
        finally:
            address.withdraw(ctx.folder.samplers)
            serving.end_engines()


def engine_environment(env: Mapping[str, str] = os.environ) -> dict[str, str]:
    """What an engine's process sees of `env`: this rank's device alone, and nothing of the launcher."""
    visible = [name for name in env.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    local = int(env.get("LOCAL_RANK", "0"))
    device = visible[local] if local < len(visible) else str(local)
    kept = {k: v for k, v in env.items() if k not in _LAUNCHER and not k.startswith("TORCHELASTIC_")}
    return {**kept, "CUDA_VISIBLE_DEVICES": device}


@dataclass
class _Engine:
    """A process, and the pipe whose closing ends it."""

    process: subprocess.Popen[bytes]
    lifeline: int


class Serving:
    """Connections and engines of one rank that samples. A thread a connection."""

    def __init__(self, title: str, training_ranks: frozenset[int], token: str, env: dict[str, str]):
        self._title, self._ranks, self._token, self._env = title, training_ranks, token, env
        self._engines: dict[int, _Engine] = {}
        self._here: set[int] = set()
        self._came = False
        self._lock = threading.Lock()

    def say(self, what: str) -> None:
        print(f"{self._title}: {what}", flush=True)

    def until_they_leave(self, listener: socket.socket, patience_seconds: float) -> None:
        """Accept connections until a training rank has come and none is there any more.

        Raises:
            WorkFailed: none came within `patience_seconds`.
        """
        deadline = time.monotonic() + patience_seconds
        listener.settimeout(_LOOK_SECONDS)
        while not self._came or self._here:
            if not self._came and time.monotonic() > deadline:
                raise WorkFailed(f"{self._title}: no training rank came within {patience_seconds:.0f} s")
            with contextlib.suppress(TimeoutError):
                end, peer = listener.accept()
                threading.Thread(target=self._receive, args=(end, str(peer[0])), daemon=True).start()

    def end_engines(self) -> None:
        for rank in self._ranks:
            self._end(rank)

    def _receive(self, end: socket.socket, peer: str) -> None:
        signal.pthread_sigmask(
            signal.SIG_BLOCK, _SIGNALS
        )  # an engine inherits it from the thread that starts it
        channel = Channel(end)
        channel.deadline(HELLO_SECONDS)
        try:
            rank, wants = greet(channel, self._token)
            if rank not in self._ranks or wants not in (ATTEND, ENGINE):
                raise PermissionError(f"rank {rank} has no place here for '{wants}'")
        except (OSError, ValueError, TypeError) as error:
            self.say(f"refused a connection from {peer}: {error}")
            channel.close()
            return
        channel.deadline(None)
        if wants == ATTEND:
            self._attend(rank, channel)
        else:
            self._start(rank, channel)

    def _attend(self, rank: int, channel: Channel) -> None:
        """Do as a training rank says until it leaves."""
        STOP.listen()  # from now on the training ranks decide when a run that was asked to stop is over
        self._here.add(rank)
        self._came = True
        try:
            while True:
                channel.send({"code": self._end(rank, channel.receive()["end_within"])})
        except (OSError, ValueError):
            self._end(rank)
        finally:
            channel.close()
            self._here.discard(rank)

    def _start(self, rank: int, channel: Channel) -> None:
        """A new engine for a training rank, in the place of the one that it had."""
        self._end(rank)
        read_end, lifeline = os.pipe()
        command = [sys.executable, "-m", "octo_megatron.engine.sampler_process", str(channel.fileno())]
        with self._lock:
            process = subprocess.Popen(
                command, env=self._env, pass_fds=(channel.fileno(), read_end), stdin=subprocess.DEVNULL
            )
            kill_on_hangup(read_end, process.pid)
            self._engines[rank] = _Engine(process, lifeline)
        os.close(read_end)
        channel.close(end_it=False)
        self.say(f"the engine for rank {rank} starts (pid {process.pid})")

    def _end(self, rank: int, grace_seconds: float = 0.0) -> int | None:
        """End a training rank's engine, if it has one; its exit code if it ended by itself in time."""
        with self._lock:
            engine = self._engines.pop(rank, None)
        if engine is None:
            return None
        code: int | None = None
        with contextlib.suppress(subprocess.TimeoutExpired):
            code = engine.process.wait(grace_seconds)
            self.say(f"the engine for rank {rank} ended by itself (exit code {code})")
        engine.process.kill()
        engine.process.wait()
        os.close(engine.lifeline)
        return code
