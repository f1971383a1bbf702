"""Tensors in messages: a header line, then the bytes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from octo_megatron.engine.messages import Channel


def send_tensor(channel: Channel, name: str, tensor: Tensor) -> None:
    """The tensor as it is, from any device."""
    host = tensor.detach().to("cpu").contiguous()
    raw = host.view(torch.uint8) if host.dim() else host.reshape(1).view(torch.uint8)
    channel.send({"name": name, "shape": list(host.shape), "dtype": str(host.dtype).removeprefix("torch.")})
    channel.send_bytes(raw.reshape(-1).numpy().data)


def receive_tensor(channel: Channel, header: dict[str, Any]) -> Tensor:
    """The tensor that `header`, the message before it, announced."""
    dtype = getattr(torch, header["dtype"])
    out = torch.empty(header["shape"], dtype=dtype)
    channel.receive_bytes(out.view(torch.uint8).reshape(-1).numpy().data)
    return out
