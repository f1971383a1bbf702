"""What `octo plan` says, against what was measured and against the recipe."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
import yaml

from octo_megatron.cluster.memory import GIB, Step, memory
from octo_megatron.cluster.plan import USABLE, candidates
from octo_megatron.cluster.rates import Rate, measured, nearest, tokens_per_second
from octo_megatron.config.errors import UserError
from octo_megatron.config.loading import CONFIGS
from octo_megatron.config.model import read_hf_config
from octo_megatron.config.model_size import model_size
from octo_megatron.config.schema import ComputeConfig, ParallelConfig, TrainNode
from octo_megatron.lineage.run import make_plan, read_draft
from octo_megatron.model.families import family_of
from octo_megatron.train.flops import training_flops

sys.path.append(str(Path(__file__).resolve().parents[1] / "cli"))
from octo_command import octo, refusal

ROWS = measured()
ONE = ParallelConfig()
MODELS = sorted(path.stem for path in (CONFIGS / "model").glob("llama-*.yaml"))


def predicted(row: Rate, moments: str | None = None) -> float:
    """GiB."""
    step = Step(row.seq_length, row.micro_batch_size, 4, row.precision, moments or row.moments)
    return memory(row.size, ONE, step, ComputeConfig(fp8_params=row.fp8_params)).total / GIB


@pytest.mark.parametrize("row", ROWS, ids=str)
def test_memory_is_within_a_tenth_of_the_measured_peak(row: Rate) -> None:
    assert predicted(row) == pytest.approx(row.peak_gib, rel=0.1)


def test_what_did_not_fit_is_said_not_to_fit() -> None:
    """3B in FP8 at 8,192 with FP32 moments ran out of memory; with BF16 moments it ran."""
    row = next(
        r for r in ROWS if r.model.endswith("3B") and r.precision == "fp8-delayed" and r.seq_length == 8192
    )
    assert row.moments == "bf16"
    assert predicted(row) < USABLE * 79.1 < predicted(row, moments="fp32")


@pytest.mark.parametrize("model", MODELS)
def test_sizes_are_the_trainers(model: str) -> None:
    hf_config = read_hf_config(f"model/{model}.yaml")
    size, shape = model_size(hf_config), family_of(hf_config).shape(hf_config)
    assert size.parameters == {"1b": 1_235_814_400, "3b": 3_212_749_824, "8b": 8_030_261_248}[model[-2:]]
    assert 8192 * size.flops_per_token(8192) == pytest.approx(training_flops(shape, [8192]), rel=1e-12)


def test_parts_shrink_as_a_layout_cuts_them() -> None:
    size, step = model_size(read_hf_config("model/llama-3.1-8b.yaml")), Step(8192, 1, 8)

    def of(compute: ComputeConfig | None = None, **layout: int | bool):  # type: ignore[no-untyped-def]
        return memory(size, ParallelConfig(**layout), step, compute or ComputeConfig())  # type: ignore[arg-type]

    one, tensor = of(), of(tensor_model_parallel_size=2, sequence_parallel=True)
    for part in ("weights", "gradients", "moments", "activations", "logits"):
        assert getattr(tensor, part) == pytest.approx(getattr(one, part) / 2, rel=1e-3), part
    data = of(data_parallel_size=8)
    assert (data.moments, data.master_weights) == (one.moments / 8, one.master_weights / 8)
    assert (data.weights, data.activations) == (one.weights, one.activations)
    assert of(context_parallel_size=4).activations == pytest.approx(one.activations / 4)
    assert of(pipeline_model_parallel_size=4).weights < one.weights / 2.5
    assert of(ComputeConfig(recompute="full")).activations < one.activations / 8
    assert of(ComputeConfig(lm_head_chunk_tokens=512)).logits < of(ComputeConfig()).logits * 1.2
    assert max(candidates(64), key=lambda layout: layout.world_size).world_size == 64
    assert candidates(6)[0] == ParallelConfig(data_parallel_size=6, overlap_grad_reduce=True)


def test_the_row_to_scale_from() -> None:
    eight = model_size(read_hf_config("model/llama-3.1-8b.yaml"))
    row = nearest(ROWS, eight, "fp8-delayed", "bf16", 8192)
    assert row is not None and (row.model, row.seq_length, row.moments) == ("Llama-3.2-3B", 8192, "bf16")
    assert tokens_per_second(row, row.size, 8192) == pytest.approx(26939)
    expected = 26939 * row.size.flops_per_token(8192) / eight.flops_per_token(8192)
    assert tokens_per_second(row, eight, 8192) == pytest.approx(expected)
    tiny = model_size(read_hf_config("model/tiny.yaml"))
    assert nearest(ROWS, tiny, "bf16", "fp32", 8192) is None, "a 1B model's rate says nothing of a tiny one"
    assert nearest(ROWS, eight, "fp32", "fp32", 8192) is None


RECIPE = {"1b": (5e-5, 5e-6), "3b": (2e-5, 2e-6), "8b": (1e-5, 1e-6)}


@pytest.mark.parametrize("size", RECIPE)
def test_the_recipe_is_the_papers(size: str) -> None:
    lineage = read_draft(Path(f"octothinker-{size}.yaml"), []).lineage
    first, last = RECIPE[size]
    stable = lineage.nodes["stable"]
    assert isinstance(stable, TrainNode)
    assert (stable.steps, stable.seq_length, stable.global_batch_size) == (50_000, 8192, 512)
    assert (stable.schedule.kind, stable.schedule.lr, stable.schedule.warmup_steps) == ("constant", first, 0)
    assert stable.optimizer.weight_decay == 0.1 and stable.mixture["megamath-web-pro-max"] == 0.725
    for name in ("short", "long", "hybrid"):
        branch = lineage.nodes[name]
        assert isinstance(branch, TrainNode)
        assert (branch.parent, branch.steps, branch.seq_length, branch.global_batch_size) == (
            "stable",
            5000,
            8192,
            512,
        )
        assert (branch.schedule.kind, branch.schedule.lr, branch.schedule.min_lr) == ("cosine", first, last)
    assert [lineage.nodes[f"rl-{name}"].parent for name in ("short", "long", "hybrid")] == [
        "short",
        "long",
        "hybrid",
    ]


_NAMES = (
    "name",
    "model_shape",
    "tokenizer",
    "base",
    "kind",
    "parent",
    "problems",
    "mixture",
    "evaluate",
    "optimizer",
)
"""Keys that name things of this repository or give the graph, and hold no value of the recipe."""


@pytest.mark.parametrize("size", RECIPE)
def test_every_value_of_a_recipe_is_marked(size: str) -> None:
    lines = (CONFIGS / "lineage" / f"octothinker-{size}.yaml").read_text().splitlines()
    unmarked = []
    for line in lines:
        found = re.match(r"\s*([\w-]+):\s*(?:&\w+\s*)?([^#]*)", line)
        value = found.group(2).strip() if found else ""
        graph = value.startswith(("{kind: import", "{<<:", "*")) or not value
        holds = found and not graph and found.group(1) not in (*_NAMES, "data_root")
        if holds and not re.search(r"#.*\b(paper|assumed)\b", line):
            unmarked.append(line)
    assert not unmarked


def test_the_command_prints_the_plan(tmp_path: Path) -> None:
    done = octo("plan", "octothinker-3b.yaml", "precision=fp8-delayed", "--gpus", "8", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for text in ("3,212,749,824 parameters", "209,715,200,000", "50,000", "2e-05 cosine to 2e-06", "DP8", "activations",
                 "rate from: Llama-3.2-3B fp8-delayed, 8192 x 1", "times the GPUs"):  # fmt: skip
        assert text in done.stdout, text
    assert not list(tmp_path.iterdir()), "planning writes nothing"
    line = refusal(octo("plan", "octothinker-1b.yaml", "--gpus", "1022", cwd=tmp_path))
    assert "no layout of 1022 GPUs divides the model and the batch" in line


def test_a_recipe_refuses_the_model_of_another_size(tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text(yaml.safe_dump({**read_hf_config("model/llama-3.2-3b.yaml")}))
    overrides = [f"model={wrong}", "data_root=/nowhere"]
    with pytest.raises(
        UserError, match=r"has hidden_size 3072, but this lineage is for model/llama-3.2-1b.yaml"
    ):
        make_plan(Path("octothinker-1b.yaml"), overrides, None)
    assert make_plan(Path("octothinker-3b.yaml"), overrides, None).hf_config["hidden_size"] == 3072
