#!/usr/bin/env bash
# bash launch/emergence_gpu.sh [MORE SETTINGS]: experiment=emergence_gpu on one GPU. Its eight models are trained side by
# side, then PARTS processes (12) share the checkpoints. Run it again to go on.
# OUT: where all of it goes. STEPS: which of "train measure". DRY=1 prints the commands.
set -euo pipefail
cd "$(dirname "$0")/.."
. launch/say.sh
out=${OUT:-runs/evolve-emergence_gpu/all}
read -ra chosen <<<"${STEPS:-train measure}"
known "train measure" "${chosen[@]}"
steps=" ${chosen[*]} "
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} TOKENIZERS_PARALLELISM=false

evolve() {
  ${DRY:+say} python -m circuitlit evolve experiment=emergence_gpu callbacks.progress_bar=false \
    hydra.run.dir="$out" "$@"
}

[[ $steps != *" train "* ]] || evolve evolve.parts=8 evolve.measure=false "$@"
[[ $steps != *" measure "* ]] || evolve evolve.parts="${PARTS:-12}" "$@"
