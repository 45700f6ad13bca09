"""Watches a circuit in Lightning's Trainer."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from circuitlit.errors import UserError
from circuitlit.graph import Circuit
from circuitlit.tasks import Pairs
from circuitlit.timeline.watcher import WatchSettings
from circuitlit.watch.live import AFTERWARDS, language_model
from circuitlit.watch.pace import SHARE
from circuitlit.watch.session import OnDrift, PairsOf, Watching

SHARDING = ("FSDPStrategy", "ModelParallelStrategy")


class LightningCircuitWatch(Callback, Watching):
    """Follows a circuit while a LightningModule fine-tunes a Hugging Face model: `Trainer(callbacks=[watch])`.

    The figures go to all of the trainer's loggers, under `circuit/`; everything else is as in `CircuitWatch`.

    Args:
        pairs, circuit, tokenizer, folder, every, share, on_drift, settings: see `WatchSession`.
        model: attribute of the LightningModule that holds the language model; None looks for the only one.

    Raises:
        UserError: as `CircuitWatch`; no model, or several.
    """

    def __init__(
        self,
        pairs: Pairs | PairsOf,
        tokenizer: Any,
        circuit: Circuit | str | Path | None = None,
        *,
        model: str | None = None,
        folder: str | Path | None = None,
        every: int | None = None,
        share: float = SHARE,
        on_drift: OnDrift = "warn",
        settings: WatchSettings | None = None,
    ) -> None:
        super().__init__(
            pairs,
            circuit,
            tokenizer=tokenizer,
            folder=folder,
            every=every,
            share=share,
            on_drift=on_drift,
            settings=settings,
        )
        self.model = model
        self._seen = -1

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Read the start."""
        strategy = trainer.strategy
        stage_3 = getattr(strategy, "zero_stage_3", False)
        if type(strategy).__name__ in SHARDING or stage_3:
            name = "DeepSpeed's ZeRO-3" if stage_3 else type(strategy).__name__
            raise UserError(
                f"{name} shares the weights out, and a watch reads whole ones; train with ddp, {AFTERWARDS}"
            )
        last = trainer.estimated_stepping_batches
        place = Path(trainer.log_dir or trainer.default_root_dir)
        place = Path(trainer.strategy.broadcast(str(place)))
        self._seen = trainer.global_step
        model = language_model(pl_module, self.model)
        end = int(last) if math.isfinite(last) else None
        self.session.begin(model, trainer.global_step, end, None, place, self._logger(trainer))

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Read, if an optimizer step has ended and it is time."""
        if trainer.global_step == self._seen:
            return
        self._seen = trainer.global_step
        model = language_model(pl_module, self.model)
        if self.session.after(model, trainer.global_step, False, self._logger(trainer)):
            trainer.should_stop = True

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Read the end, and write the evolution and the page."""
        model = language_model(pl_module, self.model)
        self.session.after(model, trainer.global_step, True, self._logger(trainer))
        self.session.end(trainer.global_step)

    def _logger(self, trainer: Trainer) -> Any:
        def log(figures: dict[str, float]) -> None:
            for logger in trainer.loggers:
                logger.log_metrics(figures, step=trainer.global_step)

        return log
