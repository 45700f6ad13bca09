"""python tests/same_masks.py RUN RUN: do two runs agree? First gradient within 1e-5, circuits' Jaccard .99.

The runs need checkpoints of their first step (`callbacks.checkpoint_every=1`): Adam's first moment is a tenth of the
first gradient there.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

from circuitlit.graph import Circuit


def first_gradient(run: Path) -> torch.Tensor:
    """Of the masks, from the checkpoint of step 1; DeepSpeed's is a folder with a part from each process."""
    path = run / "checkpoints" / "step_000001.ckpt"
    if path.is_file():
        (moments,) = torch.load(path, map_location="cpu", weights_only=True)["optimizer_states"]
        return 10 * moments["state"][0]["exp_avg"]
    parts = sorted(path.glob("*/*optim_states.pt"), key=lambda part: int(part.name.split("_rank_")[1].split("_")[0]))
    states = [torch.load(part, map_location="cpu", weights_only=False)["optimizer_state_dict"] for part in parts]
    return 10 * torch.cat([state["base_optimizer_state"]["state"][0]["exp_avg"] for state in states])


def main(one: Path, two: Path) -> int:
    gradients = [first_gradient(run) for run in (one, two)]
    gradients[1] = gradients[1][: gradients[0].numel()]  # DeepSpeed pads its parts
    difference = float((gradients[0] - gradients[1]).norm() / gradients[0].norm())
    kept = [Circuit.load(run).kept for run in (one, two)]
    jaccard = float((kept[0] & kept[1]).sum() / (kept[0] | kept[1]).sum())
    training = [json.loads((run / "result.json").read_text())["seconds_by_phase"]["training"] for run in (one, two)]
    print(
        f"{two}: gradient of step 1 {difference:.1e} off (relative), Jaccard {jaccard:.4f}, "
        f"{training[0] / training[1]:.2f} x as fast"
    )
    return int(not (difference <= 1e-5 and jaccard >= 0.99))


if __name__ == "__main__":
    torch.set_num_threads(1)
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2])))
