"""The figures of summary.json against values computed by hand from the literal runs in conftest.py."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from octo_megatron.config.errors import UserError
from octo_megatron.report.claim import check_claim
from octo_megatron.report.read import DONE, MISSING, RUNNING, read_run
from octo_megatron.report.summary import ends, summarise


def test_start_and_end_are_means_of_the_first_and_last_five_rl_steps(finished_run: Path) -> None:
    rl = summarise(finished_run)["rl"]
    assert list(rl) == ["base", "short", "long"]
    assert rl["short"]["reward"] == pytest.approx(
        [(0.5 + 0.6 + 0.6 + 0.6 + 0.7) / 5, (0.8 + 0.8 + 0.9 * 3) / 5]
    )
    assert rl["long"]["reward"] == pytest.approx([0.5, 0.95])
    assert rl["base"]["reward"] == pytest.approx([0.0, 0.01])
    assert rl["long"]["length"] == [42.0, 42.0]
    assert rl["long"]["accuracy"] == [0.25, 1.0]
    assert rl["long"]["accuracy_hard"] == [0.25, 1.0]
    assert rl["short"]["window"] == 5
    assert rl["short"]["logprob_gap_max"] == pytest.approx(12e-6)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([], [None, None]),
        ([3.0], [3.0, 3.0]),
        ([1.0, 2.0, 3.0], [1.0, 3.0]),
        ([0.0] * 5 + [9.0] + [1.0] * 5, [0.0, 1.0]),
        ([1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0], [2.5, 6.5]),
    ],
)
def test_the_windows_of_a_short_run_do_not_overlap(values: list[float], expected: list[float | None]) -> None:
    assert ends(values) == expected


def test_claim_flags(finished_run: Path) -> None:
    claim = summarise(finished_run)["claim"]
    assert claim["base_flat"] is True
    assert claim["branches_climb"] == {"short": True, "long": True}
    assert claim["branches_end_above_half"] == {"short": True, "long": True}
    assert claim["long_is_longest"] is True
    assert claim["highest"] == "long"
    assert claim["holds"] is True


def _entry(reward: list[float], length: float, state: str = "done") -> dict:
    return {"state": state, "reward": reward, "length": [length, length]}


def test_claim_thresholds_count_their_own_value_as_the_issue_does() -> None:
    rl = {"base": _entry([0.0, 0.05], 9), "short": _entry([0.4, 0.5], 9), "long": _entry([0.1, 0.9], 8)}
    claim = check_claim(rl, ["base"], ["short", "long"])
    assert claim["base_flat"] is False  # must be under 0.05
    assert claim["branches_climb"]["short"] is True  # at least 0.1, though 0.5 - 0.4 < 0.1 in floating point
    assert claim["branches_end_above_half"]["short"] is False  # must be above 0.5
    assert claim["long_is_longest"] is False
    assert claim["holds"] is False


def test_an_unfinished_branch_is_neither_counted_nor_lets_the_claim_hold() -> None:
    rl = {
        "base": _entry([0.0, 0.0], 9),
        "short": _entry([0.1, 0.9], 9),
        "long": _entry([0.9, 0.0], 8, "running"),
    }
    claim = check_claim(rl, ["base"], ["short", "long"])
    assert claim["holds"] is None
    assert claim["branches_climb"] == {"short": True}
    assert claim["long_is_longest"] is None


def test_tokens_along_the_path_and_by_source(finished_run: Path) -> None:
    summary = summarise(finished_run)
    assert summary["tokens"]["along_path"]["stable"] == 1536 + 1024
    assert summary["tokens"]["along_path"]["rl-long"] == 1536 + 1024 + 1024
    assert summary["tokens"]["by_source"] == {"general": 1536 + 1024 + 500 + 512, "short": 524, "long": 512}
    assert summary["tokens"]["mid_training"] == 1536 + 3 * 1024
    assert summary["tokens"]["generated"] == 3600
    assert summary["rl"]["base"]["mid_training_tokens"] == 1536


def test_learning_rate_continuity_losses_and_seconds(writer) -> None:
    writer.mid_training()
    done = json.loads((writer.root / "nodes/short/done.json").read_text())
    writer.json("nodes/short/done.json", done | {"lr_first": 0.002})
    summary = summarise(writer.root)
    assert summary["lr_continuity"]["long"]["continuous"] is True
    assert summary["lr_continuity"]["short"] == {
        "parent": "stable", "parent_last": 0.003, "first": 0.002, "continuous": False,
    }  # fmt: skip
    assert "base" not in summary["lr_continuity"]
    assert summary["train"]["base"]["loss"] == [4.0, 3.5]
    assert summary["train"]["base"]["steps"] == [3, 3]  # the check before the first step is none
    assert summary["seconds"]["base"] == {
        "total": 10.0,
        "by_phase": {"checkpoint": 1.0, "other": 3.0, "train": 6.0},
    }


def test_summary_file_holds_what_is_returned(finished_run: Path) -> None:
    summary = summarise(finished_run)
    assert json.loads((finished_run / "summary.json").read_text()) == summary
    assert summary["versions"] == {"torch": "2.13.0", "megatron-core": "0.16.1"}
    assert summary["digests"]["base"] == {"config_digest": "digest-base", "weights_sha256": "base" * 8}
    assert summary["evaluation"]["rl-long"]["same"]["greedy"] == 0.5
    assert summary["finished"] is True


def test_an_unfinished_run_has_states_and_no_invented_figures(started_run: Path) -> None:
    run, summary = read_run(started_run), summarise(started_run)
    states = {name: node.state for name, node in run.nodes.items()}
    assert states["base"] == DONE and states["long"] == RUNNING and states["export-long"] == MISSING
    assert run.nodes["short"].error == "the disk is <full>"
    assert summary["finished"] is False
    assert summary["rl"]["base"]["reward"] == [0.1, 0.3]
    assert summary["rl"]["base"]["accuracy"] == [None, None]
    assert summary["rl"]["long"]["reward"] == [None, None]
    assert summary["claim"]["holds"] is None and summary["claim"]["base_flat"] is None
    assert summary["seconds"]["rl-base"]["by_phase"] == pytest.approx({"rollout": 1.8, "train": 1.2})


def test_a_line_cut_short_and_a_nan_do_no_harm(started_run: Path) -> None:
    path = started_run / "nodes/rl-base/metrics.jsonl"
    path.write_text(path.read_text() + '{"step": 4, "reward": NaN, "response_length": 1.0}\n{"step": 5, "rew')
    summary = summarise(started_run)
    assert summary["rl"]["base"]["reward"] == [0.1, 0.3]
    json.loads((started_run / "summary.json").read_text(), parse_constant=pytest.fail)


def test_what_is_no_run_folder_is_told_in_one_line(tmp_path: Path, finished_run: Path) -> None:
    with pytest.raises(UserError, match="is not a run folder"):
        summarise(tmp_path)
    (finished_run / "nodes/base/done.json").write_text('{"kind": ')
    with pytest.raises(UserError, match=r"base/done.json is damaged"):
        summarise(finished_run)


def test_two_rl_runs_from_one_start_keep_their_own_names(writer) -> None:
    lineage = writer.root / "lineage.yaml"
    lineage.write_text(lineage.read_text() + "  rl-long-hot: {kind: rl, parent: long, lr: 1.0e-4}\n")
    writer.mid_training()
    assert list(summarise(writer.root)["rl"]) == ["base", "short", "rl-long", "rl-long-hot"]


def test_reading_a_summary_imports_no_engine_and_no_plots() -> None:
    code = (
        "import sys, octo_megatron.report.summary, octo_megatron.report.table;"
        "sys.exit(any(m in sys.modules for m in ('matplotlib', 'torch', 'vllm', 'megatron')))"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=120).returncode == 0
