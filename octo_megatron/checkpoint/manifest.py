"""What a finished checkpoint folder holds: every file with its size and sha256, and the caller's facts.

The manifest is written last, into a folder that gets its final name only afterwards: a folder without one,
or under a temporary name, was cut short and does not count.
"""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

from octo_megatron.config.errors import UserError
from octo_megatron.config.run_folder import read_json

MANIFEST = "octo_manifest.json"
_STEP = re.compile(r"step_(\d{8})")


def step_folder(checkpoints: Path, step: int) -> Path:
    """Folder of the checkpoint after `step` optimizer steps."""
    return checkpoints / f"step_{step:08d}"


def finished(checkpoints: Path) -> list[Path]:
    """Checkpoints under their final names, oldest first."""
    if not checkpoints.is_dir():
        return []
    return sorted(p for p in checkpoints.iterdir() if _STEP.fullmatch(p.name) and (p / MANIFEST).is_file())


def latest(checkpoints: Path) -> Path | None:
    """The newest finished checkpoint, None where there is none."""
    found = finished(checkpoints)
    return found[-1] if found else None


def write_manifest(folder: Path, extra: dict[str, Any]) -> None:
    """List every file of `folder` with its size and sha256, beside the caller's `extra` facts."""
    files = {
        str(path.relative_to(folder)): {"bytes": path.stat().st_size, "sha256": _sha256(path)}
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != MANIFEST
    }
    (folder / MANIFEST).write_text(json.dumps({"extra": extra, "files": files}, indent=1) + "\n")


def read_extra(folder: Path) -> dict[str, Any]:
    """The caller's facts. Raises UserError when `folder` is no finished checkpoint."""
    if not folder.is_dir():
        raise UserError(f"no checkpoint at {folder}")
    if not (folder / MANIFEST).is_file():
        raise UserError(f"{folder} is no finished checkpoint: it has no {MANIFEST}")
    return dict(read_json(folder / MANIFEST)["extra"])


def verify(folder: Path) -> None:
    """Raises UserError naming the first file that is missing or differs from the manifest."""
    read_extra(folder)
    for name, entry in read_json(folder / MANIFEST)["files"].items():
        path = folder / name
        if not path.is_file():
            raise UserError(
                f"checkpoint {folder}: {name} is missing; delete this folder to fall back to an older one"
            )
        size = path.stat().st_size
        if size != entry["bytes"]:
            raise UserError(
                f"checkpoint {folder}: {name} has {size} bytes, the manifest says {entry['bytes']}; "
                "delete this folder to fall back to an older one"
            )
        if _sha256(path) != entry["sha256"]:
            raise UserError(
                f"checkpoint {folder}: {name} is damaged (sha256 differs from the manifest's); "
                "delete this folder to fall back to an older one"
            )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
