"""Checkpoints that other programs load: Hugging Face or PEFT folders, and an index of them."""

from __future__ import annotations

import math
import os
import shutil
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lightning import Callback, LightningModule, Trainer
from torch import nn
from transformers import PreTrainedTokenizerBase

from circuitlit.errors import UserError
from circuitlit.files import write_json
from circuitlit.finetune.examples import Preference


def steps_to_save(steps: int, wanted: int | list[int]) -> list[int]:
    """Steps after which a checkpoint is kept.

    Args:
        steps: of the training.
        wanted: the steps themselves (0 is the untouched model), or how many, spread evenly on a logarithmic axis from
            1 to the last step, with 0 before them.

    Raises:
        UserError: a step out of range.
    """
    if isinstance(wanted, int):
        if wanted < 2:
            return [0, steps][2 - max(0, wanted) :]
        spread = [round(math.exp(math.log(steps) * i / max(1, wanted - 2))) for i in range(wanted - 1)]
        return sorted({0, *spread, steps})
    if any(not 0 <= step <= steps for step in wanted):
        raise UserError(f"tune.checkpoints={list(wanted)} has a step outside 0 to {steps}; correct it")
    return sorted(set(wanted))


def save_model(model: nn.Module, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Write a folder that `from_pretrained` reads, whole or not at all: the adapter alone if there is one."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}-"))
    try:
        if hasattr(model, "disable_adapter"):
            with warnings.catch_warnings():
                if any(config.peft_type == "ADALORA" for config in model.peft_config.values()):  # type: ignore[operator]
                    # it takes modules that were left no rank for shards of ZeRO-3
                    warnings.filterwarnings("ignore", ".*tensor\\(s\\) have invalid shape")
                model.save_pretrained(str(partial), save_embedding_layers=False)  # type: ignore[operator]
        else:
            model.save_pretrained(str(partial))  # type: ignore[operator]
        tokenizer.save_pretrained(partial)
        for path in (partial, *partial.iterdir()):
            path.chmod(0o755 if path.is_dir() else 0o644)
        if folder.exists():
            shutil.rmtree(folder)
        os.replace(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


class CheckpointFolders(Callback):
    """Saves the model at some steps under `step_000010/`, and `checkpoints.json` that says what each has seen.

    Args:
        folder: where the folders go.
        steps: after which optimizer steps.
        tokenizer: saved with each.
        measure: figures of the model for the index, taken when it is saved.
    """

    def __init__(
        self,
        folder: Path,
        steps: list[int],
        tokenizer: PreTrainedTokenizerBase,
        measure: Callable[[nn.Module], dict[str, float]],
    ) -> None:
        self.folder, self.steps, self.tokenizer, self.measure = folder, steps, tokenizer, measure
        self.rows: list[dict[str, Any]] = []
        self._examples = self._tokens = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the untouched model, if asked for."""
        if trainer.global_step == 0:
            self._save(trainer, pl_module)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Preference, batch_idx: int
    ) -> None:
        """Count, and save when it is time; other ranks are taken to have seen as much as this one."""
        self._examples += len(batch.chosen) * trainer.world_size
        self._tokens += int(batch.chosen.lengths.sum()) * trainer.world_size
        if not self.rows or self.rows[-1]["step"] < trainer.global_step:
            self._save(trainer, pl_module)

    def _save(self, trainer: Trainer, pl_module: LightningModule) -> None:
        step = trainer.global_step
        if step not in self.steps or not trainer.is_global_zero:
            return
        model = pl_module.model
        assert isinstance(model, nn.Module)
        name = f"step_{step:06d}"
        save_model(model, self.tokenizer, self.folder / name)
        self.rows.append(
            {
                "step": step,
                "folder": name,
                "examples": self._examples,
                "tokens": self._tokens,
                "metrics": self.measure(model),
            }
        )
        kind = "peft" if hasattr(model, "disable_adapter") else "model"
        write_json(self.folder / "checkpoints.json", {"kind": kind, "checkpoints": self.rows})

    def state_dict(self) -> dict[str, Any]:
        """The index so far."""
        return {"rows": list(self.rows), "examples": self._examples, "tokens": self._tokens}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a checkpoint's index."""
        self.rows = list(state_dict["rows"])
        self._examples, self._tokens = state_dict["examples"], state_dict["tokens"]
