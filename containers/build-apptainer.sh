#!/usr/bin/env bash
# octo_megatron.def -> a SIF file for apptainer.
#
#   containers/build-apptainer.sh IMAGE.sif [--base BASE] [--bind HERE:THERE] [--notest]
#
# BASE: an image of a registry (default: the NVIDIA PyTorch image of the definition), or with a leading `localimage:` or
# `oci-archive:` something on this disk. The build runs %test, which takes the tiny lineage through in quick mode.
# Without a network: --bind a folder of wheels to one that the base has (/mnt), whose /etc/pip.conf names it.
set -euo pipefail
top=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
target= base= options=()
while (($#)); do
  case $1 in
    --base) base=$2; shift 2 ;;
    --bind) options+=(--bind "$2"); shift 2 ;;
    --notest) options+=(--notest); shift ;;
    -*) echo "octo: error: build-apptainer.sh: unknown option $1" >&2; exit 2 ;;
    *) target=$1; shift ;;
  esac
done
[[ $target == *.sif ]] || { echo "usage: containers/build-apptainer.sh IMAGE.sif [--base BASE] [--bind HERE:THERE] [--notest]" >&2; exit 2; }
[[ ! -e $target ]] || { echo "octo: error: $target exists; remove it first" >&2; exit 2; }
command -v apptainer >/dev/null || { echo "octo: error: apptainer is not on PATH; ask your administrators, or see its installation guide" >&2; exit 2; }
target=$(realpath -m "$target")
cd "$top" # %files of the definition start here
definition=$(mktemp --suffix=.def)
trap 'rm -f "$definition"' EXIT
case $base in
  localimage:* | oci-archive:*) sed -e "s|^Bootstrap:.*|Bootstrap: ${base%%:*}|" -e "s|^From:.*|From: ${base#*:}|" containers/octo_megatron.def >"$definition" ;;
  *) cp containers/octo_megatron.def "$definition"; [[ -z $base ]] || options+=(--build-arg "BASE=$base") ;;
esac
apptainer build "${options[@]}" "$target" "$definition"
echo "image: $target"
