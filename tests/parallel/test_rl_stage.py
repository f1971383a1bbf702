"""The RL and evaluate stages as the launcher starts them, on a model that has half learned its task."""

import json
import shutil
import time
from pathlib import Path

import pytest
from rl_runs import copy, make_run, rows, shown, start, wait

pytest.importorskip("vllm", reason="needs vllm: `make env` installs it")
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A run whose node `base` is trained."""
    return make_run(tmp_path_factory.mktemp("rl") / "run")


@pytest.fixture(scope="module")
def undisturbed(made, tmp_path_factory) -> Path:
    root = copy(made, tmp_path_factory.mktemp("undisturbed") / "run")
    wait(start(root, "rl"), root)
    return root


def test_it_runs_learns_and_reports(undisturbed):
    found, done = rows(undisturbed), json.loads((undisturbed / "nodes/rl/done.json").read_text())
    assert [row["step"] for row in found] == [1, 2, 3, 4, 5, 6]
    assert all(row["logprob_gap_max"] <= 1e-4 for row in found)
    assert found[-1]["weight_version"] == sum(2 if row["live_groups"] > 0 else 0 for row in found)
    assert done["step"] == 6 and done["parent"] == "base"
    before, after = (done["evaluation"][when]["few"] for when in ("before", "after"))
    assert 0 < before["accuracy"] <= after["accuracy"] <= 1
    assert done["generated_tokens"] == sum(row["generated_tokens"] for row in found)
    assert len(shown(undisturbed)) == 6
    first = [json.loads(line) for line in shown(undisturbed)[0].splitlines()]
    assert {row["weight_version"] for row in first} == {0}
    assert {row["reward"] for row in first} == {0.0, 1.0}
    assert all(row["reward"] == float(f"boxed{{{row['answer']}}}" in row["text"]) for row in first)


@pytest.mark.parametrize(
    "layout",
    [
        {"data_parallel_size": 2},
        {"data_parallel_size": 2, "overlap_grad_reduce": True},
        {"tensor_model_parallel_size": 2, "sequence_parallel": True},
        {"pipeline_model_parallel_size": 2},
    ],
    ids=["dp2", "dp2-overlap", "tp2-sp", "pp2"],
)
def test_two_processes_do_the_same_step(made, undisturbed, tmp_path, layout):
    root = copy(made, tmp_path / "run", parallel=layout, steps=2)
    wait(start(root, "rl", 2), root)
    one, two = rows(undisturbed), rows(root)
    assert len(two) == 2 and all(row["logprob_gap_max"] <= 1e-4 for row in two)
    assert shown(root)[0] == shown(undisturbed)[0]
    for name in ("reward", "live_groups", "trained_tokens", "generated_tokens", "weight_version"):
        assert two[0][name] == one[0][name], name
    for name in ("loss", "grad_norm"):
        assert two[0][name] == pytest.approx(one[0][name], abs=1e-5), name


def test_a_gap_beyond_the_limit_stops_the_run_with_one_line(made, tmp_path):
    root = copy(made, tmp_path / "run", logprob_gap_limit=1e-12)
    group = start(root, "rl")
    while not group.finished():
        time.sleep(0.1)
    failure = group.failure()
    group.end()
    assert failure is not None and failure.returncode == 2
    log = (root / "log.txt").read_text()
    assert "Traceback" not in log
    [line] = [line for line in log.splitlines() if line.startswith("octo: error:")]
    assert "node rl, step 1" in line and "beyond the limit of 1e-12" in line and "logprob_gap_limit" in line


def test_a_prompt_that_is_too_long_is_named(made, tmp_path):
    root = copy(made, tmp_path / "run", max_prompt_tokens=2)
    group = start(root, "rl")
    while not group.finished():
        time.sleep(0.1)
    group.end()
    assert "set nodes.rl.max_prompt_tokens=3" in (root / "log.txt").read_text()


def test_evaluate_compares_nodes_and_repeats_none(undisturbed, tmp_path):
    root = tmp_path / "run"
    shutil.copytree(undisturbed, root)
    wait(start(root, "evaluate"), root)
    done = json.loads((root / "nodes/evaluate/done.json").read_text())
    rl = json.loads((root / "nodes/rl/done.json").read_text())["evaluation"]
    for node, when in (("base", "before"), ("rl", "after")):
        found = done["results"][node]["few"]
        assert found["greedy"] == rl[when]["few"]["accuracy"]
        assert found["length"] == rl[when]["few"]["length"]
        assert 0 < found["sampled"] < 1
    # as if killed after `base`, whose result is then taken as it stands
    (root / "nodes/evaluate/done.json").unlink()
    kept = {
        "config_digest": done["config_digest"],
        "results": {"base": {"few": {"greedy": -1.0}}},
        "seconds": 1000.0,
    }
    (root / "nodes/evaluate/finished_nodes.json").write_text(json.dumps(kept))
    wait(start(root, "evaluate"), root)
    again = json.loads((root / "nodes/evaluate/done.json").read_text())
    assert again["results"] == {**done["results"], **kept["results"]}
    assert again["seconds"] > 1000
