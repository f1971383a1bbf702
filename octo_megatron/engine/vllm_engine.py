"""vLLM in this process: token ids in, token ids with log-probabilities out, weights pushed from a trainer.

The one file that imports vllm. What vLLM does to the process:

- undone around the import, the start and every call (`process_state.py`): environment variables, the global
  seeds (set to 0) and states, `torch.set_num_threads` (made a no-op), warning filters, the garbage collector;
- avoided: `torch.distributed` is joined before (`parallel.world.start`) or stays vLLM's own private world of
  one; no worker processes (VLLM_ENABLE_V1_MULTIPROCESSING=0 for the start);
- stays: `torch.accelerator.synchronize` and `empty_cache` do nothing on CPU from then on, memory is bound to
  the NUMA node of the first allowed core, and objects that exist once the engine is up are never collected
  (`gc.freeze`).
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import tempfile
import uuid
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch import Tensor

from octo_megatron.config.errors import UserError
from octo_megatron.engine.process_state import process_kept, random_state_kept
from octo_megatron.model.families import HEAD, ModelShape, family_of
from octo_megatron.model.hf_weights import tensor_shapes
from octo_megatron.parallel.device import ON_CUDA

SUPPORTED = ((0, 25), (0, 32))
"""vLLM releases that are let in: the tests run 0.32 on CPU; 0.25 is the first that the `gpu` extra takes."""
_INSTALL = "`make env` installs it; on a GPU machine: pip install 'octo-megatron[gpu]'"

try:
    with process_kept():
        import vllm
        from vllm import LLM, SamplingParams
        from vllm.distributed import parallel_state as vllm_groups
        from vllm.outputs import RequestOutput
except ImportError as error:
    raise UserError(f"vllm cannot be imported ({error}); {_INSTALL}") from error

_BLOCK = 32
"""Tokens of a KV-cache block; the CPU kernels want multiples of 32."""
_KV_LIMIT = 2 << 30
"""Bytes of KV cache at most. A constant, so that what runs side by side does not depend on the machine."""

_GPU_SHARE = 0.05
"""Of the device that must be free when an engine starts. The KV cache has its size from `_KV_LIMIT`, so vLLM reads this
in that one check, and its own 0.9 would refuse a device that holds the trainer or other engines as well."""


class _Groups:
    """vLLM's process groups, which all engines of this process share."""

    def __init__(self) -> None:
        self._engines = 0
        self._alone = False

    def join(self) -> None:
        if self._engines == 0:
            self._alone = not dist.is_initialized()
        self._engines += 1

    def leave(self) -> None:
        self._engines -= 1
        if self._engines:
            return
        vllm_groups.destroy_model_parallel()
        if vllm_groups._WORLD is not None:
            vllm_groups._WORLD.destroy()
            vllm_groups._WORLD = None
        if self._alone and dist.is_initialized():
            dist.destroy_process_group()


_groups = _Groups()
_BYTES = {"fp32": 4, "bf16": 2}
_VLLM_DTYPES = {"fp32": "float32", "bf16": "bfloat16"}


@dataclass(frozen=True)
class Sampling:
    """How a list of prompts is continued."""

    max_tokens: int | Sequence[int]
    """At most, of each answer; a list: one a prompt."""
    temperature: float = 1.0
    """0: greedy."""
    seeds: Sequence[int] | None = None
    """One a prompt; needed unless greedy."""
    stop_ids: tuple[int, ...] = ()
    """Token ids that end an answer, usually the tokenizer's eos."""

    def limits(self, prompts: int) -> list[int]:
        """Most tokens of the answer to each of so many prompts."""
        return [self.max_tokens] * prompts if isinstance(self.max_tokens, int) else list(self.max_tokens)


@dataclass(frozen=True)
class Completion:
    """One answer."""

    token_ids: list[int]
    """With the stop token when there was one."""
    logprobs: list[float]
    """log p of each of token_ids under the unscaled distribution (temperature 1)."""
    finished: bool
    """It ended by itself; False: cut at max_tokens."""
    weight_version: int
    """Of the weights that produced it."""


class Engine:
    """One vLLM engine. Deterministic: same weights, prompts and seeds, same tokens and log-probabilities.

    With several processes every rank must construct its engine at the same time (vLLM makes process groups).
    """

    def __init__(
        self,
        folder: Path,
        precision: str,
        max_model_len: int,
        max_num_seqs: int,
        seed: int = 0,
        tensor_parallel_size: int = 1,
    ):
        """Start with random weights; `load_weights` brings the real ones.

        Args:
            folder: holds config.json (no tokenizer and no weights needed).
            precision: fp32 or bf16.
            max_model_len: tokens of a prompt with its answer, at most.
            max_num_seqs: answers that grow side by side.
            tensor_parallel_size: ranks (neighbours in the world) that hold one copy of the model together; all of
                them must be asked the same.

        Raises:
            UserError: vLLM's version is not supported, or the model is not.
        """
        _check_version()
        self._hf_config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        shape = family_of(self._hf_config).shape(self._hf_config)
        if max_model_len > shape.max_position_embeddings:
            raise UserError(
                f"prompt and answer may take {max_model_len} tokens, the model's max_position_embeddings is "
                f"{shape.max_position_embeddings}; lower max_prompt_tokens or max_response_tokens"
            )
        self.max_model_len = max_model_len
        self.weight_version = -1
        _groups.join()
        rank, ranks = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
        self.copy, self.copies = rank // tensor_parallel_size, ranks // tensor_parallel_size
        self.is_lead = rank % tensor_parallel_size == 0
        distributed = ranks > 1
        with process_kept(), _own_shared_memory(distributed and not ON_CUDA):
            # vLLM takes the size of the KV cache from this variable before it looks at its argument
            os.environ.pop("VLLM_CPU_KVCACHE_SPACE", None)
            os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
            self._llm = LLM(
                str(folder),
                dtype=_VLLM_DTYPES[precision],
                load_format="dummy",
                seed=seed,
                enforce_eager=not ON_CUDA,
                enable_sleep_mode=ON_CUDA,
                tensor_parallel_size=tensor_parallel_size,
                disable_log_stats=True,
                skip_tokenizer_init=True,
                max_logprobs=1,
                max_model_len=max_model_len,
                max_num_seqs=max_num_seqs,
                # a prompt in pieces would draw once a piece, which vLLM cannot take back from a CPU generator
                enable_chunked_prefill=False,
                max_num_batched_tokens=max(2048, max_model_len),
                block_size=_BLOCK,
                kv_cache_memory_bytes=_kv_bytes(shape, precision, max_model_len, max_num_seqs),
                distributed_executor_backend="external_launcher" if distributed else None,
                **({"gpu_memory_utilization": _GPU_SHARE} if ON_CUDA else {}),
            )

        # vLLM's own shutdown, which would run when this object is collected, destroys every process group of
        # the process, Megatron's too; `close` does what is vLLM's alone
        finalizer = vars(self._llm.llm_engine.engine_core).get("_finalizer")
        if finalizer is not None:
            finalizer.detach()

    @classmethod
    def of(
        cls,
        hf_config: dict[str, Any],
        precision: str,
        max_model_len: int,
        max_num_seqs: int,
        tensor_parallel_size: int = 1,
    ) -> Engine:
        """An engine for a Hugging Face config that lies in no folder of its own."""
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / "config.json").write_text(json.dumps(hf_config), encoding="utf-8")
            return cls(
                Path(folder),
                precision,
                max_model_len,
                max_num_seqs,
                tensor_parallel_size=tensor_parallel_size,
            )

    def generate(self, prompts: Sequence[Sequence[int]], sampling: Sampling) -> list[Completion]:
        """Continue token-id prompts; results in the order of `prompts`.

        Nothing is remembered between calls: the prefix cache starts empty, so that a call gives the same bits
        whatever came before it.
        """
        if not prompts:
            return []
        if sampling.temperature > 0 and (sampling.seeds is None or len(sampling.seeds) != len(prompts)):
            raise ValueError("sampling at a temperature needs one seed a prompt")
        limits = sampling.limits(len(prompts))
        longest = max(len(p) + limit for p, limit in zip(prompts, limits, strict=True))
        if longest > self.max_model_len:
            raise ValueError(f"{longest} tokens of prompt and answer > max_model_len {self.max_model_len}")
        seeds = sampling.seeds if sampling.temperature > 0 and sampling.seeds else [None] * len(prompts)
        settings = [_settings(sampling, n, seed) for n, seed in zip(limits, seeds, strict=True)]
        with random_state_kept():
            self._reset_prefix_cache()
            outputs = self._llm.generate(
                [{"prompt_token_ids": list(p)} for p in prompts], settings, use_tqdm=False
            )
        return [self._completion(output, sampling) for output in outputs]

    def load_weights(self, items: Iterable[tuple[str, Tensor]], version: int) -> dict[str, int] | None:
        """Replace all weights by a full Hugging Face state dict and forget what the old ones computed.

        Goes through `reload_weights`, which also packs the weights anew for the CPU kernels (writing into the
        live parameters would not). `items` is walked once, tensor by tensor.

        Raises:
            ValueError: a tensor is missing, unknown or of another shape than the model's config says.
        """
        self._llm.collective_rpc("reload_weights", kwargs={"weights_iterator": self._checked(items)})
        self.weights_written(version)
        return None

    def live_parameters(self) -> dict[str, Tensor]:
        """vLLM's own parameters on this rank, to be written in place; GPU only (on CPU they are packed away).

        Call `weights_written` afterwards. A captured CUDA graph reads the same memory and needs nothing.
        """
        if not ON_CUDA:
            raise RuntimeError("vLLM packs its weights on CPU and frees the parameters; use load_weights")
        found: dict[str, Tensor] = {}
        # in this process: the function and what it keeps are not serialised
        self._llm.apply_model(lambda model: found.update(model.named_parameters()))
        return {name: parameter.detach() for name, parameter in found.items()}

    def weights_written(self, version: int) -> None:
        """All live parameters were replaced: forget what the old ones computed."""
        self._reset_prefix_cache()
        self.weight_version = version

    def sleep(self) -> None:
        """Give the memory of weights and KV cache to the trainer; nothing to give on CPU. `wake` before `generate`."""
        if ON_CUDA:
            self._llm.sleep(level=2)

    def wake(self) -> None:
        """Take the memory back. The weights are garbage until a refit has written all of them."""
        if ON_CUDA:
            self._llm.wake_up()

    def close(self) -> None:
        """Give back the engine's memory, and vLLM's process groups with the last engine of the process.

        Call it before `World.stop`. Collective where there are several ranks.
        """
        del self._llm
        gc.unfreeze()
        _groups.leave()

    def _checked(self, items: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
        # vLLM only warns about tensors that never came
        expected = tensor_shapes(self._hf_config)
        head, embedding = HEAD.hf[0], next(iter(expected))  # the table starts with the embedding
        tied = head not in expected
        for name, tensor in items:
            if expected.pop(name, None) != tuple(tensor.shape):
                raise ValueError(
                    f"tensor {name} {list(tensor.shape)} is not one that the engine's model waits for"
                )
            yield name, tensor
            if tied and name == embedding:
                # on CPU vLLM multiplies by a packed copy of the head, which it packs anew only when the head
                # itself comes; without this a tied engine goes on sampling from its first weights
                yield head, tensor
        if expected:
            raise ValueError(f"{len(expected)} tensors did not come, the first is {next(iter(expected))}")

    def _reset_prefix_cache(self) -> None:
        if not self._llm.reset_prefix_cache():
            raise RuntimeError("vLLM did not reset its prefix cache: a request is still running")

    def _completion(self, output: RequestOutput, sampling: Sampling) -> Completion:
        answer = output.outputs[0]
        ids = list(answer.token_ids)
        logprobs = [row[token].logprob for token, row in zip(ids, answer.logprobs or [], strict=True)]
        return Completion(ids, logprobs, bool(ids) and ids[-1] in sampling.stop_ids, self.weight_version)


@contextlib.contextmanager
def _own_shared_memory(needed: bool) -> Iterator[None]:
    """A name of its own for the memory through which an engine's ranks on CPU talk; gone again once all have it.

    vLLM's name is the same for every engine that is started like ours: two runs on one machine would meet, and what a
    killed run left would keep it from ever starting again.
    """
    if not needed:
        yield
        return
    from vllm.distributed.device_communicators.cpu_communicator import _CPUSHMDistributed

    token = [uuid.uuid4().hex]
    dist.broadcast_object_list(token, src=0)
    theirs = _CPUSHMDistributed.make_group_name
    _CPUSHMDistributed.make_group_name = staticmethod(
        lambda group: f"octo-{token[0]}-{_file_name(theirs(group))}"
    )
    try:
        yield
        dist.barrier()
    finally:
        _CPUSHMDistributed.make_group_name = staticmethod(theirs)
        for left in Path("/dev/shm").glob(f"octo-{token[0]}-*"):
            left.unlink(missing_ok=True)


def _file_name(name: str) -> str:
    return "".join(letter if letter.isalnum() else "-" for letter in name)


def _settings(sampling: Sampling, max_tokens: int, seed: int | None) -> SamplingParams:
    return SamplingParams(
        max_tokens=max_tokens,
        temperature=sampling.temperature,
        seed=seed,
        logprobs=0,  # of the sampled token only
        stop_token_ids=list(sampling.stop_ids),
        ignore_eos=True,
        detokenize=False,
    )


def _kv_bytes(shape: ModelShape, precision: str, max_model_len: int, max_num_seqs: int) -> int:
    """Room for `max_num_seqs` answers of full length, within the limit and never less than one."""
    block = 2 * shape.num_layers * shape.num_query_groups * shape.kv_channels * _BYTES[precision] * _BLOCK
    blocks = -(-max_model_len // _BLOCK)
    # vLLM keeps one block for itself
    return max(min(block * (blocks * max_num_seqs + 1), _KV_LIMIT), block * (blocks + 1))


def _check_version() -> None:
    found = vllm.__version__
    numbers = tuple(int(part) for part in found.split("+")[0].split(".")[:2] if part.isdigit())
    first, last = SUPPORTED
    if not first <= numbers <= last:
        raise UserError(
            f"vllm {found} is installed; supported are {first[0]}.{first[1]} to {last[0]}.{last[1]}; "
            + _INSTALL
        )
