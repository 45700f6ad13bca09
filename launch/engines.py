"""python launch/engines.py [CARDS] [MORE SETTINGS]: the engines that share weights out, beside each other.

A step of a 13B and of a 34B shape, so many pairs of 64 tokens on each card, all rows on the same machine: milliseconds,
GiB a card. One card (the default) shows what an engine costs where there is nothing to share; two show what it is for.
SHAPES: which of "gpt2 codellama_13b codellama_34b". ENGINES: which strategies. OUT: folder. DRY=1 prints.
On a CPU, as a rehearsal: SHAPES=gpt2 python launch/engines.py 2 trainer.accelerator=cpu 'dtypes=[float32]' tokens=8
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

PAIRS = {"gpt2": 8, "codellama_13b": 8, "codellama_34b": 4}
ENGINES = ("single", "deepspeed_3", "fsdp")
LINEAR = 0.95  # of the pairs a second


def command(shape: str, engine: str, cards: int, out: Path, more: list[str]) -> list[str]:
    """One row; `single` computes like the others, without an engine."""
    own = ["mask.recompute=true"] if engine == "single" else [f"strategy.options.devices={cards}"]
    quiet = "callbacks=headless callbacks.probe_every=0 callbacks.checkpoint_every=0 callbacks.snapshot_every=1000"
    settings = (
        f"model={shape} data.batch_size={PAIRS[shape]} tokens=64 mask.panel=2 mask.cache_gib=0 repeats=10 warmup=3"
    )
    first = [
        sys.executable,
        "-m",
        "circuitlit",
        "bench",
        *settings.split(),
        *quiet.split(),
        "logger=none",
        "repeats=10",
    ]
    return [*first, "dtypes=[bfloat16]", f"strategy={engine}", *own, f"hydra.run.dir={out}", "overwrite=true", *more]


def measured(words: list[str], out: Path) -> dict | None:
    """What a row found; None if it failed, for want of memory, say."""
    (out / "bench.json").unlink(missing_ok=True)
    done = subprocess.run(words, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    if done.returncode or not (out / "bench.json").exists():
        print(done.stdout[-3000:], flush=True)
        return None
    return json.loads((out / "bench.json").read_text())["measured"][0]


def main(cards: int, more: list[str]) -> int:
    """All rows; 1 if one failed."""
    root = Path(os.environ.get("OUT", "runs/engines"))
    engines = os.environ.get("ENGINES", " ".join(ENGINES if cards == 1 else ENGINES[1:])).split()
    failed = False
    for shape in os.environ.get("SHAPES", "codellama_13b codellama_34b").split():
        for engine in engines:
            out = root / f"{shape}-{engine}-{cards}"
            words = command(shape, engine, cards, out, more)
            if os.environ.get("DRY"):
                print(shlex.join(words))
                continue
            row = measured(words, out)
            failed |= row is None
            if row is None:
                print(f"| {shape} | {engine} | {cards} | failed | |", flush=True)
                continue
            spread = ", ".join(f"{1e3 * row[name]:.0f}" for name in ("low", "high"))
            memory = ", ".join(f"{gib:.1f}" for gib in row["peaks_gib"])
            text = f"{1e3 * row['step']:.0f} ms ({spread}) | {memory} GiB"
            print(f"| {shape}, {row['batch']} x {row['tokens']} | {engine} | {cards} | {text} |", flush=True)
    return int(failed)


def scaling(one: Path, two: Path) -> int:
    """Data parallel: pairs a second of a bench run on several cards against those of one; 1 below .95 of linear."""
    rows = [json.loads((run / "bench.json").read_text())["measured"][0] for run in (one, two)]
    share = rows[0]["step"] / rows[1]["step"] * rows[1]["batch"] / rows[0]["batch"]
    print(f"{rows[1]['devices']} cards: {share:.3f} of linear; needed: {LINEAR}")
    return int(share < LINEAR)


if __name__ == "__main__":
    arguments = sys.argv[1:]
    if arguments and not arguments[0].isdigit() and arguments[0] != "scaling" and "=" not in arguments[0]:
        raise SystemExit(__doc__)
    if arguments[:1] == ["scaling"]:
        runs = [Path(folder) for folder in arguments[1:]]
        if len(runs) != 2 or not all((run / "bench.json").is_file() for run in runs):
            raise SystemExit("scaling compares two bench runs: name the folders of one on one card and one on several")
        sys.exit(scaling(*runs))
    number = int(arguments.pop(0)) if arguments and arguments[0].isdigit() else 1
    sys.exit(main(number, arguments))
