"""Import and export as nodes of a lineage."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
from hf_models import make_folder
from safetensors.torch import load_file

from octo_megatron.checkpoint import store
from octo_megatron.config.errors import UserError
from octo_megatron.config.run_folder import NodeContext, RunFolder
from octo_megatron.config.schema import ExportNode, ImportNode, LineageConfig, SourceConfig, TrainNode
from octo_megatron.convert import export_stage, import_stage
from octo_megatron.data.prepare import prepare
from octo_megatron.train import stage as train_stage


@pytest.fixture
def context(tmp_path: Path) -> NodeContext:
    """A run that has been prepared: an import node with an export after it."""
    source = make_folder(tmp_path / "hf", "llama3-rope")
    run = RunFolder(tmp_path / "run")
    run.tokenizer.mkdir(parents=True)
    shutil.copyfile(source / "tokenizer.json", run.tokenizer / "tokenizer.json")
    (run.tokenizer / "special_tokens_map.json").write_text("{}")
    run.hf_config.write_bytes((source / "config.json").read_bytes())
    lineage = LineageConfig(
        "test",
        model=str(source),
        nodes={"base": ImportNode(), "out": ExportNode(parent="base", dtype="fp32", skip=["vllm"])},
    )
    return NodeContext(run, lineage, "base")


def test_import_then_export(context: NodeContext) -> None:
    import_stage.run(context)
    done = context.folder.result()
    assert done["max_logit_difference"] < 1e-5
    assert (done["kind"], done["tensors"], done["bytes"] > 1e6) == ("import", 39, True)
    checkpoint = store.latest(context.folder.checkpoints)
    assert checkpoint is not None
    assert store.read_extra(checkpoint)["kind"] == "import"
    out = NodeContext(context.run, context.lineage, "out")
    (out.folder.hf).mkdir(parents=True)  # left over from a run that was killed before done.json
    export_stage.run(out)
    result = out.folder.result()
    assert result["weights_sha256"] == done["weights_sha256"]
    assert result["max_logit_difference"] < 1e-5
    before = load_file(Path(context.lineage.model) / "model.safetensors")
    after = load_file(out.folder.hf / "model.safetensors")
    assert all(tensor.equal(after[name]) for name, tensor in before.items())
    assert (out.folder.hf / "special_tokens_map.json").read_text() == "{}"  # the run's own
    assert "| base | – | import |" in (out.folder.hf / "README.md").read_text()
    assert json.loads((out.folder.hf / "config.json").read_text())["rope_parameters"]["factor"] == 8.0
    assert (out.folder.hf / "generation_config.json").is_file()


def test_export_of_a_node_without_checkpoint(context: NodeContext) -> None:
    with pytest.raises(UserError, match="its parent base has no checkpoint in"):
        export_stage.run(NodeContext(context.run, context.lineage, "out"))


def test_a_lineage_that_starts_from_the_folder_itself(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """No import node: trained, gone on with, exported; folder and digest are told all along."""
    source, run = make_folder(tmp_path / "hf", "llama-tied"), RunFolder(tmp_path / "run")
    train = TrainNode(hf=str(source), steps=1, seq_length=32, mixture={"general": 1.0}, checkpoint_interval=1)
    out = ExportNode(parent="stable", skip=["vllm", "generation", "bf16"])

    def context(name: str, node: TrainNode) -> NodeContext:
        sources = {"general": SourceConfig(builtin="general", tokens=4000, validation_tokens=64)}
        nodes = {"stable": node, "out": out}
        lineage = LineageConfig("test", str(source), tokenizer="model", sources=sources, nodes=nodes)
        return NodeContext(run, lineage, name)

    prepare(run, context("stable", train).lineage)
    train_stage.run(context("stable", train))
    longer = dataclasses.replace(train, tokens=0, steps=2)
    train_stage.run(context("stable", longer))
    assert "goes on after step 1" in capsys.readouterr().out
    done = run.node("stable").result()
    imported = import_stage.import_folder(source, tmp_path / "checkpoint")
    assert imported and done["step"] == 2
    assert (done["hf"], done["hf_weights_sha256"]) == (str(source), imported["weights_sha256"])
    export_stage.run(context("out", longer))
    card = (run.node("out").hf / "README.md").read_text()
    assert f"Starts from `{source}` (sha256 of the weights: `{imported['weights_sha256']}`)." in card
    assert "| stable | – | train | 2 |" in card
