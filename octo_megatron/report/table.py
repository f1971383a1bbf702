"""The result table for the terminal."""

from __future__ import annotations

from typing import Any

from rich.markup import escape
from rich.table import Table

from octo_megatron.report.headline import headline
from octo_megatron.report.style import pair, tokens_text


def result_table(summary: dict[str, Any]) -> Table:
    """One row a starting point of RL, with the run's headline under it; `summary` is what `summarise` returns."""
    claim = summary["claim"]
    sets = list(
        dict.fromkeys(key for e in summary["rl"].values() for key in e if key.startswith("accuracy_"))
    )
    table = Table(title="Reinforcement learning from each starting point", caption=escape(headline(summary)))
    table.add_column("RL from", style="bold", no_wrap=True)
    titles = [
        "mid-training",
        "reward",
        *[f"greedy, {key.removeprefix('accuracy_')}" for key in sets],
        "tokens/answer",
    ]
    for title in titles:
        table.add_column(escape(title), justify="right", no_wrap=True)
    for name, entry in summary["rl"].items():
        table.add_row(
            escape(name),
            tokens_text(entry["mid_training_tokens"]),
            _marked(pair(entry["reward"], 2), name == claim["highest"]),
            *[pair(entry.get(key, [None, None]), 2) for key in sets],
            _marked(pair(entry["length"], 0), name == claim["longest"]),
        )
    return table


def _marked(figures: str, best: bool) -> str:
    return f"[bold green]{figures}[/]" if best else figures
