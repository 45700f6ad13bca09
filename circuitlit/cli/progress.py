"""How far training is, as lines: for logs, and for terminals without a bar."""

from __future__ import annotations

import time
from typing import Any

from lightning import Callback, LightningModule, Trainer

from circuitlit.discover.fit import noted
from circuitlit.progress import duration, say

PARTS = 20  # of a run; a line after each


class ProgressLines(Callback):
    """A line at every twentieth of training: step, what is logged of it, time left; always in the run's log file.

    Args:
        aloud: True prints it, too.
    """

    def __init__(self, aloud: bool) -> None:
        self.aloud = aloud
        self._first = self._seen = 0
        self._began = 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        self._first = self._seen = trainer.global_step
        self._began = time.monotonic()

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        """Speak when it is time."""
        step, before, steps = trainer.global_step, self._seen, trainer.max_steps
        self._seen = step
        if not trainer.is_global_zero or step * PARTS // steps == before * PARTS // steps:
            return
        left = (time.monotonic() - self._began) / (step - self._first) * (steps - step)
        logged = {name: float(v) for name, v in noted(trainer).items() if name.startswith("train/")}
        figures = [f"{name.removeprefix('train/')} {value:.4g}" for name, value in logged.items()]
        words = [f"{100 * step // steps} %: step {step} of {steps}", *figures, f"{duration(left)} left"]
        say(", ".join(words), self.aloud)
