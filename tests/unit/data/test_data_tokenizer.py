"""Tokenizer folders."""

import shutil
from pathlib import Path

import pytest
import tokenizers
from tokenizers import processors

from octo_megatron.config.errors import UserError
from octo_megatron.config.run_folder import write_json
from octo_megatron.data.tokenizer import TextTokenizer, fingerprint


def test_documents_end_with_eos_and_prompts_do_not(tokenizer_folder: Path) -> None:
    tokenizer = TextTokenizer(tokenizer_folder)
    prompt = tokenizer.encode("the cat sat")
    assert tokenizer.encode_documents(["the cat sat"]) == [[*prompt, tokenizer.eos_id]]
    assert tokenizer.decode([*prompt, tokenizer.eos_id]) == "the cat sat"
    assert (tokenizer.eos_id, tokenizer.bos_id, tokenizer.prefix) == (0, None, [])
    assert (
        tokenizer.size
        == tokenizers.Tokenizer.from_file(str(tokenizer_folder / "tokenizer.json")).get_vocab_size()
    )


def test_a_text_cannot_end_itself(tokenizer_folder: Path) -> None:
    tokenizer = TextTokenizer(tokenizer_folder)
    ids = tokenizer.encode("the cat<eos>sat")
    assert tokenizer.eos_id not in ids and tokenizer.decode(ids) == "the cat<eos>sat"


def test_what_the_tokenizer_puts_before_a_text_is_kept(tokenizer_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(tokenizer_folder, tmp_path / "llama")
    path = tmp_path / "llama" / "tokenizer.json"
    plain = tokenizers.Tokenizer.from_file(str(path))
    plain.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 1)])
    plain.save(str(path))
    tokenizer, before = TextTokenizer(path.parent), TextTokenizer(tokenizer_folder)
    assert tokenizer.prefix == [1]
    assert tokenizer.encode("the cat") == [1, *before.encode("the cat")]
    assert tokenizer.encode_documents(["the cat"]) == [[1, *before.encode("the cat"), 0]]
    assert fingerprint(path.parent) != before.sha256


@pytest.mark.parametrize(
    ("config", "cause"),
    [
        ({}, "no eos_token"),
        ({"eos_token": "<end>"}, "eos_token '<end>' is not a token"),
        ({"eos_token": {"content": "<eos>"}}, None),
    ],
)
def test_the_end_token_is_needed(
    tokenizer_folder: Path, tmp_path: Path, config: dict, cause: str | None
) -> None:
    shutil.copy(tokenizer_folder / "tokenizer.json", tmp_path)
    write_json(tmp_path / "tokenizer_config.json", config)
    if cause is None:
        assert TextTokenizer(tmp_path).eos_id == 0
        return
    with pytest.raises(UserError, match=cause):
        TextTokenizer(tmp_path)


def test_missing_and_damaged_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"tokenizer\.json is missing"):
        TextTokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match=r"tokenizer\.json is not a tokenizer"):
        TextTokenizer(tmp_path)
