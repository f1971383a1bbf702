"""The arrows of the house: which room may import which, that no circle comes about, and where heavy engines are."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import octo_megatron

PACKAGE = Path(octo_megatron.__file__).parent

ROOMS = {
    "config": set(),
    "parallel": {"config"},
    "data": {"config"},
    "grade": {"config"},
    "report": {"config"},
    "cluster": {"config"},
    "model": {"parallel", "config"},
    "checkpoint": {"model", "parallel", "config"},
    "engine": {"model", "checkpoint", "data", "parallel", "config"},
    "train": {"checkpoint", "model", "data", "parallel", "config"},
    "convert": {"checkpoint", "model", "data", "parallel", "config"},
    "evaluate": {"engine", "grade", "checkpoint", "model", "data", "parallel", "config"},
    "rl": {"train", "evaluate", "engine", "grade", "checkpoint", "model", "data", "parallel", "config"},
    "lineage": {"rl", "train", "evaluate", "convert", "data", "parallel", "config"},
    "cli": {"lineage", "report", "cluster", "data", "config"},
}
"""Room -> rooms it may import, after the section "The house" of the design."""

LIGHT = ("cli", "lineage", "report", "cluster", "config")
"""Rooms that start fast: they may not import a heavy engine, whatever the arrows say."""
HEAVY = ("torch", "vllm", "megatron", "transformers", "tokenizers")
WITH_TORCH = ("lineage/rendezvous.py", "cluster/preflight_probe.py")
"""Files of light rooms with torch in them; loaded by name, where a launcher started ranks or a device is measured."""


def _imports(path: Path) -> Iterator[str]:
    """Full names of everything the file imports, also inside functions."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _modules() -> Iterator[tuple[Path, str]]:
    for path in sorted(PACKAGE.rglob("*.py")):
        if len(path.relative_to(PACKAGE).parts) > 1:
            yield path, path.relative_to(PACKAGE).parts[0]


def test_every_folder_is_a_known_room() -> None:
    assert {room for _, room in _modules()} == set(ROOMS)


def test_imports_go_down_only() -> None:
    wrong = []
    for path, room in _modules():
        for name in _imports(path):
            other = (*name.split("."), "")[1] if name.startswith("octo_megatron.") else room
            if other in ROOMS and other != room and other not in ROOMS[room]:
                wrong.append(f"{path.relative_to(PACKAGE)} imports {name}; {room} may import {ROOMS[room]}")
    assert not wrong, "\n".join(wrong)


def test_the_declared_arrows_have_no_circle() -> None:
    order: list[str] = []
    while len(order) < len(ROOMS):
        free = [room for room in ROOMS if room not in order and ROOMS[room] <= set(order)]
        assert free, f"a circle among {set(ROOMS) - set(order)}"
        order += free


def test_modules_have_no_circle() -> None:
    """Also within a room: a module is importable before those that import it."""
    names = {}
    for path in PACKAGE.rglob("*.py"):
        module = ".".join(("octo_megatron", *path.relative_to(PACKAGE).with_suffix("").parts))
        names[module.removesuffix(".__init__")] = path
    edges = {
        module: {_resolve(name, names) for name in _imports(path)} - {module, "octo_megatron", ""}
        for module, path in names.items()
    }
    done: set[str] = set()
    while len(done) < len(edges):
        free = {module for module, needs in edges.items() if module not in done and needs <= done}
        assert free, f"a circle among {sorted(set(edges) - done)}"
        done |= free


def _resolve(name: str, names: dict[str, Path]) -> str:
    while name and name not in names:
        name = name.rpartition(".")[0]
    return name


def test_light_rooms_import_no_engine() -> None:
    wrong = []
    for path, room in _modules():
        if room in LIGHT and path.relative_to(PACKAGE).as_posix() not in WITH_TORCH:
            wrong += [f"{path.name}: {name}" for name in _imports(path) if name.split(".")[0] in HEAVY]
    assert not wrong, wrong


def test_vllm_is_imported_in_the_engine_room_alone() -> None:
    users = {room for path, room in _modules() if any(n.split(".")[0] == "vllm" for n in _imports(path))}
    assert users <= {"engine"}
