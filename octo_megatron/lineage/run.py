"""`octo run` from a file to a finished run folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from octo_megatron.config.errors import UserError
from octo_megatron.config.loading import CONFIGS, load_lineage
from octo_megatron.config.model import read_hf_config
from octo_megatron.config.run_folder import RunFolder
from octo_megatron.config.schema import LineageConfig
from octo_megatron.lineage.display import Display
from octo_megatron.lineage.graph import check_graph
from octo_megatron.lineage.layouts import check_layouts
from octo_megatron.lineage.lock import FolderLock
from octo_megatron.lineage.run_state import check_folder, prepare_folder
from octo_megatron.lineage.runner import Runner, check_ready


@dataclass(frozen=True)
class Plan:
    """A lineage that passed every check that needs no process."""

    lineage: LineageConfig
    hf_config: dict[str, Any]
    run: RunFolder


def make_plan(file: Path, overrides: list[str], out: Path | None) -> Plan:
    """Read and check a lineage.

    Args:
        file: a lineage file, or the name of one in `configs/lineage/`.
        overrides: `key=value` items.
        out: run folder; None: `runs/<name>`.

    Raises:
        UserError: anything that is wrong with the file, the graph, the model or a layout.
    """
    if not file.exists() and (CONFIGS / "lineage" / file.name).is_file():
        file = CONFIGS / "lineage" / file.name
    lineage = load_lineage(file, overrides)
    try:
        check_graph(lineage)
        hf_config = read_hf_config(lineage.model)
        check_layouts(lineage, hf_config)
    except UserError as error:
        raise UserError(f"{file}: {error}") from None
    return Plan(lineage, hf_config, RunFolder(out or Path("runs") / lineage.name))


def execute(plan: Plan, display: Display, start_over: bool = False, stage: str | None = None) -> None:
    """Run what is missing, or only `stage`, with processes of this machine.

    Stages given by name share the run folder with each other, each with a lock of its own.

    Raises:
        UserError, StageFailed: see `Runner.run`.
    """
    if stage is not None and start_over:
        raise UserError(
            "--start-over and --stage do not go together: other stages may be running; start over with "
            "`octo run`"
        )
    check_folder(plan.run.root)
    if stage is None:
        _execute_all(plan, display, start_over)
    else:
        _execute_stage(plan, display, stage)


def _execute_all(plan: Plan, display: Display, start_over: bool) -> None:
    with FolderLock(plan.run.root / "lock", "octo run") as lock:
        prepare_folder(plan.run, plan.lineage, plan.hf_config, start_over, display.say)
        missing = [name for name in plan.lineage.nodes if not plan.run.node(name).is_done()]
        display.say(
            f"lineage {plan.lineage.name}: {len(plan.lineage.nodes)} nodes, {len(missing)} to do; run "
            f"folder {plan.run.root}"
        )
        if missing:
            runner = Runner(plan.run, plan.lineage, display, (lock.descriptor,))
            runner.prepare_data()
            runner.run_nodes(missing)


def _execute_stage(plan: Plan, display: Display, stage: str) -> None:
    root, purpose = plan.run.root, f"octo run --stage {stage}"
    with FolderLock(root / "lock", purpose, shared=True) as lock:
        prepare_stage(plan, display, stage, (lock.descriptor,))
        with FolderLock(plan.run.node(stage).root / "lock", purpose) as node_lock:
            Runner(plan.run, plan.lineage, display, (lock.descriptor, node_lock.descriptor)).run_nodes(
                [stage]
            )


def prepare_data_only(plan: Plan, display: Display) -> None:
    """Make the run folder and the data of a lineage, and nothing else; stages that wait for it go on then."""
    check_folder(plan.run.root)
    purpose = "octo run --data-only"
    with FolderLock(plan.run.root / "lock", purpose, shared=True) as lock:
        prepare_stage(plan, display, None, (lock.descriptor,))


def prepare_stage(plan: Plan, display: Display, stage: str | None, locks: tuple[int, ...]) -> None:
    """Make the run folder and the data for a stage that runs by itself; other stages wait meanwhile.

    Args:
        stage: None: whatever stage comes later.

    Raises:
        UserError: the folder is another lineage's, the stage cannot run yet, or its data cannot be read.
        StageFailed: the preparation of the data crashed.
    """
    purpose = f"octo run --stage {stage}" if stage else "octo run --data-only"
    with FolderLock(plan.run.root / "prepare.lock", purpose, wait_seconds=plan.lineage.deadline_seconds):
        prepare_folder(plan.run, plan.lineage, plan.hf_config, False, display.say)
        if stage:
            check_ready(plan.run, plan.lineage, stage)
        Runner(plan.run, plan.lineage, display, locks).prepare_data()
