"""A lineage on a mixture file: whole documents, a source that runs out, the ledger, and what `octo inspect` shows."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from lineage_runs import OctoRun

from octo_megatron.checkpoint import store
from octo_megatron.config.loading import load_lineage
from octo_megatron.config.run_folder import RunFolder
from octo_megatron.config.schema import TrainNode
from octo_megatron.data.mixture import node_seed, open_mixture

_MIXTURE = """
tokens: 1000000
seq_length: 128
packing: whole
when_exhausted: stop
sources:
  general: {weight: 0.75, builtin: general, tokens: 20000}
  web: {weight: 0.25, builtin: web, tokens: 6000, max_epochs: 1}
"""
_LINEAGE = """
name: small
model: model/tiny.yaml
nodes:
  base:
    kind: train
    mixture: MIXTURE
    micro_batch_size: 2
    global_batch_size: 8
    loader_workers: 2
    schedule: {kind: cosine, lr: 1.0e-3, min_lr: 1.0e-4}
"""


@pytest.mark.slow
def test_a_run_ends_where_its_source_does_and_accounts_for_every_token(tmp_path: Path) -> None:
    (tmp_path / "mixture.yaml").write_text(_MIXTURE, encoding="utf-8")
    file = tmp_path / "small.yaml"
    file.write_text(_LINEAGE.replace("MIXTURE", str(tmp_path / "mixture.yaml")), encoding="utf-8")
    command = OctoRun("run", file, "--out", tmp_path / "run", output=tmp_path / "output")
    assert command.wait() == 0, command.said()
    run = RunFolder(tmp_path / "run")
    lineage = load_lineage(run.lineage_file)
    node = lineage.nodes["base"]
    assert isinstance(node, TrainNode) and node.packing == "whole" and node.max_epochs == {"web": 1.0}
    done = run.node("base").result()
    seed = node_seed(lineage.seed, "base")
    mixture = open_mixture(run, node.mixture, node.seq_length, seed, node.packing, node.max_epochs)
    end = mixture.end()
    assert end is not None and end[1] == "web"
    assert done["step"] == end[0] // 8 < node.steps
    assert done["lr_last"] == pytest.approx(1.0e-4), "the schedule runs over the steps that there are"

    samples = [mixture.sample(i) for i in range(done["step"] * 8)]
    for name in ("general", "web"):
        mine = [sample for sample in samples if sample.source == name]
        assert done["ledger"][name]["tokens"] == sum(sample.real_tokens for sample in mine)
        begun = sum(int(((s.documents >= 0) & (s.offsets == 0)).sum()) for s in mine)
        assert done["ledger"][name]["documents"] == begun
    newest = store.latest(run.node("base").checkpoints)
    assert newest is not None and store.read_extra(newest)["ledger"] == done["ledger"]

    shown = subprocess.run(
        [sys.executable, "-m", "octo_megatron.cli.main", "inspect", run.root, "--step", str(done["step"])],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert shown.returncode == 0, shown.stderr
    for position in range(done["step"] * 8 - 8, done["step"] * 8):
        assert f"sample {position}: source {samples[position].source}, " in shown.stdout
        assert all(f"document {d}, tokens" in shown.stdout for d in samples[position].documents if d >= 0)
