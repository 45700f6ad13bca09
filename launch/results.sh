#!/usr/bin/env bash
# bash launch/results.sh [MORE SETTINGS]: the README's results on one GPU, three seeds at two sizes of training set.
# Run it again to go on. The exit status is 3 if a circuit misses its bar. DRY=1 prints the commands.
set -euo pipefail
cd "$(dirname "$0")/.."
. launch/say.sh
failed=0

train() { # NAME SETTINGS: one run, begun or gone on with
  local out="runs/results/$1" resume=()
  if [[ -e $out/.hydra/config.yaml ]]; then resume=("resume=$out"); fi
  ${DRY:+say} python train.py experiment=ioi_smollm2 callbacks=headless fail=true hydra.run.dir="$out" "${@:2}" "${resume[@]}" ||
    failed=$?
}

${DRY:+say} python -m pytest -m gpu
for seed in 0 1 2; do
  train "200-$seed" seed="$seed" "$@"
  train "8000-$seed" seed="$seed" task.build.n_train=8000 mask.cache_gib=40 "$@"
done
exit "$failed"
