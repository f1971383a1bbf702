"""How the report's pictures look: type, margins, labels at line ends, stacked bars."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from octo_megatron.report.style import INK, MUTED, PAPER, RULE

WIDTH_INCHES = 11.0
DPI = 180
"""At the page's full width an inch is 100 CSS pixels and 10 points of type are 14; sharp on dense screens."""
FONTS = ("Helvetica Neue", "Helvetica", "Arial", "Liberation Sans", "DejaVu Sans")
_KNOWN = {font.name for font in font_manager.fontManager.ttflist}
STYLE: dict[str, Any] = {
    "font.family": [name for name in FONTS if name in _KNOWN][:1] or ["sans-serif"],
    "font.size": 10,
    "text.color": INK,
    "axes.edgecolor": "#b6bcc8",
    "axes.labelcolor": MUTED,
    "axes.titlecolor": INK,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": RULE,
    "grid.linewidth": 0.8,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.major.size": 3,
    "ytick.major.size": 0,
    "figure.facecolor": PAPER,
    "legend.frameon": False,
}


def bars(
    title: str,
    rows: dict[str, dict[str, float]],
    parts: list[str],
    palette: dict[str, str],
    row_colours: list[str],
    text: Callable[[float], str],
) -> Figure:
    """Horizontal stacked bars with figures inside wide segments, the sum at the end, the legend above."""
    height = 1.25 + 0.38 * len(rows)
    picture = figure_of(height)
    picture.subplots_adjust(**margins(height, label_inches(list(rows)), 0.25, 0.75, 0.35))
    axes = picture.subplots()
    widest = max(sum(row.values()) for row in rows.values())
    for place, row in enumerate(rows.values()):
        left = 0.0
        for part in parts:
            value = row.get(part, 0.0)
            axes.barh(
                place, value, left=left, height=0.66, color=palette[part], edgecolor=PAPER, linewidth=0.8
            )
            if value > 0.065 * widest:
                axes.text(left + value / 2, place, text(value), ha="center", va="center", fontsize=9,
                          color=_readable_on(palette[part]))  # fmt: skip
            left += value
        axes.annotate(
            text(left),
            (left, place),
            xytext=(7, 0),
            textcoords="offset points",
            va="center",
            fontweight="bold",
        )
    for part in parts:
        axes.barh(0, 0, color=palette[part], label=part)
    axes.set_title(title, pad=30)
    axes.legend(loc="lower left", bbox_to_anchor=(-0.008, 1.0), ncols=len(parts), handlelength=1,
                handleheight=1, columnspacing=1.4, handletextpad=0.5, borderaxespad=0.2)  # fmt: skip
    axes.set_yticks(range(len(rows)), list(rows))
    axes.set_ylim(len(rows) - 0.45, -0.55)
    axes.set_xlim(0, widest * 1.09)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: text(value) if value else "0"))
    axes.grid(axis="y", visible=False)
    axes.spines["left"].set_visible(False)
    colour_ticks([axes], row_colours)
    return picture


def smooth(values: list[float], reach: int) -> list[float]:
    """Running mean over the values at most `reach` away."""
    return [statistics.fmean(values[max(0, i - reach) : i + reach + 1]) for i in range(len(values))]


def end_labels(axes: Axes, labels: list[tuple[float, float, str, str]]) -> None:
    """Names at line ends instead of a legend: (x, y, text, colour), pushed apart where they would touch."""
    if not labels:
        return
    low, high = axes.get_ylim()
    points_high = axes.get_window_extent().height * 72 / axes.figure.dpi
    gap = (high - low) * 14 / points_high
    ordered = sorted(labels, key=lambda label: label[1])
    heights = spread([max(low, min(high, y)) for _, y, *_ in ordered], gap, low)
    right = axes.get_xlim()[1]
    for (_, _, text, colour), height in zip(ordered, heights, strict=True):
        axes.annotate(text, (right, height), xytext=(7, 0), textcoords="offset points", color=colour,
                      va="center", fontweight="bold", annotation_clip=False)  # fmt: skip


def spread(places: list[float], gap: float, low: float) -> list[float]:
    """Ascending `places` moved as little as needed to lie at least `gap` apart and not under `low`."""
    groups: list[list[float]] = []
    for place in places:
        groups.append([place])
        while len(groups) > 1 and _first(groups[-1], gap, low) - _last(groups[-2], gap, low) < gap:
            groups[-2:] = [groups[-2] + groups[-1]]
    return [_first(group, gap, low) + i * gap for group in groups for i in range(len(group))]


def _first(group: list[float], gap: float, low: float) -> float:
    return max(low, statistics.fmean(group) - gap * (len(group) - 1) / 2)


def _last(group: list[float], gap: float, low: float) -> float:
    return _first(group, gap, low) + gap * (len(group) - 1)


def figure_of(height: float) -> Figure:
    return Figure(figsize=(WIDTH_INCHES, height))


def margins(height: float, left: float, right: float, top: float, bottom: float) -> dict[str, float]:
    """Margins in inches as the fractions that subplots_adjust takes."""
    return {
        "left": left / WIDTH_INCHES,
        "right": 1 - right / WIDTH_INCHES,
        "top": 1 - top / height,
        "bottom": bottom / height,
    }


def label_inches(names: list[str]) -> float:
    return 0.2 + 0.085 * max(len(name) for name in names)


def _readable_on(colour: str) -> str:
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return PAPER if 0.299 * red + 0.587 * green + 0.114 * blue < 150 else INK


def colour_ticks(panels: Any, colours: list[str]) -> None:
    for axes in panels:
        for tick, colour in zip(axes.get_yticklabels(), colours, strict=False):
            tick.set_color(colour)
            tick.set_fontweight("bold")
