"""`replace` of a source: how worked solutions get their mark."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from octo_megatron.config.errors import UserError
from octo_megatron.config.loading import load_lineage
from octo_megatron.config.schema import SourceConfig
from octo_megatron.data.sources import documents

GSM8K = {"question": "How many?", "answer": "5+5=<<5+5=10>>10 so\n10*2=<<10*2=20>>20.\n#### 20"}
LINEAGE = r"""
name: test
model: model/tiny.yaml
sources:
  gsm8k:
    files: [FILE]
    text: "Question: {question}\nAnswer: {answer}"
    replace: {'<<[^>]*>>': '', '#### (.+)': 'The answer is \\boxed{\1}.'}
nodes:
  base: {kind: train, tokens: 4096, mixture: {gsm8k: 1.0}}
"""


def test_calculator_notes_go_and_the_answer_is_marked(tmp_path: Path) -> None:
    data = tmp_path / "gsm8k.jsonl"
    data.write_text(json.dumps(GSM8K) + "\n")
    (tmp_path / "lineage.yaml").write_text(LINEAGE.replace("FILE", str(data)))
    source = load_lineage(tmp_path / "lineage.yaml").sources["gsm8k"]
    wanted = "Question: How many?\nAnswer: 5+5=10 so\n10*2=20.\nThe answer is \\boxed{20}."
    assert [one.text for one in documents("gsm8k", source, 0)] == [wanted]


@pytest.mark.parametrize(("pattern", "value"), [("(", ""), ("a", r"\1"), ("a", r"\q")])
def test_what_cannot_be_replaced_is_refused(pattern: str, value: str) -> None:
    with pytest.raises(UserError, match="cannot replace"):
        SourceConfig(files=["x.jsonl"], replace={pattern: value})
