"""One cluster for all tests of this folder, and the lineage that most of them run."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from cluster import REPOSITORY, Cluster, OnOneMachine, missing, site_file


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """Three nodes; skipped, with the line that installs it, where there is no SLURM."""
    reason = missing()
    if reason:
        pytest.skip(reason)
    started = Cluster()
    print(f"\ncluster of 3 nodes up in {started.start_seconds:.1f} s")
    yield started
    started.stop()


@pytest.fixture(autouse=True)
def _says_how_long_it_took(
    request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]
) -> Iterator[None]:
    began = time.monotonic()
    yield
    with capsys.disabled():
        print(f"\n{request.node.name}: {time.monotonic() - began:.1f} s", flush=True)


@pytest.fixture(autouse=True)
def _every_test_finds_whole_nodes(request: pytest.FixtureRequest) -> Iterator[None]:
    """Jobs that a failed test left are cancelled, and a node that it switched off is switched on."""
    yield
    if "cluster" in request.fixturenames:
        request.getfixturevalue("cluster").tidy()


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A site.env for these nodes: this environment, no GPUs, one process a node."""
    return site_file(tmp_path_factory.mktemp("site") / "site.env")


LINEAGE = f"""
name: cluster
model: {REPOSITORY}/configs/model/tiny.yaml
deadline_seconds: 300
sources:
  web: {{builtin: web, tokens: 40000, validation_tokens: 512}}
  short: {{builtin: short, tokens: 30000, validation_tokens: 512}}
problems:
  rl: {{builtin: rl, count: 32}}
  same: {{builtin: same, count: 8}}
nodes:
  endless: &train
    kind: train
    tokens: 20480
    micro_batch_size: 1
    global_batch_size: 4
    mixture: {{web: 1.0}}
    schedule: {{kind: constant, lr: 3.0e-3, warmup_steps: 10}}
  base:
    <<: *train
    tokens: 76800
    parallel: {{data_parallel_size: 2}}
    checkpoint_interval: 25
  stable:
    <<: *train
    parent: base
    tokens: 10240
    schedule: {{kind: constant, lr: 3.0e-3}}
    parallel: {{tensor_model_parallel_size: 2}}
  short: &decay
    kind: train
    parent: stable
    tokens: 10240
    mixture: {{web: 0.3, short: 0.7}}
    schedule: {{kind: cosine, lr: 3.0e-3, min_lr: 3.0e-4}}
  long: {{<<: *decay, mixture: {{web: 0.6, short: 0.4}}}}
  rl-short:
    kind: rl
    parent: short
    problems: rl
    steps: 1
    prompts_per_step: 4
    samples_per_prompt: 4
    max_response_tokens: 48
    engine: {{placement: separate}}
  evaluate: {{kind: evaluate, of: [short, rl-short], problems: [same], max_response_tokens: 48, samples: 0}}
  export: {{kind: export, parent: long}}
"""


@pytest.fixture(scope="session")
def lineage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Base and stable on two nodes, two branches, RL (one rank trains, one samples), evaluation and export."""
    path = tmp_path_factory.mktemp("lineage") / "lineage.yaml"
    path.write_text(LINEAGE)
    return path


@pytest.fixture(scope="session")
def alone(lineage: Path) -> Iterator[OnOneMachine]:
    """`octo run` of the whole lineage on one machine, started beside the tests that compare with it."""
    running = OnOneMachine(lineage, lineage.parent / "alone")
    yield running
    running.end()
