"""The lineage as a drawing (inline SVG): one box a node, from the root at the left to exports at the right."""

from __future__ import annotations

from html import escape

from octo_megatron.config.schema import EvaluateNode, TrainNode
from octo_megatron.report.read import DONE, MISSING, RUNNING, NodeRecord, RunRecord
from octo_megatron.report.style import INK, MUTED, PAPER, RULE, figure, node_colours, tokens_text

BOX_WIDTH, BOX_HEIGHT, GAP_X, GAP_Y, MARGIN = 198, 80, 34, 16, 1
STATE_SIGNS = {DONE: "✓", RUNNING: "…", MISSING: "○"}


def lineage_svg(run: RunRecord, summary: dict) -> str:
    """An <svg> that scales to the width it is given. Evaluations lie below what they measure."""
    columns, rows = _columns(run), _rows(run)
    colours = node_colours(run)
    depth, height = max(columns.values(), default=0) + 1, max(rows.values(), default=0.0) + 1
    width = 2 * MARGIN + depth * BOX_WIDTH + (depth - 1) * GAP_X
    evaluations = run.of_kind("evaluate")
    tall = 2 * MARGIN + (height + 0.72 * len(evaluations)) * (BOX_HEIGHT + GAP_Y) - GAP_Y
    place = {
        name: (
            MARGIN + columns[name] * (BOX_WIDTH + GAP_X),
            MARGIN + rows[name] * (BOX_HEIGHT + GAP_Y),
        )
        for name in columns
    }
    edges = [
        _edge(place[node.parent], place[name], colours[name])
        for name, node in run.nodes.items()
        if name in place and node.parent in place
    ]
    boxes = [_box(place[name], run.nodes[name], summary, colours[name]) for name in place]
    for i, node in enumerate(evaluations):
        y = MARGIN + (height + 0.72 * i) * (BOX_HEIGHT + GAP_Y)
        boxes.append(_evaluation(y, width - 2 * MARGIN, node))
    return (
        f'<svg class="lineage" viewBox="0 0 {width} {tall:.0f}" role="img" '
        f'aria-label="The lineage as a tree of {len(run.nodes)} nodes">{"".join(edges)}{"".join(boxes)}</svg>'
    )


def _columns(run: RunRecord) -> dict[str, int]:
    """Depth of each node; RL nodes share one column and exports the next, so that like stands over like."""
    columns = {
        node.name: len(run.path(node.name)) - 1 for node in run.nodes.values() if node.kind != "evaluate"
    }
    trained = [columns[node.name] + 1 for node in run.of_kind("train")]
    columns |= {node.name: max([columns[node.name], *trained]) for node in run.of_kind("rl")}
    exports = run.of_kind("export")
    last = max((columns[node.parent] + 1 for node in exports if node.parent in columns), default=0)
    return columns | {node.name: last for node in exports}


def _rows(run: RunRecord) -> dict[str, float]:
    """Leaves one below the other; a parent beside the middle of its train children, or of all its children."""
    rows: dict[str, float] = {}
    next_row = 0

    def walk(name: str) -> None:
        nonlocal next_row
        children = [node for node in run.nodes.values() if node.parent == name and node.kind != "evaluate"]
        # mid-training first, so that the trunk stays a straight line
        children.sort(key=lambda node: node.kind != "train")
        for child in children:
            walk(child.name)
        if not children:
            rows[name], next_row = float(next_row), next_row + 1
            return
        beside = [rows[child.name] for child in children if child.kind == children[0].kind]
        rows[name] = (beside[0] + beside[-1]) / 2

    for root in run.roots:
        walk(root)
    return rows


def _edge(start: tuple[float, float], end: tuple[float, float], colour: str) -> str:
    x0, y0 = start[0] + BOX_WIDTH, start[1] + BOX_HEIGHT / 2
    x1, y1 = end[0], end[1] + BOX_HEIGHT / 2
    turn = x0 + GAP_X / 2
    bend = min(10.0, abs(y1 - y0) / 2)
    down = bend if y1 > y0 else -bend
    path = f"M{x0:.0f} {y0:.1f}"
    if bend:
        path += f"H{turn - bend:.0f}Q{turn:.0f} {y0:.1f} {turn:.0f} {y0 + down:.1f}"
        path += f"V{y1 - down:.1f}Q{turn:.0f} {y1:.1f} {turn + bend:.0f} {y1:.1f}"
    return f'<path d="{path}H{x1:.0f}" fill="none" stroke="{colour}" stroke-width="2" stroke-opacity=".75"/>'


def _box(at: tuple[float, float], node: NodeRecord, summary: dict, colour: str) -> str:
    x, y = at
    first, second = _lines(node, summary)
    ghost = ' stroke-dasharray="4 4"' if node.state not in (DONE, RUNNING) else ""
    fade = "" if node.state in (DONE, RUNNING) else ' opacity=".6"'
    return (
        f"<g{fade}>"
        f'<rect x="{x + 0.5}" y="{y + 0.5}" width="{BOX_WIDTH - 1}" height="{BOX_HEIGHT - 1}" rx="6" '
        f'fill="{PAPER}" stroke="{RULE if not ghost else MUTED}"{ghost}/>'
        f'<rect x="{x}" y="{y}" width="5" height="{BOX_HEIGHT}" rx="2.5" fill="{colour}"/>'
        f"{_text(x + 16, y + 24, _cut(node.name, 18), INK, 16 if len(node.name) < 13 else 13, bold=True)}"
        f"{_text(x + BOX_WIDTH - 12, y + 23, _badge(node), MUTED, 12, anchor='end')}"
        f"{_text(x + 16, y + 45, first, INK, 13.4)}"
        f"{_text(x + 16, y + 64, second, MUTED, 13.4)}</g>"
    )


def _badge(node: NodeRecord) -> str:
    return f"{node.kind} {'✗' if node.error else STATE_SIGNS[node.state]}"


def _lines(node: NodeRecord, summary: dict) -> tuple[str, str]:
    """The two lines of figures in a node's box."""
    if node.kind == "train":
        entry = summary["train"][node.name]
        if isinstance(node.config, TrainNode) and not node.tokens:
            return f"{tokens_text(node.config.tokens)} tokens planned", ""
        loss = f"loss {figure(entry['loss'][0], 2)} → {figure(entry['loss'][1], 2)}"
        return f"{tokens_text(entry['tokens'])} tokens · path {tokens_text(entry['path_tokens'])}", loss
    if node.kind == "rl":
        entry = next(entry for entry in summary["rl"].values() if entry["node"] == node.name)
        done, planned = entry["steps"]
        if not done:
            return f"{planned} steps planned", ""
        reward = f"reward {figure(entry['reward'][0], 2)} → {figure(entry['reward'][1], 2)}"
        steps = f"{done} steps" if done == planned else f"step {done} of {planned}"
        return reward, f"{steps} · {tokens_text(entry['trained_tokens'])} trained"
    gap = node.done.get("max_logit_difference")
    first = f"{node.done.get('tensors', '–')} tensors" if node.done else "Hugging Face format"
    return first, "" if gap is None else f"logits differ by {gap:.1e}"


def _evaluation(y: float, width: float, node: NodeRecord) -> str:
    config = node.config
    assert isinstance(config, EvaluateNode)
    sets = ", ".join(config.problems)
    text = f"greedy and sampled accuracy of {len(config.of)} nodes on {sets}"
    high = BOX_HEIGHT * 0.62
    dash = "" if node.state in (DONE, RUNNING) else ' stroke-dasharray="4 4"'
    return (
        f'<g><rect x="{MARGIN + 0.5}" y="{y + 0.5}" width="{width - 1}" height="{high - 1:.1f}" rx="6" '
        f'fill="#f7f8fa" stroke="{RULE if not dash else MUTED}"{dash}/>'
        f"{_text(MARGIN + 16, y + 29, node.name, INK, 16, bold=True)}"
        f"{_text(MARGIN + 28 + 9.5 * len(node.name), y + 29, text, MUTED, 13.4)}"
        f"{_text(MARGIN + width - 12, y + 28, _badge(node), MUTED, 12, anchor='end')}</g>"
    )


def _text(
    x: float, y: float, text: str, colour: str, size: float, bold: bool = False, anchor: str = "start"
) -> str:
    weight = ' font-weight="700"' if bold else ""
    return (
        f'<text x="{x}" y="{y:.1f}" font-size="{size}" fill="{colour}" text-anchor="{anchor}"{weight}>'
        f"{escape(text)}</text>"
    )


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"
