"""Bad input is one clear line, and nothing half-written is left."""

from __future__ import annotations

import json
import os
import resource
import subprocess
from pathlib import Path

import pytest
import torch
from hf_models import make_folder
from safetensors.torch import load_file, save_file

from octo_megatron.checkpoint.manifest import MANIFEST
from octo_megatron.config.errors import UserError
from octo_megatron.convert import command, publish
from octo_megatron.convert.export_stage import Wish, export_folder
from octo_megatron.convert.import_stage import import_folder
from octo_megatron.model.hf_folder import HfFolder

PLAIN = Wish(gate=False)


@pytest.fixture(scope="module")
def tied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folder(tmp_path_factory.mktemp("tied") / "hf", "llama-tied")


def _with_tensors(folder: Path, target: Path, name: str, change: str) -> Path:
    """A copy of `folder` with one tensor left out, added, cut or of another type."""
    target.mkdir()
    (target / "config.json").write_bytes((folder / "config.json").read_bytes())
    tensors = load_file(folder / "model.safetensors")
    if change == "missing":
        del tensors[name]
    elif change == "extra":
        tensors[name] = torch.zeros(3)
    elif change == "type":
        tensors[name] = tensors[name].to(torch.int8)
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
        (
            "model.norm.weight",
            "type",
            "tensor model.norm.weight is stored as I8; only F32, BF16, F16 are read",
        ),
    ],
)
def test_tensors_that_do_not_fit_are_named(
    tied: Path, tmp_path: Path, name: str, change: str, message: str
) -> None:
    source = _with_tensors(tied, tmp_path / "bad", name, change)
    with pytest.raises(UserError) as caught:
        import_folder(source, tmp_path / "checkpoint")
    assert message in str(caught.value) and "\n" not in str(caught.value)
    assert [p.name for p in tmp_path.iterdir()] == ["bad"]


def test_another_family_is_refused_by_name(tied: Path, tmp_path: Path) -> None:
    source = _with_tensors(tied, tmp_path / "bad", "model.norm.weight", "shape")
    config = json.loads((source / "config.json").read_text()) | {"architectures": ["GemmaForCausalLM"]}
    (source / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="no family for GemmaForCausalLM; supported: LlamaForCausalLM"):
        import_folder(source, tmp_path / "checkpoint")


def test_missing_and_cut_shards(tmp_path: Path) -> None:
    source = make_folder(tmp_path / "hf", "llama-untied", shard_size="500KB")
    shard = sorted(source.glob("model-*.safetensors"))[1]
    whole = shard.read_bytes()
    for cut in (4, 100, len(whole) - 100):
        shard.write_bytes(whole[:cut])
        with pytest.raises(UserError, match=f"{shard.name} is damaged"):
            HfFolder(source)
    shard.write_bytes(whole[:8] + b"#" * (len(whole) - 8))
    with pytest.raises(UserError, match=f"{shard.name} is damaged: its header is not"):
        HfFolder(source)
    shard.write_bytes(whole)
    index = json.loads((source / "model.safetensors.index.json").read_text())
    index["weight_map"]["model.norm.bias"] = shard.name
    (source / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match=r"the index says that tensor model\.norm\.bias is in"):
        HfFolder(source)
    first = sorted(source.glob("model-*.safetensors"))[0]
    index["weight_map"] = dict.fromkeys(load_file(first), first.name) | {"model.other": shard.name}
    save_file(load_file(first) | {"model.other": torch.ones(2)}, shard)
    (source / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match=f"is in {shard.name} as well as in {first.name}"):
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
    import_folder(tied, tmp_path / "checkpoint", gate=False)
    assert command.main(["export", str(tmp_path / "checkpoint"), str(tmp_path)]) == 2
    assert command.main(["export", str(tied), str(tmp_path / "out")]) == 2
    assert "is no finished checkpoint" in capsys.readouterr().err


def test_a_damaged_checkpoint_is_not_exported(tied: Path, tmp_path: Path) -> None:
    import_folder(tied, tmp_path / "checkpoint", gate=False)
    file = tmp_path / "checkpoint/__0_0.distcp"
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    with pytest.raises(UserError, match=r"__0_0.distcp is damaged: its sha256"):
        export_folder(tmp_path / "checkpoint", tmp_path / "out", PLAIN)
    file.unlink()
    with pytest.raises(UserError, match=r"__0_0.distcp"):
        export_folder(tmp_path / "checkpoint", tmp_path / "out", PLAIN)
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint"]


def test_a_checkpoint_of_another_model_is_named(tied: Path, tmp_path: Path) -> None:
    import_folder(tied, tmp_path / "checkpoint", gate=False)
    manifest = tmp_path / "checkpoint" / MANIFEST
    facts = json.loads(manifest.read_text())
    for change, message in (
        ({"num_hidden_layers": 5}, "has holes|is missing|has shape"),
        (
            {"intermediate_size": 640},
            r"linear_fc1.weight has shape \[640, 128\], its config asks for \[1280, 128\]",
        ),
        ({"tie_word_embeddings": False}, "parameter output_layer.weight is missing"),
    ):
        changed = {
            **facts,
            "extra": {**facts["extra"], "hf_config": {**facts["extra"]["hf_config"], **change}},
        }
        manifest.write_text(json.dumps(changed))
        with pytest.raises(UserError, match=message):
            export_folder(tmp_path / "checkpoint", tmp_path / "out", PLAIN)
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint"]


@pytest.mark.parametrize("way", ["import", "export"])
def test_a_file_that_cannot_grow_leaves_nothing(tied: Path, tmp_path: Path, way: str) -> None:
    """RLIMIT_FSIZE makes the kernel refuse to grow a file, as a full disk does in the middle of a write."""
    import_folder(tied, tmp_path / "checkpoint", gate=False)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, hard))
    try:
        with pytest.raises(UserError, match=r"cannot write .*: File too large; free some space"):
            if way == "import":
                import_folder(tied, tmp_path / "other", gate=False)
            else:
                export_folder(tmp_path / "checkpoint", tmp_path / "out", PLAIN)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint"]


@pytest.mark.parametrize("way", ["import", "export"])
def test_a_full_disk_leaves_nothing(
    tied: Path, tmp_path: Path, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk of 2 MB for a model of 3 MB: seen before the first byte, and by the write itself where that is late."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if (
        os.geteuid() != 0
        or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "none", str(disk)]).returncode
    ):
        pytest.skip("needs root and the right to mount a tmpfs, for a disk that is really full")
    try:
        import_folder(tied, tmp_path / "checkpoint", gate=False)

        def convert() -> None:
            if way == "import":
                import_folder(tied, disk / "other", gate=False)
            else:
                export_folder(tmp_path / "checkpoint", disk / "out", PLAIN)

        with pytest.raises(UserError, match=r"needs 0.00 GB and .* has 0.00 GB left; free some space"):
            convert()
        monkeypatch.setattr(publish.shutil, "disk_usage", lambda path: _Plenty)
        with pytest.raises(UserError, match=r"cannot write .*: No space left on device; free some space"):
            convert()
        assert list(disk.iterdir()) == []
    finally:
        subprocess.run(["umount", str(disk)], check=True)


class _Plenty:
    """What another process freed for a moment."""

    free = 1 << 40
