"""Mixture files: by themselves, and written out into the lineages that name them."""

from __future__ import annotations

from pathlib import Path

import pytest

from octo_megatron.config.errors import UserError
from octo_megatron.config.loading import CONFIGS, from_plain, load_lineage, to_plain
from octo_megatron.config.mixture import load_mixture
from octo_megatron.config.schema import TrainNode

_MIXTURE = """
data_root: ???
tokens: 4096
seq_length: 64
packing: whole
provenance: {tokens: "paper: somewhere"}
sources:
  web: {weight: 0.75, tokenized: "${data_root}/web", max_epochs: 2}
  qa: {weight: 0.25, files: ["${data_root}/qa.jsonl"], provenance: {weight: "assumed: ours"}}
"""
_LINEAGE = """
name: small
model: model/tiny.yaml
data_root: /sets
nodes:
  base: {kind: train, mixture: MIXTURE}
  decay: {kind: train, parent: base, tokens: 1024, seq_length: 32, packing: concat, mixture: MIXTURE}
"""
RECIPE = sorted((CONFIGS / "data").glob("*.yaml"))


def _write(folder: Path, text: str, name: str) -> Path:
    path = folder / name
    path.write_text(text.replace("MIXTURE", str(folder / "mixture.yaml")), encoding="utf-8")
    return path


@pytest.fixture
def lineage(tmp_path: Path) -> Path:
    _write(tmp_path, _MIXTURE, "mixture.yaml")
    return _write(tmp_path, _LINEAGE, "lineage.yaml")


def _refusal(path: Path, *overrides: str) -> str:
    with pytest.raises(UserError) as caught:
        load_lineage(path, list(overrides))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_node_takes_what_it_does_not_say_itself(lineage: Path) -> None:
    config = load_lineage(lineage)
    base, decay = config.nodes["base"], config.nodes["decay"]
    assert isinstance(base, TrainNode) and isinstance(decay, TrainNode)
    assert (base.tokens, base.seq_length, base.packing) == (4096, 64, "whole")
    assert (decay.tokens, decay.seq_length, decay.packing) == (1024, 32, "concat")
    assert base.mixture == decay.mixture == {"web": 0.75, "qa": 0.25}
    assert base.max_epochs == {"web": 2.0}
    assert config.sources["web"].tokenized == "/sets/web" and config.sources["qa"].files == ["/sets/qa.jsonl"]
    assert from_plain(to_plain(config)) == config


def test_overrides_reach_what_the_file_says(lineage: Path) -> None:
    config = load_lineage(
        lineage, ["data_root=/d", "sources.web.files=[/mine.jsonl]", "nodes.base.tokens=8192"]
    )
    assert config.sources["web"].files == ["/mine.jsonl"] and config.sources["web"].tokenized is None
    assert config.sources["qa"].files == ["/d/qa.jsonl"]
    assert config.nodes["base"].tokens == 8192  # type: ignore[attr-defined]


def test_two_files_that_mean_different_sets_by_one_name_are_refused(lineage: Path, tmp_path: Path) -> None:
    other = _write(tmp_path, _MIXTURE.replace("}/web", "}/another"), "other.yaml")
    assert "mean different sets by 'web'" in _refusal(lineage, f"nodes.decay.mixture={other}")


@pytest.mark.parametrize(
    ("find", "replace", "message"),
    [
        ("weight: 0.75", "weight: 0.7", "the weights of the sources sum to 1; these sum to 0.95"),
        ("weight: 0.75", "wieght: 0.75", "unknown key 'sources.web.wieght'; did you mean 'weight'?"),
        ("tokenized:", "builtin: web, tokenized:", "a source names one of builtin"),
        ("packing: whole", "packing: loose", "packing is 'loose'; use concat or whole"),
        ("packing: whole", "when_exhausted: never", "when_exhausted is 'never'; use error or stop"),
        ("paper: somewhere", "I think", "begins with paper or assumed"),
        ("tokens: 4096", "tokens: 0", "tokens is the budget"),
        ("max_epochs: 2", "max_epochs: -1", "max_epochs is -1"),
    ],
)
def test_a_wrong_file_is_one_line_that_names_it(
    lineage: Path, tmp_path: Path, find: str, replace: str, message: str
) -> None:
    _write(tmp_path, _MIXTURE.replace(find, replace), "mixture.yaml")
    text = _refusal(lineage)
    assert message in text and "mixture.yaml" in text and "nodes.base.mixture" in text


def test_a_missing_file_names_those_that_come_along(lineage: Path) -> None:
    text = _refusal(lineage, "nodes.base.mixture=data/stabel.yaml")
    assert (
        "no mixture file at data/stabel.yaml" in text
        and "decay-hybrid, decay-long, decay-short, stable" in text
    )


def test_limits_name_sources_of_the_mixture(lineage: Path) -> None:
    assert "max_epochs names source 'wbe'" in _refusal(lineage, "nodes.base.max_epochs={wbe: 1}")


def test_the_recipe_needs_a_data_root() -> None:
    with pytest.raises(UserError, match="data_root is not given: add data_root=PATH"):
        load_mixture(Path("data/stable.yaml"))


@pytest.mark.parametrize("path", RECIPE, ids=lambda path: path.stem)
def test_every_value_of_the_recipe_says_where_it_comes_from(path: Path) -> None:
    config = load_mixture(path, ["data_root=/sets"])
    assert set(config.provenance) == {"tokens", "seq_length", "packing", "when_exhausted"}
    for name, source in config.sources.items():
        assert set(source.provenance) == {"weight", "tokenize"}
        assert source.tokenized == f"/sets/{name}" and source.published
        assert (
            source.tokenize.startswith("octo tokenize /sets/") and f"--out /sets/{name} " in source.tokenize
        )


def test_the_recipe_is_the_papers() -> None:
    """Column by column of the tables in the design notes (recipe.md, sections 1 and 2)."""
    stable, short, long, hybrid = (
        {
            name: source.weight
            for name, source in load_mixture(Path(f"data/{stem}.yaml"), ["data_root=/d"]).sources.items()
        }
        for stem in ("stable", "decay-short", "decay-long", "decay-hybrid")
    )
    assert sorted(stable.values()) == [0.0125, 0.0125, 0.05, 0.1, 0.1, 0.725]
    assert stable["megamath-web-pro-max"] == 0.725
    for branch in (short, long, hybrid):
        assert (branch["megamath-web-pro"], branch["dclm-baseline"], branch["instruction-following"]) == (
            0.55,
            0.05,
            0.1,
        )
    assert (long["openr1-math-220k"], long["am-deepseek-distilled-40m"]) == (0.15, 0.15)
    assert (short["megamath-qa"], short["openmathinstruct-2"], short["numinamath-1.5"]) == (0.025, 0.175, 0.1)
    assert hybrid["openr1-math-220k"] == hybrid["openmathinstruct-2"] == hybrid["numinamath-1.5"] == 0.1
