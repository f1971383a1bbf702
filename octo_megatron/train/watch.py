"""What stands around a stage's loop: its heartbeat, its place as the one run of the node, its wish to stop."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from octo_megatron.checkpoint.fence import Fence
from octo_megatron.config.errors import UserError
from octo_megatron.config.run_folder import NodeContext, report_error
from octo_megatron.parallel import heartbeat
from octo_megatron.parallel.stop import Stopped
from octo_megatron.parallel.world import World


@dataclass
class Watch:
    """One rank's."""

    name: str
    is_first: bool
    heartbeat: heartbeat.Heartbeat
    fence: Fence | None
    """Of rank 0, which writes what others see."""

    def enter(self, phase: str) -> None:
        """This rank begins a phase."""
        self.heartbeat.enter(phase)

    def say(self, line: str) -> None:
        """Into the node's log, once."""
        if self.is_first:
            print(f"octo: {line}", flush=True)

    def stopped(self, step: int, steps: int) -> Stopped:
        """What to raise when a signal asked for it and the checkpoint of `step` is there."""
        return Stopped(
            f"node {self.name} was asked to stop: saved after step {step} of {steps}; run again to go on"
        )


@contextmanager
def watch(ctx: NodeContext, world: World) -> Iterator[Watch]:
    """From the start of a stage to its end: the node is ours, and somebody notices when a rank hangs.

    Raises:
        UserError: the node's folder cannot be written.
    """
    folder, problem, fence = ctx.folder, None, None
    if world.is_first:
        try:
            fence = Fence.take(folder.fence)
            heartbeat.clear(folder.heartbeat)
        except UserError as error:
            problem = str(error)
    problem = world.broadcast_object(problem)
    if problem:
        raise UserError(problem)
    beats = heartbeat.Heartbeat(
        folder.heartbeat,
        world.rank,
        ctx.lineage.deadline_seconds,
        heartbeat.end_process(lambda message: report_error(folder.error, world.rank, "hang", message)),
    )
    try:
        yield Watch(ctx.name, world.is_first, beats, fence)
    finally:
        beats.close()
