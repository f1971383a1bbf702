"""`octo inspect` from the command line."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
import typer.main
from octo_command import octo

from octo_megatron.cli.main import application
from octo_megatron.config.loading import CONFIGS
from octo_megatron.config.mixture import load_mixture
from octo_megatron.data.template import TEMPLATES


def test_the_recipe_without_its_sets_says_how_to_make_each(tmp_path: Path) -> None:
    done = octo("inspect", "data/decay-long.yaml", f"data_root={tmp_path}", cwd=tmp_path)
    assert done.returncode == 2 and "megamath-web-pro" in done.stdout and "11,534,336,000" in done.stdout
    errors = done.stderr.splitlines()
    assert len(errors) == 5 and all(line.startswith("octo: error: set '") for line in errors)
    assert all("Hugging Face dataset" in line and f"--out {tmp_path}/" in line for line in errors)


def test_a_run_with_such_a_mixture_stops_before_its_first_node(tmp_path: Path) -> None:
    lineage = tmp_path / "mine.yaml"
    lineage.write_text(
        "name: mine\nmodel: model/tiny.yaml\ndata_root: /nowhere\n"
        "nodes: {stable: {kind: train, seq_length: 512, global_batch_size: 512, mixture: data/stable.yaml}}\n",
        encoding="utf-8",
    )
    done = octo("run", lineage, "--out", tmp_path / "run", cwd=tmp_path)
    assert done.returncode == 2
    line = done.stderr.strip().splitlines()[-1]
    assert "set 'megamath-web-pro-max' is missing: no tokenised set at /nowhere/" in line
    assert "OctoThinker/MegaMath-Web-Pro-Max" in line and "make it with `octo tokenize /nowhere/raw" in line


@pytest.mark.parametrize("path", sorted((CONFIGS / "data").glob("*.yaml")), ids=lambda path: path.stem)
def test_the_lines_that_make_the_recipes_sets_are_ones_that_octo_tokenize_takes(path: Path) -> None:
    tokenize = typer.main.get_command(application()).commands["tokenize"]  # type: ignore[attr-defined]
    for source in load_mixture(path, ["data_root=/sets"]).sources.values():
        octo_word, verb, *arguments = shlex.split(source.tokenize)
        assert (octo_word, verb) == ("octo", "tokenize")
        asked = tokenize.make_context("tokenize", arguments).params
        assert asked["template"] in TEMPLATES and str(asked["out"]) == source.tokenized
