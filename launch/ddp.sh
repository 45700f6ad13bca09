#!/usr/bin/env bash
# bash launch/ddp.sh task=ioi [MORE SETTINGS]: one run on all GPUs of this machine, the frozen model on each of them.
# The exit status is 3 if the circuit misses its bar. Without a GPU add trainer.accelerator=cpu strategy.options.devices=2. DRY=1 prints the command.
set -euo pipefail
cd "$(dirname "$0")/.."
. launch/say.sh
${DRY:+say} python train.py strategy=ddp callbacks=headless fail=true "$@"
