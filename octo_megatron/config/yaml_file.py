"""YAML files of the house: where those that come along are, and reading one with errors of one line."""

from __future__ import annotations

from pathlib import Path

import yaml
from omegaconf import DictConfig, OmegaConf

from octo_megatron.config.errors import UserError
from octo_megatron.config.fill import first_line

_PACKAGED = Path(__file__).resolve().parent.parent / "configs"
CONFIGS = _PACKAGED if _PACKAGED.is_dir() else Path(__file__).resolve().parents[2] / "configs"
"""The `configs/` folder: inside an installed wheel, or at the top of a checkout."""
_FOLDERS = {"lineage": "lineage", "mixture": "data"}


def read_yaml(path: Path, kind: str) -> DictConfig:
    """One YAML mapping; `base: other.yaml` (beside it) is read first and this file's keys laid over it.

    Args:
        kind: what the file is (`lineage`), for errors; files of `configs/<kind>/` are named when it is missing.

    Raises:
        UserError: the file is missing, is no UTF-8, does not parse or holds no mapping.
    """
    if not path.is_file():
        known = sorted(p.stem for p in (CONFIGS / _FOLDERS[kind]).glob("*.yaml"))
        raise UserError(
            f"no {kind} file at {path}; the ones that come along: {', '.join(known)} in "
            f"{CONFIGS}/{_FOLDERS[kind]}"
        )
    try:
        config = OmegaConf.create(yaml.safe_load(path.read_text(encoding="utf-8")) or {})
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}:{mark.line + 1}:{mark.column + 1}" if mark else str(path)
        raise UserError(
            f"{where}: not valid YAML: {getattr(error, 'problem', None) or first_line(error)}"
        ) from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start})") from error
    if not isinstance(config, DictConfig):
        raise UserError(
            f"{path}: a {kind} file is a mapping of keys, this one holds a list or a single value"
        )
    base = config.pop("base", None)
    if base is not None:
        merged = OmegaConf.merge(read_yaml(path.parent / str(base), kind), config)
        assert isinstance(merged, DictConfig)
        return merged
    return config


def checked_dotlist(overrides: list[str]) -> list[str]:
    """`overrides` as they are; raises UserError for one that is not key=value."""
    for item in overrides:
        key, sign, _ = item.partition("=")
        if not sign or not key.strip():
            raise UserError(
                f"override '{item}' is not of the form key=value, for example nodes.stable.tokens=100000"
            )
    return overrides
