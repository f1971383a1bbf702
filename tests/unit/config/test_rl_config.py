"""The RL node's config: the recipe's file, the length schedule, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest

from octo_megatron.config.errors import UserError
from octo_megatron.config.loading import CONFIGS, load_lineage
from octo_megatron.config.schema import RLNode
from octo_megatron.config.schema.critic import CriticConfig
from octo_megatron.config.schema.rl import KLConfig, LengthChange, RewardConfig


def test_the_recipe_loads_with_the_papers_values() -> None:
    lineage = load_lineage(CONFIGS / "rl" / "octothinker.yaml", ["model=/m", "data_root=/d"])
    node = lineage.nodes["rl-long-scheduled"]
    assert isinstance(node, RLNode)
    assert (node.prompts_per_step, node.samples_per_prompt, node.updates_per_step) == (128, 16, 2)
    assert (node.lr, node.kl.coefficient, node.temperature, node.steps) == (1e-6, 0.0, 1.0, 200)
    limits = [node.response_tokens(step) for step in (1, 99, 100, 159, 160, 200)]
    assert limits == [2048, 2048, 4096, 4096, 8192, 8192]
    short = lineage.nodes["rl-short"]
    assert isinstance(short, RLNode) and [short.response_tokens(s) for s in (1, 200)] == [4096, 4096]
    assert "<think>" in lineage.problems["math8k-complex"].prompt


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"advantages": "grop"}, "advantages is 'grop'"),
        ({"loss": "ppo"}, "loss is 'ppo'"),
        ({"aggregation": "mean"}, "aggregation is 'mean'"),
        ({"clip_ratio_dual": 0.5}, "clip_ratio_dual is 0.5"),
        ({"samples_per_prompt": 1}, "samples_per_prompt must be at least 2"),
        ({"response_schedule": [LengthChange(5, 10)]}, r"begins at steps \[5\]"),
        ({"response_schedule": [LengthChange(1, 999)]}, "must lie in"),
        ({"critic": CriticConfig(lr=1e-4)}, "critic belongs to advantages: ppo; advantages is 'grpo'"),
        (
            {"advantages": "ppo", "steps": 5, "critic": CriticConfig(warmup_steps=5)},
            "leaves none of the 5 steps to the policy; use critic.warmup_steps=4",
        ),
        ({"advantages": "ppo", "dynamic_sampling_rounds": 1}, "which advantages: ppo does not use"),
    ],
)
def test_wrong_values_are_named(values: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        RLNode(**values)


def test_wrong_sections_are_named() -> None:
    with pytest.raises(UserError, match=r"kl\.estimator is 'k4'"):
        KLConfig(estimator="k4")
    with pytest.raises(UserError, match=r"reward\.format_pattern '\('"):
        RewardConfig(format_pattern="(")


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"lr": 0.0}, "critic.lr is 0"),
        ({"gamma": 0.0}, "critic.gamma is 0"),
        ({"gae_lambda": 1.5}, r"critic.gae_lambda is 1.5; use a value in 0..1"),
        ({"value_clip": -0.5}, "critic.value_clip is -0.5"),
        ({"warmup_steps": -1}, "critic.warmup_steps is -1"),
    ],
)
def test_wrong_values_of_the_critic_are_named(values: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        CriticConfig(**values)


def test_with_a_critic_one_answer_a_prompt_is_enough() -> None:
    assert RLNode(advantages="ppo", samples_per_prompt=1).has_critic
