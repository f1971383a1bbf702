"""Every part of the gate fails when what it guards is broken, and a failed gate leaves nothing behind."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hf_models import make_folder
from safetensors.torch import load_file, save_file

from octo_megatron.config.errors import UserError
from octo_megatron.convert.export_stage import Wish, export_folder, verify_folder
from octo_megatron.convert.gate import generation, logits, run, transformers_forward
from octo_megatron.convert.gate.result import FAILED, GateReport
from octo_megatron.convert.gate.transformers_forward import Reference
from octo_megatron.convert.import_stage import import_folder
from octo_megatron.model import build, families
from octo_megatron.model.hf_folder import HfFolder


@dataclasses.dataclass(frozen=True)
class Made:
    checkpoint: Path
    hf: Path

    def broken(self, target: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> Path:
        """A copy of the export with other tensors."""
        shutil.copytree(self.hf, target)
        tensors = load_file(target / "model.safetensors")
        change(tensors)
        save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})
        return target


def _make(root: Path, name: str) -> Made:
    import_folder(make_folder(root / "source", name), root / "checkpoint")
    export_folder(root / "checkpoint", root / "out", Wish(gate=False))
    return Made(root / "checkpoint", root / "out")


@pytest.fixture(scope="module")
def untied(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """Llama 3 with rope scaling, as many keys as queries: a swap of the two has the right shapes."""
    return _make(tmp_path_factory.mktemp("untied"), "llama-every-head-its-keys")


@pytest.fixture(scope="module")
def tied(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return _make(tmp_path_factory.mktemp("tied"), "llama-tied")


def _failures(report: GateReport) -> dict[str, str]:
    return {part.name: part.line for part in report.parts if part.status == FAILED}


def _verify(made: Made, folder: Path, *parts: str) -> dict[str, str]:
    """What fails when only `parts` run."""
    skip = [part for part in ("files", "round-trip", "logits", "bf16", "generation") if part not in parts]
    return _failures(verify_folder(made.checkpoint, folder, [*skip, "vllm"]))


def test_a_whole_export_passes(tied: Made) -> None:
    assert _failures(verify_folder(tied.checkpoint, tied.hf, ["vllm"])) == {}


def test_swapped_queries_and_keys(untied: Made, tmp_path: Path) -> None:
    def swap(tensors: dict[str, torch.Tensor]) -> None:
        q, k = (f"model.layers.2.self_attn.{which}_proj.weight" for which in "qk")
        tensors[q], tensors[k] = tensors[k], tensors[q]

    found = _verify(untied, untied.broken(tmp_path / "out", swap), "files", "round-trip")
    assert list(found) == ["round-trip"]
    assert "tensor model.layers.2.self_attn.q_proj.weight of" in found["round-trip"]


def test_a_flipped_byte(untied: Made, tmp_path: Path) -> None:
    shutil.copytree(untied.hf, tmp_path / "out")
    file = tmp_path / "out/model.safetensors"
    data = bytearray(file.read_bytes())
    data[-1000] ^= 1
    file.write_bytes(data)
    found = _verify(untied, tmp_path / "out", "files", "round-trip")
    assert list(found) == ["round-trip"] and "1 of 65536 numbers differ, the first at" in found["round-trip"]


def test_a_leaked_padding_row(tied: Made, tmp_path: Path) -> None:
    def leak(tensors: dict[str, torch.Tensor]) -> None:
        embedding = tensors["model.embed_tokens.weight"]
        tensors["model.embed_tokens.weight"] = torch.cat([embedding, torch.zeros(2, embedding.shape[1])])

    found = _verify(tied, tied.broken(tmp_path / "out", leak), "files")
    assert "2 rows of vocabulary padding have leaked" in found["files"]


def test_an_untied_head(tied: Made, tmp_path: Path) -> None:
    def untie(tensors: dict[str, torch.Tensor]) -> None:
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"] * 1.001

    found = _verify(tied, tied.broken(tmp_path / "out", untie), "files")
    assert "ties the head to the embedding, but lm_head.weight is there and differs" in found["files"]


def test_a_head_that_comes_along_with_a_tied_model_is_compared_and_fine(tied: Made, tmp_path: Path) -> None:
    def bring(tensors: dict[str, torch.Tensor]) -> None:
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
        tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(16)

    folder = tied.broken(tmp_path / "out", bring)
    assert _verify(tied, folder, "files", "round-trip", "logits") == {}


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("config.json", {"rms_norm_eps": 1e-5}, "rms_norm_eps is 1e-05, the checkpoint's is 1e-06"),
        ("config.json", {"tie_word_embeddings": False}, "tie_word_embeddings is False"),
        ("config.json", {"dtype": "bfloat16"}, "says bfloat16, its tensors are float32"),
        ("config.json", {"use_cache": None}, "use_cache is None, the checkpoint's is True"),
        ("generation_config.json", {"temperature": 0.3}, "generation_config.json differs from"),
        ("tokenizer_config.json", {"eos_token": "x"}, "tokenizer_config.json differs from"),
    ],
)
def test_another_field_or_file(
    tied: Made, tmp_path: Path, file: str, change: dict[str, object], message: str
) -> None:
    shutil.copytree(tied.hf, tmp_path / "out")
    path = tmp_path / "out" / file
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    assert message in _verify(tied, tmp_path / "out", "files")["files"]


def test_another_chat_template_or_a_lost_tokenizer(tied: Made, tmp_path: Path) -> None:
    shutil.copytree(tied.hf, tmp_path / "out")
    template = tmp_path / "out/chat_template.jinja"
    template.write_text(template.read_text().replace("assistant", "Assistant"))
    assert "chat_template.jinja differs from" in _verify(tied, tmp_path / "out", "files")["files"]
    template.unlink()
    assert "chat_template.jinja is missing" in _verify(tied, tmp_path / "out", "files")["files"]


def _with_dropped_scaling(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "_scale_rope", lambda model, shape: None)


def test_a_dropped_rope_scaling_fails_every_part_that_computes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = _make(tmp_path, "llama3-rope")
    _with_dropped_scaling(monkeypatch)
    found = _verify(made, made.hf, "files", "round-trip", "logits", "bf16", "generation")
    assert sorted(found) == ["bf16", "generation", "logits"]
    assert "logits differ from transformers by" in found["logits"] and "worst at position" in found["logits"]
    assert "same best token" in found["bf16"]
    assert "Megatron's token" in found["generation"]


def test_a_dropped_rope_scaling_in_the_config(tmp_path: Path) -> None:
    made = _make(tmp_path, "llama3-rope")
    path = made.hf / "config.json"
    config = json.loads(path.read_text())
    config["rope_parameters"] = {
        "rope_type": "default",
        "rope_theta": config["rope_parameters"]["rope_theta"],
    }
    path.write_text(json.dumps(config))
    assert "rope_parameters is" in _verify(made, made.hf, "files")["files"]


def test_a_table_with_swapped_queries_and_keys_makes_no_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wrong on both ways, so the bits come back: only what is computed shows it."""
    source = make_folder(tmp_path / "hf", "llama-every-head-its-keys")
    swapped = tuple(
        dataclasses.replace(row, hf=(row.hf[1], row.hf[0], row.hf[2]))
        if row.kind is families.Kind.QKV
        else row
        for row in families.LLAMA.layer_rows
    )
    wrong = dataclasses.replace(families.LLAMA, layer_rows=swapped)
    monkeypatch.setattr(families, "FAMILIES", (wrong,))
    with pytest.raises(UserError, match="the gate failed at logits: logits differ from transformers"):
        import_folder(source, tmp_path / "checkpoint")
    import_folder(source, tmp_path / "checkpoint", gate=False)
    with pytest.raises(UserError, match=r"the gate failed at logits: .* \(and 2 more: generation, bf16\)"):
        export_folder(tmp_path / "checkpoint", tmp_path / "out", Wish(skip=("vllm",)))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint", "hf"]


def test_a_layout_that_loses_rows_fails_the_round_trip(tied: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    from octo_megatron.convert.gate import round_trip

    plain = round_trip.merge

    def wrong(kind, full, shape, rank, size, rows):  # type: ignore[no-untyped-def]
        return plain(kind, full, shape, 0 if kind is families.Kind.GATE_UP else rank, size, rows)

    monkeypatch.setattr(round_trip, "merge", wrong)
    found = _verify(tied, tied.hf, "round-trip")
    assert found["round-trip"] == (
        "tensor model.layers.0.mlp.gate_proj.weight does not come back from 2 tensor-parallel ranks"
    )


def test_a_stage_that_loses_a_layer_fails_the_round_trip(tied: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    from octo_megatron.convert.gate import round_trip

    plain = round_trip.get_num_layers_to_build
    monkeypatch.setattr(
        round_trip,
        "get_num_layers_to_build",
        lambda config, pp_rank: plain(config, pp_rank=pp_rank) - pp_rank,
    )
    found = _verify(tied, tied.hf, "round-trip")
    assert found["round-trip"] == (
        "of 2 pipeline stages 0 hold parameter decoder.layers.3.input_layernorm.weight, instead of one"
    )


def test_each_bf16_limit_is_held(tied: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights that differ by BF16's last bit: within wide limits, and beyond each of three narrow ones."""
    plain = logits.megatron_logits

    def shaken(read, *rest):  # type: ignore[no-untyped-def]
        generator = torch.Generator().manual_seed(0)
        return plain(lambda name: read(name) * (1 + 2e-4 * torch.randn(1, generator=generator)), *rest)

    monkeypatch.setattr(logits, "megatron_logits", shaken)
    wide = {"ARGMAX_LIMIT": 0.0, "KL_LIMIT": 1.0, "LOSS_LIMIT": 1.0}
    narrow = {"ARGMAX_LIMIT": 1.0, "KL_LIMIT": 1e-9, "LOSS_LIMIT": 1e-9}
    for limit in (None, *wide):
        for name, value in wide.items():
            monkeypatch.setattr(logits, name, narrow[name] if name == limit else value)
        found = _verify(tied, tied.hf, "bf16")
        assert found == {} if limit is None else "same best token" in found["bf16"]


def test_a_long_part_says_that_it_is_at_work(tied: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "_BEAT_SECONDS", 0.01)
    heard: list[str] = []
    skip = ["files", "round-trip", "generation", "bf16"]
    verify_folder(tied.checkpoint, tied.hf, skip, lambda phase, done, of: heard.append(phase))
    assert heard.count("gate: logits") > 3


def test_another_token_in_the_generation(tied: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = Reference.generate

    def other(self: Reference, prompt: torch.Tensor, tokens: int) -> list[int]:
        answer = plain(self, prompt, tokens)
        return [*answer[:40], answer[40] ^ 1, *answer[41:]]

    monkeypatch.setattr(Reference, "generate", other)
    found = _verify(tied, tied.hf, "generation")
    assert "Megatron's token 40 after prompt 0 is" in found["generation"]


def test_without_vllm_the_report_says_so(tied: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generation, "vllm_is_missing", lambda: "vLLM is not installed")
    skip = ["files", "round-trip", "logits", "bf16"]
    part = verify_folder(tied.checkpoint, tied.hf, skip).parts[-2]
    assert "NOT COMPARED WITH vLLM: vLLM is not installed" in part.line


def test_an_engine_that_does_not_load_the_folder_is_a_failure(
    tied: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generation, "_VLLM", "octo_megatron.no_such_module")
    found = _failures(verify_folder(tied.checkpoint, tied.hf, ["files", "round-trip", "logits", "bf16"]))
    assert "vLLM does not generate from" in found["generation"] and "no_such_module" in found["generation"]


@pytest.mark.parametrize("name", ["llama-tied", "qwen2", "qwen3"])
def test_a_model_that_does_not_fit_is_compared_layer_by_layer(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = HfFolder(make_folder(tmp_path / "hf", name))
    asked = logits.prompts(512)
    streamed = list(Reference(folder, "fp32", whole=False).logits(asked))
    for mine, theirs in zip(streamed, Reference(folder, "fp32", whole=True).logits(asked), strict=True):
        assert (mine - theirs).abs().max() < 1e-5
    import_folder(folder.path, tmp_path / "checkpoint", gate=False)
    monkeypatch.setattr(transformers_forward, "_SHARE_OF_MEMORY", 0.0)
    report = verify_folder(tmp_path / "checkpoint", folder.path, ["vllm"])
    assert _failures(report) == {} and report.left_out == ["generation"]


def test_a_part_that_is_none_is_refused(tied: Made) -> None:
    with pytest.raises(UserError, match="the gate has no part 'luck'; its parts are files, round-trip"):
        verify_folder(tied.checkpoint, tied.hf, ["luck"])
