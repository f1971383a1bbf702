"""A checkpoint is gone on from, or branched from, only with what it was made with."""

from __future__ import annotations

from typing import Any

import pytest

from octo_megatron.config.errors import UserError
from octo_megatron.train.begin import compare_fingerprints

THEN: dict[str, Any] = {"data": {"web": "d1", "qa": "d2"}, "tokenizer": "t1", "model": "m1", "config": "c1"}
ALL = ("data", "tokenizer", "model")


def refusal(now: dict[str, Any], keys: tuple[str, ...] = ALL) -> str:
    with pytest.raises(UserError) as caught:
        compare_fingerprints({"fingerprints": THEN}, {**THEN, **now}, keys, "node stable: its checkpoint")
    return str(caught.value)


@pytest.mark.parametrize("key", ["tokenizer", "model"])
def test_another_tokenizer_or_model_is_refused_by_name(key: str) -> None:
    assert refusal({key: "other"}).startswith(f"node stable: its checkpoint was made with another {key} than")


def test_other_data_are_refused_with_the_source_named() -> None:
    assert "another data of source qa than" in refusal({"data": {"web": "d1", "qa": "changed"}})


def test_a_branch_has_data_of_its_own_but_no_tokenizer_of_its_own() -> None:
    inherited = ("tokenizer", "model")
    compare_fingerprints({"fingerprints": THEN}, {**THEN, "data": {"cot": "d3"}}, inherited, "branch")
    assert "tokenizer" in refusal({"tokenizer": "other"}, inherited)


def test_the_same_things_and_an_import_without_fingerprints_are_taken() -> None:
    compare_fingerprints({"fingerprints": THEN}, {**THEN, "config": "a longer budget"}, ALL, "node")
    compare_fingerprints({"kind": "import"}, THEN, ALL, "node")
