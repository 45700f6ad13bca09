#!/usr/bin/env bash
# bash launch/gpu_checks.sh [MORE SETTINGS]: what several GPUs must show: under every strategy the masks of one GPU, that is the
# gradient of step 1 within 1e-5 and the circuit after 200 steps with Jaccard .99. PROCESSES (2): how many.
# MODELS: which of "gpt2 smollm2". STRATEGIES: which. NO_TESTS=1 leaves the tests out. DRY=1 prints the commands.
# REHEARSE=1: the same on CPU processes, with a tiny model, without the tests.
set -euo pipefail
cd "$(dirname "$0")/.."
. launch/say.sh
out=${OUT:-runs/gpu_checks} failed=0 processes=${PROCESSES:-2} models=${MODELS:-gpt2 smollm2} steps=200 pairs=16
strategies=${STRATEGIES:-ddp deepspeed_1 deepspeed_2 deepspeed_3 fsdp}
common=(callbacks=headless callbacks.checkpoint_every=1 callbacks.probe_every=0 matmul_precision=highest overwrite=true)
((processes > 0 && pairs % processes == 0)) || { echo "PROCESSES=$processes does not divide $pairs, the pairs of a step" >&2 && exit 1; }

if [[ -n ${REHEARSE:-} ]]; then
  models=local pairs=$((4 * processes)) NO_TESTS=1
  common+=(task=jsonl model.path="$out/local/model" task.build.path="$out/local/pairs.jsonl" sparsity.target=0.8 logger=none
    evaluate.controls=3 evaluate.max_kl_share=1000 callbacks.snapshot_every=100 trainer.accelerator=cpu)
  [[ -n ${DRY:-} ]] || mkdir -p "$out/local"
  ${DRY:+say} env PYTHONPATH=tests python -c "from pathlib import Path; from cli import write_local; write_local(Path('$out/local'))"
else
  common+=(task=ioi)
fi

train() { # NAME DEVICES ACCUMULATE SETTINGS: steps of the same pairs each
  local name=$1 devices=$2 accumulate=$3
  shift 3
  ${DRY:+say} python train.py "${common[@]}" mask.schedule.steps="$steps" data.batch_size=$((pairs / processes)) \
    strategy.options.devices="$devices" trainer.accumulate_grad_batches="$accumulate" hydra.run.dir="$out/$name" "$@"
}

for model in $models; do
  train "$model-single" 1 "$processes" model="$model" strategy=single "$@"
  for strategy in $strategies; do
    train "$model-$strategy" "$processes" 1 model="$model" strategy="$strategy" "$@"
    ${DRY:+say} python tests/same_masks.py "$out/$model-single" "$out/$model-$strategy" || failed=1
  done
done
[[ -n ${NO_TESTS:-} ]] || ${DRY:+say} python -m pytest -m "gpu or slow" tests/test_gpu.py tests/test_engines.py tests/test_ranks.py
exit "$failed"
