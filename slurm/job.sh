# Sourced by the job files; runs inside a job. `octo_job KIND NODE "$@"` does, in this order:
#   1. reads site.env and the arguments: key=value of the config, and lineage= out= node= launcher= preflight=
#   2. counts the starts of this job; three in a row without a new checkpoint or record end it (code 3)
#   3. octo preflight: a bad node ends the job (code 4), or is excluded and the job is queued again
#   4. one srun, a rank per task; USR1 (time limit near) and TERM (preemption) go on to the ranks, which finish their
#      step, save and end with code 75; then the job queues itself again under the same id, with an appended log
# Codes of the job: 0 done, 2 a mistake in what was asked, 3 no progress, 4 a bad node, 1 and others a crash that was
# queued again until it made no progress. docs/operations.md tells what happens at each kind of failure.

octo_say() { echo "octo job $SLURM_JOB_ID: $*"; }

octo_site() { # reads site.env; what the environment says already wins over nothing, the file wins over it
  OCTO_HOME=${OCTO_HOME:-$SLURM_SUBMIT_DIR}
  [[ -f $OCTO_HOME/slurm/site.env ]] && source "$OCTO_HOME/slurm/site.env"
  [[ -n ${OCTO_SITE:-} ]] && source "$OCTO_SITE"
  OCTO_RUNTIME=${OCTO_RUNTIME:-venv} OCTO_VENV=${OCTO_VENV:-$OCTO_HOME/.venv}
  [[ -z ${OCTO_MODULES:-} ]] || module load $OCTO_MODULES
}

octo_arguments() { # sets lineage, out, node, launcher and overrides
  lineage= out= launcher=srun preflight=${OCTO_PREFLIGHT:-1} branches= overrides=()
  local word
  for word in "$@"; do
    case $word in
      lineage=*) lineage=${word#*=} ;;
      out=*) out=${word#*=} ;;
      node=*) node=${word#*=} ;;
      branches=*) branches=${word#*=} ;;
      launcher=*) launcher=${word#*=} ;;
      preflight=*) preflight=${word#*=} ;;
      *=*) overrides+=("$word") ;;
      *) octo_say "'$word' is not of the form key=value"; exit 2 ;;
    esac
  done
  [[ -n $lineage ]] || { octo_say "say which lineage: lineage=configs/lineage/octothinker-3b.yaml"; exit 2; }
  out=${out:-runs/$(basename "$lineage" .yaml)}
  if [[ -n ${SLURM_ARRAY_TASK_ID:-} && -n $branches ]]; then
    IFS=, read -ra list <<<"$branches"
    node=${list[$SLURM_ARRAY_TASK_ID]:-}
    [[ -n $node ]] || { octo_say "there is no branch $SLURM_ARRAY_TASK_ID in branches=$branches"; exit 2; }
  fi
  folder=$out/nodes/$node
  [[ $node == data ]] && folder=$out/data
}

octo_runtime() { # sets runner (words before `octo` or `python`) and step (options of srun)
  step=(--wait=120 --label --unbuffered)
  [[ -z ${SLURM_CPUS_PER_TASK:-} ]] || step+=(--cpus-per-task="$SLURM_CPUS_PER_TASK")
  local mounts=$OCTO_HOME:$OCTO_HOME,$(realpath -m "$out"):$(realpath -m "$out")${OCTO_MOUNTS:+,$OCTO_MOUNTS}
  case $OCTO_RUNTIME in
    venv)
      runner=() python=$OCTO_VENV/bin/python
      [[ -x $python ]] || { octo_say "no environment at $OCTO_VENV: run \`make env\`, or set OCTO_VENV in slurm/site.env"; exit 2; } ;;
    pyxis)
      runner=() python=python
      step+=(--container-image="$OCTO_IMAGE" --container-mounts="$mounts" --container-workdir="$PWD" --no-container-mount-home) ;;
    apptainer)
      python=python
      runner=(apptainer exec --bind "$mounts" --pwd "$PWD")
      [[ ${OCTO_CPU_ONLY:-0} == 1 ]] || runner+=(--nv)
      runner+=("$OCTO_IMAGE") ;;
    *) octo_say "OCTO_RUNTIME=$OCTO_RUNTIME: use venv, pyxis or apptainer"; exit 2 ;;
  esac
  [[ $OCTO_RUNTIME == venv || -e ${OCTO_IMAGE:-} ]] || { octo_say "no image at OCTO_IMAGE='${OCTO_IMAGE:-}': see containers/README.md"; exit 2; }
  octo=("${runner[@]}" "$python" -m octo_megatron.cli.main)
}

octo_newest_step() { # step of the newest finished checkpoint, 0 without one
  local newest
  newest=$(compgen -G "$folder/checkpoints/step_*" | sort | tail -n 1)
  newest=${newest##*step_}
  echo $((10#${newest:-0}))
}

octo_progress() { # newest checkpoint, and the newest RL step with the records of its phases
  local phases
  phases=$(compgen -G "$folder/phases/step_*" | sort | tail -n 1)
  echo "$(octo_newest_step)${phases:+ ${phases##*/} $(find "$phases" -type f -not -name '.*' | wc -l)}"
}

octo_record() { # event [more JSON]: one line for `octo status`
  printf '{"event": "%s", "job": "%s", "start": %d, "time": %s, "step": %d, "progress": "%s"%s}\n' \
    "$1" "$SLURM_JOB_ID" "$((${SLURM_RESTART_COUNT:-0} + 1))" "$(date +%s)" "$(octo_newest_step)" "$(octo_progress)" "${2:+, $2}" >>"$folder/jobs.jsonl"
}

octo_idle_starts() { # starts of this job, the latest first, that began where we are now
  local now count=0 line
  now=$(octo_progress)
  while read -r line; do
    [[ $line == *"\"progress\": \"$now\""* ]] || break
    count=$((count + 1))
  done < <(grep '"event": "start"' "$folder/jobs.jsonl" 2>/dev/null | grep "\"job\": \"$SLURM_JOB_ID\"" | tac)
  echo "$count"
}

octo_leave_if_taken_over() { # SLURM lost sight of this node and started the job again elsewhere: touch nothing
  local latest
  latest=$(grep '"event": "start"' "$folder/jobs.jsonl" | tail -n 1)
  [[ $latest == *"\"job\": \"$SLURM_JOB_ID\", \"start\": $((${SLURM_RESTART_COUNT:-0} + 1)),"* ]] && return
  octo_say "start $((${SLURM_RESTART_COUNT:-0} + 1)) ended with code $code; the node was taken over by $latest"
  exit "$code"
}

octo_give_up_if_idle() {
  (($(octo_idle_starts) < 3)) && return
  octo_say "no progress in three starts (node $node, newest checkpoint: step $(octo_newest_step)); it is not queued again. The reason is above; \`sbatch\` it anew once it is mended"
  octo_record end '"code": 3, "action": "stopped: no progress in three starts"'
  exit 3
}

octo_requeue() { # why [nodes to exclude]
  octo_give_up_if_idle
  octo_say "$1; queued again under the same id"
  octo_record end "\"code\": $code, \"action\": \"requeued: $1\""
  if ! (
    trap '' TERM # once the job is queued again SLURM ends what is left of this start, and the next lines with it
    scontrol requeue "$SLURM_JOB_ID" && octo_exclude "${2:-}"
  ); then
    octo_say "scontrol requeue was refused; submit it again with the same arguments"
  fi
  exit 75
}

octo_exclude() { # nodes that this job shall not get again; refused until SLURM has taken the job back
  [[ -n $1 ]] || return 0
  local try
  for try in {1..40}; do
    scontrol update JobId="$SLURM_JOB_ID" ExcNodeList="$1" 2>/dev/null && return
    sleep 0.25
  done
  octo_say "could not exclude $1: scontrol update JobId=$SLURM_JOB_ID ExcNodeList=$1"
}

octo_state() { # ENDED: by scancel, or with a node that died (SLURM then queues it again); else what SLURM says
  local state
  state=$(scontrol show job "$SLURM_JOB_ID" | sed -n 's/.*JobState=\([A-Z_]*\).*/\1/p')
  [[ $state == COMPLETING && $asked != USR1 ]] && state=ENDED # a job that is being ended shows nothing else
  [[ $state == PENDING ]] && state=ENDED # queued again already, and we are what is left of the start before
  echo "$state"
}

octo_ask_to_stop() { # signal: pass it on to the ranks
  asked=${asked:-$1} interrupted=1 # the first counts: at its limit a job gets USR1 and, if it is late, TERM
  octo_say "got $1: the ranks finish their step and save"
  local pass=USR1
  [[ $launcher == torchrun ]] && pass=TERM # torchrun hands on TERM only
  [[ -n ${child:-} ]] && kill -s "$pass" "$child" 2>/dev/null
}

octo_wait() { # waits for $child to its end; sets code
  interrupted=1
  while ((interrupted)); do
    interrupted=0
    wait "$child"
    code=$?
  done
  child=
}

octo_preflight() {
  [[ $preflight == 1 || $preflight == on ]] || return 0
  mkdir -p "$out/preflight"
  local report=$out/preflight/$SLURM_JOB_ID.json bad
  srun "${step[@]}" "${octo[@]}" preflight "$lineage" "${overrides[@]}" --out "$out" --node "$node" --report "$report" &
  child=$!
  octo_wait
  [[ -n $asked || $code == 0 ]] && return 0
  bad=$(sed -n 's/.*"bad_nodes": "\([^"]*\)".*/\1/p' "$report" 2>/dev/null)
  if [[ $code == 4 && -n $bad && ${OCTO_EXCLUDE_BAD_NODES:-0} == 1 ]]; then
    local excluded
    excluded=$(scontrol show job "$SLURM_JOB_ID" | sed -n 's/.*ExcNodeList=\([^ ]*\).*/\1/p')
    [[ -z $excluded || $excluded == "(null)" ]] || bad=$excluded,$bad
    octo_requeue "preflight found bad nodes, excluded: $bad" "$bad"
  fi
  octo_say "preflight ended with code $code; nothing was started"
  octo_record end "\"code\": $code, \"action\": \"failed: preflight${bad:+, bad nodes $bad}\""
  exit "$code"
}

octo_launch() { # starts the ranks in the background
  local command=(run "$lineage" "${overrides[@]}" --out "$out" --stage "$node") first
  if [[ $node == data ]]; then
    command=(run "$lineage" "${overrides[@]}" --out "$out" --data-only)
  fi
  if [[ $launcher == torchrun ]]; then
    first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
    srun "${step[@]}" --ntasks-per-node=1 --ntasks="$SLURM_JOB_NUM_NODES" "${runner[@]}" "$python" -m torch.distributed.run \
      --nnodes="$SLURM_JOB_NUM_NODES" --nproc-per-node="${SLURM_NTASKS_PER_NODE:-1}" --rdzv-backend=c10d \
      --rdzv-id="$SLURM_JOB_ID.${SLURM_RESTART_COUNT:-0}" --rdzv-endpoint="$first:$((20000 + SLURM_JOB_ID % 10000))" \
      -m octo_megatron.cli.main "${command[@]}" &
  else
    srun "${step[@]}" "${octo[@]}" "${command[@]}" &
  fi
  child=$!
}

octo_job() { # DEFAULT_NODE ARGUMENTS...
  set -uo pipefail
  node=$1 asked= child= code=0
  shift
  octo_site
  octo_arguments "$@"
  octo_runtime
  trap 'octo_ask_to_stop USR1' USR1
  trap 'octo_ask_to_stop TERM' TERM # not CONT: SLURM sends it just before and the trap of USR1 can then be lost
  mkdir -p "$folder" || exit 2
  octo_give_up_if_idle
  octo_record start "\"nodes\": \"$SLURM_JOB_NODELIST\", \"log\": \"$(readlink /proc/$$/fd/1)\""
  octo_say "node $node, start $((${SLURM_RESTART_COUNT:-0} + 1)) on $SLURM_JOB_NODELIST, run folder $out, newest checkpoint: step $(octo_newest_step)"
  octo_preflight
  if [[ -z $asked ]]; then
    octo_launch
    octo_wait
  fi
  octo_leave_if_taken_over
  # srun says 0 too when its node is lost: only the result counts
  [[ $code == 0 && $node != data && ! -f $folder/done.json ]] && code=1
  case $code:$asked:$(octo_state) in
    0:*) octo_record end '"code": 0, "action": "done"' ;;
    2:*) octo_record end '"code": 2, "action": "failed: a mistake in what was asked"' ;;
    *:ENDED) octo_record end "\"code\": $code, \"action\": \"ended by SLURM: cancelled, or a node failed\"" ;;
    75:*) octo_requeue "saved at step $(octo_newest_step)${asked:+ after $asked}" ;;
    *:?*:*) octo_requeue "asked to stop by $asked, the ranks ended with code $code" ;;
    *) octo_requeue "the ranks ended with code $code" ;;
  esac
  octo_say "node $node ended with code $code"
  exit "$code"
}
