"""An evolution's cells: one json a checkpoint and task, so that what is finished is never run again."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from circuitlit.cli.build import plain
from circuitlit.cli.checks import run_dir
from circuitlit.cli.kept import read_kept, settings_of
from circuitlit.cli.mistakes import explain
from circuitlit.files import file_name, write_json
from circuitlit.lock import claimed_cell
from circuitlit.store import fingerprint
from circuitlit.timeline.checkpoints import Checkpoint

log = logging.getLogger(__name__)
HEADS, CAUSAL = "heads", "causal"
_GROUPS = ("task", "model", "adapter", "mask", "sparsity", "objective", "ablation", "method", "data")
_OWN = ("circuits", "cold_every", "faithfulness", "probe_pairs", "resamples", "smallest", "heads")


@dataclass(frozen=True)
class Cell:
    """One file: a task, the head scores or the causal check of one checkpoint.

    Attributes:
        series: the training run.
        task: label of the task, or HEADS or CAUSAL.
        checkpoint: which one.
        settings: hash of what the content depends on.
    """

    series: str
    task: str
    checkpoint: Checkpoint
    settings: str

    @property
    def name(self) -> str:
        """Name of the cell's file and folder."""
        return cell_name(self.series, self.task, self.checkpoint.step)

    @property
    def file(self) -> Path:
        """Where the cell is written."""
        return run_dir() / "cells" / f"{self.name}.json"

    @property
    def folder(self) -> Path:
        """Where the cell's circuits are."""
        return run_dir() / "circuits" / self.name

    def finished(self) -> dict[str, Any] | None:
        """The content, if the file is there, with these settings and without an error."""
        content = read_kept(self.file)
        known = content.get("settings") == self.settings and content.get("status") != "ERROR"
        return content if known else None

    def make(self, work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Do the work and write its content.

        A mistake or a defect ends this cell alone: it is written down with the status ERROR and tried again by the next
        run.
        """
        with claimed_cell(self.file):
            known = self.finished()  # by another process, meanwhile
            if known is not None:
                return known
            try:
                content = work()
            except Exception as error:  # whatever goes wrong at one checkpoint, the others go on
                log.info("cell %s", self.name, exc_info=error)
                content = {"status": "ERROR", "reason": explain(error) or f"{type(error).__name__}: {error}"}
            header = {"series": self.series, "task": self.task, "settings": self.settings, **asdict(self.checkpoint)}
            write_json(self.file, {**header, **content})
            return read_kept(self.file)


def cell_name(series: str, task: str, step: int) -> str:
    """Name of a cell's file and folder."""
    parts = (series, task, f"step{step}")
    return "--".join(file_name(part) for part in parts)


def cell_settings(cfg: DictConfig, checkpoint: Checkpoint, *more: object) -> str:
    """A short hash of all settings that a cell's content depends on."""
    own = plain(cfg.evolve)
    chosen = {"evolve": {key: own[key] for key in _OWN}, "checkpoint": asdict(checkpoint)}
    return fingerprint([settings_of(cfg, _GROUPS) | chosen, *more])
