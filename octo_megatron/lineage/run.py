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
from octo_megatron.lineage.stopping import Asked

_NOT_GIVEN = "(not given)"

_SHAPE = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
          "vocab_size")  # fmt: skip
"""Fields that tell models of a family apart."""


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
    file = _found(file)
    lineage = load_lineage(file, overrides)
    try:
        check_graph(lineage)
        hf_config = read_hf_config(lineage.model)
        _check_shape(lineage, hf_config)
        check_layouts(lineage, hf_config)
    except UserError as error:
        raise UserError(f"{file}: {error}") from None
    return Plan(lineage, hf_config, RunFolder(out or Path("runs") / lineage.name))


@dataclass(frozen=True)
class Draft:
    """A lineage whose data and weights need not be there yet."""

    lineage: LineageConfig
    hf_config: dict[str, Any]


def read_draft(file: Path, overrides: list[str]) -> Draft:
    """Read a lineage to plan with: paths may be missing, and so may the model if `model_shape` describes it.

    Raises:
        UserError: anything that is wrong with the file, the graph or the description of the model.
    """
    file = _found(file)
    lineage = load_lineage(file, overrides, placeholder=_NOT_GIVEN)
    try:
        check_graph(lineage)
        described = lineage.model_shape if lineage.model == _NOT_GIVEN else None
        if lineage.model == _NOT_GIVEN and described is None:
            raise UserError(
                "model is not given: add model=PATH (a Hugging Face folder, or a YAML file under configs/)"
            )
        return Draft(lineage, read_hf_config(described or lineage.model))
    except UserError as error:
        raise UserError(f"{file}: {error}") from None


def _found(file: Path) -> Path:
    """A file as named, else the one of that name that comes along."""
    packaged = CONFIGS / "lineage" / file.name
    return packaged if not file.exists() and packaged.is_file() else file


def _check_shape(lineage: LineageConfig, hf_config: dict[str, Any]) -> None:
    """The recipe's numbers belong to one model: refuse another."""
    if lineage.model_shape is None:
        return
    wanted = read_hf_config(lineage.model_shape)
    for key in _SHAPE:
        if key in wanted and hf_config.get(key, wanted[key]) != wanted[key]:
            raise UserError(
                f"model {lineage.model} has {key} {hf_config[key]}, but this lineage is for {lineage.model_shape} with "
                f"{wanted[key]}; give the model that it is for, or model_shape=null"
            )


def execute(
    plan: Plan,
    display: Display,
    start_over: bool = False,
    stage: str | None = None,
    asked: Asked | None = None,
) -> None:
    """Run what is missing, or only `stage`, with processes of this machine; `asked`: a wish to stop.

    Stages given by name share the run folder with each other, each with a lock of its own.

    Raises:
        UserError, StageFailed, Stopped: see `Runner.run_nodes`.
    """
    if stage is not None and start_over:
        raise UserError(
            "--start-over and --stage do not go together: other stages may be running; start over with "
            "`octo run`"
        )
    check_folder(plan.run.root)
    if stage is None:
        _execute_all(plan, display, start_over, asked)
    else:
        _execute_stage(plan, display, stage, asked)


def _execute_all(plan: Plan, display: Display, start_over: bool, asked: Asked | None) -> None:
    with FolderLock(plan.run.root / "lock", "octo run") as lock:
        prepare_folder(plan.run, plan.lineage, plan.hf_config, start_over, display.say)
        missing = [name for name in plan.lineage.nodes if not plan.run.node(name).is_done()]
        display.say(
            f"lineage {plan.lineage.name}: {len(plan.lineage.nodes)} nodes, {len(missing)} to do; run "
            f"folder {plan.run.root}"
        )
        if missing:
            runner = Runner(plan.run, plan.lineage, display, (lock.descriptor,), asked)
            runner.prepare_data()
            runner.run_nodes(missing)


def _execute_stage(plan: Plan, display: Display, stage: str, asked: Asked | None) -> None:
    root, purpose = plan.run.root, f"octo run --stage {stage}"
    with FolderLock(root / "lock", purpose, shared=True) as lock:
        prepare_stage(plan, display, stage, (lock.descriptor,))
        with FolderLock(plan.run.node(stage).root / "lock", purpose) as node_lock:
            locks = (lock.descriptor, node_lock.descriptor)
            Runner(plan.run, plan.lineage, display, locks, asked).run_nodes([stage])


def profile_stage(plan: Plan, display: Display, stage: str, steps: int, asked: Asked | None = None) -> Path:
    """Record a few steps of train node `stage`; what the node has so far stays as it is.

    Returns:
        The folder with traces and a summary.

    Raises:
        UserError: it is no train node, cannot run yet, or is running now.
        StageFailed, Stopped: see `Runner.run_nodes`.
    """
    node = plan.lineage.nodes.get(stage)
    if node is not None and node.kind != "train":
        raise UserError(
            f"--stage {stage}: `octo profile` records train nodes; this one is of kind {node.kind}"
        )
    check_folder(plan.run.root)
    root, purpose = plan.run.root, f"octo profile --stage {stage}"
    with FolderLock(root / "lock", purpose, shared=True) as lock:
        prepare_stage(plan, display, stage, (lock.descriptor,))
        with FolderLock(plan.run.node(stage).root / "lock", purpose) as node_lock:
            locks = (lock.descriptor, node_lock.descriptor)
            return Runner(plan.run, plan.lineage, display, locks, asked).profile(stage, steps)


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
