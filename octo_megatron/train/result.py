"""What a finished train node says about itself in done.json."""

from __future__ import annotations

from typing import Any

from octo_megatron.config.loading import digest, to_plain
from octo_megatron.config.run_folder import NodeContext, read_json_lines
from octo_megatron.config.schema import TrainNode
from octo_megatron.config.versions import installed_versions
from octo_megatron.data.mixture import Mixture


def result(
    ctx: NodeContext, node: TrainNode, done: int, mixture: Mixture, seconds: dict[str, float]
) -> dict[str, Any]:
    """Figures over all of the node's steps, those of earlier processes included; `seconds` by phase of this one."""
    rows = read_json_lines(ctx.folder.metrics)
    steps = [row for row in rows if row["step"] > 0]
    checked = [row for row in rows if "validation_loss" in row]
    last = [row["loss"] for row in steps[-20:]]
    ledger = mixture.ledger(done * node.global_batch_size)

    def by_source(row: dict[str, Any]) -> dict[str, float]:
        return {k.split("/", 1)[1]: v for k, v in row.items() if k.startswith("validation/")}

    return {
        "kind": "train",
        "parent": node.parent,
        "step": done,
        "tokens": done * node.tokens_per_step,
        "lineage_tokens": steps[-1]["lineage_tokens"],
        "tokens_by_source": {name: row["tokens"] for name, row in ledger.items()},
        "ledger": ledger,
        "lr_first": steps[0]["lr"],
        "lr_last": steps[-1]["lr"],
        "loss_first": steps[0]["loss"],
        "loss_last": sum(last) / len(last),
        "skipped_steps": [row["step"] for row in steps if "skipped" in row],
        "validation_first": by_source(checked[0]) if checked else {},
        "validation": by_source(checked[-1]) if checked else {},
        "seconds": sum(row["seconds"] for row in steps)
        + sum(v for k, v in seconds.items() if k not in ("data", "train")),
        "seconds_by_phase": seconds,
        "config_digest": digest(to_plain(node)),
        "versions": installed_versions(),
    }
