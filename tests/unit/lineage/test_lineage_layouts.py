"""Layouts that do not divide are refused, and the one that the message offers passes."""

from __future__ import annotations

import re
from typing import Any

import pytest
from lineages import HF, lineage

from octo_megatron.config.errors import UserError
from octo_megatron.lineage.layouts import check_layouts, layout_works, nearest_layouts

CASES = [
    (
        {"tensor_model_parallel_size": 3},
        {},
        "num_attention_heads 4 is not divisible by tensor_model_parallel_size 3",
    ),
    (
        {"tensor_model_parallel_size": 4},
        {},
        "num_key_value_heads 2 is not divisible by tensor_model_parallel_size 4",
    ),
    (
        {"pipeline_model_parallel_size": 3},
        {},
        "num_hidden_layers 4 is not divisible by pipeline_model_parallel_size 3",
    ),
    (
        {"pipeline_model_parallel_size": 2, "virtual_pipeline_model_parallel_size": 3},
        {"global_batch_size": 8},
        "pipeline_model_parallel_size 2 x virtual_pipeline_model_parallel_size 3 = 6",
    ),
    (
        {"context_parallel_size": 2},
        {"seq_length": 130},
        "seq_length 130 is not divisible by 2 x context_parallel_size 2 = 4",
    ),
    (
        {"tensor_model_parallel_size": 2, "sequence_parallel": True},
        {"seq_length": 129},
        "seq_length 129 is not divisible by tensor_model_parallel_size 2 (sequence_parallel) = 2",
    ),
    (
        {},
        {"seq_length": 1024, "tokens": 8192},
        "seq_length 1024 is beyond the model's max_position_embeddings 512",
    ),
    (
        {"data_parallel_size": 2},
        {},
        "global_batch_size 4 is not divisible by micro_batch_size 4 x data_parallel_size 2 = 8",
    ),
    (
        {"pipeline_model_parallel_size": 2, "virtual_pipeline_model_parallel_size": 2},
        {},
        "the interleaved schedule needs micro-batches in multiples of pipeline_model_parallel_size 2",
    ),
]


@pytest.mark.parametrize(("layout", "train", "message"), CASES)
def test_a_layout_that_does_not_divide(layout: dict[str, Any], train: dict[str, Any], message: str) -> None:
    changes = {f"parallel__{key}": value for key, value in layout.items()}
    changes |= {f"nodes__base__{key}": value for key, value in train.items()}
    changes |= {f"nodes__{name}": None for name in ("stable", "rl", "evaluate", "export")}
    for _ in range(4):  # an offer may uncover the next thing that does not divide
        with pytest.raises(UserError) as caught:
            check_layouts(lineage(**changes), HF)
        assert "\n" not in str(caught.value)
        assert message in str(caught.value)
        offers = re.findall(r"(\w+)=(\d+)", str(caught.value))
        assert offers, "the message offers nothing"
        for key, value in offers:
            changes[f"parallel__{key}" if key.endswith("parallel_size") else f"nodes__base__{key}"] = int(
                value
            )
        try:
            check_layouts(lineage(**changes), HF)
            return
        except UserError as error:
            assert message not in str(error), "the offer does not help"
            message = str(error)
    raise AssertionError("the offers never led to a layout that works")


@pytest.mark.parametrize(
    ("layout", "near"),
    [
        # 4 heads and 2 groups, 4 layers, batches of 4 x 4: six processes must have a 3 somewhere, and nothing takes it
        ({"tensor_model_parallel_size": 3}, []),
        ({"tensor_model_parallel_size": 4}, ["TP2 x PP2", "TP2 x CP2", "CP4"]),
        (
            {"tensor_model_parallel_size": 4, "sequence_parallel": True},
            ["TP2+SP x PP2", "TP2+SP x CP2", "CP4"],
        ),
    ],
)
def test_the_nearest_layouts_of_as_many_processes(layout: dict[str, Any], near: list[str]) -> None:
    changes = {f"parallel__{key}": value for key, value in layout.items()}
    changes |= {f"nodes__{name}": None for name in ("stable", "rl", "evaluate", "export")}
    with pytest.raises(UserError) as caught:
        check_layouts(lineage(**changes), HF)
    made = lineage(**changes)
    found = nearest_layouts(made.nodes["base"], made.parallel, HF)
    assert sorted(other.short for other in found) == sorted(near)
    assert all(layout_works(made.nodes["base"], other, HF) for other in found)
    assert all(other.world_size == made.parallel.world_size for other in found)
    processes = made.parallel.world_size
    assert ("that work" in str(caught.value)) == bool(near)
    if near:
        assert f"layouts of {processes} processes that work: {', '.join(o.short for o in found)}" in str(
            caught.value
        )


def test_a_vocabulary_that_tensor_parallelism_cannot_cut() -> None:
    with pytest.raises(
        UserError, match=r"vocab_size 511 is not divisible by tensor_model_parallel_size 2 \(511 / 2"
    ):
        check_layouts(lineage(parallel__tensor_model_parallel_size=2), {**HF, "vocab_size": 511})


def test_answers_beyond_the_models_positions() -> None:
    with pytest.raises(
        UserError, match=r"64 \+ max_response_tokens 500 = 564 .* use max_response_tokens=448"
    ):
        check_layouts(lineage(nodes__rl__max_response_tokens=500), HF)


def test_a_nodes_own_layout_is_checked_too() -> None:
    with pytest.raises(UserError, match=r"nodes.stable: the model.s num_attention_heads"):
        check_layouts(lineage(nodes__stable__parallel={"tensor_model_parallel_size": 3}), HF)


def test_training_ranks_share_those_that_sample_evenly() -> None:
    shared = {"nodes__rl__parallel": {"data_parallel_size": 4}}
    for ranks, sampling in ((None, 4), (1, 1), (2, 2), (4, 4)):
        made = lineage(**shared, nodes__rl__engine={"placement": "separate", "ranks": ranks})
        check_layouts(made, HF)
        assert (made.sampling_ranks_of("rl"), made.ranks_of("rl")) == (sampling, 4 + sampling)
    for ranks, fit in ((3, 2), (8, 4)):
        made = lineage(**shared, nodes__rl__engine={"placement": "separate", "ranks": ranks})
        message = rf"^nodes.rl: engine.ranks {ranks} does not divide the 4 training ranks, .* use engine.ranks={fit}$"
        with pytest.raises(UserError, match=message):
            check_layouts(made, HF)
    assert lineage(**shared).ranks_of("rl") == 4
    with pytest.raises(UserError, match=r"engine.ranks is 2; it needs engine.placement=separate"):
        lineage(nodes__rl__engine={"ranks": 2})
