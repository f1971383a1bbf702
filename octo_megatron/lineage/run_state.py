"""The run folder as a promise: it belongs to one resolved lineage, and says so before anything is computed.

RUN/lineage.yaml            the resolved lineage (loads like any lineage file)
RUN/digests.json            digests of nodes, sources and problem sets, see `digests`
RUN/nodes/<node>/config.yaml
RUN/.deleted-*              what `--start-over` is deleting; moved there first, so that no half result is left
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from octo_megatron.config.errors import UserError
from octo_megatron.config.loading import load_lineage, to_plain
from octo_megatron.config.run_folder import RunFolder, read_json, write_json, write_text
from octo_megatron.config.schema import LineageConfig
from octo_megatron.lineage.digests import Digests, differing_keys, digests_of
from octo_megatron.lineage.extension import (
    changed_budgets,
    has_results,
    refusal,
    reopen,
    with_budgets_before,
)
from octo_megatron.lineage.graph import descendants

_MODEL = "model.json"
_OURS = {
    "lock",
    "prepare.lock",
    "lineage.yaml",
    "model.json",
    "nodes",
    "data",
    "problems",
    "tokenizer",
    "hf_config.json",
    "slurm",
    "preflight",
}


def load_run(root: Path) -> tuple[RunFolder, LineageConfig]:
    """An existing run folder and its resolved lineage.

    Raises:
        UserError: it is no run folder.
    """
    run = RunFolder(root)
    if not run.lineage_file.is_file():
        raise UserError(
            f"{root} is no run folder: it has no lineage.yaml (`octo run LINEAGE.yaml --out {root}` makes "
            "one)"
        )
    return run, load_lineage(run.lineage_file)


def check_folder(root: Path) -> None:
    """Refuse a folder that is somebody else's, before a single file is written there."""
    if root.exists() and not root.is_dir():
        raise UserError(f"{root} is a file; choose another run folder with --out")
    if root.is_dir() and not (root / "lineage.yaml").exists():
        foreign = sorted(p.name for p in root.iterdir() if p.name not in _OURS and not p.name.startswith("."))
        if foreign:
            raise UserError(
                f"{root} holds other things ({foreign[0]}) and no run; choose another folder with --out"
            )


def prepare_folder(
    run: RunFolder,
    lineage: LineageConfig,
    hf_config: dict[str, Any],
    start_over: bool,
    say: Callable[[str], None],
) -> None:
    """Write the resolved lineage, or refuse a folder that was made by another one.

    With `start_over`, deletes what the changes make invalid: changed nodes with their descendants, changed
    sources and problem sets, nodes that the lineage no longer has. `say` gets one line for each before it goes.

    Raises:
        UserError: the folder is another lineage's and `start_over` is not given.
    """
    for left in run.root.glob(".deleted-*"):
        shutil.rmtree(left) if left.is_dir() else left.unlink()
    digests = digests_of(lineage, hf_config)
    if run.lineage_file.is_file():
        _reconcile(run, lineage, hf_config, digests, start_over, say)
    for name, node in lineage.nodes.items():
        config = {
            "digest": digests.nodes[name],
            **to_plain(node),
            "parallel": to_plain(lineage.layout_of(name)),
        }
        _write_yaml(run.node(name).config, config)
    write_json(run.root / _MODEL, hf_config)
    _write_yaml(run.lineage_file, to_plain(lineage), f"# resolved lineage, digest {digests.lineage}\n")


def _reconcile(
    run: RunFolder,
    lineage: LineageConfig,
    hf_config: dict[str, Any],
    digests: Digests,
    start_over: bool,
    say: Callable[[str], None],
) -> None:
    # Digests are computed anew from what the folder was made of: another release of this package may form them
    # in another way, and that alone must not refuse a folder.
    old_lineage = load_lineage(run.lineage_file)
    old = digests_of(old_lineage, read_json(run.root / _MODEL))
    budgets = changed_budgets(old_lineage, lineage)
    grown = {name: (before, now) for name, (before, now) in budgets.items() if now > before}
    nodes = _changed(old.nodes, digests_of(with_budgets_before(lineage, budgets), hf_config).nodes)
    # a shorter budget: what lies beyond it cannot be taken back
    nodes |= {name for name in budgets.keys() - grown.keys() if has_results(run.node(name))}
    late = {name for name in _changed(old.nodes, digests.nodes) - nodes if has_results(run.node(name))}
    sources, problems = _changed(old.sources, digests.sources), _changed(old.problems, digests.problems)
    if not (nodes or sources or problems or late):
        for line in reopen(run, grown):
            say(line)
        return
    if late and not (nodes or sources or problems or start_over):
        raise UserError(f"{run.root}: {refusal(lineage, grown, late)}")
    keys = differing_keys(old_lineage, lineage) or ["the content of the model's config"]
    if not start_over:
        shown = ", ".join(keys[:6]) + (f" and {len(keys) - 6} more" if len(keys) > 6 else "")
        raise UserError(
            f"{run.root} was made by another lineage: {shown} {'differs' if len(keys) == 1 else 'differ'}; "
            "choose another "
            "folder with --out, or give --start-over to delete the results that this changes"
        )
    gone = descendants(lineage, (nodes | late) & set(lineage.nodes)) | nodes
    doomed = [run.node(name).root for name in sorted(gone)]
    doomed += [run.source(name) for name in sorted(sources)] + [
        run.problems(name) for name in sorted(problems)
    ]
    if old.model != digests.model:
        doomed += [run.tokenizer, run.hf_config]
    for path in doomed:
        if path.exists():
            say(f"start over: deleting {path}")
            _delete(run.root, path)
    for line in reopen(run, {name: steps for name, steps in grown.items() if name not in gone}):
        say(line)


def _changed(old: dict[str, str], new: dict[str, str]) -> set[str]:
    """Names in `old` whose digest is another or gone."""
    return {name for name, value in old.items() if new.get(name) != value}


def _delete(root: Path, path: Path) -> None:
    grave = root / f".deleted-{path.parent.name}-{path.name}"
    path.rename(grave)
    shutil.rmtree(grave) if grave.is_dir() else grave.unlink()


def _write_yaml(path: Path, value: object, header: str = "") -> None:
    text = header + yaml.safe_dump(value, sort_keys=False, allow_unicode=True, width=120)
    if not path.is_file() or path.read_text(encoding="utf-8") != text:
        write_text(path, text)
