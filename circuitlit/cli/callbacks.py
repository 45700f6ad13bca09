"""Callbacks that watch a mask run: curves, mask files, the hard circuit's KL, numbers that went wrong."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import RichProgressBar

from circuitlit.cli import ranks, stopping
from circuitlit.cli.evolution import Evolution
from circuitlit.discover import MaskLearner
from circuitlit.discover.fit import History, noted
from circuitlit.errors import UserError
from circuitlit.evaluate import TestBed
from circuitlit.files import save_tensors
from circuitlit.graph import Circuit, EdgeScores


class FiniteLoss(Callback):
    """Stops a run whose loss is no longer a number.

    Args:
        every: steps between two looks; each costs a synchronisation with the GPU.
        setting: the learning rate's name, for the message.
    """

    def __init__(self, every: int = 50, setting: str = "mask.schedule.lr") -> None:
        self.every, self.setting = every, setting

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Look.

        Raises:
            UserError: the loss is NaN or infinite.
        """
        on_gpu, first = pl_module.device.type == "cuda", trainer.global_step <= 1
        if on_gpu and not first and trainer.global_step % self.every:
            return
        loss = outputs["loss"] if isinstance(outputs, dict) else outputs
        if not bool(torch.isfinite(loss)):
            cause = "no step was taken before it, so" if first else f"lower {self.setting}, or"
            raise UserError(
                f"the loss is {float(loss)} at step {trainer.global_step}; {cause} load the model in float32 "
                "(model.dtype=float32)"
            )


class MaskSnapshots(Callback):
    """Writes the log-alphas to `masks/step_*.safetensors`, with what it takes to read them without the model.

    Args:
        folder: the run's `masks` folder.
        every: steps between two files.
        count: edges that the circuit is going to keep.
    """

    def __init__(self, folder: Path, every: int, count: int) -> None:
        self.folder, self.every, self.count = folder, every, count
        self._seen = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write where the masks start."""
        self._seen = trainer.global_step
        if trainer.is_global_zero and trainer.global_step == 0 and self.every <= trainer.max_steps:
            self.write(pl_module, 0)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        """Write when it is time, but not in the middle of an accumulated step."""
        step, before = trainer.global_step, self._seen
        self._seen = step
        if trainer.is_global_zero and step != before and step % self.every == 0:
            self.write(pl_module, step)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the last masks."""
        if trainer.is_global_zero:
            self.write(pl_module, trainer.global_step)

    def write(self, learner: LightningModule, step: int) -> None:
        """Write one file, whole or not at all."""
        assert isinstance(learner, MaskLearner)
        self.folder.mkdir(parents=True, exist_ok=True)
        layout = learner.loss.layout
        facts = {"graph": layout.graph.to_dict(), "roles": list(layout.roles), "sites": layout.sites}
        facts["count"] = self.count
        tensors = {"log_alpha": learner.log_alpha.detach().float()}
        header = {"step": str(step), "circuitlit": json.dumps(facts)}
        save_tensors(self.folder / f"step_{step:06d}.safetensors", tensors, header)


class StopOnSignal(Callback):
    """Ends a run that gets SIGTERM, as schedulers send it ahead of the end, or Ctrl-C: saves a checkpoint first.

    All processes stop at the same step, whichever of them was told.

    Args:
        folder: the run's `checkpoints` folder.
        every: steps between two looks of several processes; each costs an exchange.
    """

    def __init__(self, folder: Path, every: int = 5) -> None:
        self.folder, self.every = folder, every
        self._seen = -1

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Listen; Lightning puts the earlier handlers back when the run ends."""
        self._seen = trainer.global_step
        stopping.attend(patient=True)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        """Look.

        Raises:
            Stopped: a signal has come.
        """
        step, several = trainer.global_step, trainer.world_size > 1
        if step == self._seen or step >= trainer.max_steps or (several and step % self.every):
            return
        self._seen = step
        if not ranks.anyone(stopping.told()):
            return
        whole = self.folder / f"step_{step:06d}.ckpt"
        trainer.save_checkpoint(whole)
        if trainer.is_global_zero and whole.is_file():  # DeepSpeed's checkpoints are folders
            partial = self.folder / "last.partial"
            shutil.copyfile(whole, partial)
            os.replace(partial, self.folder / "last.ckpt")
        stopping.stop(step)


class HardCircuit(Callback):
    """Now and then cuts the circuit as it would be delivered and measures it on validation pairs.

    Args:
        bed: validation pairs.
        cut: how a circuit is cut from scores.
        every: steps between two looks.
        pairs: how many pairs.
        history: where the figures go, beside the logger.
    """

    def __init__(
        self, bed: TestBed, cut: Callable[[EdgeScores], Circuit], every: int, pairs: int, history: History
    ) -> None:
        self.bed, self.cut, self.every, self.pairs, self.history = bed, cut, every, pairs, history
        self._seen = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure the start."""
        self._seen = trainer.global_step
        if trainer.global_step == 0:
            self.look(trainer, pl_module)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        """Measure when it is time, but not in the middle of an accumulated step."""
        step, before = trainer.global_step, self._seen
        self._seen = step
        if step != before and step % self.every == 0:
            self.look(trainer, pl_module)

    def look(self, trainer: Trainer, learner: LightningModule) -> None:
        """Cut, run, note."""
        assert isinstance(learner, MaskLearner)
        circuit = self.cut(learner.scores())
        outcome = self.bed.run(circuit.kept, self.pairs)
        undecided = float((learner.log_alpha.detach().abs() < 2).float().mean())
        figures = {
            "hard_kl": float(outcome.kl.mean()),
            "hard_accuracy": float(outcome.accuracy.mean()),
            "undecided": undecided,
            "reachable": float(circuit.n_reachable),
        }
        self.history.add(trainer.global_step, **figures)
        for logger in trainer.loggers:
            logger.log_metrics({f"val/{name}": value for name, value in figures.items()}, step=trainer.global_step)


class Progress(RichProgressBar):
    """A progress bar with loss, sparsity, stage and time left, without the version number."""

    def __init__(self, refresh_rate: int = 1) -> None:
        super().__init__(refresh_rate=refresh_rate)
        self._known: dict[str, float] = {}

    def _get_train_description(self, current_epoch: int) -> str:
        return "masks"

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> Any:
        """What stands behind the bar."""
        if trainer.global_step % self.refresh_rate == 0 or not self._known:  # reading a number waits for the GPU
            logged = {name: float(value) for name, value in noted(trainer).items()}
            self._known = {name.removeprefix("train/"): value for name, value in logged.items()}
        shown: dict[str, Any] = dict(self._known)
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, Evolution) and callback.stage:
                shown["stage?"] = callback.stage
        return shown
