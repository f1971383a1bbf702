"""Hugging Face folder -> Megatron checkpoint -> Hugging Face folder, for every family."""

from __future__ import annotations

import dataclasses
import json
import resource
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hf_models import MODELS, make_folder
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from octo_megatron.config.errors import UserError
from octo_megatron.config.schema import ParallelConfig
from octo_megatron.convert import command
from octo_megatron.convert.export_stage import export_folder
from octo_megatron.convert.import_stage import import_folder
from octo_megatron.convert.safetensors_io import HfFolder, TensorWriter
from octo_megatron.convert.verify import verify
from octo_megatron.model import build, families
from octo_megatron.model.build import build_model
from octo_megatron.model.hf_weights import export_weights, import_weights, tensor_shapes
from octo_megatron.parallel import world as worlds
from octo_megatron.parallel.world import World


@pytest.fixture(scope="module")
def tied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folder(tmp_path_factory.mktemp("tied") / "hf", "llama-tied")


@pytest.fixture
def alone() -> Iterator[World]:
    world = worlds.start(ParallelConfig(), 0)
    yield world
    world.stop()


@pytest.mark.parametrize("name", MODELS)
def test_round_trip_is_bit_for_bit_and_logits_agree(name: str, tmp_path: Path) -> None:
    source = make_folder(tmp_path / "hf", name)
    imported = import_folder(source, tmp_path / "checkpoint")
    exported = export_folder(tmp_path / "checkpoint", tmp_path / "again")
    assert imported["max_logit_difference"] < 1e-5  # the gate allows 1e-4; these models are small
    assert exported["max_logit_difference"] < 1e-5
    assert imported["weights_sha256"] == exported["weights_sha256"]
    before, after = load_file(source / "model.safetensors"), load_file(tmp_path / "again/model.safetensors")
    assert before.keys() == after.keys()
    for tensor_name, tensor in before.items():
        assert torch.equal(tensor.view(torch.int32), after[tensor_name].view(torch.int32)), tensor_name
    assert json.loads((tmp_path / "again/config.json").read_text()) == HfFolder(source).config
    for file in ("tokenizer.json", "chat_template.jinja", "generation_config.json"):
        assert (tmp_path / "again" / file).read_bytes() == (source / file).read_bytes()


def test_bf16_export_is_the_rounded_model(tied: Path, tmp_path: Path) -> None:
    import_folder(tied, tmp_path / "checkpoint")
    result = export_folder(tmp_path / "checkpoint", tmp_path / "bf16", "bf16")
    assert result["max_logit_difference"] < 1e-5
    before, after = load_file(tied / "model.safetensors"), load_file(tmp_path / "bf16/model.safetensors")
    for name, tensor in before.items():
        assert torch.equal(after[name], tensor.to(torch.bfloat16))
    assert json.loads((tmp_path / "bf16/config.json").read_text())["dtype"] == "bfloat16"


def test_shards_are_read_and_written(tmp_path: Path) -> None:
    source = make_folder(tmp_path / "hf", "llama-untied", shard_size="500KB")
    assert (source / "model.safetensors.index.json").is_file()
    import_folder(source, tmp_path / "checkpoint")
    before = HfFolder(source)
    shapes = tensor_shapes(before.config)
    (tmp_path / "again").mkdir()
    writer = TensorWriter(tmp_path / "again", shapes, torch.float32, max_shard_bytes=700_000)
    for name in shapes:
        writer.add(name, before.read(name))
    writer.close()
    (tmp_path / "again/config.json").write_bytes((source / "config.json").read_bytes())
    index = json.loads((tmp_path / "again/model.safetensors.index.json").read_text())
    files = sorted(set(index["weight_map"].values()))
    assert len(files) > 2
    assert all((tmp_path / "again" / file).stat().st_size < 710_000 for file in files)
    after = AutoModelForCausalLM.from_pretrained(tmp_path / "again").state_dict()
    assert sorted(before.names) == sorted(after)
    assert all(torch.equal(before.read(name), after[name]) for name in after)


def test_vocabulary_padding_is_filled_with_zeros_and_never_leaves(tied: Path, alone: World) -> None:
    folder = HfFolder(tied)
    models: list[torch.nn.Module] = list(build_model(folder.config, alone.layout, "fp32"))  # 512 rows
    config = {**folder.config, "vocab_size": 509}
    name = "model.embed_tokens.weight"
    import_weights(models, config, lambda n: folder.read(n)[:509] if n == name else folder.read(n))
    embedding = dict(models[0].named_parameters())["embedding.word_embeddings.weight"]
    assert embedding.shape[0] == 512
    assert embedding[509:].abs().sum() == 0
    assert torch.equal(dict(export_weights(models, config))[name], folder.read(name)[:509])


def _damaged(folder: Path, target: Path, name: str, change: str) -> Path:
    """A copy of `folder` with one tensor left out, added or cut."""
    target.mkdir()
    (target / "config.json").write_bytes((folder / "config.json").read_bytes())
    tensors = load_file(folder / "model.safetensors")
    if change == "missing":
        del tensors[name]
    elif change == "extra":
        tensors[name] = torch.zeros(3)
    else:
        tensors[name] = tensors[name][:-1].contiguous()
    save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})
    return target


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        (
            "model.layers.2.mlp.up_proj.weight",
            "missing",
            "tensor model.layers.2.mlp.up_proj.weight is missing",
        ),
        ("model.layers.2.mlp.side.weight", "extra", "tensor model.layers.2.mlp.side.weight has no place"),
        (
            "model.norm.weight",
            "shape",
            "tensor model.norm.weight has shape [127], config.json asks for [128]",
        ),
    ],
)
def test_tensors_that_do_not_fit_are_named(
    tied: Path, tmp_path: Path, name: str, change: str, message: str
) -> None:
    source = _damaged(tied, tmp_path / "bad", name, change)
    with pytest.raises(UserError) as caught:
        import_folder(source, tmp_path / "checkpoint")
    assert message in str(caught.value)
    assert [p.name for p in tmp_path.iterdir()] == ["bad"]


def test_missing_and_cut_shards(tmp_path: Path) -> None:
    source = make_folder(tmp_path / "hf", "llama-untied", shard_size="500KB")
    shard = sorted(source.glob("model-*.safetensors"))[1]
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-100])
    with pytest.raises(UserError, match=f"{shard.name} is damaged or cut short"):
        HfFolder(source)
    shard.unlink()
    with pytest.raises(UserError, match=f"{shard.name} is missing, though the index names it"):
        HfFolder(source)
    for rest in source.glob("*.safetensors*"):
        rest.unlink()
    with pytest.raises(UserError, match="holds neither model"):
        HfFolder(source)
    with pytest.raises(UserError, match="no Hugging Face folder at"):
        HfFolder(tmp_path / "nowhere")


def test_a_target_that_exists_is_refused(
    tied: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command.main(["import", str(tied), str(tmp_path)]) == 2
    assert capsys.readouterr().err == (
        f"octo: error: {tmp_path} exists already; remove it or choose another name\n"
    )
    assert command.main(["import", str(tied), str(tmp_path / "checkpoint")]) == 0
    assert command.main(["export", str(tmp_path / "checkpoint"), str(tmp_path)]) == 2
    assert command.main(["export", str(tied), str(tmp_path / "out")]) == 2
    assert "is no finished checkpoint" in capsys.readouterr().err


def test_no_room_for_the_export_leaves_nothing(tied: Path, tmp_path: Path) -> None:
    import_folder(tied, tmp_path / "checkpoint")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, hard))
    try:
        with pytest.raises(UserError, match=r"cannot write .*: File too large"):
            export_folder(tmp_path / "checkpoint", tmp_path / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint"]


def test_the_gate_sees_one_flipped_bit(tied: Path, tmp_path: Path, alone: World) -> None:
    folder = HfFolder(tied)
    models: list[torch.nn.Module] = list(build_model(folder.config, alone.layout, "fp32"))
    import_weights(models, folder.config, folder.read)
    assert verify(folder, models, alone).max_logit_difference < 1e-5
    with torch.no_grad():
        dict(models[0].named_parameters())["decoder.layers.1.mlp.linear_fc2.weight"].view(torch.int32)[
            3, 5
        ] ^= 1
    with pytest.raises(UserError, match=r"decoder\.layers\.1\.mlp\.linear_fc2\.weight does not come back"):
        verify(folder, models, alone)


def test_the_gate_sees_a_dropped_rope_scaling(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = make_folder(tmp_path / "hf", "llama3-rope")
    monkeypatch.setattr(build, "_scale_rope", lambda model, shape: None)
    with pytest.raises(UserError, match=r"logits differ from transformers by .* worst at prompt position"):
        import_folder(source, tmp_path / "checkpoint")
    assert not (tmp_path / "checkpoint").exists()


def test_the_gate_sees_swapped_queries_and_keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = make_folder(tmp_path / "hf", "llama-every-head-its-keys")
    swapped = tuple(
        dataclasses.replace(row, hf=(row.hf[1], row.hf[0], row.hf[2]))
        if row.kind is families.Kind.QKV
        else row
        for row in families.LLAMA.layer_rows
    )
    wrong = dataclasses.replace(families.LLAMA, layer_rows=swapped)
    monkeypatch.setattr(families, "FAMILIES", (wrong,))
    with pytest.raises(UserError, match="logits differ from transformers"):
        import_folder(source, tmp_path / "checkpoint")
