#!/usr/bin/env bash
# bash launch/four_cards.sh [OUT]: what four GPUs must show and two cannot, in one call: every strategy against one card, data
# parallel against one, the engines at 13B and 34B, a step of a 70B shape beside its plan, a run of two cards that goes on on
# four. PARTS: which of "checks scaling engines seventy resume". REHEARSE=1: checks and resume on CPU processes, with a tiny
# model. DRY=1 prints the commands.
# shellcheck disable=SC2317,SC2329 # the parts are called by name
set -euo pipefail
cd "$(dirname "$0")/.."
. launch/say.sh
out=${1:-runs/four_cards} failed=0
parts=${PARTS:-checks scaling engines seventy resume} own=(task=ioi)
if [[ -n ${REHEARSE:-} ]]; then
  parts=${PARTS:-checks resume}
  own=(task=jsonl "model.path=$out/checks/local/model" "task.build.path=$out/checks/local/pairs.jsonl" sparsity.target=0.8
    evaluate.controls=3 evaluate.max_kl_share=1000 trainer.accelerator=cpu model=local)
  [[ -n ${DRY:-} ]] || mkdir -p "$out/checks/local"
  ${DRY:+say} env PYTHONPATH=tests python -c "from pathlib import Path; from cli import write_local; write_local(Path('$out/checks/local'))"
fi

checks() { OUT="$out/checks" PROCESSES=4 MODELS=${MODELS:-smollm2} NO_TESTS=1 bash launch/gpu_checks.sh; }
scaling() { CARDS=4 bash launch/speed.sh ddp_scaling; }
engines() { OUT="$out/engines" python launch/engines.py 4; }
seventy() { # a step of 4 pairs of 32 tokens on each card, and its plan
  local words=(model=llama3_70b data.batch_size=4 tokens=32 strategy=fsdp strategy.options.devices=4 mask.panel=2 mask.cache_gib=0
    'dtypes=[bfloat16]' callbacks=headless callbacks.probe_every=0 callbacks.checkpoint_every=0 logger=none)
  ${DRY:+say} python -m circuitlit bench plan=true "${words[@]}" hydra.run.dir="$out/plan"
  ${DRY:+say} python -m circuitlit bench "${words[@]}" repeats=3 warmup=2 hydra.run.dir="$out/seventy"
}
resume() { # 40 of 80 steps on two cards, the rest on four; beside four from the first step on
  local run=("${own[@]}" callbacks=headless callbacks.checkpoint_every=10 callbacks.probe_every=0 logger=none data.batch_size=4
    mask.schedule.steps=80 strategy=ddp matmul_precision=highest overwrite=true)
  ${DRY:+say} python train.py "${run[@]}" strategy.options.devices=4 hydra.run.dir="$out/four"
  ${DRY:+say} python train.py "${run[@]}" strategy.options.devices=2 trainer.accumulate_grad_batches=2 \
    trainer.max_steps=40 hydra.run.dir="$out/two"
  ${DRY:+say} python train.py resume="$out/two" strategy.options.devices=4 trainer.accumulate_grad_batches=1 trainer.max_steps=-1
  ${DRY:+say} python tests/same_masks.py "$out/four" "$out/two"
}
read -ra chosen <<<"$parts"
known "checks scaling engines seventy resume" "${chosen[@]}"
for part in "${chosen[@]}"; do
  echo "== $part"
  $part || failed=1
done
exit "$failed"
