#!/usr/bin/env bash
# Submits a whole lineage: the data once, then every node after its parent, branches as one array.
#
#   slurm/lineage.sh LINEAGE.yaml [out=RUN] [KEY=VALUE]... [--dry-run] [-- SBATCH OPTIONS]
#
#   slurm/lineage.sh configs/lineage/octothinker-3b.yaml --dry-run
#   slurm/lineage.sh my.yaml out=/shared/runs/mine nodes.stable.tokens=2000000000 -- --time=12:00:00
#
# What is finished in RUN is not submitted. Everything is checked first, by us and by `sbatch --test-only`: after an
# error nothing is queued. --dry-run prints the commands and submits nothing. Prints the tree with job ids.
set -euo pipefail
export OCTO_HOME=${OCTO_HOME:-$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)}
set -a
[[ -f $OCTO_HOME/slurm/site.env ]] && source "$OCTO_HOME/slurm/site.env"
[[ -n ${OCTO_SITE:-} ]] && source "$OCTO_SITE"
set +a

usage() { sed -n '2,11s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; exit "$1"; }
lineage= out= dry=0 launcher= overrides=() options=()
while (($#)); do
  case $1 in
    -h | --help) usage 0 ;;
    --dry-run) dry=1 ;;
    --) shift; options=("$@"); break ;;
    out=*) out=${1#*=} ;;
    lineage=*) lineage=${1#*=} ;;
    launcher=* | preflight=*) launcher+=" $1" ;;
    *=*) overrides+=("$1") ;;
    -*) echo "octo: error: lineage.sh: unknown option $1; options of sbatch come after --" >&2; exit 2 ;;
    *) lineage=$1 ;;
  esac
  shift
done
[[ -n $lineage ]] || usage 2
out=${out:-runs/$(basename "$lineage" .yaml)}
python=${OCTO_VENV:-$OCTO_HOME/.venv}/bin/python
[[ -x $python ]] || { echo "octo: error: no environment at ${OCTO_VENV:-$OCTO_HOME/.venv}: run \`make env\`, or set OCTO_VENV in slurm/site.env" >&2; exit 2; }

plan=$(PYTHONPATH=$OCTO_HOME "$python" -m octo_megatron.lineage.jobs "$lineage" "${overrides[@]}" --out "$out" --per-node "${OCTO_GPUS_PER_NODE:-8}")
[[ -n $plan ]] || { echo "lineage $lineage: everything is done in $out"; exit 0; }

command_of() { # key file members nodes tasks dependency: sets cmd
  local name=octo-$1
  shift
  cmd=(sbatch --parsable --job-name="${name:0:60}" --nodes="$3" --ntasks-per-node="$4" --output="$out/slurm/%x-%j.out")
  [[ $1 == prepare || ${OCTO_CPU_ONLY:-0} == 1 ]] || cmd+=(--gpus-per-node="$4")
  [[ -z $5 ]] || cmd+=(--dependency="$5" --kill-on-invalid-dep=yes)
  local members=node=$2
  [[ $1 == decay ]] && cmd+=(--array="0-$(($(tr -cd , <<<"$2" | wc -c)))") members=branches=$2
  [[ $1 == prepare ]] && members=
  cmd+=("${options[@]}" "$OCTO_HOME/slurm/$1.sbatch" lineage="$lineage" out="$out" $members $launcher "${overrides[@]}")
}

declare -A ids
if ((!dry)); then
  while IFS='|' read -r key file members nodes tasks after depth; do # all of them before the first is queued
    command_of "$key" "$file" "$members" "$nodes" "$tasks" ""
    if ! said=$("${cmd[@]/--parsable/--test-only}" 2>&1); then
      echo "octo: error: $key: the cluster refuses this job (${said#sbatch: error: }); nothing was queued. Asked for: $nodes nodes x $tasks tasks ${options[*]}" >&2
      exit 2
    fi
  done <<<"$plan"
  mkdir -p "$out/slurm"
fi

while IFS='|' read -r key file members nodes tasks after depth; do
  dependency=
  IFS=, read -ra keys <<<"$after"
  for other in "${keys[@]}"; do
    element=
    [[ $other == *:* ]] && element=_${other##*:}
    dependency+=${dependency:+,}afterok:${ids[${other%%:*}]:-JOB_OF_${other%%:*}}$element
  done
  command_of "$key" "$file" "$members" "$nodes" "$tasks" "$dependency"
  if ((dry)); then
    printf '%q ' "${cmd[@]}"; echo
    continue
  fi
  if ! id=$("${cmd[@]}"); then
    echo "octo: error: sbatch refused $key; what was queued is withdrawn: ${ids[*]}" >&2
    ((${#ids[@]})) && scancel "${ids[@]}"
    exit 2
  fi
  ids[$key]=${id%%;*}
  IFS=, read -ra branches <<<"$members"
  for index in "${!branches[@]}"; do
    job=${ids[$key]}
    [[ $file == decay ]] && job+=_$index
    printf '%s\t%s\n' "${branches[$index]}" "$job" >>"$out/slurm/submitted.tsv"
    printf '%*s%-*s job %-8s %s nodes x %s\n' $((2 * depth)) '' $((28 - 2 * depth)) "${branches[$index]}" "$job" "$nodes" "$tasks"
  done
done <<<"$plan"
((dry)) || echo "watch it: $(dirname "$python")/octo status $out --watch"
