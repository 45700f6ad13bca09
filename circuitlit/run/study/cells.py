"""A study's cells: what each one is, its settings, and its file, so that a finished cell is never run again."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from circuitlit.cli.checks import run_dir
from circuitlit.cli.kept import read_kept, settings_of
from circuitlit.cli.mistakes import explain
from circuitlit.files import file_name, write_json
from circuitlit.lock import claimed_cell
from circuitlit.store import fingerprint

log = logging.getLogger(__name__)
_GROUPS = ("task", "model", "adapter", "mask", "sparsity", "objective", "ablation", "method", "data", "evaluate")


@dataclass(frozen=True)
class Cell:
    """One file of a study.

    Attributes:
        task: label of the task.
        kind: "task", "control", "attribution" or "learner".
        method: label of the method; empty for the task's own file.
        sparsity: of a learner's cell; None where the cell holds all sparsities.
        seed: of a learner's cell.
    """

    task: str
    kind: str
    method: str = ""
    sparsity: float | None = None
    seed: int | None = None

    @property
    def name(self) -> str:
        """Name of the cell's file and folder."""
        parts = [self.task, self.kind, self.method]
        parts += [] if self.sparsity is None else [f"{self.sparsity:g}"]
        parts += [] if self.seed is None else [f"seed{self.seed}"]
        return "--".join(file_name(part) for part in parts if part)

    @property
    def file(self) -> Path:
        """Where the cell is written."""
        return run_dir() / "cells" / f"{self.name}.json"

    @property
    def folder(self) -> Path:
        """Where the cell's circuits are."""
        return run_dir() / "circuits" / self.name

    def finish(self, cfg: DictConfig, work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """The cell's content: read if its file is there with these settings, else made and written.

        A mistake or a defect ends this cell alone: it is written down, and the cell is tried again by the next run.
        """
        known = self.known(cfg)
        if known:
            return known
        with claimed_cell(self.file):
            try:  # another process may have made it meanwhile
                return self.known(cfg) or self._write({"status": "OK", "settings": self._settings(cfg), **work()})
            except Exception as error:  # whatever goes wrong in a cell, the others go on
                return self.fail(error)

    def known(self, cfg: DictConfig) -> dict[str, Any]:
        """The file's content if it was finished with these settings; else nothing."""
        found = self.read()
        return found if found.get("status") == "OK" and found.get("settings") == self._settings(cfg) else {}

    def _settings(self, cfg: DictConfig) -> str:
        sparsities = list(cfg.study.sparsities) if self.sparsity is None else [self.sparsity]
        study = {key: cfg.study[key] for key in ("resamples", "curve_pairs")}
        return fingerprint(settings_of(cfg, _GROUPS) | {"sparsities": sparsities, **study})

    def fail(self, error: Exception) -> dict[str, Any]:
        """Write down what went wrong."""
        log.info("cell %s", self.name, exc_info=error)
        return self._write({"status": "FAILED", "error": explain(error) or f"{type(error).__name__}: {error}"})

    def _write(self, content: dict[str, Any]) -> dict[str, Any]:
        self.file.parent.mkdir(parents=True, exist_ok=True)
        write_json(self.file, {**vars(self), **content})
        return self.read()

    def read(self) -> dict[str, Any]:
        """The file's content; empty if it is missing or damaged."""
        return read_kept(self.file)
