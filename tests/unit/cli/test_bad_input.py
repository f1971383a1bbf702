"""Every mistake of a person at the terminal: one clear line, exit code 2, nothing lost."""

from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path

import pytest
from octo_command import octo, refusal

_LINEAGE = """
name: small
model: model/tiny.yaml
sources:
  web: {builtin: web, tokens: 3000, validation_tokens: 256}
nodes:
  base: {kind: train, tokens: 1024, mixture: {web: 1.0}}
  decay: {kind: train, parent: base, tokens: 1024, mixture: {web: 1.0}}
"""


@pytest.fixture
def lineage(tmp_path: Path) -> Path:
    path = tmp_path / "small.yaml"
    path.write_text(_LINEAGE)
    return path


def _edit(path: Path, find: str, replace: str) -> Path:
    text = path.read_text()
    assert find in text
    path.write_text(text.replace(find, replace, 1))
    return path


@pytest.mark.parametrize(
    ("find", "replace", "message"),
    [
        ("nodes:", "nodes: {", "not valid YAML"),
        ("parent: base", "parent: bsae", "nodes.decay.parent: there is no node 'bsae'; did you mean 'base'?"),
        (
            "{kind: train, t",
            "{kind: train, parent: decay, t",
            "the nodes form a cycle: base -> decay -> base",
        ),
        (
            "name: small",
            "name: small\nparallel: {tensor_model_parallel_size: 3}",
            "use tensor_model_parallel_size=2",
        ),
        ("tokens: 1024", "tokns: 1024", "unknown key 'nodes.base.tokns'; did you mean 'tokens'?"),
        (
            "tokens: 1024",
            "tokens: x",
            "nodes.base.tokens: Value 'x' of type 'str' could not be converted to Integer",
        ),
        (
            "model/tiny.yaml",
            "model/huge.yaml",
            "model: no Hugging Face folder and no YAML file at 'model/huge.yaml'",
        ),
    ],
)
def test_a_wrong_lineage_file(lineage: Path, find: str, replace: str, message: str) -> None:
    line = refusal(octo("run", _edit(lineage, find, replace), cwd=lineage.parent))
    assert message in line and str(lineage) in line
    assert not (lineage.parent / "runs").exists(), "a refused lineage leaves no folder"


def test_a_stage_that_is_not_there_or_not_ready(lineage: Path) -> None:
    line = refusal(octo("run", lineage, "--stage", "dekay", cwd=lineage.parent))
    assert "there is no such node; there are: base, decay" in line
    line = refusal(octo("run", lineage, "--stage", "decay", cwd=lineage.parent))
    assert "--stage decay needs base, not finished in runs/small; run --stage base first" in line


def test_a_run_folder_of_another_config(lineage: Path) -> None:
    root = lineage.parent / "runs" / "small"
    octo("run", lineage, "--stage", "decay", cwd=lineage.parent)  # makes the folder, runs nothing
    before = (root / "lineage.yaml").read_text()
    line = refusal(octo("run", lineage, "seed=1", cwd=lineage.parent))
    assert "runs/small was made by another lineage: seed differs" in line and "--start-over" in line
    assert (root / "lineage.yaml").read_text() == before


def test_a_second_run_in_the_same_folder(lineage: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from octo_megatron.lineage.lock import FolderLock\n"
        "with FolderLock(Path(sys.argv[1]), 'octo run'): print('held', flush=True); time.sleep(60)"
    )
    root = lineage.parent / "run"
    first = subprocess.Popen(
        [sys.executable, "-c", code, str(root / "lock")], stdout=subprocess.PIPE, text=True
    )
    try:
        assert first.stdout is not None and first.stdout.readline() == "held\n"
        for more in ([], ["--stage", "base"]):
            line = refusal(octo("run", lineage, "--out", root, *more, cwd=lineage.parent))
            assert f"is in use by `octo run` (pid {first.pid} on " in line
    finally:
        first.kill()
        first.wait()


@pytest.mark.parametrize("limit", [1000, 10_000])
def test_a_full_disk(lineage: Path, limit: int) -> None:
    """A limit on file sizes gives the same failing writes as a full disk: first of the lineage, then of the data."""

    def shrink() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    line = refusal(octo("run", lineage, cwd=lineage.parent, before=shrink))
    assert "cannot write" in line and "File too large; free some space" in line


def test_commands_on_what_is_no_run_folder(tmp_path: Path) -> None:
    for verb in ("status", "report"):
        assert f"{tmp_path} is no run folder: it has no lineage.yaml" in refusal(
            octo(verb, tmp_path, cwd=tmp_path)
        )


def test_usage_errors_are_typers_and_end_in_2_too(tmp_path: Path) -> None:
    for arguments in (["rnu"], ["run"], ["run", "a.yaml", "--no-such-option"]):
        done = octo(*arguments, cwd=tmp_path)
        assert done.returncode == 2 and "Traceback" not in done.stderr
