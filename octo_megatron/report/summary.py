"""The figures of a run as one dictionary: what summary.json holds and what the page and the table print."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from octo_megatron.config.run_folder import write_json
from octo_megatron.config.schema import RLNode
from octo_megatron.report.claim import check_claim
from octo_megatron.report.read import DONE, NodeRecord, RunRecord, read_run

WINDOW = 5
"""Steps at each end of an RL run that make its start and end figures."""
LR_TOLERANCE = 1e-6
"""Largest relative step from a parent's last to a child's first learning rate that is continuous."""


def summarise(run: Path) -> dict[str, Any]:
    """Read the run folder, write RUN/summary.json and return what it holds (see `summary_of`).

    Raises:
        UserError: `run` is no run folder, a file in it is damaged, or the summary cannot be written.
    """
    record = read_run(run)
    summary = summary_of(record)
    write_json(record.folder.summary, summary)
    return summary


def summary_of(run: RunRecord) -> dict[str, Any]:
    """All figures of a run, None where an unfinished run has none yet. Lengths and budgets in tokens."""
    rl = {name: _rl(node, run) for name, node in run.rl_names.items()}
    summary = {
        "name": run.lineage.name,
        "seed": run.lineage.seed,
        "digest": run.digest,
        "finished": run.finished,
        "roots": run.roots,
        "branches": run.branches,
        "states": {name: node.state for name, node in run.nodes.items()},
        "claim": check_claim(rl, run.roots, run.branches),
        "rl": rl,
        "train": {node.name: _train(node, run) for node in run.of_kind("train")},
        "lr_continuity": _lr_continuity(run),
        "evaluation": {
            name: result
            for node in run.of_kind("evaluate")
            for name, result in node.done.get("results", {}).items()
        },
        "exports": {
            node.name: {key: node.done.get(key) for key in ("parent", "hf", "bytes", "max_logit_difference")}
            for kind in ("import", "export")
            for node in run.of_kind(kind)
            if node.state == DONE
        },
        "tokens": _tokens(run, rl),
        "seconds": {name: _seconds(node) for name, node in run.nodes.items() if node.state != "missing"},
        "sources": {
            name: {key: manifest.get(key) for key in ("documents", "tokens", "validation_tokens", "sha256")}
            for name, manifest in run.sources.items()
        },
        "versions": _versions(run),
        "digests": {
            name: {key: node.done.get(key) for key in ("config_digest", "weights_sha256")}
            for name, node in run.nodes.items()
            if node.state == DONE
        },
    }
    return _finite(summary)


def ends(values: list[float], window: int = WINDOW) -> list[float | None]:
    """[mean of the first, mean of the last] `window` values, fewer if they would overlap; None if empty."""
    if not values:
        return [None, None]
    n = window_of(len(values), window)
    return [math.fsum(values[:n]) / n, math.fsum(values[-n:]) / n]


def window_of(count: int, window: int = WINDOW) -> int:
    """How many of `count` values make each end: `window`, or half of them where two would overlap."""
    return max(1, min(window, count // 2)) if count else 0


def _rl(node: NodeRecord, run: RunRecord) -> dict[str, Any]:
    config = node.config
    assert isinstance(config, RLNode)
    evaluation = node.done.get("evaluation", {})
    by_set = {
        name: [_accuracy(evaluation, when, name) for when in ("before", "after")] for name in config.evaluate
    }
    steps, samples = node.last_step, len(node.rows("reward"))
    entry: dict[str, Any] = {
        "node": node.name,
        "state": node.state,
        "steps": [steps, config.steps],
        "window": window_of(samples),
        "reward": ends(node.series("reward")),
        "accuracy": by_set[config.evaluate[0]] if config.evaluate else [None, None],
        "length": ends(node.series("response_length")),
        "truncated": ends(node.series("truncated")),
        "mid_training_tokens": run.path_tokens(node.name),
        "generated_tokens": _count(node, "generated_tokens"),
        "trained_tokens": _count(node, "trained_tokens"),
        "logprob_gap_max": max(node.series("logprob_gap_max"), default=None),
    }
    return entry | {f"accuracy_{name}": pair for name, pair in by_set.items()}


def _accuracy(evaluation: dict[str, Any], when: str, name: str) -> float | None:
    return evaluation.get(when, {}).get(name, {}).get("accuracy")


def _count(node: NodeRecord, key: str) -> int:
    return int(node.done.get(key) or sum(node.series(key)))


def _train(node: NodeRecord, run: RunRecord) -> dict[str, Any]:
    config = run.train_config(node.name)
    losses, rates, done = node.series("loss"), node.series("lr"), node.done
    return {
        "state": node.state,
        "parent": node.parent,
        "hf": config.hf,
        "hf_weights_sha256": done.get("hf_weights_sha256"),
        "steps": [node.last_step, config.steps],
        "tokens": node.tokens,
        "path_tokens": run.path_tokens(node.name),
        "tokens_by_source": done.get("tokens_by_source") or {},
        "loss": [
            done.get("loss_first", losses[0] if losses else None),
            done.get("loss_last", ends(losses, 20)[1]),
        ],
        "validation_first": done.get("validation_first") or {},
        "validation": done.get("validation") or {},
        "lr": [
            done.get("lr_first", rates[0] if rates else None),
            done.get("lr_last", rates[-1] if rates else None),
        ],
        "parameters": done.get("parameters"),
    }


def _lr_continuity(run: RunRecord) -> dict[str, dict[str, Any]]:
    """For each train node that starts from a train node: parent's last and own first learning rate."""
    out: dict[str, dict[str, Any]] = {}
    for node in run.of_kind("train"):
        parent = run.nodes.get(node.parent or "")
        if parent is None or parent.kind != "train" or not (parent.metrics or parent.done):
            continue
        last, first = _train(parent, run)["lr"][1], _train(node, run)["lr"][0]
        if first is None or last is None or parent.state != DONE:
            continue
        out[node.name] = {
            "parent": parent.name,
            "parent_last": last,
            "first": first,
            "continuous": abs(first - last) <= LR_TOLERANCE * max(abs(first), abs(last)),
        }
    return out


def _tokens(run: RunRecord, rl: dict[str, dict[str, Any]]) -> dict[str, Any]:
    by_source: dict[str, int] = {}
    for node in run.of_kind("train"):
        for source, tokens in (node.done.get("tokens_by_source") or {}).items():
            by_source[source] = by_source.get(source, 0) + int(tokens)
    return {
        "mid_training": sum(node.tokens for node in run.nodes.values()),
        "generated": sum(entry["generated_tokens"] for entry in rl.values()),
        "rl_trained": sum(entry["trained_tokens"] for entry in rl.values()),
        "by_source": by_source,
        "along_path": {
            name: run.path_tokens(name) for name, node in run.nodes.items() if node.kind != "evaluate"
        },
    }


def _seconds(node: NodeRecord) -> dict[str, Any]:
    """Seconds of a node over all its restarts: total, and by phase with what no phase claims as "other"."""
    total = float(node.done.get("seconds") or sum(node.series("seconds")))
    phases = {str(k): float(v) for k, v in (node.done.get("seconds_by_phase") or {}).items()}
    if not phases:
        for key in {key for row in node.metrics for key in row if key.startswith("seconds_")}:
            phases[key.removeprefix("seconds_")] = sum(node.series(key))
    rest = total - sum(phases.values())
    if rest > 0.01 * max(total, 1.0):
        phases["other" if phases else node.kind] = rest
    return {"total": max(total, sum(phases.values())), "by_phase": dict(sorted(phases.items()))}


def _versions(run: RunRecord) -> dict[str, str]:
    found: dict[str, set[str]] = {}
    for node in run.nodes.values():
        for package, version in (node.done.get("versions") or {}).items():
            found.setdefault(str(package), set()).add(str(version))
    return {package: ", ".join(sorted(versions)) for package, versions in sorted(found.items())}


def _finite(value: Any) -> Any:
    """NaN and infinity become None: JSON knows neither."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
