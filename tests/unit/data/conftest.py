"""A small real tokenizer, and a way to write a prepared source without preparing a run."""

from collections.abc import Callable
from pathlib import Path

import pytest
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from octo_megatron.config.run_folder import RunFolder, write_json
from octo_megatron.data.store import token_type
from octo_megatron.data.token_set import SetWriter
from octo_megatron.data.tokenizer import TextTokenizer

REAL = Path(__file__).resolve().parents[4] / "shared" / "data"


def save_tokenizer(folder: Path, eos: str = "<eos>") -> Path:
    """Byte-level BPE with 300 ids, <eos> = 0 and <bos> = 1, in Hugging Face format."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<eos>", "<bos>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["the cat sat on the mat and the dog ran to the house " * 3], trainer)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    write_json(
        folder / "tokenizer_config.json", {"eos_token": eos, "tokenizer_class": "PreTrainedTokenizerFast"}
    )
    return folder


@pytest.fixture(scope="session")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="session")
def real_data() -> Path:
    if not (REAL / "train").is_dir():
        pytest.skip(f"the real data sets are not at {REAL}: put the folder described in its README there")
    return REAL


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    """A run folder that holds a tokenizer and nothing else."""
    save_tokenizer(tmp_path / "run" / "tokenizer")
    return RunFolder(tmp_path / "run")


@pytest.fixture
def add_source(run: RunFolder) -> Callable[..., None]:
    """add(name, documents, validation=[...]): token lists without their <eos>."""
    tokenizer = TextTokenizer(run.tokenizer)

    def add(name: str, documents: list[list[int]], validation: list[list[int]] | None = None) -> None:
        folder = run.source(name)
        folder.mkdir(parents=True)
        manifest = {"tokenized": None, "validation_tokens": 0}
        for part, content in (("train", documents), ("validation", validation)):
            if content:
                writer = SetWriter(folder / part, token_type(300))
                for ids in content:
                    writer.append([*ids, tokenizer.eos_id])
                made = writer.close(tokenizer.eos_id, tokenizer.sha256)
                manifest["validation_tokens" if part == "validation" else "tokens"] = made["tokens"]
        write_json(folder / "manifest.json", manifest)

    return add
