#!/usr/bin/env bash
# bash launch/results.sh [MORE SETTINGS]: the README's results on one GPU, three seeds at two sizes of training set.
set -euo pipefail
cd "$(dirname "$0")/.."
python -m pytest -m gpu
for seed in 0 1 2; do
  python train.py experiment=ioi_smollm2 seed="$seed" callbacks=headless hydra.run.dir="runs/results/200-$seed" "$@"
  python train.py experiment=ioi_smollm2 seed="$seed" callbacks=headless hydra.run.dir="runs/results/8000-$seed" \
    task.build.n_train=8000 mask.cache_gib=40 "$@"
done
