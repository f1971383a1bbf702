"""What a lineage file may say, and the one line that answers everything else."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from octo_megatron.config.errors import UserError
from octo_megatron.config.loading import CONFIGS, from_plain, load_lineage, to_plain
from octo_megatron.config.schema import TrainNode

_FILE = """
name: small
model: model/tiny.yaml
sources:
  web: {builtin: web, tokens: 1000}
problems:
  rl: {builtin: rl, count: 8}
nodes:
  base: {kind: train, tokens: 1024, mixture: {web: 1.0}, schedule: {lr: 2.0e-3}}
  rl: {kind: rl, parent: base}
"""


def _write(folder: Path, text: str, name: str = "lineage.yaml") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def _refusal(path: Path, *overrides: str) -> str:
    with pytest.raises(UserError) as caught:
        load_lineage(path, list(overrides))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_values_defaults_and_overrides(tmp_path: Path) -> None:
    lineage = load_lineage(_write(tmp_path, _FILE), ["nodes.base.schedule.lr=1e-4", "seed=7"])
    base = lineage.nodes["base"]
    assert isinstance(base, TrainNode)
    assert (base.schedule.lr, base.steps, lineage.seed) == (1e-4, 2, 7)
    assert from_plain(to_plain(lineage)) == lineage


def test_a_base_file_is_changed_in_the_places_named(tmp_path: Path) -> None:
    path = _write(tmp_path, _FILE)
    child = _write(tmp_path, f"base: {path.name}\nnodes: {{base: {{tokens: 2048}}}}\n", "child.yaml")
    base = load_lineage(child).nodes["base"]
    assert isinstance(base, TrainNode)
    assert (base.tokens, base.schedule.lr) == (2048, 2e-3)


@pytest.mark.parametrize("path", sorted((CONFIGS / "lineage").glob("*.yaml")), ids=lambda path: path.stem)
def test_the_files_that_come_along_load(path: Path) -> None:
    """Files that need a model folder and data say so and load once they are given."""
    try:
        lineage = load_lineage(path)
    except UserError as error:
        assert "model is not given" in str(error)
        lineage = load_lineage(path, ["model=somewhere", "data_root=elsewhere"])
    assert lineage.nodes


@pytest.mark.parametrize(
    ("find", "replace", "message"),
    [
        ("nodes:", "nodes: [", r"lineage.yaml:\d+:\d+: not valid YAML: "),
        ("name: small", "", "the lineage has no name"),
        ("name: small", "nmae: small\nname: small", "unknown key 'nmae'; did you mean 'name'?"),
        ("tokens: 1024", "tokns: 1024", "unknown key 'nodes.base.tokns'; did you mean 'tokens'?"),
        ("{lr: 2.0e-3}", "{lrr: 2.0e-3}", "nodes.base.schedule.lrr: unknown key; did you mean 'lr'?"),
        (
            "tokens: 1024",
            "tokens: many",
            "nodes.base.tokens: Value 'many' of type 'str' could not be converted to Integer",
        ),
        ("kind: train", "kind: trian", "nodes.base.kind is 'trian'; did you mean 'train'?"),
        ("kind: train, ", "", "nodes.base needs kind: import | train | rl | evaluate | export"),
        ("tokens: 1024", "tokens: 100", "nodes.base: tokens 100 is less than one step"),
        ("{web: 1.0}", "{web: 0.7}", "the shares of a mixture sum to 1; these sum to 0.7"),
        (
            "builtin: web",
            "builtin: web, files: [a]",
            "a source names one of builtin: PART, files: [...] and tokenized: FOLDER",
        ),
        ("model: model/tiny.yaml", "", "model is not given: add model=PATH"),
    ],
)
def test_a_wrong_file_is_answered_in_one_line(tmp_path: Path, find: str, replace: str, message: str) -> None:
    assert find in _FILE
    text = _refusal(_write(tmp_path, _FILE.replace(find, replace, 1)))
    pattern = message if message.startswith("lineage.yaml") else re.escape(message)
    assert re.search(pattern, text), text


def test_a_wrong_override_is_answered_in_one_line(tmp_path: Path) -> None:
    path = _write(tmp_path, _FILE)
    assert "override 'seed' is not of the form key=value" in _refusal(path, "seed")
    assert "unknown key 'sede'; did you mean 'seed'?" in _refusal(path, "sede=1")
    assert "did you mean 'tokens'?" in _refusal(path, "nodes.base.token=1")


def test_no_file_and_no_text(tmp_path: Path) -> None:
    assert "the ones that come along: " in _refusal(tmp_path / "no.yaml")
    (tmp_path / "bytes.yaml").write_bytes(b"name: \xff\xfe")
    assert "not UTF-8 text" in _refusal(tmp_path / "bytes.yaml")
    assert "a lineage file is a mapping of keys" in _refusal(_write(tmp_path, "- a\n- b\n"))
