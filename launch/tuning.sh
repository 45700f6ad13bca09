#!/usr/bin/env bash
# bash launch/tuning.sh [FOLDER]: what tuning does to SmolLM2's circuits, on one GPU: ways to tune, knowledge, freezing.
# The exit status is 3 if a way to tune did not raise its score. DRY=1 prints the commands.
set -euo pipefail
cd "$(dirname "$0")/.."
. launch/say.sh
out="${1:-runs/tuning}"
common=(logger=none callbacks=headless callbacks.checkpoint_every=0)
pairs=(task=greater_than task.build.n_train=200 task.build.n_val=64 task.build.n_test=200)
steps=('tune.checkpoints=[0,2,4,6,8,10,12,16,20,25,30,40,60,80]' tune.steps=80 tune.probe_every=0)
circuits=(method=eap "${common[@]}")
failed=0
tune() { # NAME SETTINGS: one run of finetune, begun or gone on with; one that fails does not stop the others
  local resume=()
  if [[ -e $out/$1/.hydra/config.yaml ]]; then resume=("resume=$out/$1"); fi
  ${DRY:+say} python -m circuitlit finetune "${pairs[@]}" "${common[@]}" "${steps[@]}" fail=true hydra.run.dir="$out/$1" "${@:2}" \
    "${resume[@]}" || failed=$?
}
tune sft tune=sft adapter=lora
tune dpo tune=dpo adapter=lora tune.lr=1e-4
tune grpo tune=grpo adapter=lora tune.lr=1e-4
tune full tune=sft adapter=none
${DRY:+say} python -m circuitlit compare "runs=[$out/sft,$out/dpo,$out/grpo,$out/full]" "${pairs[@]}" "${circuits[@]}" \
  hydra.run.dir="$out/ways"
for name in sft full; do
  ${DRY:+say} python -m circuitlit compare tuned="$out/$name" "${pairs[@]}" "${circuits[@]}" compare.reuse.pairs=64 \
    compare.intruders=0 hydra.run.dir="$out/compare-$name"
done
${DRY:+say} python -m circuitlit knowledge "${common[@]}" hydra.run.dir="$out/knowledge"
${DRY:+say} python -m circuitlit knowledge experiment=inject_facts "${common[@]}" hydra.run.dir="$out/facts"
${DRY:+say} python -m circuitlit generality 'generality.tasks=[greater_than,ioi,sva]' generality.prevent.tune_on=greater_than \
  generality.prevent.nodes=20 adapter=none tune.steps=60 "${circuits[@]}" hydra.run.dir="$out/freezing"
exit "$failed"
