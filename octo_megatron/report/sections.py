"""Tables and cards of the page, each from the summary (and the run where the summary has no such detail)."""

from __future__ import annotations

import dataclasses
from typing import Any

import yaml

from octo_megatron.config.loading import to_plain
from octo_megatron.config.schema import NODE_KINDS, LineageConfig, ProblemSetConfig, SourceConfig
from octo_megatron.report.markup import Html, dotted, element, joined, table
from octo_megatron.report.read import RunRecord, read_rollouts
from octo_megatron.report.style import MUTED, figure, node_colours, pair, seconds_text, tokens_text

SAMPLES_EACH = 2
"""Answers shown for the early and for the late step of each RL node."""
LONGEST_SAMPLE = 700
"""Characters of a prompt or an answer that are shown."""


def result_rows(run: RunRecord, summary: dict[str, Any]) -> Html:
    """The result table: one row a starting point of RL."""
    colours, claim = node_colours(run), summary["claim"]
    several = len(claim["branches_climb"]) > 1
    sets = list(
        dict.fromkeys(key for e in summary["rl"].values() for key in e if key.startswith("accuracy_"))
    )
    head = ["RL from", "mid-training tokens", "steps", "sampled reward", "gain"]
    head += [f"greedy accuracy, “{key.removeprefix('accuracy_')}”" for key in sets] + [
        "tokens an answer",
        "cut off",
    ]
    rows = []
    for name, entry in summary["rl"].items():
        start, end = entry["reward"]
        reward = pair(entry["reward"], 2)
        rows.append(
            [
                dotted(name, colours[entry["node"]]),
                tokens_text(entry["mid_training_tokens"]),
                _steps(entry),
                element("span", reward, class_="best") if several and name == claim["highest"] else reward,
                "–" if start is None else f"{end - start:+.2f}",
                *[pair(entry.get(key, [None, None]), 2) for key in sets],
                element("span", pair(entry["length"], 0), class_="best")
                if several and name == claim["longest"]
                else pair(entry["length"], 0),
                "–" if entry["truncated"][1] is None else f"{entry['truncated'][1]:.0%}",
            ]
        )
    windows = sorted({entry["window"] for entry in summary["rl"].values() if entry["window"]})
    span = f"{windows[-1]} " if len(windows) == 1 and windows[0] > 1 else ""
    note = (
        f"Sampled reward, tokens and cut off: means over all samples of the first and the last {span}RL steps. "
        "Greedy accuracy: held-out problems before and after RL. Bold: the branch that ends highest and the "
        "one with the longest answers. Cut off: share of the last steps' answers that met the token limit."
    )
    return table(head, rows, note)


def _steps(entry: dict[str, Any]) -> str:
    done, planned = entry["steps"]
    return f"{done}" if done == planned else f"{done} of {planned}"


def evaluation_table(run: RunRecord, summary: dict[str, Any]) -> Html:
    """Accuracy of every evaluated node on every set."""
    results = summary["evaluation"]
    if not results:
        return Html("")
    colours = node_colours(run)
    sets = list(dict.fromkeys(name for row in results.values() for name in row))
    head = ["node"] + ["greedy", "sampled", "tokens", "cut off"] * len(sets)
    groups = [("", 1)] + [(f"Problem set “{name}”", 4) for name in sets]
    rows = []
    for node, row in results.items():
        cells = [cell for name in sets for cell in _evaluated(row.get(name, {}))]
        rows.append([dotted(node, colours.get(node, MUTED)), *cells])
    return joined([element("h3", "Evaluation of every node"), table(head, rows, groups=groups)])


def _evaluated(cell: dict[str, Any]) -> list[str]:
    cut = cell.get("truncated")
    return [
        figure(cell.get("greedy")),
        figure(cell.get("sampled")),
        figure(cell.get("length"), 0),
        "–" if cut is None else f"{cut:.0%}",
    ]


def training_table(run: RunRecord, summary: dict[str, Any]) -> Html:
    """Budget, loss and learning rate of each train node, with the hand-over from its parent."""
    colours, rows = node_colours(run), []
    for name, entry in summary["train"].items():
        hand = summary["lr_continuity"].get(name)
        mixture = run.train_config(name).mixture
        rows.append(
            [
                dotted(name, colours[name]),
                entry["parent"] or _folder(entry) or "random weights",
                _steps(entry),
                tokens_text(entry["tokens"]),
                tokens_text(entry["path_tokens"]),
                pair(entry["loss"], 3),
                _validation(entry["validation"], entry["validation_first"], mixture),
                "–" if None in entry["lr"] else " → ".join(f"{rate:.3g}" for rate in entry["lr"]),
                "–"
                if hand is None
                else "unbroken"
                if hand["continuous"]
                else f"breaks at {hand['parent_last']:.3g}",
            ]
        )
    head = ["node", "from", "steps", "tokens", "path tokens", "training loss", "validation loss", "learning rate",
            "hand-over"]  # fmt: skip
    note = (
        "Validation loss: text held out of the source with the largest share, first and last check. "
        "Hand-over: whether the first learning rate is the parent's last."
    )
    return table(head, rows, note)


def _folder(entry: dict[str, Any]) -> str:
    """The Hugging Face folder that a node started from, with the digest of its weights."""
    return f"{entry['hf']} ({(entry['hf_weights_sha256'] or '')[:16]})" if entry["hf"] else ""


def _validation(last: dict[str, float], first: dict[str, float], mixture: dict[str, float]) -> str:
    known = [source for source in last if source in mixture]
    name = max(known, key=lambda source: mixture[source], default=None)
    return "–" if name is None else pair([first.get(name), last[name]], 3)


def sources_table(run: RunRecord, summary: dict[str, Any]) -> Html:
    """What was prepared and what was read of it."""
    if not summary["sources"]:
        return Html("")
    read = summary["tokens"]["by_source"]
    rows = [
        [
            name,
            f"{entry['documents']:,}" if entry["documents"] is not None else "–",
            tokens_text(entry["tokens"]),
            tokens_text(entry["validation_tokens"]),
            tokens_text(read.get(name)),
            f"{read[name] / entry['tokens']:.2f}" if read.get(name) and entry["tokens"] else "–",
            element("code", str(entry["sha256"])[:12]),
        ]
        for name, entry in summary["sources"].items()
    ]
    head = ["source", "documents", "tokens", "held out", "read by finished nodes", "epochs", "sha256"]
    return joined([element("h3", "Sources"), table(head, rows)])


def time_table(run: RunRecord, summary: dict[str, Any]) -> Html:
    total: dict[str, float] = {}
    for entry in summary["seconds"].values():
        for phase, seconds in entry["by_phase"].items():
            total[phase] = total.get(phase, 0) + seconds
    whole = sum(total.values()) or 1.0
    rows = [
        [phase, seconds_text(seconds), f"{seconds / whole:.0%}"]
        for phase, seconds in sorted(total.items(), key=lambda item: -item[1])
    ]
    return joined(
        [element("h3", "All nodes together"), table(["phase", "time", "share"], rows, class_="narrow")]
    )


def exports_table(run: RunRecord, summary: dict[str, Any]) -> Html:
    """Imports and exports with what their gate measured."""
    rows = [
        [
            name,
            entry["parent"] or "–",
            element("code", f"nodes/{name}/hf" if run.nodes[name].kind == "export" else entry["hf"] or "–"),
            "–" if entry["bytes"] is None else f"{entry['bytes'] / 1e6:.1f} MB",
            "–" if entry["max_logit_difference"] is None else f"{entry['max_logit_difference']:.1e}",
        ]
        for name, entry in summary["exports"].items()
    ]
    head = ["Hugging Face folder", "weights of", "path", "size", "largest logit difference"]
    return table(head, rows, "Against transformers, FP32, fixed prompts.") if rows else Html("")


def digests_table(run: RunRecord, summary: dict[str, Any]) -> Html:
    rows = [
        [
            name,
            element("code", entry["config_digest"] or "–"),
            element("code", (entry["weights_sha256"] or "–")[:16]),
        ]
        for name, entry in summary["digests"].items()
    ]
    return element(
        "div",
        joined([element("h3", "Digests"), table(["node", "config", "weights (sha256, first 16)"], rows)]),
    )


def versions_table(summary: dict[str, Any]) -> Html:
    rows = [[package, version] for package, version in summary["versions"].items()]
    return element("div", joined([element("h3", "Versions"), table(["package", "version"], rows)]))


def sample_cards(run: RunRecord) -> Html:
    """The first samples of the first and last RL step, side by side, for each RL node that left rollouts."""
    colours, parts = node_colours(run), []
    for name, node in run.rl_names.items():
        steps = read_rollouts(node)
        if not steps:
            continue
        parts.append(element("h3", dotted(f"RL from {name}", colours[node.name])))
        columns = [[_card(step, row, colours[node.name]) for row in _different(rows)] for step, rows in steps]
        pairs = [card for row in zip(*columns, strict=False) for card in row]
        parts.append(element("div", joined(pairs), class_="samples"))
    return joined(parts)


def _different(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The first sample of each of the first prompts."""
    first: dict[str, dict[str, Any]] = {}
    for row in rows:
        first.setdefault(str(row.get("prompt")), row)
    return list(first.values())[:SAMPLES_EACH]


def _card(step: int, row: dict[str, Any], colour: str) -> Html:
    reward = float(row.get("reward") or 0.0)
    verdict = element("span", f"reward {reward:g}", class_="right" if reward > 0 else "wrong")
    top = element("header", joined([f"step {step} · answer {row.get('answer')}", verdict], "  "))
    prompt = element("span", _shortened(str(row.get("prompt", ""))), class_="prompt")
    said = element("pre", joined([prompt, _shortened(str(row.get("text", "")))]))
    return Html(f'<div class="sample" style="border-left-color:{colour}">{top}{said}</div>')


def _shortened(said: str) -> str:
    return said if len(said) <= LONGEST_SAMPLE else said[:LONGEST_SAMPLE] + " …"


def config_excerpt(run: RunRecord) -> Html:
    """The resolved lineage as YAML, without what every lineage has anyway."""
    lineage = run.lineage
    plain: dict[str, Any] = _unusual(
        lineage, LineageConfig, keep=("name", "seed"), skip=("sources", "problems", "nodes")
    )
    plain["sources"] = {name: _unusual(source, SourceConfig) for name, source in lineage.sources.items()}
    plain["problems"] = {
        name: _unusual(problem, ProblemSetConfig) for name, problem in lineage.problems.items()
    }
    plain["nodes"] = {
        name: _unusual(node, NODE_KINDS[node.kind], keep=("kind",)) for name, node in lineage.nodes.items()
    }
    written = yaml.safe_dump(plain, sort_keys=False, default_flow_style=None, allow_unicode=True, width=90)
    return element("pre", written, class_="config")


def _unusual(
    config: Any, cls: type, keep: tuple[str, ...] = (), skip: tuple[str, ...] = ()
) -> dict[str, Any]:
    """The fields of a config that differ from their defaults, nested dataclasses likewise."""
    out: dict[str, Any] = {}
    for field in dataclasses.fields(cls):
        if field.name in skip:
            continue
        value = getattr(config, field.name)
        default = (
            field.default_factory() if field.default_factory is not dataclasses.MISSING else field.default
        )
        if value == default and field.name not in keep:
            continue
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            nested = _unusual(value, type(value))
            out[field.name] = nested or to_plain(value)
        else:
            out[field.name] = value
    return out
