"""The parts of a study, series or trust card: processes of one command that share a folder."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from omegaconf import DictConfig

from circuitlit.cli import queue
from circuitlit.cli.checks import run_dir
from circuitlit.cli.queue import Job, Told
from circuitlit.cli.resume import quoted
from circuitlit.progress import CONSOLE
from circuitlit.store import Store


def share_out(cfg: DictConfig, words: Sequence[str]) -> None:
    """Run the parts of a verb as processes of this machine, each with a GPU; what is left is this process's.

    Nothing is done for a process that makes one part. A part that ends badly is said; what it lacks is made at the end.

    Args:
        cfg: the verb's settings; changed to those of the process that sums up.
        words: of the command.
    """
    own, folder = cfg[cfg.verb], run_dir()
    if own.part is None and own.parts > 1:
        base = [sys.executable, "-m", "circuitlit", cfg.verb]
        base += [word for word in words if not word.startswith("hydra.run.dir=")]
        base.append(f"hydra.run.dir={quoted(str(folder))}")
        run_id, cards = {"CIRCUITLIT_RUN_ID": str(cfg.run_id)}, queue.devices()
        jobs = [
            Job(str(part), [*base, f"{cfg.verb}.part={part}"], folder / f"part_{part}.txt", environment=run_id)
            for part in range(own.parts)
        ]
        CONSOLE.print(
            f"{own.parts} processes; what they print is in {folder}/part_*.txt", highlight=False, soft_wrap=True
        )
        with TemporaryDirectory() as records:
            places = [cards[part % len(cards)] for part in range(own.parts)]
            queue.work_off(Store(Path(records)), jobs, places, Told("part"))
        own.parts = 1
    own.part = own.part or 0
