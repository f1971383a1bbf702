"""The stable stage made longer, and branched again from its new end; with the real command and engines."""

from __future__ import annotations

from pathlib import Path

import pytest
from lineage_runs import OctoRun, weights

from octo_megatron.config.run_folder import RunFolder, read_json_lines

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]

STEP = 4 * 128
SHORT_STABLE = """
name: branches
model: model/tiny.yaml
slots: 1
sources:
  web: {builtin: web, tokens: 12000, validation_tokens: 256}
nodes:
  stable:
    kind: train
    steps: 12
    mixture: {web: 1.0}
    schedule: {kind: constant, lr: 3.0e-3, warmup_steps: 4}
    keep_checkpoints: 1
    checkpoint_interval: 4
  short: &decay
    kind: train
    parent: stable
    steps: 6
    mixture: {web: 1.0}
    schedule: {kind: 1-sqrt, lr: 3.0e-3, min_lr: 3.0e-4}
"""
LONGER = (
    SHORT_STABLE.replace("steps: 12\n", "steps: 20\n").replace(
        "steps: 6\n", "steps: 6\n    parent_step: 12\n"
    )
    + "  short-2: {<<: *decay, parent_step: null}\n"
)


def octo(folder: Path, text: str, *arguments: str) -> tuple[int, str]:
    """Exit code and output of `octo run` of `text` into folder/run."""
    file, output = folder / "lineage.yaml", folder / "output.txt"
    file.write_text(text)
    output.unlink(missing_ok=True)
    run = OctoRun("run", file, *arguments, "--out", folder / "run", output=output)
    return run.wait(), run.said()


def test_the_stable_stage_goes_on_and_is_branched_again(tmp_path: Path) -> None:
    grown, at_once = tmp_path / "grown", tmp_path / "at once"
    grown.mkdir(), at_once.mkdir()
    assert octo(grown, SHORT_STABLE)[0] == 0
    before = weights(grown / "run")

    code, said = octo(grown, SHORT_STABLE, "nodes.stable.steps=20")
    assert code == 2 and "octo: error:" in said
    assert "stable goes on from step 12 to 20, and short read its step 12" in said
    assert "nodes.short.parent_step=12" in said
    assert weights(grown / "run") == before

    code, said = octo(grown, LONGER)
    assert code == 0 and "stable goes on from step 12 to 20" in said
    after = weights(grown / "run")
    assert after["short"] == before["short"] and after["stable"] != before["stable"]
    assert after["short-2"] != after["short"]

    # the same graph in one go: bit for bit, also the branch from a step that the stable stage has long passed
    assert octo(at_once, LONGER)[0] == 0
    assert weights(at_once / "run") == after

    for name, parents, own in (("stable", 0, 20), ("short", 12, 6), ("short-2", 20, 6)):
        for root in (grown, at_once):
            node = RunFolder(root / "run").node(name)
            last = read_json_lines(node.metrics)[-1]
            assert (last["step"], last["tokens"]) == (own, own * STEP), "a branch counts its own tokens anew"
            assert last["lineage_tokens"] == node.result()["lineage_tokens"] == (parents + own) * STEP


def test_a_branch_at_another_rate_is_refused_with_both(tmp_path: Path) -> None:
    code, said = octo(
        tmp_path, SHORT_STABLE.replace("{kind: 1-sqrt, lr: 3.0e-3", "{kind: 1-sqrt, lr: 2.0e-3")
    )
    assert code == 2
    assert "node short starts at learning rate 0.002 but its parent stable ended at 0.003" in said
