"""The model card tells the lineage as the run folder has it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from octo_megatron.config.run_folder import RunFolder
from octo_megatron.convert.gate.result import PASSED, GateReport, PartResult
from octo_megatron.convert.model_card import ancestry, card

CONFIG: dict[str, Any] = {
    "architectures": ["Qwen3ForCausalLM"],
    "vocab_size": 512,
    "hidden_size": 128,
    "intermediate_size": 320,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 512,
}
REPORT = GateReport([PartResult("files", PASSED, "all")])


def _run(root: Path) -> RunFolder:
    run = RunFolder(root)
    done: dict[str, dict[str, Any]] = {
        "base": {
            "kind": "import",
            "parent": None,
            "hf": "/models/Small-1B",
            "hf_weights_sha256": "ab12",
            "config_digest": "aaaa",
        },
        "stable": {
            "kind": "train",
            "parent": "base",
            "step": 1000,
            "tokens": 4_096_000,
            "tokens_by_source": {"web": 3_000_000, "qa": 1_096_000},
            "lr_first": 5e-5,
            "lr_last": 5e-5,
            "config_digest": "bbbb",
        },
        "other": {"kind": "train", "parent": "base", "tokens": 1},
        "check": {
            "kind": "evaluate",
            "results": {
                "stable": {"gsm8k": {"greedy": 0.25, "length": 87.5}},
                "other": {"gsm8k": {"greedy": 0.5}},
            },
        },
    }
    for name, facts in done.items():
        run.node(name).root.mkdir(parents=True)
        run.node(name).done.write_text(json.dumps(facts))
    return run


def test_parents_tokens_rates_digests_and_evaluation(tmp_path: Path) -> None:
    text = card("mine", CONFIG, "bf16", ancestry({"kind": "train"}, _run(tmp_path), "stable"), REPORT)
    front = text.split("---")[1].strip().splitlines()
    assert 'base_model: "Small-1B"' in front and 'library_name: "transformers"' in front
    assert "Starts from `/models/Small-1B` (sha256 of the weights: `ab12`)." in text
    assert "| stable | base | train | 1,000 | 4,096,000 | 5e-05 → 5e-05 | bbbb |" in text
    assert "Tokens of stable by source: web 3,000,000, qa 1,096,000." in text
    assert "| stable | gsm8k | 0.25 | 87.5 |" in text
    scratch = card("mine", CONFIG, "bf16", ancestry({}, _run(tmp_path / "2"), "check"), REPORT)
    assert "Starts from random weights." in scratch
    assert "other" not in text and "[CONVERSION.md](CONVERSION.md)." in text


def test_a_node_that_started_from_a_folder_itself(tmp_path: Path) -> None:
    run = _run(tmp_path)
    start = {"kind": "train", "parent": None, "tokens": 5, "hf": "/models/Tiny", "hf_weights_sha256": "cd34"}
    run.node("direct").root.mkdir()
    run.node("direct").done.write_text(json.dumps(start))
    text = card("mine", CONFIG, "bf16", ancestry({}, run, "direct"), REPORT)
    assert "Starts from `/models/Tiny` (sha256 of the weights: `cd34`)." in text
    assert "| direct | – | train |" in text
    alone = card("mine", CONFIG, "bf16", ancestry(start, None, None), REPORT)
    assert "Starts from `/models/Tiny` (sha256 of the weights: `cd34`)." in alone


def test_a_checkpoint_without_a_run_tells_its_own_facts() -> None:
    facts = {
        "kind": "train",
        "step": 7,
        "tokens": 1234,
        "lr": 0.001,
        "config_digest": "cccc",
        "hf_config": {},
    }
    text = card("mine", CONFIG, "fp32", ancestry(facts, None, None), REPORT)
    assert "What it started from is not known." in text
    assert "kind train, step 7, tokens 1,234, lr 0.001, config_digest cccc." in text
