#!/usr/bin/env bash
# Does the image work? `octo doctor`, then the tiny lineage in quick mode, in a folder of its own.
#
#   docker run --rm --entrypoint /opt/octo_megatron/containers/smoke.sh octo_megatron [KEY=VALUE]...
set -euo pipefail
export PATH=/opt/octo_megatron/env/bin:$PATH
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
octo doctor
octo run tiny-quick.yaml "$@" --out "$work/run"
octo status "$work/run"
echo "smoke: all well"
