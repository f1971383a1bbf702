"""Messages between a trainer and its sampler: a line of JSON, and for a tensor its bytes behind it. No pickle."""

from __future__ import annotations

import json
import socket
from typing import Any

import torch
from torch import Tensor

_LINE_LIMIT = 1 << 30
"""Bytes; a longer line is not ours."""


class Channel:
    """One end of a socket; every call has the deadline that the socket's timeout gives.

    Raises, in every call: TimeoutError beyond the deadline, ConnectionError when the other end is gone.
    """

    def __init__(self, end: socket.socket):
        self._end = end
        self._file = end.makefile("rb", buffering=1 << 16)

    def deadline(self, seconds: float | None) -> None:
        """For each of the following sends and receives; None waits for ever."""
        self._end.settimeout(seconds)

    def send(self, message: dict[str, Any]) -> None:
        self._end.sendall(json.dumps(message).encode() + b"\n")

    def send_tensor(self, name: str, tensor: Tensor) -> None:
        """The tensor as it is, from any device."""
        host = tensor.detach().to("cpu").contiguous()
        raw = host.view(torch.uint8) if host.dim() else host.reshape(1).view(torch.uint8)
        self.send({"name": name, "shape": list(host.shape), "dtype": str(host.dtype).removeprefix("torch.")})
        self._end.sendall(raw.reshape(-1).numpy().data)

    def receive(self) -> dict[str, Any]:
        line = self._file.readline(_LINE_LIMIT)
        if not line.endswith(b"\n"):
            raise ConnectionError("the other end is gone")
        message = json.loads(line)
        assert isinstance(message, dict)
        return message

    def receive_tensor(self, header: dict[str, Any]) -> Tensor:
        """The tensor that a message of `send_tensor` announced."""
        dtype = getattr(torch, header["dtype"])
        out = torch.empty(header["shape"], dtype=dtype)
        view = out.view(torch.uint8).reshape(-1).numpy().data
        got = 0
        while got < len(view):
            count = self._file.readinto(view[got:])  # type: ignore[attr-defined]
            if not count:
                raise ConnectionError("the other end is gone")
            got += count
        return out

    def close(self) -> None:
        self._file.close()
        self._end.close()
