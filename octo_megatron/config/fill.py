"""Plain YAML values -> keyword arguments of a config dataclass, with errors that name the key and the nearest one."""

from __future__ import annotations

import dataclasses
import difflib
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from octo_megatron.config.errors import UserError


def fill(cls: type, node: Any, where: str, prefix: str, skip: tuple[str, ...] = ()) -> dict[str, Any]:
    """The fields of dataclass `cls` from `node`, types checked by OmegaConf, as keyword arguments."""
    if not isinstance(node, DictConfig):
        raise UserError(f"{where}: {prefix.rstrip('.')} is a mapping of keys")
    known = [f.name for f in dataclasses.fields(cls) if f.name not in skip]
    for name in map(str, node):
        if name not in known:
            raise UserError(f"{where}: unknown key '{prefix}{name}'{nearest(name, known)}")
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
    # also the dataclasses within a list or a mapping
    return OmegaConf.to_object(child) if OmegaConf.is_config(child) else part[key]


def _at(error: OmegaConfBaseException, key: str) -> str:
    return str(getattr(error, "full_key", None) or key)


def _explain(error: OmegaConfBaseException, cls: type, prefix: str) -> str:
    text = first_line(error)
    if "not in" in text:
        owner = getattr(error, "object_type", None)
        names = [f.name for f in dataclasses.fields(owner)] if dataclasses.is_dataclass(owner) else []
        return "unknown key" + nearest(str(getattr(error, "key", "")), names)
    return text


def first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def nearest(word: str, known: list[str]) -> str:
    close = difflib.get_close_matches(word, known, 1, 0.5)
    return f"; did you mean '{close[0]}'?" if close else f"; known: {', '.join(known)}"
