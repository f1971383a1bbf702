"""Signs of a collapse, figures of a step, and the records of phases."""

from __future__ import annotations

import pytest

pytest.importorskip("vllm", reason="needs vllm: `make env` installs it")

from octo_megatron.config.errors import UserError
from octo_megatron.config.schema.rl import CollapseConfig
from octo_megatron.rl.figures import answer_figures, idle_share, quantile
from octo_megatron.rl.records import read_zst, write_zst
from octo_megatron.rl.rollout import Sample
from octo_megatron.rl.watch import collapse


def row(step: int, **figures: float) -> dict[str, float]:
    fine = {"reward": 0.5, "entropy": 1.0, "response_length": 50.0, "truncated": 0.1}
    return {"step": step, **fine, **figures}


@pytest.mark.parametrize(
    ("key", "limit", "value"),
    [("reward", {"reward_below": 0.1}, 0.05), ("entropy", {"entropy_below": 0.2}, 0.1),
     ("entropy", {"entropy_above": 3.0}, 4.0), ("response_length", {"length_below": 10.0}, 3.0),
     ("truncated", {"truncated_above": 0.5}, 0.9)],
)  # fmt: skip
def test_a_condition_that_lasts_ends_the_run(key: str, limit: dict[str, float], value: float) -> None:
    config = CollapseConfig(patience=3, **limit)
    bad = [row(i, **{key: value}) for i in range(3)]
    assert key in collapse([row(0), *bad], config) and "last 3 steps" in collapse(bad, config)
    assert collapse(bad[:2], config) == ""
    assert collapse([*bad, row(4)], config) == ""
    assert collapse(bad, CollapseConfig()) == ""


def test_patience_needs_a_condition() -> None:
    with pytest.raises(UserError, match=r"collapse\.patience needs a condition"):
        CollapseConfig(patience=3)


def test_figures_of_answers() -> None:
    samples = [
        Sample(0, [1], [2] * n, [-0.5] * n, n < 4, 0, "", r, {"correct": r})
        for n, r in ((1, 1.0), (2, 0.0), (3, 1.0), (4, 1.0))
    ]
    found = answer_figures(samples, 2)
    assert found["reward"] == found["reward_correct"] == 0.75
    assert (
        found["group_std"] == 0.25 and found["groups_all_right"] == 0.5 and found["groups_all_wrong"] == 0.0
    )
    assert (found["response_length"], found["response_length_p50"], found["response_length_p95"]) == (
        2.5,
        2,
        4,
    )
    assert found["truncated"] == 0.25 and found["entropy"] == 0.5
    assert quantile(list(range(1, 101)), 0.95) == 95
    assert idle_share([1.0, 3.0]) == pytest.approx(1 / 3) and idle_share([2.0, 2.0]) == 0.0


def test_records_keep_any_text_and_refuse_damage(tmp_path) -> None:  # type: ignore[no-untyped-def]
    rows = [{"text": "line\u2028end \ud800 \n\\boxed{1}"}, {"logprobs": [-0.1, -1e-17, 0.30000000000000004]}]
    write_zst(tmp_path / "a.jsonl.zst", rows)
    assert read_zst(tmp_path / "a.jsonl.zst") == rows
    (tmp_path / "a.jsonl.zst").write_bytes((tmp_path / "a.jsonl.zst").read_bytes()[:-5])
    with pytest.raises(UserError, match="damaged"):
        read_zst(tmp_path / "a.jsonl.zst")
