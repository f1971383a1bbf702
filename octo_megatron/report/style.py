"""Colours and number formats shared by plots, tree and page, so that a branch looks the same everywhere."""

from __future__ import annotations

from octo_megatron.report.read import RunRecord

INK, MUTED, RULE, PAPER = "#1f2430", "#667085", "#e3e6ec", "#ffffff"
BASE, TRUNK = "#7b828f", "#2f3542"
"""The root of a lineage is grey, what the branches share is dark."""
BRANCH = {"short": "#d9722e", "long": "#0f6bb0", "hybrid": "#0a9270"}
"""After Okabe and Ito (2008), darkened for white paper: told apart with any common colour blindness."""
SPARE = ("#b4559b", "#c99700", "#4aa3df", "#7a5c43", "#6a6fcb")
MARKER = {"short": "s", "long": "o", "hybrid": "D"}
"""Shapes beside the colours, for grey prints."""
NEUTRAL = ("#c9cdd6", "#9aa3b2", "#6f7a8c", "#dfe2e8", "#b3bac6")
PHASES = {
    "start": "#c9cdd6",
    "data": "#a8b0be",
    "train": "#2f3542",
    "rollout": "#4aa3df",
    "grade": "#c99700",
    "refit": "#b4559b",
    "validation": "#7fb8a4",
    "evaluate": "#0a9270",
    "checkpoint": "#7a5c43",
    "import": "#6a6fcb",
    "export": "#6a6fcb",
    "other": "#e6e8ed",
}


def node_colours(run: RunRecord) -> dict[str, str]:
    """One colour a node: roots grey, shared train nodes dark, branches their own, others their parent's."""
    spare = iter(SPARE * 4)
    colours: dict[str, str] = {}
    for node in run.nodes.values():
        if node.name in run.roots:
            colours[node.name] = BASE
        elif node.name in run.branches:
            colours[node.name] = BRANCH.get(node.name) or next(spare)
        elif node.kind == "train":
            colours[node.name] = TRUNK
    for node in run.nodes.values():
        way = [step.name for step in run.path(node.name) if step.name in colours]
        colours.setdefault(node.name, colours[way[-1]] if way else MUTED)
    return colours


def source_colours(run: RunRecord) -> dict[str, str]:
    """A source named like a branch has its colour, the others are shades of grey."""
    branches, neutral = node_colours(run), iter(NEUTRAL * 4)
    return {
        name: branches[name] if name in run.branches else BRANCH.get(name) or next(neutral)
        for name in run.lineage.sources
    }


def phase_colours(phases: list[str]) -> dict[str, str]:
    spare = iter(SPARE * 4)
    return {phase: PHASES.get(phase) or next(spare) for phase in phases}


def tokens_text(count: float | None) -> str:
    """1234567 -> 1.23M."""
    if count is None:
        return "–"
    for limit, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(count) >= limit * 0.9995:
            return f"{count / limit:.3g}{unit}"
    return f"{count:.0f}"


def seconds_text(seconds: float | None) -> str:
    """75.2 -> 1 min 15 s."""
    if seconds is None:
        return "–"
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"


def figure(value: float | None, digits: int = 3) -> str:
    """A number with fixed decimals, a dash for none."""
    return "–" if value is None else f"{value:.{digits}f}"


def pair(values: list[float | None], digits: int = 3) -> str:
    """start → end, which no line break parts."""
    ends = f"{figure(values[0], digits)}\N{NO-BREAK SPACE}→\N{NO-BREAK SPACE}{figure(values[1], digits)}"
    return ends if values != [None, None] else "–"
