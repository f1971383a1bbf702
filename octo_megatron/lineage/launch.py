"""Start, watch and end the processes of one node on this machine."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from octo_megatron.parallel.hangup import kill_on_hangup


def environment(threads: int, has_gpu: bool) -> dict[str, str]:
    """What a stage's process needs in its environment before its first import.

    Args:
        threads: CPU threads of the process.
        has_gpu: whether the machine has an NVIDIA device.
    """
    fixed = {
        "OMP_NUM_THREADS": str(threads),
        # vLLM's default binds threads to cores; with any other work on the machine it then becomes ten
        # times slower.
        "OMP_WAIT_POLICY": "PASSIVE",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_LOGGING_LEVEL": "ERROR",
        "HF_HUB_OFFLINE": "1",
        "PYTHONUNBUFFERED": "1",
    }
    # torch.compile needs a compiler on CPU, and start-up time that small models never earn back.
    return fixed if has_gpu else {**fixed, "TORCHDYNAMO_DISABLE": "1"}


def machine_has_gpu() -> bool:
    """Whether an NVIDIA driver serves a device here (seen without importing torch)."""
    return Path("/dev/nvidiactl").exists()


def free_port() -> int:
    """A TCP port of the loopback interface that nobody uses now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass(frozen=True)
class Failure:
    """The first rank of a group that ended badly."""

    rank: int
    returncode: int

    def describe(self, role: str = "") -> str:
        """`rank 1 ended with code 1` or `rank 1 was killed by SIGKILL`; `role` comes behind the number."""
        if self.returncode >= 0:
            return f"rank {self.rank}{role} ended with code {self.returncode}"
        name = signal.Signals(-self.returncode).name
        hint = " (out of memory?)" if name == "SIGKILL" else ""
        return f"rank {self.rank}{role} was killed by {name}{hint}"


class ProcessGroup:
    """`world_size` copies of a command, told apart by the variables that torchrun sets.

    They form one process group of their own: Ctrl-C reaches them only through us, and they end together.
    When this process dies, even by SIGKILL, the kernel ends the whole group: it owns the read end of a pipe
    whose only write end is ours, with SIGKILL as the signal for its hang-up (`parallel/hangup.py`).
    """

    def __init__(
        self,
        command: list[str],
        world_size: int,
        log: Path,
        env: dict[str, str],
        inherit: tuple[int, ...] = (),
    ):
        """`inherit`: file descriptors that the processes keep open, such as the run folder's lock."""
        log.parent.mkdir(parents=True, exist_ok=True)
        read_end, self._write_end = os.pipe()
        world = {
            **os.environ,
            **env,
            "WORLD_SIZE": str(world_size),
            "LOCAL_WORLD_SIZE": str(world_size),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(free_port()),
        }
        self._processes: list[subprocess.Popen[bytes]] = []
        with log.open("ab") as output:
            for rank in range(world_size):
                process = subprocess.Popen(
                    [sys.executable, *command],
                    env={**world, "RANK": str(rank), "LOCAL_RANK": str(rank)},
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    pass_fds=(read_end, *inherit),
                    process_group=self._processes[0].pid if rank else 0,
                )
                self._processes.append(process)
                if rank == 0:
                    kill_on_hangup(read_end, -process.pid)
        os.close(read_end)

    def failure(self) -> Failure | None:
        """The first rank found with a code other than 0, None while there is none."""
        for rank, process in enumerate(self._processes):
            if process.poll():
                return Failure(rank, int(process.returncode))
        return None

    def finished(self) -> bool:
        """Whether every process has ended."""
        return all(process.poll() is not None for process in self._processes)

    def alive_ranks(self) -> list[int]:
        return [rank for rank, process in enumerate(self._processes) if process.poll() is None]

    def ask_to_stop(self) -> None:
        """Let each worker finish its step, save and end (see `parallel/stop.py`)."""
        self._signal(signal.SIGTERM)

    def dump_stacks(self) -> None:
        """Make each worker write its stacks into the log (see `worker`)."""
        self._signal(signal.SIGUSR2)
        time.sleep(1.0)

    def end(self) -> None:
        """End every process of the group at once, also those that the workers started themselves."""
        self._signal(signal.SIGKILL)
        for process in self._processes:
            process.wait()
        if self._write_end >= 0:
            os.close(self._write_end)
            self._write_end = -1

    def _signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._processes[0].pid, number)
