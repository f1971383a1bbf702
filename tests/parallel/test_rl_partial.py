"""Answers that grow over several steps while PPO changes policy and critic: versions, log-probabilities, resume.

The base is untrained, so that eos comes anywhere and answers have all lengths; a reward on length makes every step
learn. Real vLLM on CPU.
"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml
from ranks import run_ranks
from rl_runs import all_rows, copy, killed_at, make_run, rows, shown, start, wait

from octo_megatron.config.run_folder import read_json
from octo_megatron.rl.records import read_zst

pytest.importorskip("vllm", reason="needs vllm: `make env` installs it")
pytestmark = pytest.mark.slow
GROW, LIMIT, STEPS = 8, 36, 8
CHANGES: dict[str, Any] = {
    "steps": STEPS,
    "prompts_per_step": 8,
    "samples_per_prompt": 2,
    "partial_tokens": GROW,
    "max_response_tokens": LIMIT,
    "evaluate": [],
    "lr": 1e-3,
    "reward": {"length": 1.0},
    "advantages": "ppo",
    "critic": {"lr": 3e-3, "gae_lambda": 0.95},
    "checkpoint_interval": 1,
    "keep_checkpoints": 0,
}
SCRIPT = Path(__file__).with_name("rl_version_logprobs.py")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Keeps the weights after every step."""
    root = tmp_path_factory.mktemp("partial")
    made = make_run(root / "made", "--untrained")
    copy(made, root / "run", **CHANGES)
    wait(start(root / "run"), root / "run")
    return root / "run"


@pytest.fixture(scope="module")
def killed(undisturbed: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The same run, killed twice; and the records of its phases at the first kill, which no checkpoint had covered."""
    root = copy(undisturbed.with_name("made"), tmp_path_factory.mktemp("killed") / "run", **CHANGES)
    with_interval(root, 0)
    assert killed_at("phases/step_00006/answers_0.jsonl.zst", root)
    records = root.with_name("phases")
    shutil.copytree(root / "nodes/rl/phases", records)
    with_interval(root, 2)
    assert killed_at("phases/step_00007/rewards_*.json", root)
    with_interval(root, 1)
    wait(start(root), root)
    return root, records


def with_interval(root: Path, interval: int) -> None:
    lineage = yaml.safe_load((root / "lineage.yaml").read_text())
    lineage["nodes"]["rl"]["checkpoint_interval"] = interval
    (root / "lineage.yaml").write_text(yaml.safe_dump(lineage))


def rounds(records: Path) -> list[tuple[int, list[dict[str, Any]]]]:
    """(step, answers) of every round of sampling, in order."""
    files = sorted(records.glob("step_*/answers_*.jsonl.zst"))
    return [(int(path.parent.name[5:]), read_zst(path)[1:]) for path in files]


def key(answer: dict[str, Any]) -> tuple[int, int]:
    place, number = answer["origin"]
    return place, number


def test_killed_between_the_parts_of_an_answer_it_ends_the_same(
    undisturbed: Path, killed: tuple[Path, Path]
) -> None:
    root, _ = killed
    assert rows(root) == rows(undisturbed)
    assert shown(root) == shown(undisturbed)
    a, b = (read_json(r / "nodes/rl/done.json") for r in (root, undisturbed))
    assert a["weights_sha256"] == b["weights_sha256"]
    # weights and optimizers of policy and critic, every byte
    a, b = (
        read_json(r / f"nodes/rl/checkpoints/step_{STEPS:08d}/octo_manifest.json")
        for r in (root, undisturbed)
    )
    data = [name for name in a["files"] if name.endswith(".distcp")]
    assert data and a["extra"]["critic"]
    assert {name: a["files"][name] for name in data} == {name: b["files"][name] for name in data}


def test_answers_grow_by_stretches_and_none_is_lost_or_doubled(
    undisturbed: Path, killed: tuple[Path, Path]
) -> None:
    found, version_at = all_rows(undisturbed), {1: 0}
    version_at |= {row["step"] + 1: row["weight_version"] for row in found}
    assert len(set(version_at.values())) == STEPS + 1  # every step learned
    before: dict[tuple[int, int], dict[str, Any]] = {}
    for step, answers in rounds(killed[1]):
        assert max(Counter(map(key, answers)).values()) == 1
        now = {key(answer): answer for answer in answers}
        for place, answer in now.items():
            old = before.get(place, {"token_ids": [], "logprobs": [], "versions": [], "finished": False})
            had = len(old["token_ids"])
            assert answer["token_ids"][:had] == old["token_ids"]
            assert answer["logprobs"][:had] == old["logprobs"]
            assert len(answer["logprobs"]) == len(answer["token_ids"]) <= LIMIT
            grown = len(answer["token_ids"]) - had
            if old["finished"] or had == LIMIT:
                assert answer["versions"] == old["versions"]
            else:
                assert answer["versions"] == [*old["versions"], [version_at[step], grown]]
                assert grown == GROW or answer["finished"] or len(answer["token_ids"]) == LIMIT
            assert answer["finished"] == (answer["token_ids"][-1] == 0)
            assert 0 not in answer["token_ids"][:-1]  # nothing grows beyond its eos
        # what is not trained on goes on in the next round or step
        ended = {place for place, a in before.items() if place not in now}
        assert all(before[p]["finished"] or len(before[p]["token_ids"]) == LIMIT for p in ended)
        before = now
    lengths = {len(a["token_ids"]) for _, answers in rounds(killed[1]) for a in answers if a["finished"]}
    assert len(lengths) >= 8 and max(lengths) > 2 * GROW
    spans = [len({v for v, _ in a["versions"]}) for _, answers in rounds(killed[1]) for a in answers]
    assert max(spans) >= 3  # some grew over three steps


def test_every_group_that_is_drawn_is_trained_on_once_or_still_under_way(
    undisturbed: Path, killed: tuple[Path, Path]
) -> None:
    trained: list[str] = []
    for text in shown(undisturbed):
        answers = [json.loads(line) for line in text.splitlines()]
        for first, second in zip(answers[::2], answers[1::2], strict=True):
            assert first["problem"] == second["problem"]
            assert all(a["finished"] or a["tokens"] == LIMIT for a in (first, second))
            trained.append(first["problem"])
        for a in answers:
            assert sum(count for _, count in a["versions"]) == a["tokens"]
            assert a["weight_version"] == min(version for version, _ in a["versions"])
    last = all_rows(undisturbed)[-1]
    assert len(trained) == last["prompts"] - last["carried"] // 2
    drawn = [p for path in sorted(killed[1].glob("step_*/drawn_*.json")) for p in read_json(path)["problems"]]
    assert len(drawn) <= 40 and len(set(drawn)) == len(drawn)  # the set has 40, so each place has its own
    assert max(Counter(trained).values()) <= -(-last["prompts"] // 40)
    assert any(row["carried"] for row in all_rows(undisturbed))


def test_each_token_has_the_log_probability_of_the_weights_that_sampled_it(
    undisturbed: Path, killed: tuple[Path, Path]
) -> None:
    answers = killed[1] / "step_00006/answers_0.jsonl.zst"
    output = run_ranks(SCRIPT, [str(undisturbed), str(answers)]).stdout
    line = next(line for line in output.splitlines() if line.startswith("RESULT "))
    found = json.loads(line.removeprefix("RESULT "))
    assert len(found) >= 3 and sum(row["tokens"] for row in found.values()) > 100
    for row in found.values():
        assert row["own"] < 1e-4
        assert row["other"] > 1e-2  # the neighbour's weights would have been noticed
