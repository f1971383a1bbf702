"""Hugging Face folder -> Megatron checkpoint -> Hugging Face folder, for every family."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hf_models import MODELS, make_folder
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from octo_megatron.checkpoint import store
from octo_megatron.checkpoint.digest import weights_sha256
from octo_megatron.config.schema import ParallelConfig
from octo_megatron.convert import command
from octo_megatron.convert.export_stage import Wish, export_folder
from octo_megatron.convert.import_stage import import_folder
from octo_megatron.model.build import build_model
from octo_megatron.model.hf_folder import HfFolder
from octo_megatron.model.hf_weights import import_weights
from octo_megatron.parallel import world as worlds

WITHOUT_VLLM = Wish(skip=("vllm",))  # test_convert_engines.py asks vLLM


@pytest.mark.parametrize("name", MODELS)
def test_round_trip_is_bit_for_bit_and_passes_the_gate(name: str, tmp_path: Path) -> None:
    source = make_folder(tmp_path / "hf", name)
    imported = import_folder(source, tmp_path / "checkpoint")
    exported = export_folder(tmp_path / "checkpoint", tmp_path / "again", WITHOUT_VLLM)
    assert imported and exported
    assert imported["max_logit_difference"] < 1e-5  # the gate allows 1e-4; these models are small
    assert exported["max_logit_difference"] < 1e-5
    assert exported["bf16_same_argmax"] >= 0.999 and exported["bf16_kl"] < 1e-4
    assert exported["generated_tokens"] == 3 * 64
    assert exported["layouts"] == ["TP1xPP1", "TP1xPP2", "TP2xPP1", "TP2xPP2"]
    assert imported["weights_sha256"] == exported["weights_sha256"]
    before, after = load_file(source / "model.safetensors"), load_file(tmp_path / "again/model.safetensors")
    assert before.keys() == after.keys()
    for tensor_name, tensor in before.items():
        assert torch.equal(tensor.view(torch.int32), after[tensor_name].view(torch.int32)), tensor_name
    assert json.loads((tmp_path / "again/config.json").read_text()) == HfFolder(source).config
    for file in ("tokenizer.json", "chat_template.jinja", "generation_config.json", "tokenizer_config.json"):
        assert (tmp_path / "again" / file).read_bytes() == (source / file).read_bytes()


@pytest.mark.parametrize("name", MODELS)
def test_megatron_reads_what_was_streamed_and_its_own_checkpoint_exports_the_same(
    name: str, tmp_path: Path
) -> None:
    """The checkpoint that no model wrote is one to Megatron, and the other way round."""
    source = make_folder(tmp_path / "hf", name)
    import_folder(source, tmp_path / "streamed")
    folder = HfFolder(source)
    with worlds.alone() as world:
        loaded: list[torch.nn.Module] = list(build_model(folder.config, ParallelConfig(), "fp32"))
        store.load_weights(tmp_path / "streamed", loaded)
        filled: list[torch.nn.Module] = list(build_model(folder.config, ParallelConfig(), "fp32"))
        import_weights(filled, folder.config, folder.read)
        assert weights_sha256(loaded, folder.config) == weights_sha256(filled, folder.config)
        store.save_weights(tmp_path / "saved", filled, {"hf_config": folder.config}, world)
    export_folder(tmp_path / "saved", tmp_path / "again", Wish(gate=False))
    assert (tmp_path / "again/model.safetensors").read_bytes() == _rewritten(source, tmp_path)


def _rewritten(source: Path, tmp_path: Path) -> bytes:
    """What our own writer makes of the source: the same tensors in our order."""
    import_folder(source, tmp_path / "other", gate=False)
    export_folder(tmp_path / "other", tmp_path / "plain", Wish(gate=False))
    return (tmp_path / "plain/model.safetensors").read_bytes()


def test_bf16_export_is_the_rounded_model(tmp_path: Path) -> None:
    source = make_folder(tmp_path / "hf", "llama-tied")
    import_folder(source, tmp_path / "checkpoint")
    result = export_folder(tmp_path / "checkpoint", tmp_path / "bf16", Wish("bf16", skip=("vllm",)))
    assert result and result["max_logit_difference"] < 1e-5
    before, after = load_file(source / "model.safetensors"), load_file(tmp_path / "bf16/model.safetensors")
    for name, tensor in before.items():
        assert torch.equal(after[name], tensor.to(torch.bfloat16))
    assert json.loads((tmp_path / "bf16/config.json").read_text())["dtype"] == "bfloat16"


def test_an_import_in_bf16_exports_the_same_bits(tmp_path: Path) -> None:
    source = make_folder(tmp_path / "hf", "qwen3")
    import_folder(source, tmp_path / "checkpoint", "bf16")
    export_folder(
        tmp_path / "checkpoint", tmp_path / "bf16", Wish("bf16", skip=("vllm", "bf16", "generation"))
    )
    before, after = load_file(source / "model.safetensors"), load_file(tmp_path / "bf16/model.safetensors")
    assert all(torch.equal(after[name], tensor.to(torch.bfloat16)) for name, tensor in before.items())


def test_shards_are_read_and_written(tmp_path: Path) -> None:
    source = make_folder(tmp_path / "hf", "llama-untied", shard_size="500KB")
    assert (source / "model.safetensors.index.json").is_file()
    import_folder(source, tmp_path / "checkpoint")
    export_folder(tmp_path / "checkpoint", tmp_path / "again", Wish("fp32", 700_000, ("vllm", "bf16")))
    index = json.loads((tmp_path / "again/model.safetensors.index.json").read_text())
    files = sorted(set(index["weight_map"].values()))
    assert len(files) > 2
    assert all((tmp_path / "again" / file).stat().st_size < 710_000 for file in files)
    before, after = HfFolder(source), AutoModelForCausalLM.from_pretrained(tmp_path / "again").state_dict()
    assert sorted(before.names) == sorted(after)
    assert all(torch.equal(before.read(name), after[name]) for name in after)


def test_the_reports_and_the_card_say_what_was_done(tmp_path: Path) -> None:
    source = make_folder(tmp_path / "hf", "llama3-rope")
    import_folder(source, tmp_path / "checkpoint")
    export_folder(tmp_path / "checkpoint", tmp_path / "out", Wish(skip=("vllm", "bf16")))
    report = json.loads((tmp_path / "out/conversion_report.json").read_text())
    assert report["passed"] and report["left_out"] == ["bf16", "vllm"]
    assert {part["number"] for part in report["parts"].values()} == {1, 2, 3, 4, 5}
    assert report["parts"]["bf16"]["status"] == "not run"
    assert "NOT COMPARED WITH vLLM: vLLM was left out on request" in report["parts"]["generation"]["result"]
    readable = (tmp_path / "out/CONVERSION.md").read_text()
    assert "**Not everything was checked:** bf16, vllm did not run." in readable
    assert "| 1 | round-trip | passed |" in readable and "**NOT RUN**" in readable
    card = (tmp_path / "out/README.md").read_text()
    assert card.startswith("---\nlibrary_name:") and 'base_model: "hf"' in card
    assert "**not run: bf16, vllm**" in card and f"Starts from `{source}`" in card


def test_commands_print_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = make_folder(tmp_path / "hf", "llama-tied")
    checkpoint, out = str(tmp_path / "checkpoint"), str(tmp_path / "out")
    assert command.main(["import", str(source), checkpoint]) == 0
    assert "38 tensors, 3.0 MB; largest logit difference to transformers" in capsys.readouterr().out
    skip = ["--skip", "vllm", "--skip", "bf16"]
    assert command.main(["export", checkpoint, out, *skip]) == 0
    assert "NOT CHECKED: bf16" in capsys.readouterr().out
    assert command.main(["verify", checkpoint, out, *skip]) == 0
    assert "4 of 5 parts passed" in capsys.readouterr().out
    assert command.main(["verify", checkpoint, str(source), *skip]) == 0  # what came in is the same model
    other = make_folder(tmp_path / "other", "llama-untied")
    capsys.readouterr()
    assert command.main(["verify", checkpoint, str(other), *skip]) == 2
    assert "the gate failed at files: config.json of" in capsys.readouterr().err
