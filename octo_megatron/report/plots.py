"""The PNGs of the report. Each function draws one picture; `draw_all` saves those that have data."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, MaxNLocator

from octo_megatron.report.canvas import (
    DPI,
    STYLE,
    WIDTH_INCHES,
    bars,
    colour_ticks,
    end_labels,
    figure_of,
    label_inches,
    margins,
    smooth,
)
from octo_megatron.report.read import DONE, RunRecord
from octo_megatron.report.style import (
    MARKER,
    MUTED,
    PAPER,
    node_colours,
    phase_colours,
    seconds_text,
    source_colours,
    tokens_text,
)


def draw_all(run: RunRecord, summary: dict[str, Any], folder: Path) -> dict[str, Path]:
    """Draw every picture that the run has data for; returns {plot name: PNG}.

    Raises:
        OSError: the folder cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    drawings: dict[str, Callable[[RunRecord, dict[str, Any]], Figure | None]] = {
        "rl": rl_curves,
        "accuracy": accuracy,
        "loss": loss_and_lr,
        "sources": tokens_by_source,
        "time": time_by_phase,
    }
    made: dict[str, Path] = {}
    with matplotlib.rc_context(STYLE):
        for name, draw in drawings.items():
            picture = draw(run, summary)
            path = folder / f"{name}.png"
            if picture is None:
                path.unlink(missing_ok=True)
                continue
            picture.savefig(path, dpi=DPI)
            made[name] = path
    return made


def loss_and_lr(run: RunRecord, summary: dict[str, Any]) -> Figure | None:
    """Training loss and learning rate over tokens since the root; branches start where their parent ends."""
    nodes = [node for node in run.of_kind("train") if node.rows("loss")]
    if not nodes:
        return None
    colours = node_colours(run)
    picture = figure_of(5.4)
    picture.subplots_adjust(
        **margins(5.4, left=0.72, right=label_inches(run.branches or [""]) + 0.1, top=0.62, bottom=0.5)
    )
    top, bottom = picture.subplots(2, 1, sharex=True, gridspec_kw={"height_ratios": [3, 1], "hspace": 0.1})
    labels, starts, rates = [], {}, []
    for node in nodes:
        start = run.path_tokens(node.name) - node.tokens
        rows = node.rows("loss")
        x, y = [start + row["tokens"] for row in rows], [row["loss"] for row in rows]
        calm = smooth(y, max(1, len(y) // 80))
        colour, is_branch = colours[node.name], node.name in run.branches
        top.plot(x, y, color=colour, alpha=0.14 if is_branch else 0.22, linewidth=0.6)
        top.plot(x, calm, color=colour, linewidth=2)
        rates.append((x, [row.get("lr", math.nan) for row in rows], colour, _dashes(run, node.name)))
        if is_branch and len(run.branches) > 1:
            labels.append((x[-1], calm[-1], node.name, colour))
        starts[start] = "branches" if is_branch and len(run.branches) > 1 else node.name
    for x, y, colour, _ in rates:
        bottom.plot(x, y, color=colour, linewidth=2.2)
    for x, y, colour, dashes in rates:
        bottom.plot(x, y, color=colour, linewidth=2.2, linestyle=dashes)
    # the first steps from random weights would press everything else flat
    seen = sorted(value for node in nodes for value in node.series("loss"))
    low, high = seen[0], seen[min(len(seen) - 1, int(len(seen) * 0.985))]
    top.set_ylim(max(0.0, low - 0.08 * (high - low)), high + 0.08 * (high - low))
    top.set_xlim(0, max(run.path_tokens(node.name) for node in nodes))
    end_labels(top, labels)
    for start, name in starts.items():
        for axes in (top, bottom) if start else ():
            axes.axvline(start, color="#98a1b0", linewidth=1, linestyle=(0, (3, 3)), zorder=0)
        top.annotate(name, (start, 1), xycoords=("data", "axes fraction"), xytext=(3, 4),
                     textcoords="offset points", color=MUTED, fontsize=9.5)  # fmt: skip
    top.set_title("Training loss over the whole path", pad=22)
    top.set_ylabel("loss (nats per token)")
    top.tick_params(labelbottom=False, bottom=False)
    bottom.set_ylim(bottom=0, top=bottom.get_ylim()[1] * 1.08)
    bottom.set_ylabel("learning rate")
    bottom.yaxis.set_major_locator(MaxNLocator(3))
    bottom.yaxis.set_major_formatter(
        FuncFormatter(lambda v, _: f"{v:.0e}".replace("e-0", "e-") if v else "0")
    )
    bottom.set_xlabel("mid-training tokens since the root")
    bottom.xaxis.set_major_formatter(FuncFormatter(lambda v, _: tokens_text(v)))
    for axes in (top, bottom):
        axes.grid(axis="x", visible=False)
    return picture


def _dashes(run: RunRecord, name: str) -> Any:
    """Solid for what is alone; branches whose lines cover each other take turns, so that each shows."""
    k = len(run.branches)
    return (run.branches.index(name) * 3, (3, 3 * (k - 1))) if k > 1 and name in run.branches else "-"


def rl_curves(run: RunRecord, summary: dict[str, Any]) -> Figure | None:
    """Mean sampled reward and mean answer length per RL step: raw values light, their running mean strong.

    The figures at the right are those of the summary, means of the last steps; … marks a run that goes on.
    """
    runs = {name: node for name, node in run.rl_names.items() if node.rows("reward", "response_length")}
    if not runs:
        return None
    colours = node_colours(run)
    beside = 0.5 + label_inches(list(runs))  # for the names and figures at the right of each panel
    gap = 2 * (beside + 0.45) / (WIDTH_INCHES - 0.9 - 2 * beside)
    picture = figure_of(4.2)
    picture.subplots_adjust(**margins(4.2, left=0.45, right=beside, top=0.45, bottom=0.5), wspace=gap)
    for axes, key, title in zip(
        picture.subplots(1, 2),
        ("reward", "response_length"),
        ("Sampled reward", "Answer length in tokens"),
        strict=True,
    ):
        labels = []
        for name, node in runs.items():
            rows = node.rows("reward", "response_length")
            x, y = [row["step"] for row in rows], [row[key] for row in rows]
            colour, calm = colours[node.name], smooth(y, min(2, len(y) // 8))
            axes.plot(
                x, y, color=colour, alpha=0.32, linewidth=0.9, marker=MARKER.get(name, "."), markersize=2.6
            )
            axes.plot(x, calm, color=colour, linewidth=2.3)
            end = summary["rl"][name]["reward" if key == "reward" else "length"][1]
            text = f"{name}  {end:.2f}" if key == "reward" else f"{name}  {end:.0f}"
            labels.append((x[-1], calm[-1], text if node.state == DONE else f"{text} …", colour))
        axes.set_title(title)
        axes.set_xlabel("RL step")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
        axes.set_xlim(0.5, max(x for x, *_ in labels) + 0.5)
        axes.set_ylim(bottom=0, top=axes.get_ylim()[1] * 1.04)
        if key == "reward":
            axes.set_ylim(-0.02, 1.02 if axes.get_ylim()[1] > 0.6 else max(0.3, axes.get_ylim()[1]))
        axes.grid(axis="x", visible=False)
        end_labels(axes, labels)
    return picture


def accuracy(run: RunRecord, summary: dict[str, Any]) -> Figure | None:
    """Greedy accuracy before and after RL, one row a starting point, one panel a problem set."""
    rows = [name for name, entry in summary["rl"].items() if _measured(entry)]
    if not rows:
        return None
    sets = list(
        dict.fromkeys(key for name in rows for key in summary["rl"][name] if key.startswith("accuracy_"))
    )
    colours = {name: node_colours(run)[run.rl_names[name].name] for name in rows}
    height = 1.25 + 0.4 * len(rows)
    picture = figure_of(height)
    picture.subplots_adjust(**margins(height, label_inches(rows) + 0.1, 1.15, 0.5, 0.55), wspace=0.42)
    panels = picture.subplots(1, len(sets), squeeze=False, sharey=True)[0]
    for axes, key in zip(panels, sets, strict=True):
        for place, name in enumerate(rows):
            before, after = summary["rl"][name].get(key, [None, None])
            if before is None or after is None:
                continue
            dot = {
                "markersize": 9,
                "markeredgecolor": colours[name],
                "markeredgewidth": 1.8,
                "clip_on": False,
            }
            axes.plot([before, after], [place, place], color=colours[name], linewidth=3, alpha=0.45)
            axes.plot(after, place, "o", markerfacecolor=colours[name], **dot)
            if abs(after - before) > 0.02:
                axes.plot(before, place, "o", markerfacecolor=PAPER, **dot)
            else:  # a ring around the dot, where a hollow dot would hide it
                axes.plot(before, place, "o", markerfacecolor="none", **dot | {"markersize": 14})
            axes.annotate(f"{before:.2f} → {after:.2f}", (1, place), xycoords=("axes fraction", "data"),
                          xytext=(14, 0), textcoords="offset points", va="center", weight="bold",
                          color=colours[name])  # fmt: skip
        axes.set_title(f"Problem set “{key.removeprefix('accuracy_')}”")
        axes.set_xlim(0, 1)
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.grid(axis="y", visible=False)
        axes.spines["left"].set_visible(False)
        axes.set_xlabel("greedy accuracy")
    dots = [Line2D([], [], linestyle="", marker="o", markersize=8, markeredgewidth=1.6, markeredgecolor=MUTED,
                   markerfacecolor=fill) for fill in (PAPER, MUTED)]  # fmt: skip
    picture.legend(
        dots, ["before RL", "after RL"], loc="upper right", ncols=2, handletextpad=0.2, borderaxespad=0.4
    )
    panels[0].set_yticks(range(len(rows)), rows)
    panels[0].tick_params(axis="y", pad=12)
    colour_ticks(panels, list(colours.values()))
    return picture


def tokens_by_source(run: RunRecord, summary: dict[str, Any]) -> Figure | None:
    """What each train node read, a horizontal bar a node, a segment a source."""
    rows = {
        name: entry["tokens_by_source"]
        for name, entry in summary["train"].items()
        if entry["tokens_by_source"]
    }
    if not rows:
        return None
    palette, colours = source_colours(run), node_colours(run)
    sources = [name for name in run.lineage.sources if any(row.get(name) for row in rows.values())]
    return bars(
        "Mid-training tokens by source", rows, sources, palette, [colours[n] for n in rows], tokens_text
    )


def time_by_phase(run: RunRecord, summary: dict[str, Any]) -> Figure | None:
    """Seconds of every node that has run, a segment a phase."""
    rows = {name: entry["by_phase"] for name, entry in summary["seconds"].items() if entry["total"] > 0}
    if not rows:
        return None
    total = {phase: sum(row.get(phase, 0) for row in rows.values()) for row in rows.values() for phase in row}
    phases = sorted(total, key=lambda phase: (phase == "other", -total[phase]))
    colours = node_colours(run)
    return bars(
        "Time by node and phase",
        rows,
        phases,
        phase_colours(phases),
        [colours[n] for n in rows],
        seconds_text,
    )


def _measured(entry: dict[str, Any]) -> bool:
    return any(key.startswith("accuracy_") and None not in value for key, value in entry.items())
