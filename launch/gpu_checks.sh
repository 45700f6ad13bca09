#!/usr/bin/env bash
# bash launch/gpu_checks.sh [MORE SETTINGS]: on two GPUs, what several GPUs must show: the masks of one GPU under ddp,
# deepspeed_2 and deepspeed_3. MODELS: which of "gpt2 smollm2". NO_TESTS=1 leaves the tests out. DRY=1 prints the commands.
set -euo pipefail
cd "$(dirname "$0")/.."
out=${OUT:-runs/gpu_checks} failed=0

train() { # NAME DEVICES ACCUMULATE SETTINGS: 200 steps of the same 16 pairs each
  local name=$1 devices=$2 accumulate=$3
  shift 3
  ${DRY:+echo} python train.py task=ioi callbacks=headless mask.schedule.steps=200 data.batch_size=8 \
    callbacks.checkpoint_every=1 callbacks.probe_every=0 matmul_precision=highest strategy.options.devices="$devices" \
    trainer.accumulate_grad_batches="$accumulate" hydra.run.dir="$out/$name" overwrite=true "$@"
}

for model in ${MODELS:-gpt2 smollm2}; do
  train "$model-single" 1 2 model="$model" strategy=single "$@"
  for strategy in ddp deepspeed_2 deepspeed_3; do
    train "$model-$strategy" 2 1 model="$model" strategy="$strategy" "$@"
    ${DRY:+echo} python tests/same_masks.py "$out/$model-single" "$out/$model-$strategy" || failed=1
  done
done
[[ -n ${NO_TESTS:-} ]] || ${DRY:+echo} python -m pytest -m "gpu or slow" tests/test_gpu.py tests/test_ranks.py
exit "$failed"
