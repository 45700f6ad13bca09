#!/usr/bin/env bash
# bash launch/emergence_gpu.sh [MORE SETTINGS]: experiment=emergence_gpu on one GPU. Its eight models are trained side by
# side, then PARTS processes (12) share the checkpoints, then one joins what they measured, which needs no GPU.
# OUT: where all of it goes. STEPS: which of "train part join". DRY=1 prints the commands.
set -euo pipefail
cd "$(dirname "$0")/.."
out=${OUT:-runs/evolve-emergence_gpu/all}
steps=" ${STEPS:-train part join} "
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} TOKENIZERS_PARALLELISM=false

evolve() {
  ${DRY:+echo} python -m circuitlit evolve experiment=emergence_gpu callbacks.progress_bar=false \
    hydra.run.dir="$out" "$@"
}

together() { # NAME COUNT SETTINGS: COUNT parts at once, each with a log of its own; fails if one has failed
  local name=$1 count=$2 pids=() part pid failed=0
  shift 2
  for ((part = 0; part < count; part++)); do
    if [ -n "${DRY:-}" ]; then
      evolve evolve.parts="$count" evolve.part="$part" "$@"
    else
      evolve evolve.parts="$count" evolve.part="$part" "$@" >"$out/$name-$part.log" 2>&1 &
      pids+=($!)
    fi
  done
  for pid in ${pids[@]+"${pids[@]}"}; do wait "$pid" || failed=1; done
  if [ "$failed" = 1 ]; then
    tail -n 3 "$out/$name"-*.log >&2
    exit 1
  fi
}

${DRY:+echo} mkdir -p "$out"
[[ $steps != *" train "* ]] || together train 8 evolve.measure=false "$@"
[[ $steps != *" part "* ]] || together part "${PARTS:-12}" "$@"
[[ $steps != *" join "* ]] || evolve "$@"
