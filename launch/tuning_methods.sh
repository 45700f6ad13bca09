#!/usr/bin/env bash
# bash launch/tuning_methods.sh [FOLDER]: SmolLM2 tuned on subtraction in four ways with three seeds each (all weights, LoRA,
# AdaLoRA, IA3), compared at one score; then, for LoRA and all weights, whether what becomes of nodes is more than other
# pairs do; then LoRA's ranks for two-step arithmetic from the union of two steps' circuits, beside uniform and random ranks
# and AdaLoRA. One GPU, four runs at a time. PARTS: which of "tune compare modes ranks". DRY=1 prints the commands.
set -euo pipefail
cd "$(dirname "$0")/.."
. launch/say.sh
read -ra chosen <<<"${PARTS:-tune compare modes ranks}"
known "tune compare modes ranks" "${chosen[@]}"
out="${1:-runs/tuning_methods}" parts=" ${chosen[*]} " seeds=${SEEDS:-0 1 2} runs=() jobs=() failed=0
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-2} TOKENIZERS_PARALLELISM=false
subtract=(logger=none callbacks=headless callbacks.checkpoint_every=0 task=arithmetic task.build.operation=subtract
  task.build.low=1 task.build.high=50 task.build.n_train=600 task.build.n_val=128 task.build.n_test=200 task.min_accuracy=0)
declare -A rates=([none]=2e-5 [lora]=2e-3 [adalora]=5e-3 [ia3]=2e-2)

run() { ${DRY:+say} python -m circuitlit "$@"; }
settle() {
  for job in "${jobs[@]}"; do wait "$job" || failed=$?; done
  jobs=()
  ((failed == 0 || failed == 3)) || exit "$failed" # 3: the score did not rise; what there is can still be compared
}

for seed in $seeds; do
  for adapter in none lora adalora ia3; do
    folder="$out/$adapter-$seed"
    runs+=("$folder")
    [[ $parts == *" tune "* && ! -e $folder/result.json ]] || continue
    run finetune "${subtract[@]}" adapter="$adapter" adapter.lr="${rates[$adapter]}" tune.steps=120 \
      'tune.checkpoints=[0,10,20,30,45,60,80,100,120]' tune.probe_every=0 tune.score=metric seed="$seed" \
      "hydra.run.dir=$folder" overwrite=true fail=true &
    jobs+=($!)
  done
  settle
done
if [[ $parts == *" compare "* ]]; then
  run compare "runs=[$(IFS=, && echo "${runs[*]}")]" "${subtract[@]}" method=eap hydra.run.dir="$out/compare" &
  jobs+=($!)
fi
if [[ $parts == *" modes "* ]]; then
  for seed in $seeds; do
    for adapter in none lora; do
      run compare tuned="$out/$adapter-$seed" "${subtract[@]}" method=eap compare.halvings=40 compare.reuse.pairs=64 \
        hydra.run.dir="$out/modes-$adapter-$seed" &
      jobs+=($!)
    done
  done
fi
if [[ $parts == *" ranks "* ]]; then
  run guided logger=none task=arithmetic task.build.operation=composite task.build.low=1 task.build.high=12 task.build.n_train=600 \
    task.build.n_val=128 task.build.n_test=200 task.min_accuracy=0 'guided.ways=[uniform,union_circuit,random_layers,adalora]' \
    'guided.subtasks=["task.build.operation=add task.build.high=60","task.build.operation=multiply task.build.high=60"]' \
    guided.circuit_pairs=64 guided.adalora_lr=5e-3 method=eap tune.steps=100 tune.score=metric adapter.lr=1e-3 hydra.run.dir="$out/ranks" &
  jobs+=($!)
fi
settle
exit "$failed"
