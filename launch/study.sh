#!/usr/bin/env bash
# bash launch/study.sh EXPERIMENT PROCESSES [MORE SETTINGS]: a study on all GPUs of this machine, so many processes on each.
# The cells are shared out; the last process makes what is missing and the table. Run it again to go on. OUT=DIR, DRY=1.
set -euo pipefail
cd "$(dirname "$0")/.."
experiment=${1:?which experiment? see study in conf/experiment}
each=${2:?how many processes on each GPU?}
shift 2
gpus=${GPUS:-$(nvidia-smi --list-gpus 2>/dev/null | wc -l || true)}
parts=$((each * (gpus > 0 ? gpus : 1)))
out=${OUT:-runs/$experiment}
mkdir -p "$out"
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-2}

study() { ${DRY:+echo} python -m circuitlit study "experiment=$experiment" "hydra.run.dir=$out" "$@"; }

for ((part = 0; part < parts; part++)); do
  if ((gpus > 0)); then export CUDA_VISIBLE_DEVICES=$((part % gpus)); fi
  if [[ -n ${DRY:-} ]]; then
    study "study.part=$part" "study.parts=$parts" "$@"
  else
    study "study.part=$part" "study.parts=$parts" "$@" >"$out/part_$part.txt" 2>&1 &
  fi
done
wait
study "$@"
