"""Jobs whose weights are on a hub, at full shape with random ones: time and memory before anything is downloaded.

    python launch/dry_run.py boolean OUT [SETTINGS]   # 13B, two prompts, 50 steps each; then the whole job reckoned
    python launch/dry_run.py pythia OUT [SETTINGS]    # Pythia-160M, three revisions in a folder, four tasks

The numbers found say nothing about a model; the same experiments without these settings run on real weights. A small
try on a CPU: SMALL=1.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

from circuitlit.model.load import config_from

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
from toy_tokenizers import like_gpt2, like_llama

SMALL = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
STEPS, PAIRS = (50, 3000), (16, 200)  # of the dry run, of the job: training steps, test pairs
BATCHES = 2  # that attribution reads, of the job's 100: a smaller share than that of the steps


def run(*words: str) -> float:
    """Seconds that a verb took.

    Raises:
        SystemExit: it failed.
    """
    begun = time.perf_counter()
    subprocess.run([sys.executable, "-m", "circuitlit", *words], check=True)
    return time.perf_counter() - begun


def small(architecture: str = "model.architecture") -> list[str]:
    """Settings of a shape for a try."""
    own = SMALL | ({"num_key_value_heads": 4} if architecture == "model.architecture" else {})
    return [f"{architecture}.{name}={value}" for name, value in own.items()] if os.environ.get("SMALL") else []


def boolean(out: Path, more: list[str]) -> None:
    """Both prompts, their circuits under each other, what they share."""
    like_llama().save_pretrained(out / "tokenizer")
    dry = [
        "model.source=random",
        f"model.path={out / 'tokenizer'}",
        "task.min_accuracy=0",
        f"mask.schedule.steps={STEPS[0]}",
        "task.build.n_train=400",
        "task.build.n_val=8",
        f"task.build.n_test={PAIRS[0]}",
        f"method.max_batches={BATCHES}",
        "prompts.draws=20",
        "callbacks.probe_every=0",
        f"hydra.run.dir={out / 'run'}",
    ]
    seconds = run("prompts", "experiment=boolean_codellama", "strategy=single", *dry, *small(), *more)
    phases = json.loads((out / "run" / "prompts.json").read_text())["seconds_by_phase"]
    steps, pairs = STEPS[1] / STEPS[0], PAIRS[1] / PAIRS[0]
    whole = sum(
        spent * (steps if name.startswith("circuit_") else pairs if name == "evaluation" else 1)
        for name, spent in phases.items()
    )  # too much rather than too little: what is done once for a circuit is multiplied, too
    found = {"seconds": seconds, "by_phase": phases, "whole_job_hours_at_most": whole / 3600}
    print(json.dumps(found, indent=1))


def pythia(out: Path, more: list[str]) -> None:
    """Three revisions of random weights, named as Pythia's are."""
    shape = {"model_type": "gpt_neox", "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12}
    shape |= {"num_attention_heads": 12, "vocab_size": 50304} | (SMALL if os.environ.get("SMALL") else {})
    for number, step in enumerate((0, 1000, 143000)):
        torch.manual_seed(number)
        folder = out / "revisions" / f"step{step}"
        AutoModelForCausalLM.from_config(config_from(shape)).save_pretrained(folder)
        like_gpt2().save_pretrained(folder)
    settings = ["experiment=pythia_160m_ioi", f"evolve.folder={out / 'revisions'}", f"hydra.run.dir={out / 'run'}"]
    print(f"{run('evolve', *settings, *more):.0f} s")


if __name__ == "__main__":
    jobs = {"boolean": boolean, "pythia": pythia}
    if len(sys.argv) < 3 or sys.argv[1] not in jobs:
        raise SystemExit(__doc__)
    place = Path(sys.argv[2])
    place.mkdir(parents=True, exist_ok=True)
    jobs[sys.argv[1]](place, sys.argv[3:])
