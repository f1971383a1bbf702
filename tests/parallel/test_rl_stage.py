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


CUSTOM = """
def reward(prompt, text, answer):
    if text.startswith("=3"):
        raise ValueError("three is not for us")
    return {"style": 0.1 * text.startswith("=")}
"""


def test_other_algorithms_and_reward_parts(made, tmp_path):
    """Most of the options at once, two processes: KL from the parent in the reward, then in the loss."""
    (tmp_path / "mine.py").write_text(CUSTOM)
    reward = {"format": 0.2, "length": 0.1, "file": str(tmp_path / "mine.py"), "errors_are_zero": True}
    changes = {
        "steps": 3,
        "advantages": "rloo",
        "loss": "gspo",
        "clip_ratio_low": 0.05,
        "aggregation": "sequence",
        "reward": reward,
        "overlong": {"buffer_tokens": 4, "penalty": 0.5, "filter": True},
        "response_schedule": [
            {"from_step": 1, "max_response_tokens": 10},
            {"from_step": 2, "max_response_tokens": 13},
        ],
        "validation_interval": 2,
        "parallel": {"data_parallel_size": 2},
    }
    in_reward = {"kl": {"coefficient": 0.5, "estimator": "k1", "place": "reward"}}
    in_loss = {"kl": {"coefficient": 0.5, "estimator": "k3"}, "entropy_coefficient": 0.01}
    for name, kl in (("reward", in_reward), ("loss", in_loss)):
        root = copy(made, tmp_path / name, **changes, **kl)
        wait(start(root, "rl", 2), root)
        found = rows(root)
        assert [row["max_response_tokens"] for row in found] == [10, 13, 13]
        # before the first update the policy is the reference
        assert abs(found[0]["kl"]) < 1e-6 and found[2]["kl"] > 1e-6
        for row in found:
            parts = sum(v for k, v in row.items() if k.startswith("reward_"))
            assert row["reward"] == pytest.approx(parts)
            assert 0 <= row["reward_format"] < 0.2001 and -0.1001 < row["reward_length"] <= 0
            assert row["reward_overlong"] <= 0 and row["reward_style"] >= 0
        assert ("reward_kl" in found[2]) == (name == "reward") and ("policy_entropy" in found[2]) == (
            name == "loss"
        )
        assert 0 < found[1]["validation_few_accuracy"] <= 1 and "validation_few_length_wrong" in found[1]
        best = json.loads((root / "nodes/rl/best/best.json").read_text())
        assert best["step"] == 2 and (root / "nodes/rl/best/step_00000002").is_dir()
        assert "three is not for us" in (root / "log.txt").read_text()


def test_an_error_of_the_reward_file_stops_the_run_and_names_the_answer(made, tmp_path):
    (tmp_path / "mine.py").write_text("def reward(prompt, text, answer):\n    raise KeyError('unit')\n")
    root = copy(made, tmp_path / "run", evaluate=[], reward={"file": str(tmp_path / "mine.py")})
    group = start(root, "rl")
    while not group.finished():
        time.sleep(0.1)
    failure = group.failure()
    group.end()
    assert failure is not None and failure.returncode == 2
    [line] = [x for x in (root / "log.txt").read_text().splitlines() if x.startswith("octo: error:")]
    assert "step 1" in line and "KeyError: 'unit'" in line and "errors_are_zero=true" in line


PPO = {
    "steps": 2,
    "evaluate": [],
    "advantages": "ppo",
    "critic": {"lr": 3e-3, "gae_lambda": 0.9},
    "kl": {"coefficient": 0.5, "estimator": "k1", "place": "reward"},
}


@pytest.fixture(scope="module")
def with_critic(made, tmp_path_factory) -> Path:
    root = copy(made, tmp_path_factory.mktemp("ppo") / "run", **PPO)
    wait(start(root), root)
    return root


def test_a_critic_learns_beside_the_policy(with_critic):
    first, second = rows(with_critic)
    assert first["value_mean"] == 0.0 and first["explained_variance"] == 0.0  # its head starts at zero
    # from values of zero the rewards at the ends of answers of 13 tokens reach back with powers of lambda
    assert first["return_mean"] == pytest.approx(first["reward"] * sum(0.9**n for n in range(13)) / 13)
    assert second["value_mean"] > 0.01 and second["critic_grad_norm"] > 0
    assert abs(first["reward_kl"]) < 1e-5 < abs(second["reward_kl"])
    assert [row["weight_version"] for row in (first, second)] == [2, 4]
    checkpoint = with_critic / "nodes/rl/checkpoints/step_00000002/octo_manifest.json"
    assert json.loads(checkpoint.read_text())["extra"]["critic"]


def test_a_critic_in_two_processes_does_the_same_step(made, with_critic, tmp_path):
    root = copy(made, tmp_path / "run", **PPO, parallel={"data_parallel_size": 2})
    wait(start(root, "rl", 2), root)
    one, two = rows(with_critic)[0], rows(root)[0]
    assert shown(root)[0] == shown(with_critic)[0]
    for name in ("value_loss", "critic_grad_norm", "explained_variance", "return_mean", "grad_norm", "loss"):
        assert two[name] == pytest.approx(one[name], abs=1e-5), name


def test_a_critic_beside_an_engine_on_a_rank_of_its_own(made, with_critic, tmp_path):
    root = copy(made, tmp_path / "run", **PPO, engine={"placement": "separate"})
    wait(start(root, "rl", 2), root)
    assert rows(root) == rows(with_critic)
