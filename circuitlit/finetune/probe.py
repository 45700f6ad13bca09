"""A look at validation pairs now and then, while a model is tuned."""

from __future__ import annotations

from typing import Any

from lightning import Callback, LightningModule, Trainer

from circuitlit.discover.fit import History
from circuitlit.finetune.behaviour import HeldOut
from circuitlit.finetune.tuner import Tuner


class Probe(Callback):
    """Now and then tests the model on validation pairs.

    Args:
        pairs: the pairs.
        every: steps between two looks.
        history: where the figures go, beside the logger.
    """

    def __init__(self, pairs: HeldOut, every: int, history: History) -> None:
        self.pairs, self.every, self.history = pairs, every, history
        self._seen = -1

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure the start."""
        if trainer.global_step == 0:
            self._look(trainer, pl_module)
        self._seen = trainer.global_step

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        """Measure when it is time."""
        if trainer.global_step % self.every == 0 and trainer.global_step > self._seen:
            self._look(trainer, pl_module)

    def _look(self, trainer: Trainer, tuner: LightningModule) -> None:
        assert isinstance(tuner, Tuner)
        self._seen = trainer.global_step
        figures = {f"val_{name}": value for name, value in self.pairs.figures(tuner.model).items()}
        self.history.add(trainer.global_step, **figures)
        for logger in trainer.loggers:
            logger.log_metrics({name.replace("_", "/", 1): v for name, v in figures.items()}, step=trainer.global_step)
