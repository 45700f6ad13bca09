#!/usr/bin/env bash
# Sourced by slurm.sbatch and sweep.sbatch: a run that a requeued job finds again and goes on with.
set -euo pipefail
# shellcheck source=launch/say.sh
. "$(dirname "${BASH_SOURCE[0]}")/say.sh"
cd "${SLURM_SUBMIT_DIR:-$(dirname "$0")/..}"

begin() { # ID: sets the run's id, its folder `out`, and `resume` where the run goes on
  export CIRCUITLIT_RUN_ID=$1
  out=runs/$CIRCUITLIT_RUN_ID resume=()
  if [[ -e $out/.hydra/config.yaml ]]; then resume=("resume=$out"); fi
}

attend() { # COMMAND: runs it; told to stop ahead of the job's end it saves, and the job is queued again
  local stopping='' status=0 run
  trap 'stopping=1; kill -TERM "$run"' TERM
  ${DRY:+say} "$@" "${resume[@]}" &
  run=$!
  wait "$run" || status=$?
  if [[ $stopping ]]; then
    wait "$run" || true
    scontrol requeue "$SLURM_JOB_ID"
  fi
  if ((status)) && grep -qs '^ "status": "FAILED"' "$out/result.json"; then status=3; fi # torchrun says 1 for all
  exit "$status"
}
