"""`octo inspect`: what a step's batch was, and what a mixture file comes to."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import yaml

from octo_megatron.config.loading import to_plain
from octo_megatron.config.mixture import load_mixture
from octo_megatron.config.run_folder import RunFolder
from octo_megatron.config.schema import LineageConfig, ParallelConfig, SourceConfig, TrainNode
from octo_megatron.data import prepare as preparing
from octo_megatron.data.inspect import main
from octo_megatron.data.mixture import node_seed, open_mixture
from octo_megatron.data.shares import shares_of
from octo_megatron.data.sources import prepare_source
from octo_megatron.data.token_set import SetWriter
from octo_megatron.data.tokenizer import TextTokenizer
from octo_megatron.train.batches import micro_batches

ROWS = [f"row {i}: the cat sat on the mat\nand the dog {i * 7} ran home" for i in range(120)]


@pytest.fixture(params=["concat", "whole"])
def prepared(
    request: pytest.FixtureRequest, tmp_path: Path, tokenizer_folder: Path
) -> tuple[RunFolder, LineageConfig]:
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps({"text": row}) + "\n" for row in ROWS), encoding="utf-8")
    node = TrainNode(
        tokens=64 * 4 * 5, seq_length=64, global_batch_size=4, mixture={"web": 1.0}, packing=request.param
    )
    lineage = LineageConfig(
        name="small",
        model="model/tiny.yaml",
        tokenizer=str(tokenizer_folder),
        sources={"web": SourceConfig(files=[str(file)])},
        nodes={"base": node},
    )
    run = RunFolder(tmp_path / "run")
    run.root.mkdir()
    run.lineage_file.write_text(yaml.safe_dump(to_plain(lineage)), encoding="utf-8")
    preparing.prepare(run, lineage)
    return run, lineage


def test_a_step_is_what_the_trainer_was_given(
    prepared: tuple[RunFolder, LineageConfig], capsys: pytest.CaptureFixture[str]
) -> None:
    run, lineage = prepared
    node = lineage.nodes["base"]
    assert isinstance(node, TrainNode)
    assert main([str(run.root), "--step", "3", "--full"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("node base, step 3 of 5: samples 8 to 11 of 64 tokens")
    mixture = open_mixture(run, node.mixture, 64, node_seed(lineage.seed, "base"), node.packing)
    tokenizer = TextTokenizer(run.tokenizer)
    for batch in micro_batches(node, mixture.sample, 2, 0, 1, ParallelConfig()):
        for line in tokenizer.decode(batch.tokens[0].tolist()).split("\n")[1:-1]:
            assert line.split("row")[0].strip() in shown
    for position in range(8, 12):
        sample = mixture.sample(position)
        assert f"sample {position}: source web, epoch 0, place {position} of " in shown
        assert all(f"document {d}, tokens" in shown for d in sample.documents.tolist() if d >= 0)
    assert ("places of padding" in shown) == (node.packing == "whole")


def test_what_cannot_be_shown_is_one_line(
    prepared: tuple[RunFolder, LineageConfig], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, _ = prepared
    for arguments, words in (
        ([str(run.root)], "which step?"),
        ([str(run.root), "--step", "6"], "node base has steps 1 to 5, not 6"),
        ([str(run.root), "--step", "1", "--node", "bse"], "there is no train node 'bse'; train nodes: base"),
        ([str(tmp_path), "--step", "1"], "is no run folder"),
        ([str(tmp_path / "none.yaml")], "no mixture file at"),
    ):
        assert main(arguments) == 2
        error = capsys.readouterr().err
        assert words in error and error.count("\n") == 1


_MIXTURE = """
tokens: 6400
seq_length: 16
packing: concat
sources:
  web: {weight: 0.75, tokenized: "${data_root}/web", provenance: {weight: "paper: table 1"}}
  qa: {weight: 0.25, tokenized: "${data_root}/qa", published: the hub, tokenize: "octo tokenize a --out b"}
"""


def _set(folder: Path, tokens: int, tokenizer: str = "t" * 64) -> None:
    writer = SetWriter(folder, np.uint16)
    for _ in range(tokens // 10):
        writer.append([1] * 9 + [0])
    writer.close(0, tokenizer)


def test_a_mixture_shows_shares_epochs_and_repeats(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "mixture.yaml"
    path.write_text(_MIXTURE, encoding="utf-8")
    _set(tmp_path / "web", 3200 + 10)
    _set(tmp_path / "qa", 320 + 10)
    assert main([str(path), f"data_root={tmp_path}"]) == 0
    shown = capsys.readouterr().out
    rows = {name: next(line for line in shown.splitlines() if f"│ {name} " in line) for name in ("web", "qa")}
    cells = {name: [cell.strip() for cell in row.strip("│").split("│")] for name, row in rows.items()}
    assert cells["web"] == ["web", "0.75", "4,800", "3,210", "321", "1.50", "100.0%", "paper: table 1"]
    assert cells["qa"][:6] == ["qa", "0.25", "1,600", "330", "33", "5.00"]
    assert "warning: qa repeats: 5.0 epochs within the budget, more than 4" in shown
    assert "web repeats" not in shown
    assert main([str(path), f"data_root={tmp_path}", "packing=whole", "tokens=1600"]) == 0
    assert "100.0%" not in capsys.readouterr().out  # documents of 10 in samples of 16


def test_a_mixture_counts_what_a_source_is_trained_on(
    tmp_path: Path, tokenizer_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`tokens` and `validation_tokens` of a source: the table's figures are those of the source once it is prepared."""
    path = tmp_path / "mixture.yaml"
    text = _MIXTURE.replace('/web"', '/web", tokens: 1005, validation_tokens: 95')
    path.write_text(text.replace('/qa"', '/qa", validation_tokens: 95'), encoding="utf-8")
    tokenizer = TextTokenizer(tokenizer_folder)
    for name, tokens in (("web", 3200), ("qa", 330)):
        _set(tmp_path / name, tokens, tokenizer.sha256)
    shares = {one.name: one for one in shares_of(load_mixture(path, [f"data_root={tmp_path}"]))}
    assert (shares["web"].tokens, shares["web"].documents) == (1010, 101)
    assert (shares["qa"].tokens, shares["qa"].documents) == (230, 23)
    for name, source in load_mixture(path, [f"data_root={tmp_path}"]).sources.items():
        made = prepare_source(tmp_path / "run" / name, name, source, tokenizer, 0, 1)
        assert (made["tokens"], made["documents"]) == (shares[name].tokens, shares[name].documents)
    assert main([str(path), f"data_root={tmp_path}"]) == 0
    assert " 1,010 │" in capsys.readouterr().out


def test_a_missing_set_is_named_with_its_home_and_the_line_that_makes_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "mixture.yaml"
    path.write_text(_MIXTURE, encoding="utf-8")
    _set(tmp_path / "web", 3200)
    assert main([str(path), f"data_root={tmp_path}"]) == 2
    error = capsys.readouterr().err
    assert error == (
        f"octo: error: set 'qa' is missing: no tokenised set at {tmp_path}/qa, published as the hub; "
        "make it with `octo tokenize a --out b`\n"
    )
