"""Where a rank that samples listens, and the proof that both ends of a connection belong to the same start of a run.

NODE/samplers/00003.json   {rank, host, address, port, token}, readable by the owner alone

The token is random and never sent: each end proves with an HMAC over the other's nonce that it knows it. So a file that
an earlier start has left (the port may be somebody else's by now) leads nowhere, and a stray connection is refused.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import secrets
import socket
from dataclasses import asdict, dataclass
from pathlib import Path

from octo_megatron.engine.messages import Channel

_LIMIT = 4096
"""Bytes of a message from somebody who has proven nothing."""
HELLO_SECONDS = 10.0
"""For each message of the greeting."""
ATTEND, ENGINE = "attend", "engine"
"""What a connection is for: a training rank's presence and wishes, or one engine."""


@dataclass(frozen=True)
class Address:
    """Of a rank that samples."""

    rank: int
    host: str
    address: str
    port: int
    token: str

    def __str__(self) -> str:
        return f"rank {self.rank} (samples, on {self.host})"

    def publish(self, folder: Path) -> None:
        """Write the file; readers see nothing or all of it."""
        folder.mkdir(parents=True, exist_ok=True)
        temporary = folder / f".{self.rank}.{os.getpid()}.tmp"
        with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
            json.dump(asdict(self), file)
        temporary.replace(_path(folder, self.rank))

    def withdraw(self, folder: Path) -> None:
        _path(folder, self.rank).unlink(missing_ok=True)


def read(folder: Path, rank: int) -> Address:
    """Raises OSError where there is none (yet)."""
    return Address(**json.loads(_path(folder, rank).read_text(encoding="utf-8")))


def listen(rank: int, peer: str, port: int) -> tuple[socket.socket, Address]:
    """A listening socket on the interface that leads to `peer`, with an address of its own and a new token.

    Args:
        peer, port: MASTER_ADDR and MASTER_PORT of the run; nothing is sent there.
    """
    family, kind, _, _, where = socket.getaddrinfo(peer, port, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, kind) as probe:
        probe.connect(where)
        own = str(probe.getsockname()[0])
    listener = socket.create_server((own, 0), family=family)
    made = Address(rank, socket.gethostname(), own, listener.getsockname()[1], secrets.token_hex(32))
    return listener, made


def greet(channel: Channel, token: str) -> tuple[int, str]:
    """The listening end: (training rank, what it wants) of somebody who knows the token.

    Raises:
        PermissionError: it does not.
    """
    nonce = secrets.token_hex(16)
    channel.send({"nonce": nonce})
    said = channel.receive(_LIMIT)
    rank, wants = int(said.get("rank", -1)), str(said.get("wants", ""))
    if not hmac.compare_digest(_proof(token, nonce, rank, wants), str(said.get("proof", ""))):
        raise PermissionError("it does not know the run's token")
    channel.send({"proof": _proof(token, str(said.get("nonce", "")), rank, "welcome")})
    return rank, wants


def connect(to: Address, rank: int, wants: str) -> Channel:
    """The other end, as training rank `rank`; nothing of it is on the way when this returns.

    Raises:
        OSError, ValueError: nobody is there, or it is not the rank that wrote the address.
    """
    channel = Channel(socket.create_connection((to.address, to.port), timeout=HELLO_SECONDS))
    try:
        channel.deadline(HELLO_SECONDS)
        theirs, ours = str(channel.receive(_LIMIT).get("nonce", "")), secrets.token_hex(16)
        proof = _proof(to.token, theirs, rank, wants)
        channel.send({"rank": rank, "wants": wants, "proof": proof, "nonce": ours})
        answer = str(channel.receive(_LIMIT).get("proof", ""))
        if not hmac.compare_digest(_proof(to.token, ours, rank, "welcome"), answer):
            raise PermissionError(f"{to.address}:{to.port} is not {to}")
    except BaseException:
        channel.close()
        raise
    return channel


def _proof(token: str, nonce: str, rank: int, what: str) -> str:
    return hmac.new(token.encode(), f"{nonce} {rank} {what}".encode(), hashlib.sha256).hexdigest()


def _path(folder: Path, rank: int) -> Path:
    return folder / f"{rank:05d}.json"
