#!/usr/bin/env bash
# bash launch/ways.sh [FOLDER]: supervised, preference and reward tuning of SmolLM2 on greater_than with three seeds each, at one
# common validation score: do circuits of two ways share less than those of two seeds of one way? One GPU, three runs at a
# time. SEEDS: which. DRY=1 prints the commands. The exit status is 3 if a run did not raise its score.
set -euo pipefail
cd "$(dirname "$0")/.."
. launch/say.sh
out="${1:-runs/ways}" seeds=${SEEDS:-0 1 2} runs=() jobs=() failed=0
common=(logger=none callbacks=headless callbacks.checkpoint_every=0 task=greater_than tune.score=metric task.build.n_train=200 task.build.n_val=64
  task.build.n_test=200)
for seed in $seeds; do
  for way in sft dpo grpo; do
    folder="$out/$way-$seed"
    runs+=("$folder")
    [[ -e $folder/result.json ]] || ${DRY:+say} python -m circuitlit finetune "${common[@]}" tune="$way" adapter=lora tune.lr=1e-4 \
      tune.steps=80 'tune.checkpoints=[0,4,8,12,16,20,25,30,40,60,80]' tune.probe_every=0 seed="$seed" "hydra.run.dir=$folder" \
      overwrite=true fail=true &
    jobs+=($!)
  done
  for job in "${jobs[@]}"; do wait "$job" || failed=$?; done
  jobs=()
done
((failed == 0 || failed == 3)) || exit "$failed" # 3: the score did not rise; what there is can still be compared
${DRY:+say} python -m circuitlit compare "runs=[$(IFS=, && echo "${runs[*]}")]" "${common[@]}" method=eap hydra.run.dir="$out/compare"
exit "$failed"
