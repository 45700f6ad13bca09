#!/usr/bin/env bash
# bash launch/trust.sh [OUT]: whole trust cards on one GPU. Circuits of four tasks with 96.6 % of the edges removed; on IOI
# also a second seed, EAP-IG's circuit of as many edges, and ACDC's at the size that it chooses. Run it again to go on.
# ACDC=0 leaves the slow one out; DRY=1 prints the commands.
set -euo pipefail
cd "$(dirname "$0")/.."
. launch/say.sh
out=${1:-runs/trust}
parts=preserved,chance,errors,ablations,generalises,minimal

run() { # FOLDER COMMAND...: unless its result is there
  local folder=$1
  shift
  [[ -e $folder/result.json ]] || ${DRY:+say} python "$@" "hydra.run.dir=$folder"
}

card() { # FOLDER TASK SETTINGS...: the card of the circuit in a folder
  local folder=$1 task=$2
  shift 2
  ${DRY:+say} python -m circuitlit trust experiment=trust_smollm2 "circuit=$folder" "task=$task" "hydra.run.dir=$folder-card" "$@"
}

for one in ioi-0 greater_than-0 gender_pronoun-0 sva-0 ioi-1; do
  task=${one%-*}
  # as many steps as those that look for rivals have: with more, none of them reaches the circuit, and nothing is decided
  run "$out/$one" train.py experiment=ioi_smollm2 mask.schedule.steps=300 data.batch_size=25 fail=true callbacks=headless "task=$task" "seed=${one##*-}"
  card "$out/$one" "$task" "seed=${one##*-}"
done
common=(-m circuitlit attribute task=ioi logger=none data.eval_batch_size=200)
run "$out/ioi-eap_ig" "${common[@]}" method=eap_ig sparsity.target=0.966
card "$out/ioi-eap_ig" ioi
if [[ ${ACDC:-1} != 0 ]]; then
  # gives 1,702 edges, in 15 minutes beside other jobs; a lower threshold gives more and takes longer
  run "$out/ioi-acdc" "${common[@]}" method=acdc sparsity=own method.score.threshold=3.14e-4 method.score.chunk=64 \
    method.max_batches=1 data.batch_size=32
  card "$out/ioi-acdc" ioi "trust.only=[$parts,unique]" # a search of its own for every half would take hours
fi
