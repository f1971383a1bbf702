"""Mixture files: read by themselves, and written out into the lineages whose train nodes name them.

`mixture: data/stable.yaml` in a train node is short for the file's sources among the lineage's `sources` and
their weights in the node's `mixture`; after loading nothing in the house knows that there was a file. Keys that
the node, or the lineage's own entry of a source, sets itself come first.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from octo_megatron.config.errors import UserError
from octo_megatron.config.fill import fill, first_line
from octo_megatron.config.schema import MixtureConfig, MixtureSource, SourceConfig
from octo_megatron.config.yaml_file import CONFIGS, checked_dotlist, read_yaml

_OF_THE_NODE = ("tokens", "seq_length", "packing", "when_exhausted")
_ORIGINS = ("builtin", "files", "tokenized")


def load_mixture(path: Path, overrides: list[str] | None = None) -> MixtureConfig:
    """Read a mixture file (as given, else under `configs/`) with `key=value` overrides.

    Raises:
        UserError: it is missing, does not parse, has unknown keys, wrong types or impossible values.
    """
    if not path.is_file() and (CONFIGS / path).is_file():
        path = CONFIGS / path
    try:
        raw = OmegaConf.merge(
            read_yaml(path, "mixture"), OmegaConf.from_dotlist(checked_dotlist(overrides or []))
        )
        assert isinstance(raw, DictConfig)
        if "data_root" in OmegaConf.missing_keys(raw):
            raise UserError(f"{path}: data_root is not given: add data_root=PATH (the folder of the sets)")
        OmegaConf.resolve(raw)
    except OmegaConfBaseException as error:
        raise UserError(f"{path}: {first_line(error)}") from error
    where, table = str(path), raw.pop("sources", None) or OmegaConf.create({})
    top = fill(MixtureConfig, raw, where, "", skip=("sources",))
    sources = {}
    for name in map(str, table):
        try:
            sources[name] = MixtureSource(**fill(MixtureSource, table[name], where, f"sources.{name}."))
        except UserError as error:
            raise UserError(
                str(error) if where in str(error) else f"{where}: sources.{name}: {error}"
            ) from None
    try:
        return MixtureConfig(**top, sources=sources)
    except UserError as error:
        raise UserError(f"{where}: {error}") from None


def expand_mixtures(raw: DictConfig, where: str) -> None:
    """Write the mixture files that the train nodes of a resolved lineage name out into it, in place.

    Raises:
        UserError: a file is wrong, or two of them mean different things by one name of a source.
    """
    own: dict[str, Any] = {}
    for name, entry in (raw.get("sources") or OmegaConf.create({})).items():
        own[str(name)] = OmegaConf.to_container(entry) if OmegaConf.is_config(entry) else entry
    origin: dict[str, tuple[str, dict[str, Any]]] = {}
    nodes = raw.get("nodes") or OmegaConf.create({})
    for node_name in map(str, nodes):
        node = nodes[node_name]
        file = node.get("mixture") if isinstance(node, DictConfig) and node.get("kind") == "train" else None
        if not isinstance(file, str):
            continue
        try:
            config = load_mixture(Path(file), [f"data_root={raw.data_root}"] if "data_root" in raw else [])
        except UserError as error:
            raise UserError(f"{where}: nodes.{node_name}.mixture: {error}") from None
        for name, source in config.sources.items():
            plain = _plain(source)
            other, known = origin.setdefault(name, (file, plain))
            if known != plain:
                raise UserError(
                    f"{where}: nodes.{node_name}.mixture: {file} and {other} mean different sets by '{name}'; "
                    "give one of them another name"
                )
            own.setdefault(name, {})
        for key in _OF_THE_NODE:
            node.setdefault(key, getattr(config, key))
        limits = {name: source.max_epochs for name, source in config.sources.items() if source.max_epochs}
        node.setdefault("max_epochs", limits)
        node["mixture"] = {name: source.weight for name, source in config.sources.items()}
    if origin:
        raw["sources"] = {
            name: _laid_over(origin.get(name, ("", {}))[1], entry) for name, entry in own.items()
        }


def _plain(source: MixtureSource) -> dict[str, Any]:
    """What of a source differs from the defaults, without its place in the mixture."""
    values = dataclasses.asdict(source)
    defaults = {f.name: f for f in dataclasses.fields(SourceConfig)}
    return {
        name: values[name]
        for name, f in defaults.items()
        if values[name] != (f.default_factory() if callable(f.default_factory) else f.default)
    }


def _laid_over(file: dict[str, Any], entry: dict[str, Any] | None) -> dict[str, Any]:
    """The lineage's own entry over the file's; an entry that says where the text is replaces that as well."""
    entry = entry or {}
    if any(entry.get(key) for key in _ORIGINS):
        file = {key: value for key, value in file.items() if key not in _ORIGINS}
    return {**file, **entry}
