"""The Dockerfile, built by buildah on a Debian of mmdebstrap; the image runs `octo doctor` and the quick lineage.

Base and image are kept in buildah's store under the digest of what they are made from, so a second run builds nothing.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from cluster import REPOSITORY

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]
SUITE = "bookworm"
INCLUDE = "python3,python3-pip,python3-venv,libgomp1,libnuma1,ca-certificates"
STORE = {"STORAGE_DRIVER": "vfs"}
SMALL = (
    "nodes.base.tokens=5120", "nodes.stable.tokens=5120", "nodes.short.tokens=2560", "nodes.long.tokens=2560",
    "nodes.hybrid.tokens=2560", "nodes.rl-base.steps=1", "nodes.rl-short.steps=1", "nodes.rl-long.steps=1",
    "nodes.rl-hybrid.steps=1", "nodes.evaluate.samples=0",
)  # fmt: skip
"""The graph of the quick lineage with budgets that are smaller still."""


def _missing() -> str:
    if os.geteuid() != 0:
        return "needs root: buildah without it needs user ids of its own"
    lacking = [tool for tool in ("buildah", "mmdebstrap") if not shutil.which(tool)]
    if lacking:
        return f"needs {' and '.join(lacking)}: apt-get install --no-install-recommends buildah mmdebstrap"
    free = shutil.disk_usage("/var/lib").free / 2**30
    return (
        ""
        if free > 20
        else f"needs 20 GiB free under /var/lib/containers (vfs copies every layer), has {free:.0f}"
    )


def _run(*command: str | Path, seconds: float = 600) -> str:
    words = [str(word) for word in command]
    done = subprocess.run(words, env={**os.environ, **STORE}, capture_output=True, text=True, timeout=seconds)
    assert done.returncode == 0, f"{words[:4]}: {done.stdout[-4000:]}{done.stderr[-4000:]}"
    return done.stdout.strip()


def _digest(*texts: bytes) -> str:
    return hashlib.sha256(b"\0".join(texts)).hexdigest()[:12]


def _exists(image: str) -> bool:
    done = subprocess.run(
        ["buildah", "inspect", "--type", "image", image], env={**os.environ, **STORE}, capture_output=True
    )
    return done.returncode == 0


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A Debian with Python, as an image."""
    if reason := _missing():
        pytest.skip(reason)
    name = f"localhost/octo-test-base:{_digest(SUITE.encode(), INCLUDE.encode())}"
    if not _exists(name):
        tar = tmp_path_factory.mktemp("base") / "base.tar"
        sources = [*sorted(Path("/etc/apt/sources.list.d").glob("*.sources")), Path("/etc/apt/sources.list")]
        found = [path for path in sources if path.is_file()][:1]
        _run("mmdebstrap", "--variant=minbase", f"--include={INCLUDE}", SUITE, tar, *found)
        container = _run("buildah", "from", "scratch")
        _run("buildah", "add", "-q", container, tar, "/")
        _run("buildah", "commit", "-q", "--rm", container, name)
        tar.unlink()
    return name


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the locks name, fetched outside: the build then needs no network."""
    lock = REPOSITORY / "requirements/cpu.lock"
    folder = tmp_path_factory.mktemp("wheels")
    pip = [sys.executable, "-m", "pip", "download", "-q", "--only-binary", ":all:", "--no-deps", "-d", folder]
    _run(*pip, "-r", lock)
    return folder


@pytest.fixture(scope="module")
def image(base: str, request: pytest.FixtureRequest) -> str:
    """The image of containers/Dockerfile."""
    made_from = [REPOSITORY / "containers/Dockerfile", *sorted((REPOSITORY / "containers").glob("*.sh"))]
    made_from += [*sorted((REPOSITORY / "requirements").glob("*.lock")), REPOSITORY / "pyproject.toml"]
    made_from += sorted((REPOSITORY / "octo_megatron").rglob("*.py")) + sorted(
        (REPOSITORY / "configs").rglob("*.yaml")
    )
    name = f"localhost/octo-test:{_digest(base.encode(), *(path.read_bytes() for path in made_from))}"
    if not _exists(name):
        wheels = request.getfixturevalue("wheels")
        _run(
            "buildah", "bud", "--isolation", "chroot", "--network", "host", "--layers=false",
            "--build-arg", f"BASE={base}", "--build-arg", "PIP_NO_INDEX=1", "--build-arg", "PIP_FIND_LINKS=/wheels",
            "--volume", f"{wheels}:/wheels:ro", "-f", REPOSITORY / "containers/Dockerfile", "-t", name, REPOSITORY,
            seconds=900,
        )  # fmt: skip
    return name


@pytest.fixture(scope="module")
def container(image: str) -> Iterator[str]:
    name = _run("buildah", "from", image)
    yield name
    _run("buildah", "rm", name)


def test_the_image_has_the_locks_releases(container: str) -> None:
    script = "import importlib.metadata as m; print(*(f'{d.name}=={d.version}' for d in m.distributions()), sep='\\n')"
    said = _run("buildah", "run", "--isolation", "chroot", container, "--", "python", "-c", script)
    here = {_normal(line.split("+")[0]) for line in said.splitlines()}
    lock = (REPOSITORY / "requirements/cpu.lock").read_text().splitlines()
    pins = {_normal(line.split()[0]) for line in lock if "==" in line and not line.startswith("#")}
    assert len(pins) > 80 and pins <= here, pins - here


def _normal(requirement: str) -> str:
    name, _, version = requirement.partition("==")
    return f"{name.lower().replace('_', '-').replace('.', '-')}=={version}"


def test_the_image_runs_the_doctor_and_the_quick_lineage(container: str) -> None:
    smoke = "/opt/octo_megatron/containers/smoke.sh"
    said = _run(
        "buildah", "run", "--isolation", "chroot", "--network", "host", container, "--", smoke, *SMALL
    )
    assert "megatron-core" in said and said.endswith("smoke: all well")
    assert sum(" done " in line for line in said.splitlines()) >= 11, said
