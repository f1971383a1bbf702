#!/usr/bin/env bash
# Dockerfile -> squashfs file for enroot and pyxis.
#
#   containers/build-enroot.sh IMAGE.sqsh [--base BASE] [--arg NAME=VALUE]...
#
# Builds with docker, podman or buildah, whichever is there, and turns the image into a file with `enroot import`
# (from docker's or podman's own store) or, with buildah, with mksquashfs. Then on the cluster:
#   OCTO_RUNTIME=pyxis OCTO_IMAGE=/shared/images/IMAGE.sqsh in slurm/site.env
set -euo pipefail
top=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
target= options=()
while (($#)); do
  case $1 in
    --base) options+=(--build-arg "BASE=$2"); shift 2 ;;
    --arg) options+=(--build-arg "$2"); shift 2 ;;
    --volume) options+=(--volume "$2"); shift 2 ;;
    -*) echo "octo: error: build-enroot.sh: unknown option $1" >&2; exit 2 ;;
    *) target=$1; shift ;;
  esac
done
[[ $target == *.sqsh ]] || { echo "usage: containers/build-enroot.sh IMAGE.sqsh [--base BASE] [--arg NAME=VALUE]" >&2; exit 2; }
[[ ! -e $target ]] || { echo "octo: error: $target exists; remove it first" >&2; exit 2; }
has() { command -v "$1" >/dev/null; }

builder= tool=
for pair in docker:enroot podman:enroot buildah:mksquashfs; do
  has "${pair%:*}" && has "${pair#*:}" && { builder=${pair%:*}; tool=${pair#*:}; break; }
done
[[ -n $builder ]] || { echo "octo: error: needs docker or podman with enroot, or buildah with mksquashfs (apt-get install buildah squashfs-tools)" >&2; exit 2; }
echo "building with $builder and $tool"

case $builder in
  docker | podman)
    "$builder" build -f "$top/containers/Dockerfile" -t octo_megatron "${options[@]}" "$top"
    scheme=dockerd; [[ $builder == podman ]] && scheme=podman
    enroot import --output "$target" "$scheme://octo_megatron" ;;
  buildah)
    isolation=(); [[ $(id -u) == 0 ]] && isolation=(--isolation chroot)
    buildah bud "${isolation[@]}" --network host -f "$top/containers/Dockerfile" -t octo_megatron "${options[@]}" "$top"
    container=$(buildah from octo_megatron)
    trap 'buildah rm "$container" >/dev/null' EXIT
    root=$(buildah mount "$container")
    # what enroot needs of an image beside its files: environment and what to run
    buildah inspect --format '{{range .OCIv1.Config.Env}}{{println .}}{{end}}' "$container" >"$root/etc/environment"
    printf 'cd /workspace || exit 1\nif [ $# -gt 0 ]; then exec "$@"; fi\nexec octo --help\n' >"$root/etc/rc"
    mksquashfs "$root" "$target" -noappend -comp zstd -no-progress -quiet ;;
esac
echo "image: $target"
