#!/usr/bin/env bash
# bash launch/deepspeed.sh 2 task=ioi [MORE SETTINGS]: one run on all GPUs of this machine under ZeRO stage 1, 2, 3 or 3_offload.
# DRY=1 prints the command.
set -euo pipefail
cd "$(dirname "$0")/.."
stage=${1:?which stage? deepspeed.sh STAGE [SETTINGS]}
export CIRCUITLIT_RUN_ID=${CIRCUITLIT_RUN_ID:-$(date +%Y%m%d-%H%M%S)}
${DRY:+echo} python train.py strategy="deepspeed_$stage" callbacks=headless "${@:2}"
