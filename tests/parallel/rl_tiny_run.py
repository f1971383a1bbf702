"""A run folder for RL tests: a model of 40,000 weights that has half learned to copy a digit into a box.

`python rl_tiny_run.py RUN [--untrained] [key=value ...]` makes RUN with its node `base` done; overrides are those of
a lineage file. Nodes: base -> rl, and evaluate of both. Untrained, the base says eos at any token with about the same
probability, so that answers have lengths of all kinds.
"""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path

LINEAGE = """
name: tiny-rl
model: model/tiny.yaml
seed: 3
sources: {text: {files: [none.jsonl]}}
problems: {digits: {file: none.jsonl}, few: {file: none.jsonl}}
nodes:
  base: {kind: train, tokens: 4096, mixture: {text: 1.0}}
  rl:
    kind: rl
    parent: base
    problems: digits
    steps: 6
    prompts_per_step: 4
    samples_per_prompt: 4
    max_prompt_tokens: 8
    max_response_tokens: 13
    micro_batch_tokens: 64
    lr: 1.0e-3
    evaluate: [few]
    checkpoint_interval: 2
  evaluate: {kind: evaluate, of: [base, rl], problems: [few], max_response_tokens: 13, samples: 2}
"""
HF_CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 32,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "hidden_act": "silu",
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": True,
    "initializer_range": 0.05,
}


def make_tokenizer(folder: Path) -> None:
    """One id a character, 0 ends a document."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    vocabulary = {"<eos>": 0} | {c: i + 1 for i, c in enumerate("0123456789:=\\boxed{} ")}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=" "))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens(["<eos>"])
    folder.mkdir(parents=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<eos>"}))


def main(root: Path, overrides: list[str], untrained: bool = False) -> None:
    root.mkdir(parents=True)
    (root / "lineage.yaml").write_text(LINEAGE)
    from octo_megatron.config.loading import load_lineage, to_plain

    lineage = load_lineage(root / "lineage.yaml", overrides)
    (root / "lineage.yaml").write_text(json.dumps(to_plain(lineage)))  # JSON is YAML
    make_tokenizer(root / "tokenizer")
    (root / "hf_config.json").write_text(json.dumps(HF_CONFIG))
    (root / "problems").mkdir()
    problems = [{"id": str(n), "prompt": f"{n:02d}:", "answer": str(n % 10)} for n in range(60)]
    for name, part in (("digits", problems[:40]), ("few", problems[40:])):
        (root / "problems" / f"{name}.jsonl").write_text("".join(json.dumps(p) + "\n" for p in part))
    train_base(root, 0 if untrained else 120)


def train_base(root: Path, steps: int) -> None:
    """Supervised steps on right and wrong answers; the checkpoint is the node `base`'s."""
    import torch

    from octo_megatron.checkpoint import store
    from octo_megatron.config.schema import OptimizerConfig, ParallelConfig
    from octo_megatron.data.tokenizer import TextTokenizer
    from octo_megatron.model.batch import Document, pack
    from octo_megatron.parallel import world as worlds
    from octo_megatron.train.megatron import MegatronTrainer, next_token_loss

    layout = ParallelConfig()
    world = worlds.start(layout, 0)
    trainer = MegatronTrainer(HF_CONFIG, layout, "fp32", OptimizerConfig(), world)
    tokenizer, r = TextTokenizer(root / "tokenizer"), random.Random(0)
    for _ in range(steps):
        documents = []
        for _ in range(24):
            n = r.randrange(100)
            answer = n % 10 if r.random() < 0.5 else r.randrange(10)
            ids = torch.tensor([*tokenizer.encode(f"{n:02d}:={answer} \\boxed{{{answer}}}"), 0])
            documents.append(Document(ids[:-1], ids[1:], torch.ones(len(ids) - 1)))
        trainer.train_step([pack(documents, layout)], next_token_loss, 1e-2)
    store.save(store.step_folder(root / "nodes" / "base" / "checkpoints", 120), trainer, {"kind": "train"})
    world.stop()


if __name__ == "__main__":
    options = [value for value in sys.argv[2:] if value != "--untrained"]
    main(Path(sys.argv[1]), options, "--untrained" in sys.argv)
