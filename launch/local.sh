#!/usr/bin/env bash
# bash launch/local.sh task=ioi [MORE SETTINGS]: one run on this machine, on its GPU if it has one. DRY=1 prints the command.
set -euo pipefail
cd "$(dirname "$0")/.."
${DRY:+echo} python train.py strategy=single "$@"
