"""A run folder belongs to one lineage: extended freely, refused when it differs, started over on demand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from lineages import HF, lineage

from octo_megatron.config.errors import UserError
from octo_megatron.config.loading import to_plain
from octo_megatron.config.run_folder import RunFolder, write_json, write_text
from octo_megatron.lineage.graph import check_graph
from octo_megatron.lineage.run_state import check_folder, load_run, prepare_folder


def _prepare(root: Path, start_over: bool = False, **changes: Any) -> list[str]:
    said: list[str] = []
    config = lineage(**changes)
    prepare_folder(RunFolder(root), config, HF, start_over, said.append)
    return said


def _finish(root: Path, *names: str) -> None:
    for name in names:
        write_json(RunFolder(root).node(name).done, {"kind": "x"})


def _finished(root: Path) -> set[str]:
    return {path.parent.name for path in root.glob("nodes/*/done.json")}


def test_the_resolved_lineage_is_read_back(tmp_path: Path) -> None:
    _prepare(tmp_path, seed=3)
    _, back = load_run(tmp_path)
    assert to_plain(back) == to_plain(lineage(seed=3))
    assert "digest:" in (tmp_path / "nodes/base/config.yaml").read_text()


@pytest.mark.parametrize(
    "changes",
    [
        {"slots": 7, "threads": 2, "deadline_seconds": 5, "name": "other"},
        {"nodes__base__checkpoint_interval": 3, "nodes__base__validation_interval": 2},
        {"parallel__tensor_model_parallel_size": 2, "compute__recompute": "full"},
        {"nodes__base__parallel": {"data_parallel_size": 2}, "nodes__stable__micro_batch_size": 1},
        {"sources__short": {"builtin": "short", "tokens": 100}},
        {"nodes__decay": {"kind": "train", "parent": "stable", "tokens": 1024, "mixture": {"web": 1.0}}},
    ],
)
def test_what_changes_no_result_is_let_in(tmp_path: Path, changes: dict[str, Any]) -> None:
    _prepare(tmp_path)
    _finish(tmp_path, "base", "stable")
    assert _prepare(tmp_path, **changes) == []
    assert _finished(tmp_path) == {"base", "stable"}


@pytest.mark.parametrize(
    ("changes", "keys"),
    [
        ({"seed": 1}, "seed differs"),
        ({"precision": "bf16"}, "precision differs"),
        ({"nodes__stable__tokens": 1024}, "nodes.stable.tokens differs"),
        ({"nodes__stable__precision": "bf16"}, "nodes.stable.precision differs"),
        ({"compute__bf16_first_layers": 1}, "compute.bf16_first_layers differs"),
        ({"nodes__stable__schedule": {"lr": 0.5}, "seed": 2}, "nodes.stable.schedule.lr, seed differ;"),
        ({"sources__web__tokens": 5000}, "sources.web.tokens differs"),
        ({"nodes__export": None}, "nodes.export.dtype, nodes.export.kind"),
    ],
)
def test_another_lineage_is_refused_by_its_keys(tmp_path: Path, changes: dict[str, Any], keys: str) -> None:
    _prepare(tmp_path)
    _finish(tmp_path, "base", "stable")
    with pytest.raises(UserError) as caught:
        _prepare(tmp_path, **changes)
    assert keys in str(caught.value)
    assert "--start-over" in str(caught.value) and "\n" not in str(caught.value)
    assert _finished(tmp_path) == {"base", "stable"}, "a refusal must not delete anything"


def test_a_changed_model_is_noticed_though_no_key_differs(tmp_path: Path) -> None:
    _prepare(tmp_path)
    config = lineage()
    other = {**HF, "hidden_size": 256}
    with pytest.raises(UserError, match="the content of the model's config differs"):
        prepare_folder(RunFolder(tmp_path), config, other, False, print)


def test_start_over_deletes_the_changed_node_and_what_descends_from_it(tmp_path: Path) -> None:
    _prepare(tmp_path)
    _finish(tmp_path, "base", "stable", "rl", "evaluate", "export")
    write_text(RunFolder(tmp_path).source("web") / "manifest.json", "{}")
    said = _prepare(tmp_path, start_over=True, nodes__stable__tokens=1024)
    assert _finished(tmp_path) == {"base"}
    assert {Path(line.split()[-1]).name for line in said} == {"stable", "rl", "evaluate", "export"}
    assert (RunFolder(tmp_path).source("web") / "manifest.json").is_file()
    assert _prepare(tmp_path, nodes__stable__tokens=1024) == []


LONGER = {"nodes__stable__tokens": 4096}  # 4 steps become 8
BRANCH = {"kind": "train", "parent": "stable", "tokens": 1024, "mixture": {"web": 1.0}}


def test_a_node_at_constant_rate_goes_on(tmp_path: Path) -> None:
    _prepare(tmp_path, nodes__short=BRANCH)
    _finish(tmp_path, "base", "stable")
    assert _prepare(tmp_path, nodes__short=BRANCH, **LONGER) == ["stable goes on from step 4 to 8"]
    assert _finished(tmp_path) == {"base"}
    assert (tmp_path / "nodes/stable/done-at-4.json").is_file()
    assert _prepare(tmp_path, nodes__short=BRANCH, **LONGER) == []


def test_a_branch_of_the_former_end_is_not_taken_for_one_of_the_new(tmp_path: Path) -> None:
    _prepare(tmp_path, nodes__short=BRANCH)
    _finish(tmp_path, "base", "stable", "short")
    with pytest.raises(UserError) as caught:
        _prepare(tmp_path, nodes__short=BRANCH, **LONGER)
    assert "stable goes on from step 4 to 8, and short read its step 4" in str(caught.value)
    assert "nodes.short.parent_step=4" in str(caught.value) and "\n" not in str(caught.value)
    assert _finished(tmp_path) == {"base", "stable", "short"}
    pinned = {"nodes__short": {**BRANCH, "parent_step": 4}, "nodes__short-2": BRANCH}
    assert _prepare(tmp_path, **pinned, **LONGER) == ["stable goes on from step 4 to 8"]
    assert _finished(tmp_path) == {"base", "short"}, "the old branch stays, the new one is to be made"


def test_start_over_after_a_longer_budget_deletes_what_read_the_former_end(tmp_path: Path) -> None:
    _prepare(tmp_path, nodes__short=BRANCH)
    _finish(tmp_path, "base", "stable", "short", "evaluate")
    said = _prepare(tmp_path, start_over=True, nodes__short=BRANCH, **LONGER)
    assert said[-1] == "stable goes on from step 4 to 8"
    assert _finished(tmp_path) == {"base"}, "evaluate reads rl, which reads stable"


def test_a_falling_rate_cannot_go_on(tmp_path: Path) -> None:
    cosine = {"nodes__stable__schedule": {"kind": "cosine", "lr": 1e-3}}
    _prepare(tmp_path, **cosine)
    _finish(tmp_path, "base", "stable")
    with pytest.raises(UserError, match=r"nodes.stable.tokens differs"):
        _prepare(tmp_path, **cosine, **LONGER)


@pytest.mark.parametrize(
    ("node", "message"),
    [
        ({**BRANCH, "parent_step": 9}, "has steps 1 to 4"),
        ({**BRANCH, "parent": None, "parent_step": 2}, "it has no parent"),
        ({**BRANCH, "parent": "rl", "parent_step": 2}, "'rl' is of kind rl"),
    ],
)
def test_a_step_that_the_parent_does_not_have(node: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        check_graph(lineage(nodes__short=node))


def test_start_over_with_another_source_deletes_the_source_too(tmp_path: Path) -> None:
    _prepare(tmp_path)
    _finish(tmp_path, "base", "stable")
    for name in ("general", "web"):
        write_text(RunFolder(tmp_path).source(name) / "manifest.json", "{}")
    _prepare(tmp_path, start_over=True, sources__web__tokens=5000)
    assert _finished(tmp_path) == {"base"}
    assert [path.parent.name for path in tmp_path.glob("data/*/manifest.json")] == ["general"]


def test_a_deletion_cut_short_is_finished_by_the_next_run(tmp_path: Path) -> None:
    _prepare(tmp_path)
    write_text(tmp_path / ".deleted-nodes-stable" / "done.json", "{}")
    _prepare(tmp_path)
    assert not list(tmp_path.glob(".deleted-*"))


def test_a_folder_with_other_things_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(UserError, match=r"holds other things \(thesis.tex\)"):
        check_folder(tmp_path)
    with pytest.raises(UserError, match="is a file"):
        check_folder(tmp_path / "thesis.tex")
    with pytest.raises(UserError, match="is no run folder"):
        load_run(tmp_path)
