#!/usr/bin/env bash
# Starts a real, throw-away SLURM cluster on this machine: slurmctld + munged on
# a "login" host and one slurmd per simulated node. Every node is its own
# network, host-name, process, IPC and mount namespace, joined by a bridge that
# lives in a namespace too: nothing listens on the machine's own interfaces.
# All processes sit in one process namespace, so ending its first process ends
# them all; that happens by itself after --max-seconds.
#
#   start.sh [--dir DIR] [--nodes N] [--gpus-per-node G] [--max-seconds S]
#            [--private-tmp [--share PATH]...] [--slurmd-timeout S]
#            [--requeue-wait S] [--plugstack 'required .../spank_pyxis.so ...']
#
# --private-tmp gives every node its own /tmp, as on most clusters; DIR and the
# --share paths stay common. Everything else on this machine is the "shared file
# system"; /dev/shm and /mnt are always the node's own.
#
# Prints DIR. Then: DIR/box CMD...          run a client on the login host
#                   DIR/box -N node2 CMD... run it on a node
#                   node.sh DIR off|on|kill-slurmd|start-slurmd node2
#                   stop.sh DIR
# Needs: slurmctld slurmd slurm-client munge iproute2 util-linux (Debian 12).
# Runs as root, or as any user where user namespaces are allowed.
set -euo pipefail
HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
DIR= SHARE= NODES=2 GPUS=8 MAX=3000 PRIVATE_TMP=0 SLURMD_TIMEOUT=10 CRED=5 PLUGSTACK= NET=10.213.77
while (($#)); do
  case $1 in
    --dir) DIR=$2; shift 2 ;;
    --nodes) NODES=$2; shift 2 ;;
    --gpus-per-node) GPUS=$2; shift 2 ;;
    --max-seconds) MAX=$2; shift 2 ;;
    --slurmd-timeout) SLURMD_TIMEOUT=$2; shift 2 ;;
    --requeue-wait) CRED=$2; shift 2 ;;
    --plugstack) PLUGSTACK=$2; shift 2 ;;
    --share) SHARE+=${SHARE:+:}$(cd "$2" && pwd); shift 2 ;;
    --private-tmp) PRIVATE_TMP=1; shift ;;
    *) echo "start.sh: unknown option $1" >&2; exit 2 ;;
  esac
done
for tool in slurmctld slurmd sinfo munged ip unshare nsenter; do
  PATH=$PATH:/usr/sbin:/sbin command -v "$tool" >/dev/null || { echo "start.sh: $tool missing (apt-get install slurmctld slurmd slurm-client munge iproute2)" >&2; exit 3; }
done
DIR=${DIR:-$(mktemp -d "${TMPDIR:-/tmp}/octo_slurm.XXXXXX")}
mkdir -p "$DIR"; DIR=$(cd "$DIR" && pwd)
chmod 755 "$DIR"
if [[ -s $DIR/run/host.pid ]] && kill -0 "$(<"$DIR/run/host.pid")" 2>/dev/null; then
  echo "start.sh: $DIR is running" >&2; exit 4
fi
case $DIR in *[[:space:]\|\&]*) echo "start.sh: no blanks, | or & in DIR" >&2; exit 2 ;; esac
rm -rf "${DIR:?}"/{run,etc,ctld,spool,munge,log,dev,lib}
mkdir -p "$DIR"/{run,etc,ctld,spool,munge,log,dev,lib}
cp "$HERE"/{init.sh,nodeinit.sh} "$DIR/lib/" # a running cluster keeps its own copy

# configuration
lines=
printf '127.0.0.1 localhost\n%s.1 login\n' "$NET" >"$DIR/etc/hosts"
for ((i = 1; i <= NODES; i++)); do
  printf '%s.%d node%d\n::ffff:%s.%d node%d\n' "$NET" $((10 + i)) "$i" "$NET" $((10 + i)) "$i" >>"$DIR/etc/hosts"
  lines+="NodeName=node$i NodeAddr=$NET.$((10 + i))"
  ((GPUS)) && lines+=" Gres=gpu:$GPUS"
  lines+='\n'
  mkdir -p "$DIR/spool/node$i"
done
sed -e "s|@STATE@|$DIR|g; s|@NET@|$NET|g; s|@USER@|$(id -un)|g; s|@CRED@|$CRED|g; s|@SLURMD_TIMEOUT@|$SLURMD_TIMEOUT|g; s|@NODES@|$lines|" \
  "$HERE/slurm.conf.in" >"$DIR/etc/slurm.conf"
echo 'PMIxCliTmpDirBase=/mnt' >"$DIR/etc/mpi.conf" # must not be common to two nodes
echo "$PLUGSTACK" >"$DIR/etc/plugstack.conf"; echo 'ConstrainCores=no' >"$DIR/etc/cgroup.conf"; : >"$DIR/etc/gres.conf"
if ((GPUS)); then # links to a character device stand for the GPU device nodes
  for ((g = 0; g < GPUS; g++)); do ln -s /dev/null "$DIR/dev/nvidia$g"; done
  echo "Name=gpu File=$DIR/dev/nvidia[0-$((GPUS - 1))]" >"$DIR/etc/gres.conf"
fi
(umask 077; head -c 128 /dev/urandom >"$DIR/munge/key")
cat >"$DIR/run/env" <<EOF
STATE=$DIR NODES=$NODES NET=$NET MAX=$MAX PRIVATE_TMP=$PRIVATE_TMP SHARE=$SHARE
EOF
install -m 755 "$HERE/box" "$DIR/box"

# namespaces: with no root, a user namespace that keeps our own user id
userns=()
[[ $(id -u) == 0 ]] || userns=(--user --map-current-user --keep-caps)
setsid unshare "${userns[@]}" --mount --net --uts --ipc --pid --fork --kill-child=KILL --mount-proc \
  bash "$DIR/lib/init.sh" "$DIR" </dev/null >"$DIR/log/init.log" 2>&1 &
echo $! >"$DIR/run/unshare.pid"
fail() { echo "start.sh: $1" >&2; tail -n 20 "$DIR"/log/*.log >&2; bash "$HERE/stop.sh" "$DIR" >&2 || true; exit 1; }
for ((t = 0; t < 300; t++)); do
  [[ -s $DIR/run/host.pid ]] || { # the first process, by its number out here
    kid=$(cat "/proc/$!/task/$!/children" 2>/dev/null || true)
    [[ -n ${kid// /} ]] && echo "${kid// /}" >"$DIR/run/host.pid"
  }
  [[ -e $DIR/run/ready ]] && break
  kill -0 $! 2>/dev/null || fail "the cluster ended while starting"
  sleep 0.1
done
[[ -e $DIR/run/ready ]] || fail "not ready after 30 s"
echo "$DIR"
