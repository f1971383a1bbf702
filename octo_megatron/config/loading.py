"""YAML + `key=value` overrides -> LineageConfig, with errors of one line."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from octo_megatron.config.digest import digest
from octo_megatron.config.errors import UserError
from octo_megatron.config.fill import fill, first_line, nearest
from octo_megatron.config.mixture import expand_mixtures
from octo_megatron.config.schema import NODE_KINDS, LineageConfig, NodeConfig, ProblemSetConfig, SourceConfig
from octo_megatron.config.yaml_file import CONFIGS, checked_dotlist, read_yaml

__all__ = ["CONFIGS", "digest", "from_plain", "load_lineage", "to_plain"]


def load_lineage(
    path: Path, overrides: list[str] | None = None, placeholder: str | None = None
) -> LineageConfig:
    """Read a lineage file, apply `key=value` overrides, check types and names.

    `placeholder` stands for values that are to be given and are not, where nothing will be read from them.

    A file may say `base: other.yaml` (beside it): it then holds only what differs.

    Raises:
        UserError: the file is missing or does not parse, a key is unknown, a type is wrong, or values contradict.
    """
    raw = read_yaml(path, "lineage")
    try:
        merged = OmegaConf.merge(raw, OmegaConf.from_dotlist(checked_dotlist(overrides or [])))
        assert isinstance(merged, DictConfig)
        for key in OmegaConf.missing_keys(merged) if placeholder is not None else ():
            OmegaConf.update(merged, key, placeholder)
        return _build(merged, str(path))
    except OmegaConfBaseException as error:
        raise UserError(f"{path}: {first_line(error)}") from error


def to_plain(config: Any) -> dict[str, Any]:
    """A config dataclass as plain dicts, lists and numbers, ready for YAML or JSON."""
    return dataclasses.asdict(config)


def from_plain(plain: dict[str, Any]) -> LineageConfig:
    """Inverse of `to_plain` for a whole lineage."""
    return _build(OmegaConf.create(plain), "resolved config")


def _build(raw: DictConfig, where: str) -> LineageConfig:
    if "name" not in raw:
        raise UserError(f"{where}: the lineage has no name: add `name: NAME`")
    nodes = OmegaConf.create({}) if raw.get("nodes") is None else raw.nodes
    if not isinstance(nodes, DictConfig):
        raise UserError(f"{where}: `nodes` is a mapping from node names to nodes")
    missing = sorted(OmegaConf.missing_keys(raw))
    if missing:
        hint = {
            "model": " (a Hugging Face folder)",
            "data_root": " (the folder that paths of the file start from)",
        }
        key = "model" if "model" in missing else missing[0]
        raise UserError(f"{where}: {key} is not given: add {key}=PATH{hint.get(key, '')}")
    OmegaConf.resolve(raw)
    expand_mixtures(raw, where)
    fields = {key: raw._get_node(key) for key in raw if key not in ("nodes", "sources", "problems")}
    top = fill(LineageConfig, OmegaConf.create(fields), where, "", skip=("nodes", "sources", "problems"))
    if top["model"] == "???":
        raise UserError(f"{where}: model is not given: add model=PATH (a Hugging Face folder)")
    tables: dict[str, Any] = {"sources": {}, "problems": {}, "nodes": {}}
    for table, cls in (("sources", SourceConfig), ("problems", ProblemSetConfig)):
        for name in raw.get(table) or {}:
            tables[table][str(name)] = cls(**fill(cls, raw[table][name], where, f"{table}.{name}."))
    for name, node in nodes.items():
        tables["nodes"][str(name)] = _node(str(name), node, where)
    try:
        return LineageConfig(**top, **tables)
    except UserError as error:
        raise UserError(f"{where}: {error}") from None


def _node(name: str, node: Any, where: str) -> NodeConfig:
    if not isinstance(node, DictConfig) or "kind" not in node:
        raise UserError(f"{where}: nodes.{name} needs kind: {' | '.join(NODE_KINDS)}")
    kind = str(node["kind"])
    if kind not in NODE_KINDS:
        raise UserError(f"{where}: nodes.{name}.kind is '{kind}'{nearest(kind, list(NODE_KINDS))}")
    try:
        return NODE_KINDS[kind](**fill(NODE_KINDS[kind], node, where, f"nodes.{name}."))
    except UserError as error:
        raise UserError(str(error) if where in str(error) else f"{where}: nodes.{name}: {error}") from None
