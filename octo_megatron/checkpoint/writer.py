"""Megatron's distributed save with its slow part in a process of its own: write, hash, report.

Megatron plans which rank writes what and calls the writer when every rank has finished. Here each rank writes one file.
On CPU nothing is copied first: the writing process is a fork, and what it inherits stays as it was at that moment
while training goes on. On GPU the tensors are copied to the host before it.
"""

from __future__ import annotations

import ctypes
import os
import pickle
import shutil
import signal
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.api import WRAPPED_EXCEPTION, _wrap_exception
from torch.distributed.checkpoint.filesystem import (
    DEFAULT_SUFFIX,
    SerializationFormat,
    _StorageWriterTransforms,
    _write_item,
)
from torch.distributed.checkpoint.planner import WriteItem
from torch.distributed.checkpoint.storage import WriteResult

from octo_megatron.checkpoint.manifest import file_entry
from octo_megatron.parallel import device  # noqa: F401  (before megatron.core)

from megatron.core import parallel_state
from megatron.core.dist_checkpointing.strategies.async_utils import AsyncRequest
from megatron.core.dist_checkpointing.strategies.filesystem_async import FileSystemWriterAsync
from megatron.core.dist_checkpointing.strategies.fully_parallel import FullyParallelSaveStrategyWrapper
from megatron.core.dist_checkpointing.strategies.state_dict_saver import (
    save_state_dict_async_finalize,
    save_state_dict_async_plan,
)
from megatron.core.dist_checkpointing.strategies.torch import (
    MCoreSavePlanner,
    TorchDistSaveShardedStrategy,
    _replace_state_dict_keys_with_sharded_keys,
    mcore_to_pyt_state_dict,
)

Items = list[tuple[WriteItem, Any]]


@dataclass
class Job:
    """What one rank writes beside its tensors, and where it reports to."""

    folder: Path
    beside: dict[str, bytes] = field(default_factory=dict)
    """Small files by name."""
    remove: list[Path] = field(default_factory=list)
    """Folders to delete first: nobody waits for that here."""
    # A file in memory: it takes the report even when the disk is full.
    report: int = field(default_factory=lambda: os.memfd_create("octo-checkpoint"))
    pid: int = field(default_factory=os.getpid)
    """Of the rank itself."""

    def result(self) -> dict[str, Any]:
        """What the writing process reported; empty when it died before."""
        size = os.fstat(self.report).st_size
        return dict(pickle.loads(os.pread(self.report, size, 0))) if size else {}

    def close(self) -> None:
        os.close(self.report)


class RankWriter(FileSystemWriterAsync):
    """One file of this rank; `job` is given by the strategy below."""

    job: Job

    def prepare_write_data(self, plan: Any, planner: Any) -> None:
        """Keep references: the copy is made by `fork`, or by `_to_host` on GPU."""
        self.items: Items = [(item, planner.resolve_data(item)) for item in plan.items]
        self.file_name = f"{plan.storage_data.prefix}0{DEFAULT_SUFFIX}"

    def request(self) -> AsyncRequest:
        """The slow part, for Megatron's queue of asynchronous calls."""
        arguments = (self.file_name, self.items, self.job)
        return AsyncRequest(_write, arguments, [], preload_fn=lambda: _to_host(self.items))

    def retrieve_write_results(self) -> list[WriteResult] | WRAPPED_EXCEPTION:
        """What was written where, or why not; Megatron tells the other ranks."""
        report = self.job.result()
        if "results" in report:
            return list(report["results"])
        cause = report.get("error", "the process that writes the checkpoint died (out of memory?)")
        try:
            raise RuntimeError(cause)
        except RuntimeError as error:
            return _wrap_exception(error)


class RankFileStrategy(TorchDistSaveShardedStrategy):
    """Megatron's save strategy around `RankWriter`; plans are kept, so that the same state is planned twice only."""

    cached_central_plan: Any
    cached_local_plan: Any
    validated_cache_reuse: Any
    cached_global_metadata: Any

    def __init__(self) -> None:
        super().__init__("torch_dist", 1, thread_count=1, cached_metadata=True)
        self.job: Job | None = None
        # on every rank, other than the metadata, which rank 0 alone is given: all must agree on what is collective
        self.planned = False

    def async_save(self, sharded_state_dict: Any, checkpoint_dir: Path) -> AsyncRequest:
        """Plan with all ranks; nothing is written yet."""
        assert self.job is not None
        by_key, _, _ = _replace_state_dict_keys_with_sharded_keys(sharded_state_dict, True)
        writer = RankWriter(checkpoint_dir)
        writer.job = self.job
        returned, self.cached_central_plan, self.cached_local_plan, self.validated_cache_reuse, _ = (
            save_state_dict_async_plan(
                mcore_to_pyt_state_dict(by_key, False),
                writer,
                None,
                0,
                planner=MCoreSavePlanner(dedup_replicated_tensors=False, flatten_state_dict=False),
                cached_ckpt_structure=(
                    self.cached_central_plan,
                    self.cached_local_plan,
                    self.validated_cache_reuse,
                ),
            )
        )
        # planned afresh, rank 0 gets the metadata of all files; a kept plan goes with the metadata kept then
        self.cached_global_metadata = returned[1] or self.cached_global_metadata
        self.planned = True
        request = writer.request()
        request.finalize_fns.append(
            lambda: save_state_dict_async_finalize(returned[0], self.cached_global_metadata, returned[2])
        )
        return request


def parallel_strategy(base: RankFileStrategy) -> FullyParallelSaveStrategyWrapper:
    """Replicated tensors are written by data-parallel ranks in equal shares, not all by the first."""
    group = parallel_state.get_data_parallel_group(with_context_parallel=True)
    return FullyParallelSaveStrategyWrapper(base, group, do_cache_distribution=True)


def _to_host(items: Items) -> Items:
    out = [
        (item, data.detach().to("cpu", non_blocking=True) if isinstance(data, Tensor) else data)
        for item, data in items
    ]
    torch.cuda.synchronize()
    return out


def _write(file_name: str, items: Items, job: Job) -> None:
    """Write this rank's file and the small ones, hash them, report into `job.report`."""
    if os.getpid() != job.pid:
        _become_a_writer(job.pid)
    try:
        for folder in job.remove:
            shutil.rmtree(folder, ignore_errors=True)
        results = _write_tensors(job.folder / file_name, file_name, items) if items else []
        names = [file_name] if items else []
        for name, content in job.beside.items():
            with (job.folder / name).open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            names.append(name)
        report: dict[str, Any] = {
            "results": results,
            "files": {name: file_entry(job.folder / name) for name in names},
        }
    except Exception as error:
        report = {"error": str(error) or type(error).__name__}
    os.write(job.report, pickle.dumps(report))


def _write_tensors(path: Path, key: str, items: Items) -> list[WriteResult]:
    out = []
    with path.open("wb") as stream:
        for item, data in items:
            if isinstance(data, Tensor):
                data = data.detach()
                if data.untyped_storage().size() != data.numel() * data.itemsize:
                    data = data.clone()  # torch would write the whole storage that it is a view of
            out.append(
                _write_item(
                    _StorageWriterTransforms(),
                    stream,
                    data,
                    item,
                    key,
                    serialization_format=SerializationFormat.TORCH_SAVE,
                )
            )
        stream.flush()
        os.fsync(stream.fileno())
    return out


def _become_a_writer(parent: int) -> None:
    """In the forked process: end with the parent, not with signals that are meant for it; one thread."""
    ctypes.CDLL(None).prctl(1, int(signal.SIGKILL))  # PR_SET_PDEATHSIG
    if os.getppid() != parent:
        os._exit(1)
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    torch.set_num_threads(1)  # OpenMP's threads did not come along
