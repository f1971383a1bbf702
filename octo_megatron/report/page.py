"""`octo report`: one HTML file that shows what a run did, readable by someone who was not there."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from octo_megatron.config.run_folder import write_json, write_text
from octo_megatron.report.headline import checks, headline, lede
from octo_megatron.report.markup import Html, element, joined, picture, text
from octo_megatron.report.plots import draw_all
from octo_megatron.report.read import DONE, MISSING, RUNNING, RunRecord, read_run
from octo_megatron.report.sections import (
    config_excerpt,
    digests_table,
    evaluation_table,
    exports_table,
    result_rows,
    sample_cards,
    sources_table,
    time_table,
    training_table,
    versions_table,
)
from octo_megatron.report.style import seconds_text, tokens_text
from octo_megatron.report.stylesheet import CSS
from octo_megatron.report.summary import summary_of
from octo_megatron.report.tree import lineage_svg


def build(run: Path) -> Path:
    """Write RUN/summary.json, RUN/report/*.png and RUN/report/index.html; returns the page's path.

    The page needs no network and no script. An unfinished run gives a page that says what is missing.

    Raises:
        UserError: `run` is no run folder, a file in it is damaged, or the report cannot be written.
    """
    record = read_run(run)
    summary = summary_of(record)
    write_json(record.folder.summary, summary)
    pictures = draw_all(record, summary, record.folder.report)
    page = record.folder.report / "index.html"
    write_text(page, render(record, summary, pictures))
    return page


def render(run: RunRecord, summary: dict[str, Any], pictures: dict[str, Path]) -> str:
    """The whole page as text."""
    title = f"{summary['name']}: octo_megatron report"
    body = joined(
        [
            _header(run, summary),
            _lineage(run, summary),
            _results(run, summary, pictures),
            _training(run, summary, pictures),
            _samples(run),
            _time(run, summary, pictures),
            _provenance(run, summary),
        ]
    )
    head = joined(
        [
            Html(
                '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
            ),
            element("title", title),
            Html(f"<style>{CSS}</style>"),
        ]
    )
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head>{head}</head>\n<body>{element("main", body)}</body></html>\n'
    )


def _header(run: RunRecord, summary: dict[str, Any]) -> Html:
    tokens = summary["tokens"]
    facts = [
        f"seed {summary['seed']}",
        run.lineage.precision,
        f"{tokens_text(tokens['mid_training'])} tokens of mid-training",
    ]
    if tokens["generated"]:
        facts.append(f"{tokens_text(tokens['generated'])} tokens sampled in RL")
    over = joined([element("b", f"Lineage “{summary['name']}”"), " · ", " · ".join(facts)])
    marks = [
        element("li", joined([element("b", what), figures]), class_=sign)
        for sign, what, figures in checks(summary)
    ]
    parts = [element("p", over, class_="over"), element("h1", headline(summary))]
    if said := lede(summary):
        parts.append(element("p", said, class_="lede"))
    if marks:
        parts.append(element("ul", joined(marks), class_="checks"))
    if not summary["finished"]:
        parts.append(element("p", _unfinished(run), class_="banner"))
    return element("header", joined(parts))


def _unfinished(run: RunRecord) -> Html:
    def names(state: str) -> list[str]:
        return [node.name for node in run.nodes.values() if node.state == state]

    said = [element("b", f"This run is not finished: {len(names(DONE))} of {len(run.nodes)} nodes are done.")]
    for name in names(RUNNING):
        node = run.nodes[name]
        progress = node.progress
        where = (
            f" ({progress['phase']} {progress['done']} of {progress['total']})" if "phase" in progress else ""
        )
        said.append(text(f" Begun: {name}{where}."))
    if names(MISSING):
        said.append(text(f" Not begun: {', '.join(names(MISSING))}."))
    for node in run.nodes.values():
        if node.error:
            said.append(text(f" {node.name} failed: {node.error}"))
    said.append(
        text(" What is missing is left out below; “octo run” with the same lineage goes on from here.")
    )
    return joined(said)


def _lineage(run: RunRecord, summary: dict[str, Any]) -> Html:
    caption = (
        "Each box starts from the weights of the box at its left. Tokens: of the node, and of the whole path "
        "from the root. Loss: first step → mean of the last 20. Reward: means of the first → of the last RL "
        "steps. ✓ done, … begun, ○ not begun, ✗ failed."
    )
    drawing = joined([Html(lineage_svg(run, summary)), element("figcaption", caption)])
    return joined([element("h2", "The lineage"), element("figure", drawing)])


def _results(run: RunRecord, summary: dict[str, Any], pictures: dict[str, Path]) -> Html:
    if not summary["rl"]:
        return Html("")
    parts = [element("h2", "Reinforcement learning from each starting point")]
    if "rl" in pictures:
        parts.append(
            picture(pictures["rl"], "Sampled reward and answer length per RL step", _rl_caption(run))
        )
    else:
        parts.append(element("p", "No RL step has been made yet, so there are no curves.", class_="note"))
    if any(entry["steps"][0] for entry in summary["rl"].values()):
        parts.append(result_rows(run, summary))
    if "accuracy" in pictures:
        caption = (
            "Greedy answers to problems held out from RL. To the right is better; a filled dot to the left of "
            "its hollow one is a set that RL made worse."
        )
        parts.append(
            picture(pictures["accuracy"], "Greedy accuracy before and after RL by problem set", caption)
        )
    parts.append(evaluation_table(run, summary))
    return joined(parts)


def _rl_caption(run: RunRecord) -> str:
    configs = {str(replace(node.config, parent=None, parallel=None)) for node in run.of_kind("rl")}
    same = "Problems, settings and steps are the same; only the starting weights differ. "
    return (
        f"{same if len(configs) == 1 < len(run.of_kind('rl')) else ''}Light: each step as sampled; strong: "
        "running mean; figures at the right: means of the last steps. Look for where a line starts "
        "(what mid-training has given) and how far it rises (what RL adds)."
    )


def _training(run: RunRecord, summary: dict[str, Any], pictures: dict[str, Path]) -> Html:
    if not summary["train"]:
        return Html("")
    parts = [element("h2", "Mid-training"), training_table(run, summary)]
    if "loss" in pictures:
        alternative = "Training loss and learning rate over mid-training tokens"
        parts.append(picture(pictures["loss"], alternative, _loss_caption(summary)))
    else:
        parts.append(element("p", "No training step has been made yet: no loss to draw.", class_="note"))
    if "sources" in pictures:
        parts.append(
            picture(
                pictures["sources"],
                "Tokens read from each source by each train node",
                "What each node read. A source with a branch's name has its colour; what all share is grey.",
            )
        )
    parts.append(sources_table(run, summary))
    return joined(parts)


def _loss_caption(summary: dict[str, Any]) -> str:
    hands = summary["lr_continuity"].values()
    unbroken = hands and all(hand["continuous"] for hand in hands)
    return (
        f"{'The learning rate goes on unbroken from each node to the next. ' if unbroken else ''}Loss jumps where a "
        "node begins because the text changes, and branches read different text: compare a line with itself, not "
        "with its neighbours. The steepest beginning is cut off at the top."
    )


def _samples(run: RunRecord) -> Html:
    cards = sample_cards(run)
    if not cards:
        return Html("")
    said = (
        "Not picked: the first samples of the first and of the last step of each run. Reward 1: the marked "
        "answer is right."
    )
    return joined([element("h2", "Answers, early and late"), element("p", said, class_="table-note"), cards])


def _time(run: RunRecord, summary: dict[str, Any], pictures: dict[str, Path]) -> Html:
    if "time" not in pictures:
        return Html("")
    total = sum(entry["total"] for entry in summary["seconds"].values())
    caption = (
        f"{seconds_text(total)} of node time in all, restarts included. Nodes that do not depend on each other "
        f"may run side by side (up to {run.lineage.slots} here); the clock on the wall then shows less."
    )
    drawn = picture(pictures["time"], "Seconds by node and phase", caption)
    return joined([element("h2", "Where the time went"), drawn, time_table(run, summary)])


def _provenance(run: RunRecord, summary: dict[str, Any]) -> Html:
    made = element("div", joined([digests_table(run, summary), versions_table(summary)]), class_="two")
    parts = [
        element("h2", "What made this"),
        exports_table(run, summary),
        made if summary["digests"] else "",
        element("h3", "Configuration (resolved; values that are not the default)"),
        config_excerpt(run),
        element(
            "footer",
            f"Made by octo report from {run.folder.root.name}/. The same figures: summary.json beside this folder. "
            f"Lineage digest {summary['digest']}.",
        ),
    ]
    return joined(parts)
