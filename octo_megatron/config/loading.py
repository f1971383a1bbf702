"""YAML + `key=value` overrides -> LineageConfig, with errors of one line."""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import json
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from octo_megatron.config.errors import UserError
from octo_megatron.config.schema import NODE_KINDS, LineageConfig, NodeConfig, ProblemSetConfig, SourceConfig

_PACKAGED = Path(__file__).resolve().parent.parent / "configs"
CONFIGS = _PACKAGED if _PACKAGED.is_dir() else Path(__file__).resolve().parents[2] / "configs"
"""The `configs/` folder: inside an installed wheel, or at the top of a checkout."""


def load_lineage(path: Path, overrides: list[str] | None = None) -> LineageConfig:
    """Read a lineage file, apply `key=value` overrides, check types and names.

    A file may say `base: other.yaml` (beside it): it then holds only what differs.

    Raises:
        UserError: the file is missing or does not parse, a key is unknown, a type is wrong, or values contradict.
    """
    raw = _read(path)
    try:
        merged = OmegaConf.merge(raw, OmegaConf.from_dotlist(_checked_dotlist(overrides or [])))
        assert isinstance(merged, DictConfig)
        return _build(merged, str(path))
    except OmegaConfBaseException as error:
        raise UserError(f"{path}: {_first_line(error)}") from error


def to_plain(config: Any) -> dict[str, Any]:
    """A config dataclass as plain dicts, lists and numbers, ready for YAML or JSON."""
    return dataclasses.asdict(config)


def from_plain(plain: dict[str, Any]) -> LineageConfig:
    """Inverse of `to_plain` for a whole lineage."""
    return _build(OmegaConf.create(plain), "resolved config")


def digest(plain: Any) -> str:
    """sha256 of the canonical JSON of plain data, first 16 hexadecimal digits."""
    text = json.dumps(plain, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _read(path: Path) -> DictConfig:
    if not path.is_file():
        known = sorted(p.stem for p in (CONFIGS / "lineage").glob("*.yaml"))
        raise UserError(
            f"no lineage file at {path}; the ones that come along: {', '.join(known)} in {CONFIGS}/lineage"
        )
    try:
        config = OmegaConf.create(yaml.safe_load(path.read_text(encoding="utf-8")) or {})
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}:{mark.line + 1}:{mark.column + 1}" if mark else str(path)
        raise UserError(
            f"{where}: not valid YAML: {getattr(error, 'problem', None) or _first_line(error)}"
        ) from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start})") from error
    if not isinstance(config, DictConfig):
        raise UserError(
            f"{path}: a lineage file is a mapping of keys, this one holds a list or a single value"
        )
    base = config.pop("base", None)
    if base is not None:
        merged = OmegaConf.merge(_read(path.parent / str(base)), config)
        assert isinstance(merged, DictConfig)
        return merged
    return config


def _checked_dotlist(overrides: list[str]) -> list[str]:
    for item in overrides:
        key, sign, _ = item.partition("=")
        if not sign or not key.strip():
            raise UserError(
                f"override '{item}' is not of the form key=value, for example nodes.stable.tokens=100000"
            )
    return overrides


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
    fields = {key: raw._get_node(key) for key in raw if key not in ("nodes", "sources", "problems")}
    top = _fill(LineageConfig, OmegaConf.create(fields), where, "", skip=("nodes", "sources", "problems"))
    if top["model"] == "???":
        raise UserError(f"{where}: model is not given: add model=PATH (a Hugging Face folder)")
    tables: dict[str, Any] = {"sources": {}, "problems": {}, "nodes": {}}
    for table, cls in (("sources", SourceConfig), ("problems", ProblemSetConfig)):
        for name in raw.get(table) or {}:
            tables[table][str(name)] = cls(**_fill(cls, raw[table][name], where, f"{table}.{name}."))
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
        raise UserError(f"{where}: nodes.{name}.kind is '{kind}'{_nearest(kind, list(NODE_KINDS))}")
    try:
        return NODE_KINDS[kind](**_fill(NODE_KINDS[kind], node, where, f"nodes.{name}."))
    except UserError as error:
        raise UserError(str(error) if where in str(error) else f"{where}: nodes.{name}: {error}") from None


def _fill(cls: type, node: Any, where: str, prefix: str, skip: tuple[str, ...] = ()) -> dict[str, Any]:
    """The fields of dataclass `cls` from `node`, types checked by OmegaConf, as keyword arguments."""
    if not isinstance(node, DictConfig):
        raise UserError(f"{where}: {prefix.rstrip('.')} is a mapping of keys")
    known = [f.name for f in dataclasses.fields(cls) if f.name not in skip]
    for name in map(str, node):
        if name not in known:
            raise UserError(f"{where}: unknown key '{prefix}{name}'{_nearest(name, known)}")
    out: dict[str, Any] = {}
    structured = OmegaConf.structured(cls)
    OmegaConf.set_readonly(structured, False)
    for key in map(str, node):
        try:
            part = OmegaConf.merge(structured, OmegaConf.create({key: node._get_node(key)}))
            out[key] = _unwrap(part, key)
        except UserError as error:
            raise UserError(f"{where}: {prefix}{key}: {error}") from None
        except OmegaConfBaseException as error:
            raise UserError(f"{where}: {prefix}{_at(error, key)}: {_explain(error, cls, prefix)}") from None
    for f in dataclasses.fields(cls):
        if f.name in known and f.name not in out:
            if f.default is not dataclasses.MISSING:
                out[f.name] = f.default
            elif f.default_factory is not dataclasses.MISSING:
                out[f.name] = f.default_factory()
    return out


def _unwrap(part: Any, key: str) -> Any:
    child = part._get_node(key)
    if isinstance(child, DictConfig) and child._metadata.object_type not in (dict, None):
        return OmegaConf.to_object(child)
    return OmegaConf.to_container(child, resolve=True) if OmegaConf.is_config(child) else part[key]


def _at(error: OmegaConfBaseException, key: str) -> str:
    return str(getattr(error, "full_key", None) or key)


def _explain(error: OmegaConfBaseException, cls: type, prefix: str) -> str:
    text = _first_line(error)
    if "not in" in text:
        owner = getattr(error, "object_type", None)
        names = [f.name for f in dataclasses.fields(owner)] if dataclasses.is_dataclass(owner) else []
        return "unknown key" + _nearest(str(getattr(error, "key", "")), names)
    return text


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _nearest(word: str, known: list[str]) -> str:
    close = difflib.get_close_matches(word, known, 1, 0.5)
    return f"; did you mean '{close[0]}'?" if close else f"; known: {', '.join(known)}"
