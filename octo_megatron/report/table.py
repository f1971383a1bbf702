"""The result table for the terminal."""

from __future__ import annotations

from typing import Any

from rich.box import SIMPLE_HEAD
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
    table = Table(
        title="Reinforcement learning from each starting point",
        caption=escape(headline(summary)),
        title_justify="left",
        caption_justify="left",
        title_style="bold",
        caption_style="",
        box=SIMPLE_HEAD,
    )
    table.add_column("RL from", style="bold", no_wrap=True)
    # titles in two lines, so that the table of the demo fits 80 columns
    greedy = [f"greedy\n{key.removeprefix('accuracy_')}" for key in sets]
    titles = ["mid-training\ntokens", "sampled\nreward", *greedy, "tokens\nan answer"]
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
