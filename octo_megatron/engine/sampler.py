"""An engine on a rank that samples: trainer and engine work at the same time, and an engine that dies is restarted."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any

from torch import Tensor

from octo_megatron.engine.contact import Contact
from octo_megatron.engine.messages import Channel
from octo_megatron.engine.tensors import send_tensor
from octo_megatron.engine.vllm_engine import Completion, Sampling

MOST_DEATHS = 3
"""In one step; then the run saves and stops."""
_START_SECONDS = 600.0
_LAST_WORDS_SECONDS = 5.0
"""For a process that has closed its end to be gone, with its exit code."""


class EngineLost(RuntimeError):
    """The engine died or hung `MOST_DEATHS` times in one step."""


class Sampler:
    """What `Engine` offers, from a rank that samples, with a deadline for everything.

    The last weights stay in host memory, so that a new process gets them without the trainer's help. Requests are
    carried out one after the other in the order in which they were made.
    """

    is_lead = True

    def __init__(
        self,
        contact: Contact,
        hf_config: dict[str, Any],
        precision: str,
        max_model_len: int,
        max_num_seqs: int,
        copy: int,
        copies: int,
        deadline_seconds: float,
    ):
        """`contact`: the rank that samples; closed with this. `copy`, `copies`: as in `Engine`.

        Raises:
            EngineLost: it died three times while it started.
        """
        self.copy, self.copies, self.weight_version, self.deaths = copy, copies, -1, 0
        self._config = {
            "hf_config": hf_config,
            "precision": precision,
            "max_model_len": max_model_len,
            "max_num_seqs": max_num_seqs,
        }
        self._contact, self._deadline, self._at_once = contact, deadline_seconds, max_num_seqs
        self._weights: list[tuple[str, Tensor]] = []
        self._channel: Channel | None = None
        self._queue, self._closed = ThreadPoolExecutor(1, "sampler"), False
        self._queue.submit(self._surviving, lambda: None).result()

    def new_step(self) -> None:
        """Deaths are counted anew."""
        self.deaths = 0

    def generate(self, prompts: Sequence[Sequence[int]], sampling: Sampling) -> list[Completion]:
        """As `Engine.generate`. What was not finished when the engine died is sampled again with the same seeds.

        Raises:
            EngineLost: after three deaths in one step.
        """
        return self.begin(prompts, sampling).result()

    def begin(self, prompts: Sequence[Sequence[int]], sampling: Sampling) -> Future[list[Completion]]:
        """`generate` behind what was asked before, without waiting for it."""
        return self._queue.submit(self._generate, [list(p) for p in prompts], sampling)

    def load_weights(self, items: Iterable[tuple[str, Tensor]], version: int) -> dict[str, int]:
        """As `Engine.load_weights`; returns the digests of the tensors as the engine's process received them."""
        weights = [(name, tensor.detach().to("cpu", copy=True)) for name, tensor in items]
        return self._queue.submit(self._load, weights, version).result()

    def sleep(self) -> None:
        """Nothing: the engine has memory of its own."""

    def wake(self) -> None:
        """Nothing: it never slept."""

    def close(self) -> None:
        """End the engine; what it was still asked is dropped."""
        self._closed = True
        self._queue.shutdown(wait=False, cancel_futures=True)
        self._let_go()
        self._contact.close()

    def _load(self, weights: list[tuple[str, Tensor]], version: int) -> dict[str, int]:
        self._weights, self.weight_version = weights, version
        return self._surviving(self._push)

    def _push(self) -> dict[str, int]:
        assert self._channel is not None
        self._channel.send({"do": "weights", "version": self.weight_version})
        for name, tensor in self._weights:
            send_tensor(self._channel, name, tensor)
        self._channel.send({"do": "end"})
        digests: dict[str, int] = self._channel.receive()["digests"]
        return digests

    def _generate(self, prompts: list[list[int]], sampling: Sampling) -> list[Completion]:
        out: list[Completion] = []
        limits, seeds = sampling.limits(len(prompts)), sampling.seeds
        for first in range(0, len(prompts), self._at_once):
            here = slice(first, first + self._at_once)
            some = dataclasses.replace(
                sampling, max_tokens=limits[here], seeds=list(seeds[here]) if seeds is not None else None
            )
            out += self._surviving(partial(self._ask, prompts[here], some))
        return out

    def _ask(self, prompts: list[list[int]], sampling: Sampling) -> list[Completion]:
        assert self._channel is not None
        self._channel.send({"do": "generate", "prompts": prompts, "sampling": dataclasses.asdict(sampling)})
        return [Completion(**found) for found in self._channel.receive()["completions"]]

    def _surviving(self, work: Callable[[], Any]) -> Any:
        """`work`, again with a new engine where this one dies or is silent beyond the deadline."""
        while not self._closed:
            try:
                if self._channel is None:
                    self._start()
                    if self._weights and work != self._push:
                        self._push()
                return work()
            except (TimeoutError, OSError, ValueError) as error:
                # ValueError: half a message of a process that was killed while it wrote
                if self._closed:
                    raise
                self._let_go()
                code = self._contact.end_engine(0 if isinstance(error, TimeoutError) else _LAST_WORDS_SECONDS)
                state = "hung" if isinstance(error, TimeoutError) else f"died (exit code {code})"
                self.deaths += 1
                print(f"{self._contact}: the engine {state}: {error}; death {self.deaths}", flush=True)
                if self.deaths >= MOST_DEATHS:
                    raise EngineLost(
                        f"the engine of {self._contact} {state} and was restarted, {self.deaths} times in one step"
                    ) from error
        raise ConnectionError("this sampler was closed")

    def _start(self) -> None:
        self._channel = self._contact.new_engine()
        self._channel.deadline(_START_SECONDS)
        self._channel.send(self._config)
        self._channel.receive()
        self._channel.deadline(self._deadline)

    def _let_go(self) -> None:
        channel, self._channel = self._channel, None
        if channel is not None:
            channel.close()
