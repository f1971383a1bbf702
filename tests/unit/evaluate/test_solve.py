"""What needs no engine to run; the rest of evaluate/ is in tests/parallel/test_rl_stage.py."""

import json

import pytest

pytest.importorskip("vllm", reason="needs vllm: `make env` installs it")

from octo_megatron.config.errors import UserError
from octo_megatron.data.problems import Problem
from octo_megatron.data.tokenizer import TextTokenizer
from octo_megatron.evaluate.solve import longest_prompt


@pytest.fixture
def tokenizer(tmp_path):
    from tokenizers import Tokenizer, models, pre_tokenizers

    made = Tokenizer(models.WordLevel({"<eos>": 0, "a": 1, "?": 2}, unk_token="?"))
    made.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    made.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<eos>"}))
    return TextTokenizer(tmp_path)


def test_the_longest_prompt_is_named(tokenizer):
    sets = {"x": [Problem("1", "aaa", "1")], "y": [Problem("2", "a", "1"), Problem("3", "aaaaa", "1")]}
    assert longest_prompt(sets, tokenizer) == (5, "y, problem 3")


def test_an_empty_set_is_refused(tokenizer):
    with pytest.raises(UserError, match="problem set y is empty"):
        longest_prompt({"y": []}, tokenizer)
