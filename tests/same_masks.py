"""python tests/same_masks.py RUN RUN: do two runs' masks agree? First step within 1e-5, circuits' Jaccard .99."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file

from circuitlit.graph import Circuit


def main(one: Path, two: Path) -> int:
    first = [load_file(run / "masks" / "step_000001.safetensors")["log_alpha"] for run in (one, two)]
    difference = float((first[0] - first[1]).norm() / first[0].norm())
    kept = [Circuit.load(run).kept for run in (one, two)]
    jaccard = float((kept[0] & kept[1]).sum() / (kept[0] | kept[1]).sum())
    training = [json.loads((run / "result.json").read_text())["seconds_by_phase"]["training"] for run in (one, two)]
    print(f"{two}: first step {difference:.1e} (relative), Jaccard {jaccard:.4f}, {training[0] / training[1]:.2f} x")
    return int(not (difference <= 1e-5 and jaccard >= 0.99))


if __name__ == "__main__":
    torch.set_num_threads(1)
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2])))
