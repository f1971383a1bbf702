"""What a finished checkpoint folder holds: every file with its size and sha256, and the caller's facts.

The manifest is written last, into a folder that gets its final name only afterwards: a folder without one,
or under a temporary name, was cut short and does not count.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from pathlib import Path
from typing import Any

from octo_megatron.config.errors import UserError, reading
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


def write_manifest(
    folder: Path, extra: dict[str, Any], known: dict[str, dict[str, Any]] | None = None
) -> None:
    """List every file of `folder` with its size and sha256, beside the caller's `extra` facts.

    `known`: entries of files whose writers hashed them already.
    """
    files = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name != MANIFEST:
            name = str(path.relative_to(folder))
            files[name] = (known or {}).get(name) or file_entry(path)
    with (folder / MANIFEST).open("w", encoding="utf-8") as file:
        file.write(json.dumps({"extra": extra, "files": files}, indent=1) + "\n")
        file.flush()
        os.fsync(file.fileno())


def read_extra(folder: Path) -> dict[str, Any]:
    """The caller's facts. Raises UserError when `folder` is no finished checkpoint."""
    if not folder.is_dir():
        raise UserError(f"no checkpoint at {folder}")
    if not (folder / MANIFEST).is_file():
        raise UserError(f"{folder} is no finished checkpoint: it has no {MANIFEST}")
    return dict(_read(folder)["extra"])


def verify(folder: Path, part: int = 0, parts: int = 1) -> None:
    """Raises UserError naming the first file that is missing or differs from the manifest, and in what.

    `part` of `parts`: ranks share the reading.
    """
    for name, entry in list(entries(folder).items())[part::parts]:
        verify_file(folder, name, entry)


def entries(folder: Path) -> dict[str, dict[str, Any]]:
    """File -> its size and sha256. Raises UserError when `folder` is no finished checkpoint."""
    read_extra(folder)
    return dict(_read(folder)["files"])


def _read(folder: Path) -> dict[str, Any]:
    found = read_json(folder / MANIFEST)
    whole = isinstance(found, dict) and all(isinstance(found.get(key), dict) for key in ("extra", "files"))
    if not whole or any(
        not isinstance(entry, dict) or not {"bytes", "sha256"} <= entry.keys()
        for entry in found["files"].values()
    ):
        raise UserError(f"{folder / MANIFEST} is damaged: it does not give every file's bytes and sha256")
    return found


def verify_file(folder: Path, name: str, entry: dict[str, Any]) -> None:
    """`verify` of one file."""
    verify_size(folder, name, entry)
    verify_sha256(folder, name, entry, file_entry(folder / name)["sha256"])


def verify_size(folder: Path, name: str, entry: dict[str, Any]) -> None:
    """The part of `verify_file` that reads nothing."""
    path = folder / name
    if not path.is_file():
        raise UserError(f"checkpoint {folder}: {name} is missing")
    size = path.stat().st_size
    if size != entry["bytes"]:
        raise UserError(f"checkpoint {folder}: {name} has {size} bytes, the manifest says {entry['bytes']}")


def verify_sha256(folder: Path, name: str, entry: dict[str, Any], found: str) -> None:
    """The rest of `verify_file`, for who has read the file."""
    if found != entry["sha256"]:
        raise UserError(
            f"checkpoint {folder}: {name} is damaged: its sha256 is {found[:16]}..., "
            f"the manifest says {entry['sha256'][:16]}..."
        )


def file_entry(path: Path) -> dict[str, Any]:
    """Size and sha256 of a file, as manifests have them. Raises UserError when it cannot be read."""
    with reading(path), path.open("rb") as file:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}
