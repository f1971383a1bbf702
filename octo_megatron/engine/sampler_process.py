"""The process of an engine on a rank that samples: told what to do over a connection. `sampler_process.py FD`.

The first message is the engine's config: hf_config, precision, max_model_len, max_num_seqs. Messages in after it:
{"do": "weights", "version"} with tensors behind it up to {"do": "end"}; {"do": "generate", "prompts", "sampling"}.
Messages out: {"ready"}, {"digests"}, {"completions", "seconds"}.
"""

from __future__ import annotations

import contextlib
import dataclasses
import faulthandler
import signal
import socket
import sys
import time
from collections.abc import Iterator
from typing import Any

from torch import Tensor

from octo_megatron.engine.messages import Channel
from octo_megatron.engine.refit.digest import digest_part
from octo_megatron.engine.refit.pieces import Box
from octo_megatron.engine.tensors import receive_tensor
from octo_megatron.engine.vllm_engine import Engine, Sampling


def main() -> None:
    """Serve until the other end closes."""
    faulthandler.register(signal.SIGUSR2, all_threads=True)  # `octo run` wants stacks when a node hangs
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGUSR2})
    channel = Channel(socket.socket(fileno=int(sys.argv[1])))
    with contextlib.suppress(ConnectionError):
        engine = Engine.of(**channel.receive())
        channel.send({"ready": True})
        while True:
            message = channel.receive()
            if message["do"] == "weights":
                digests: dict[str, int] = {}
                engine.load_weights(_tensors(channel, digests), message["version"])
                channel.send({"digests": digests})
            else:
                channel.send(_generate(engine, message))


def _tensors(channel: Channel, digests: dict[str, int]) -> Iterator[tuple[str, Tensor]]:
    while "name" in (header := channel.receive()):
        tensor = receive_tensor(channel, header)
        width = tensor.shape[1] if tensor.dim() > 1 else 1
        digests[header["name"]] = digest_part(tensor, Box(0, len(tensor), 0, width), width)
        yield header["name"], tensor


def _generate(engine: Engine, message: dict[str, Any]) -> dict[str, Any]:
    began = time.perf_counter()
    sampling = Sampling(**{**message["sampling"], "stop_ids": tuple(message["sampling"]["stop_ids"])})
    found = [dataclasses.asdict(c) for c in engine.generate(message["prompts"], sampling)]
    return {"completions": found, "seconds": time.perf_counter() - began}


if __name__ == "__main__":
    main()
