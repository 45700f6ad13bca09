"""Training with Lightning: the curves, and a plain Trainer for where nobody brings one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from lightning import Callback, LightningDataModule, LightningModule, Trainer
from torch import Tensor

from circuitlit.tasks import PairsModule

Curves = list[dict[str, float]]  # rows of what was logged, each with its step
Fit = Callable[[LightningModule, PairsModule], Curves]  # trains a learner on pairs


def noted(trainer: Trainer) -> dict[str, Any]:
    """What a learner noted of its last step, if it notes anything; else what it has logged."""
    return getattr(trainer.lightning_module, "noted", None) or dict(trainer.callback_metrics)


class History(Callback):
    """Keeps the curves, in checkpoints too, so that a resumed run's page shows the whole run.

    What is logged stays on its device until somebody looks: a number read at every step would make a GPU wait.

    Args:
        every: steps between two rows.
        names: what is noted of all that is logged under `train/`.
    """

    def __init__(self, every: int = 1, names: tuple[str, ...] = ("loss", "sparsity")) -> None:
        self.every, self.names = every, names
        self._rows: list[dict[str, Any]] = []
        self._read = 0
        self._noted = -1

    @property
    def rows(self) -> list[dict[str, float]]:
        """The rows so far, as plain numbers."""
        new = self._rows[self._read :]
        found = [(row, name) for row in new for name, value in row.items() if isinstance(value, Tensor)]
        if found:
            device = next((row[name].device for row, name in found if row[name].is_cuda), torch.device("cpu"))
            values = torch.stack([row[name].float().to(device, non_blocking=True) for row, name in found]).tolist()
            for (row, name), value in zip(found, values, strict=True):
                row[name] = value
        self._read = len(self._rows)
        return self._rows

    def add(self, step: int, **values: float) -> None:
        """Append a row."""
        self._rows.append({"step": step, **values})

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        """Note what was logged."""
        step = trainer.global_step - 1
        if step > self._noted and step % self.every == 0:
            self._noted = step
            metrics = noted(trainer)
            self._rows.append({"step": step, **{name: metrics[f"train/{name}"] for name in self.names}})

    def state_dict(self) -> dict[str, Any]:
        """The rows so far."""
        return {"rows": list(self.rows), "noted": self._noted}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a checkpoint's rows."""
        self._rows, self._noted = list(state_dict["rows"]), state_dict["noted"]
        self._read = len(self._rows)


def fit(
    learner: LightningModule,
    data: LightningDataModule,
    *,
    steps: int,
    names: tuple[str, ...] = ("loss",),
    watchers: Sequence[Callback] = (),
) -> Curves:
    """Train a learner for some steps with a quiet Trainer, on the learner's device.

    Args:
        learner: to be trained.
        data: its pairs.
        steps: optimizer steps.
        names: what is noted of all that it logs under `train/`.
        watchers: more callbacks.
    """
    history, device = History(names=names), learner.device
    trainer = Trainer(
        accelerator=device.type,
        devices=1,
        max_steps=steps,
        max_epochs=-1,
        callbacks=[*watchers, history],
        logger=False,
        log_every_n_steps=1,
        num_sanity_val_steps=0,
        limit_val_batches=0,
        use_distributed_sampler=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
    )
    try:
        trainer.fit(learner, data)
    except SystemExit as end:  # Lightning makes it of Ctrl-C, which is for the caller to answer
        if isinstance(end.__context__, KeyboardInterrupt):
            raise end.__context__ from None
        raise
    finally:
        learner.to(device)  # Lightning leaves it on the CPU
    return history.rows
