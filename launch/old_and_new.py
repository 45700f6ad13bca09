"""python launch/old_and_new.py COMMIT OUT [SETTINGS]: `train.py` with an older commit's code and with this one's.

Prints seconds by phase, user CPU seconds and what was found, beside each other. ROUNDS=2 runs each twice, in the other
order the second time; DRY=1 prints the commands. Both use the environment that runs this script.
"""

from __future__ import annotations

import json
import os
import resource
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent


def run(tree: Path, out: Path, settings: list[str]) -> dict[str, Any]:
    """One run with the code of a folder: its seconds and its result."""
    command = [sys.executable, str(tree / "train.py"), *settings, f"hydra.run.dir={out}"]
    if os.environ.get("DRY"):
        print(shlex.join(command))
        return {}
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    subprocess.run(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(tree)}, check=True)
    result = json.loads((out / "result.json").read_text())
    found = {f"{name}, s": seconds for name, seconds in result["seconds_by_phase"].items()}
    found |= {"all phases, s": result["seconds"]}
    found |= {"user CPU, s": resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before}
    ends = {"KL": result, "KL of attribution": result["attribution"], "KL of random": result["random"]}
    return found | {name: entry["kl"]["value"] for name, entry in ends.items() if entry}


def main(commit: str, out: Path, settings: list[str]) -> None:
    """Run both, print a table and write it."""
    rounds, rows = int(os.environ.get("ROUNDS", "1")), {}
    known = ["git", "rev-parse", "--quiet", "--verify", f"{commit}^{{commit}}"]
    if subprocess.run(known, cwd=ROOT, stdout=subprocess.DEVNULL).returncode:
        raise SystemExit(f"there is no commit {commit} here; name one that `git log` has")
    with tempfile.TemporaryDirectory() as folder:
        old = Path(folder) / "old"
        subprocess.run(["git", "worktree", "add", "--quiet", "--detach", str(old), commit], cwd=ROOT, check=True)
        try:
            for number in range(rounds):
                trees = {f"old {number}": old, f"new {number}": ROOT}
                for name in sorted(trees, reverse=number % 2 == 0):
                    rows[name] = run(trees[name], out / name.replace(" ", "-"), settings)
        finally:
            subprocess.run(["git", "worktree", "remove", "--force", str(old)], cwd=ROOT, check=True)
    if os.environ.get("DRY"):
        return
    (out / "old_and_new.json").write_text(json.dumps({"old": commit, "settings": settings, "rows": rows}, indent=2))
    print(f"{'':22}" + "".join(f"{name:>12}" for name in rows))
    for figure in dict.fromkeys(name for row in rows.values() for name in row):
        cells = (f"{row[figure]:12.3f}" if figure in row else f"{'-':>12}" for row in rows.values())
        print(f"{figure:22}" + "".join(cells))


if __name__ == "__main__":
    if len(sys.argv) < 3:
        raise SystemExit(__doc__)
    main(sys.argv[1], Path(sys.argv[2]).resolve(), sys.argv[3:])
