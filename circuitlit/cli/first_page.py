"""`report.html` ahead of a result: what attribution alone finds, then the masks' curves."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning import Callback, LightningModule, Trainer

from circuitlit.discover.fit import History
from circuitlit.evaluate.baseline import Baseline
from circuitlit.evaluate.measure import TestBed
from circuitlit.progress import say
from circuitlit.report.figures import training_figure
from circuitlit.report.simple_page import html_table, write_simple_page

EVERY = 20  # seconds between two versions, and between two looks of the browser


class FirstPage(Callback):
    """Writes the page at once, and again while masks are trained.

    Args:
        folder: of the run.
        title: task and model.
        target: share of edges that are going to be cut.
        bed: validation pairs.
        ranked: attributions, as `ranked_by_validation` gives them.
        edges: of each attribution's circuit.
    """

    def __init__(
        self, folder: Path, title: str, target: float, bed: TestBed, ranked: Sequence[Baseline], edges: int
    ) -> None:
        self.path, self.title, self.target = folder / "report.html", title, target
        found = [(f"{one.scores.method}, {one.scores.ranking}", f"{edges:,}", one.val_kl or 0.0) for one in ranked]
        ends = [("all edges: the full model", "all", 0.0), ("no edge", "0", float(bed.corrupted.kl.mean()))]
        rows = [(name, count, f"{kl:.3f}") for name, count, kl in [*found, *ends]]
        pairs = f"KL on {len(bed.full.kl)} validation pairs, nats"
        self._table = html_table(("circuit of", "edges", pairs), rows)
        self._written = 0.0
        self._write("Masks are about to be trained.", [])
        say(f"a first page, which follows the masks and is replaced at the end: {self.path}")

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Write it again, if the last version is old enough."""
        if trainer.is_global_zero and time.monotonic() - self._written > EVERY:
            history = next((c for c in trainer.callbacks if isinstance(c, History)), None)  # type: ignore[attr-defined]
            step = f"Masks are trained: step {trainer.global_step} of {trainer.max_steps}."
            self._write(step, history.rows if history else [])

    def _write(self, step: str, rows: Sequence[dict[str, float]]) -> None:
        figure = training_figure({"rows": list(rows), "target_sparsity": self.target})
        lead = f"{step} Held-out pairs are measured after that; then the whole page takes this one's place."
        sections: list[Any] = [("What attribution alone finds", self._table)]
        sections += [] if figure is None else [("Training so far", figure)]
        write_simple_page(self.path, self.title, lead, sections, refresh=EVERY)
        self._written = time.monotonic()
