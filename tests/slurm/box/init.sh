#!/usr/bin/env bash
# First process of the cluster's process namespace (started by start.sh): the
# login host. When it ends, the kernel ends every process of the cluster.
set -uo pipefail
read -r line <"$1/run/env"; declare $line
export PATH=$PATH:/usr/sbin:/sbin SLURM_CONF=$STATE/etc/slurm.conf
trap 'exit 0' TERM INT
hostname login
mount --bind "$STATE/etc/hosts" /etc/hosts
ip link set lo up
ip link add br0 type bridge && ip addr add "$NET.1/24" dev br0 && ip link set br0 up
munged --foreground --force --num-threads=2 --key-file="$STATE/munge/key" --socket="$STATE/munge/socket" \
  --pid-file="$STATE/munge/pid" --log-file="$STATE/log/munged.log" --seed-file="$STATE/munge/seed" &
for ((t = 0; t < 100; t++)); do [[ -S $STATE/munge/socket ]] && break; sleep 0.05; done
slurmctld -D -c -f "$SLURM_CONF" &

node_on() { # name: make the node's namespaces, plug its cable in, start its slurmd
  local i=${1#node} pid kid= t
  rm -f "$STATE/run/$1.pid"
  unshare --net --uts --ipc --mount --pid --fork --kill-child=KILL --mount-proc bash "$STATE/lib/nodeinit.sh" "$STATE" "$1" &
  pid=$!
  for ((t = 0; t < 100; t++)); do
    kid=$(cat "/proc/$pid/task/$pid/children" 2>/dev/null)
    [[ -n $kid && $(readlink "/proc/$pid/ns/net") != $(readlink /proc/self/ns/net) ]] && break
    sleep 0.02
  done
  ip link del "veth$i" 2>/dev/null
  ip link add "veth$i" type veth peer name eth0 netns "$pid"
  ip link set "veth$i" master br0 up
  echo "${kid// /}" >"$STATE/run/$1.pid"
}
for ((i = 1; i <= NODES; i++)); do node_on "node$i"; done
for ((t = 0; t < 300; t++)); do
  [[ $(sinfo -h -N -t idle -o %N 2>/dev/null | sort -u | wc -l) == "$NODES" ]] && { : >"$STATE/run/ready"; break; }
  sleep 0.1
done
rm -f "$STATE/run/cmd"; mkfifo "$STATE/run/cmd"; exec 8<>"$STATE/run/cmd"
end=$((SECONDS + MAX))
while ((SECONDS < end)); do # wait for "on nodeX" (node.sh), or for the time to run out
  if read -r -t 1 -u 8 verb name && [[ $verb == on ]]; then node_on "$name"; fi
done
echo "the cluster: its $MAX s are over"
