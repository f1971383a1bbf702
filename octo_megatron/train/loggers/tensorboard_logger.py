"""TensorBoard: RUN/nodes/<node>/tensorboard, for `tensorboard --logdir RUN/nodes`."""

from __future__ import annotations

from torch.utils.tensorboard import SummaryWriter

from octo_megatron.config.run_folder import NodeContext


class TensorBoard:
    """Scalars by name."""

    def __init__(self, ctx: NodeContext, resume_step: int):
        # purge_step hides what a killed run wrote after the step that we resume at
        self._writer = SummaryWriter(str(ctx.folder.root / "tensorboard"), purge_step=resume_step + 1)

    def log(self, step: int, numbers: dict[str, float]) -> None:
        for name, value in numbers.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


def open_logger(ctx: NodeContext, name: str, resume_step: int) -> TensorBoard:
    return TensorBoard(ctx, resume_step)
