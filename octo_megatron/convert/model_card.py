"""README.md of an export: the model card, with where the weights come from as the run folder tells it."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from octo_megatron.config.run_folder import RunFolder, read_json
from octo_megatron.convert.gate.result import GateReport
from octo_megatron.model.families import family_of
from octo_megatron.model.slots import parameter_count


@dataclass(frozen=True)
class Ancestry:
    """What is known of a checkpoint's making."""

    base: str | None
    """The Hugging Face model it started from; empty: random weights; None: not known."""
    base_sha256: str | None = None
    """Digest of that model's weights."""
    steps: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    """(node, its done.json), the oldest first."""
    evaluation: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Node -> problem set -> figures, of the nodes in `steps`."""
    facts: dict[str, Any] = field(default_factory=dict)
    """The checkpoint's own."""


def ancestry(facts: dict[str, Any], run: RunFolder | None, node: str | None) -> Ancestry:
    """Walk the run folder from `node` to its root. Without a run only the checkpoint's facts are known."""
    if run is None or node is None:
        return Ancestry(facts.get("hf"), facts.get("hf_weights_sha256"), facts=facts)
    steps: list[tuple[str, dict[str, Any]]] = []
    name: str | None = node
    while name and run.node(name).is_done():
        done = run.node(name).result()
        steps.insert(0, (name, done))
        name = done.get("parent")
    names = [name for name, _ in steps]
    evaluation: dict[str, dict[str, Any]] = {}
    for done_file in sorted((run.root / "nodes").glob("*/done.json")):
        done = read_json(done_file)
        if done.get("kind") == "evaluate":
            evaluation |= {name: done["results"][name] for name in names if name in done.get("results", {})}
    first = steps[0][1] if steps else {"parent": ""}
    base = first.get("hf", "" if first.get("parent") is None else None)
    return Ancestry(base, first.get("hf_weights_sha256"), steps, evaluation, facts)


def card(name: str, hf_config: dict[str, Any], dtype: str, known: Ancestry, report: GateReport) -> str:
    """The text of README.md. `name`: of the folder; `dtype`: fp32 or bf16."""
    head = {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["octo_megatron", "megatron-core", family_of(hf_config).name.lower()],
    }
    if known.base:
        head["base_model"] = Path(known.base).name
    lines = [
        "---",
        *(f"{key}: {json.dumps(value)}" for key, value in head.items()),
        "---",
        "",
        f"# {name}",
        "",
    ]
    number = parameter_count(hf_config)
    lines += [
        f"{family_of(hf_config).name} architecture, {number:,} parameters, {dtype}. Converted from a Megatron-Core "
        f"checkpoint by octo_megatron; what was compared and how far apart it was is in "
        f"[CONVERSION.md](CONVERSION.md){_omissions(report)}.",
        "",
        "## Lineage",
        "",
        _start(known),
        "",
    ]
    lines += _lineage(known)
    lines += _evaluation(known)
    return "\n".join(lines).rstrip() + "\n"


def _start(known: Ancestry) -> str:
    if known.base is None:
        return "What it started from is not known."
    digest = f" (sha256 of the weights: `{known.base_sha256}`)" if known.base_sha256 else ""
    return f"Starts from {f'`{known.base}`{digest}' if known.base else 'random weights'}."


def _omissions(report: GateReport) -> str:
    return f" (**not run: {', '.join(report.left_out)}**)" if report.left_out else ""


def _lineage(known: Ancestry) -> list[str]:
    if not known.steps:
        told = {
            key: known.facts[key]
            for key in ("kind", "step", "tokens", "lr", "config_digest")
            if key in known.facts
        }
        return [
            "The checkpoint says of itself: " + ", ".join(f"{k} {_short(v)}" for k, v in told.items()) + ".",
            "",
        ]
    lines = [
        "| node | parent | kind | steps | tokens | learning rate | config digest |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, done in known.steps:
        rates = [done[key] for key in ("lr_first", "lr_last") if key in done] or [
            done[k] for k in ("lr",) if k in done
        ]
        rate = " → ".join(f"{rate:g}" for rate in rates)
        cells = [name, done.get("parent"), done.get("kind"), done.get("step"), done.get("tokens"), rate]
        lines.append(f"| {' | '.join(_short(cell) for cell in cells)} | {done.get('config_digest', '–')} |")
    lines.append("")
    for name, done in known.steps:
        sources = done.get("tokens_by_source")
        if sources:
            parts = ", ".join(f"{source} {_short(_tokens(value))}" for source, value in sources.items())
            lines += [f"Tokens of {name} by source: {parts}.", ""]
    return lines


def _evaluation(known: Ancestry) -> list[str]:
    rows = [
        (node, problems, figures)
        for node, sets in known.evaluation.items()
        for problems, figures in sets.items()
    ]
    if not rows:
        return []
    keys = sorted({key for _, _, figures in rows for key in figures})
    lines = [
        "## Evaluation",
        "",
        f"| node | problems | {' | '.join(keys)} |",
        "| --- " * (len(keys) + 2) + "|",
    ]
    for node, problems, figures in rows:
        values = [figures.get(key) for key in keys]
        cells = [f"{value:.4g}" if isinstance(value, float) else _short(value) for value in values]
        lines.append(f"| {node} | {problems} | {' | '.join(cells)} |")
    return [*lines, ""]


def _tokens(value: Any) -> Any:
    return value.get("tokens") if isinstance(value, dict) else value


def _short(value: Any) -> str:
    if value is None or value == "":
        return "–"
    return (
        f"{value:,}" if isinstance(value, int) else f"{value:g}" if isinstance(value, float) else str(value)
    )
