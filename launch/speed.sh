#!/usr/bin/env bash
# bash launch/speed.sh ROW [MORE SETTINGS]: one row of the speed table; `all` runs every row for one GPU but the 13B ones.
# _small rows take less memory and more time. For two GPUs (CARDS=4: for four): ddp_scaling, which prints the ratio; engines.py has those of shared weights.
# length_gpt2, length_codellama: cost against length, up to prompts of 2,048 tokens, references kept in the host's memory.
# packed: runs an hour with EACH (1 2 4 8) default runs at a time on each GPU.
# cpu_default is the whole default run by phase, with the code of OLD (a commit) and with this one; see old_and_new.py.
set -euo pipefail
cd "$(dirname "$0")/.."
. launch/say.sh

bench() { ${DRY:+say} python -m circuitlit bench callbacks=headless trainer.log_every_n_steps=25 repeats=30 warmup=5 examples=320 "$@"; }

row() {
  local name=$1
  shift
  local out="hydra.run.dir=runs/speed/$name"
  case $name in
    gpt2_64) bench model=gpt2 data.batch_size=32 tokens=64 mask.panel=3 "$out" "$@" ;;
    gpt2_64_small) small tokens=64 "$out" "$@" ;;
    gpt2_20_small) small tokens=20 "$out" "$@" ;;
    gpt2_20) bench model=gpt2 data.batch_size=32 tokens=20 mask.panel=6 "$out" "$@" ;;
    smollm2_20) bench model=smollm2 data.batch_size=32 tokens=20 mask.panel=4 "$out" "$@" ;;
    codellama) bench model=codellama_13b data.batch_size=8 tokens=64 'dtypes=[bfloat16]' mask.recompute=reads mask.panel=2 "$out" "$@" ;;
    four_bit_7b) four_bit_7b "$out" "$@" ;;
    ddp_scaling)
      bench model=gpt2 data.batch_size=256 tokens=20 mask.cache_gib=0 'dtypes=[float32]' repeats=10 "$out-1" "$@"
      bench model=gpt2 data.batch_size=256 tokens=20 mask.cache_gib=0 'dtypes=[float32]' repeats=10 strategy=ddp \
        strategy.options.devices="${CARDS:-2}" "$out-${CARDS:-2}" "$@"
      ${DRY:+say} python launch/engines.py scaling runs/speed/ddp_scaling-1 "runs/speed/ddp_scaling-${CARDS:-2}"
      ;;
    plan) bench plan=true model=codellama_13b data.batch_size=8 tokens=64 mask.recompute=reads mask.panel=2 "$out" "$@" ;;
    length_gpt2) bench bench=length model=gpt2 data.batch_size=4 tokens=2048 'dtypes=[bfloat16]' repeats=10 examples=16 mask.host_gib=32 mask.cache_gib=0 "$out" "$@" ;;
    length_codellama) bench bench=length model=codellama_13b data.batch_size=1 tokens=2048 mask.panel=2 mask.capture=false 'dtypes=[bfloat16]' repeats=3 warmup=2 examples=8 mask.host_gib=32 mask.cache_gib=0 "$out" "$@" ;;
    scaling) bench bench=scaling model=gpt2 data.batch_size=32 tokens=20 'dtypes=[float32]' "$out" "$@" ;;
    eap) bench bench=eap method=eap model=gpt2 data.batch_size=8 tokens=15 examples=null "$out" "$@" ;;
    ioi_200) ${DRY:+say} python -m circuitlit bench bench=run experiment=ioi_gpt2 verb=bench model.source=random model.path=null task.min_accuracy=0 model.dtype=bfloat16 mask.schedule.steps=3000 callbacks=headless "$out" "$@" ;;
    ioi_100000) row_large "$out" "$@" ;;
    cpu_eap) CUDA_VISIBLE_DEVICES='' bench bench=eap method=eap model=gpt2 data.batch_size=8 tokens=15 'dtypes=[float32]' repeats=5 examples=null "$out" "$@" ;;
    cpu_smollm2) CUDA_VISIBLE_DEVICES='' bench data.batch_size=16 tokens=16 'dtypes=[float32]' repeats=5 examples=null "$out" "$@" ;;
    packed) packed "$@" ;;
    cpu_default) CUDA_VISIBLE_DEVICES='' python launch/old_and_new.py "${OLD:-55f497e}" runs/speed/cpu_default task=ioi "$@" ;;
    *) echo "no row '$name'; see the cases of launch/speed.sh" >&2 && exit 1 ;;
  esac
}

small() { # SETTINGS: 32 pairs of 200 as two micro-batches, what readers see summed anew in the backward pass
  bench model=gpt2 data.batch_size=16 trainer.accumulate_grad_batches=2 examples=200 mask.panel=3 mask.recompute=reads \
    'dtypes=[bfloat16]' "$@"
}

packed() { # SETTINGS: at least four runs, and three for each that runs at once; the rate is printed at the end of each sweep
  for each in ${EACH:-1 2 4 8}; do
    local runs=$((each * 3 > 4 ? each * 3 : 4))
    ${DRY:+say} python -m circuitlit train -m hydra/launcher=packed hydra.launcher.each="$each" task=ioi logger=none callbacks=headless \
      seed="$(seq -s, 0 $((runs - 1)))" "$@"
  done
}

four_bit_7b() { # SETTINGS: Llama-2-7B's shape with 4-bit weights that stay packed, a block unpacked at a time
  bench model=codellama_13b model.name=llama_7b model.architecture.hidden_size=4096 model.architecture.intermediate_size=11008 \
    model.architecture.num_hidden_layers=32 model.architecture.num_attention_heads=32 model.architecture.num_key_value_heads=32 \
    '+model.architecture.quantization_config={quant_method: bitsandbytes, load_in_4bit: true}' strategy=one_block \
    data.batch_size=8 tokens=20 'dtypes=[bfloat16]' mask.panel=2 mask.cache_gib=0 callbacks.probe_every=0 \
    callbacks.checkpoint_every=0 callbacks.snapshot_every=1000 logger=none repeats=10 "$@"
}

row_large() {
  ${DRY:+say} python -m circuitlit bench bench=run experiment=ioi_gpt2 verb=bench model.source=random model.path=null task.min_accuracy=0 model.dtype=bfloat16 mask.schedule.steps=3000 callbacks=headless \
    task.build.n_train=100000 mask.cache_gib=0 "$@"
}

if [[ ${1:-} == all ]]; then
  for name in gpt2_64 gpt2_20 smollm2_20 scaling eap ioi_200 ioi_100000 cpu_eap cpu_smollm2; do row "$name" "${@:2}"; done
else
  row "${1:?which row? see the cases of launch/speed.sh}" "${@:2}"
fi
