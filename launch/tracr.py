"""python launch/tracr.py OUT [key=value ...]: how often masks find exactly the edges of a program compiled by Tracr.

Trains masks on `proportion` and `reverse` with 20 seeds that chose nothing (50 to 69), several runs at a time, and
prints how many find all true edges and no other, with the exact 95 % interval of Clopper and Pearson, beside ACDC.
SEEDS=0,1 PROGRAMS=reverse JOBS=8 in the environment take others. What is there is kept.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path
from typing import Any

from scipy.stats import binomtest

ROOT = Path(__file__).resolve().parent.parent
QUIET = ("logger=none", "evaluate.controls=3", "trainer.accelerator=cpu")
SEEDS = os.environ.get("SEEDS") or ",".join(map(str, range(50, 70)))
PROGRAMS = os.environ.get("PROGRAMS") or "proportion,reverse"


def found(command: list[str], folder: Path) -> dict[str, Any]:
    """The result of a command, which is run unless it is there already.

    Raises:
        SystemExit: the command failed; its last line says why.
    """
    if not (folder / "result.json").is_file():
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        arguments = [sys.executable, *command, *QUIET, f"hydra.run.dir={folder}"]
        ran = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True, env=environment)
        if ran.returncode:
            raise SystemExit(f"{folder.name}: {(ran.stderr or ran.stdout).strip().splitlines()[-1]}")
    return json.loads((folder / "result.json").read_text())


def is_exact(result: dict[str, Any]) -> bool:
    """All true edges and no other."""
    return result["n_edges"] == result["true_edges_found"] == result["true_edges"]


def main(out: Path, more: list[str]) -> None:
    """Run everything and print a line a program."""
    seeds, programs = [int(seed) for seed in SEEDS.split(",")], PROGRAMS.split(",")
    jobs = int(os.environ.get("JOBS") or os.cpu_count() or 1)

    def masks(program: str, seed: int) -> dict[str, Any]:
        command = ["train.py", f"experiment=tracr_{program}", f"seed={seed}", "callbacks=headless", *more]
        return found(command, out / f"{program}-seed{seed}")

    def acdc(program: str) -> dict[str, Any]:
        command = ["-m", "circuitlit", "attribute", f"experiment=tracr_{program}", "method=acdc", "sparsity=own"]
        return found(command, out / f"{program}-acdc")

    with ThreadPoolExecutor(jobs) as pool:
        beside = dict(zip(programs, pool.map(acdc, programs), strict=True))
        cells = list(product(programs, seeds))
        results = dict(zip(cells, pool.map(lambda cell: masks(*cell), cells), strict=True))
    for program in programs:
        own = [results[program, seed] for seed in seeds]
        exact = sum(map(is_exact, own))
        bounds = binomtest(exact, len(own)).proportion_ci(0.95, "exact")
        missed = [
            f"seed {seed} has {one['true_edges_found']} of {one['true_edges']} and {one['n_edges']} edges"
            for seed, one in zip(seeds, own, strict=True)
            if not is_exact(one)
        ]
        seconds = sum(one["seconds"] for one in own) / len(own)
        print(
            f"{program}: masks exact with {exact} of {len(own)} seeds [{bounds.low:.3f}, {bounds.high:.3f}], "
            f"{seconds:.0f} s each; ACDC {'exact' if is_exact(beside[program]) else 'not exact'}"
            f"{'; ' if missed else ''}{'; '.join(missed)}",
            flush=True,
        )


if __name__ == "__main__":
    if len(sys.argv) < 2 or "=" in sys.argv[1]:
        raise SystemExit("name a folder for the runs first: python launch/tracr.py runs/tracr")
    main(Path(sys.argv[1]).resolve(), sys.argv[2:])
