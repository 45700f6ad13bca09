#!/usr/bin/env bash
# bash launch/pruning_table.sh [OUT]: KL and the task's figure from 50 to 99 % of the edges removed, on ioi and greater-than:
# Edge Pruning's recipe, our masks, EAP, EAP-IG, on SmolLM2 and Gemma 3 270M. One GPU, all processes at once. Writes
# OUT/MODEL/study.json with figures, and OUT/table.md. SEEDS=0 (then SEEDS=0,1,2 in the same folder: only what is missing
# is made). ACDC=1: ACDC alone, at the sizes that it chooses, into OUT/MODEL-acdc; that takes long. MODELS: which. PARTS (6):
# processes for each model. MORE: further settings (PARTS=1 MORE=study.finished_only=true: a table of what is there). DRY=1
# prints the commands.
set -euo pipefail
cd "$(dirname "$0")/.."
. launch/say.sh
out=${1:-runs/pruning_table} seeds=${SEEDS:-0} parts=${PARTS:-6} suffix=${ACDC:+-acdc}
read -ra models <<<"${MODELS:-smollm2 gemma3_270m}"
read -ra more <<<"${MORE:-}"
failed=0 running=()

study() { # MODEL: its cells in several processes, then its study.json
  ${DRY:+say} python -m circuitlit study "experiment=pruning_table${suffix/-/_}" "model=$1" "study.seeds=[$seeds]" \
    "study.parts=$parts" "hydra.run.dir=$out/$1$suffix" "${more[@]}"
}

for model in "${models[@]}"; do
  if [[ -n ${DRY:-} ]]; then
    study "$model"
  else
    mkdir -p "$out"
    study "$model" >"$out/$model$suffix.txt" 2>&1 &
    running+=($!)
  fi
done
for process in "${running[@]}"; do wait "$process" || failed=$?; done
${DRY:+say} python launch/pruning_table.py "$out"
exit "$failed"
