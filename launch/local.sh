#!/usr/bin/env bash
# bash launch/local.sh task=ioi [MORE SETTINGS]: one run on this machine, on its GPU if it has one.
# The exit status is 3 if the circuit misses its bar. DRY=1 prints the command.
set -euo pipefail
cd "$(dirname "$0")/.."
. launch/say.sh
${DRY:+say} python train.py strategy=single fail=true "$@"
