#!/usr/bin/env bash
# bash launch/deepspeed.sh 2 task=ioi [MORE SETTINGS]: one run on all GPUs of this machine under ZeRO stage 1, 2, 3 or 3_offload.
# The exit status is 3 if the circuit misses its bar. DRY=1 prints the command.
set -euo pipefail
cd "$(dirname "$0")/.."
. launch/say.sh
stage=${1:?which stage? deepspeed.sh STAGE [SETTINGS]}
${DRY:+say} python train.py strategy="deepspeed_$stage" callbacks=headless fail=true "${@:2}"
