#!/usr/bin/env bash
# bash launch/codellama.sh [MORE SETTINGS]: CodeLlama-13B's circuits of Boolean expressions on all GPUs of this machine, weights shared out.
# Run it again with the same CIRCUITLIT_RUN_ID to go on. DRY=1 prints the command.
set -euo pipefail
cd "$(dirname "$0")/.."
. launch/say.sh
export CIRCUITLIT_RUN_ID=${CIRCUITLIT_RUN_ID:-codellama}
${DRY:+say} python -m circuitlit prompts experiment=boolean_codellama strategy=deepspeed_3 fail=true \
  hydra.run.dir="runs/$CIRCUITLIT_RUN_ID" "$@"
