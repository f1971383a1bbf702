"""Messages between ranks that train and ranks that sample: a line of JSON, for a tensor its bytes behind it. No pickle.

No torch here: a rank that samples does without it.
"""

from __future__ import annotations

import contextlib
import json
import socket
from typing import Any

_LINE_LIMIT = 1 << 30
"""Bytes; a longer line is not ours."""
_KEEPALIVE = {"TCP_KEEPIDLE": 30, "TCP_KEEPINTVL": 10, "TCP_KEEPCNT": 3}
"""Seconds, seconds, times: a machine without power is noticed after a minute."""


class Channel:
    """One end of a TCP connection; every call has the deadline that was given last.

    Raises, in every call: TimeoutError beyond the deadline, ConnectionError when the other end is gone, ValueError for
    what is no message.
    """

    def __init__(self, end: socket.socket):
        end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        end.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in _KEEPALIVE.items():
            end.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
        self._end = end
        self._file = end.makefile("rb", buffering=1 << 16)

    def deadline(self, seconds: float | None) -> None:
        """For each of the following sends and receives; None waits for ever."""
        self._end.settimeout(seconds)

    def send(self, message: dict[str, Any]) -> None:
        self._end.sendall(json.dumps(message).encode() + b"\n")

    def send_bytes(self, raw: memoryview) -> None:
        self._end.sendall(raw)

    def receive(self, limit: int = _LINE_LIMIT) -> dict[str, Any]:
        """The next message, of `limit` bytes at most."""
        line = self._file.readline(limit)
        if not line.endswith(b"\n"):
            raise ValueError(f"no message within {limit} bytes") if len(line) == limit else _gone()
        message = json.loads(line)
        if not isinstance(message, dict):
            raise ValueError("a message that is no object")
        return message

    def receive_bytes(self, into: memoryview) -> None:
        """As many bytes as `into` has room for."""
        got = 0
        while got < len(into):
            count = self._file.readinto(into[got:])  # type: ignore[attr-defined]
            if not count:
                raise _gone()
            got += count

    def fileno(self) -> int:
        """For a process that takes the connection over; nothing must wait here unread then."""
        return self._end.fileno()

    def close(self, end_it: bool = True) -> None:
        """`end_it`: for all processes that hold it; False: only let go of it here."""
        if end_it:
            with contextlib.suppress(OSError):
                self._end.shutdown(socket.SHUT_RDWR)
        self._file.close()
        self._end.close()


def _gone() -> ConnectionError:
    return ConnectionError("the other end is gone")
