"""Checkpoints that say what they were trained with, so that no run goes on under other settings."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn

from circuitlit.cli.resume import differences
from circuitlit.errors import UserError
from circuitlit.model.contents import hash_of

KEY = "trained_with"
CONTENTS = ("training pairs", "weights")


class Checkpoints(ModelCheckpoint):
    """Lightning's checkpoints, but none in the middle of an accumulated step right after resuming.

    `last.ckpt` is always the last one: Lightning would leave another run's there and write `last-v1.ckpt`.

    Args:
        folder: where they go.
        every: optimizer steps between two.
        name: of a file, ahead of its step.
        keep: how many beside `last.ckpt`; -1 keeps all.
    """

    def __init__(self, folder: Path, every: int, name: str, keep: int) -> None:
        super().__init__(
            dirpath=folder,
            filename=name + "_{step:06d}",
            auto_insert_metric_name=False,
            every_n_train_steps=every,
            save_top_k=keep,
            save_last=True,
            enable_version_counter=False,
        )

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Remember that the step we resume from is saved already."""
        super().on_train_start(trainer, pl_module)
        self._last_global_step_saved = trainer.global_step


class TrainedWith(Callback):
    """Writes what training depends on into every checkpoint, and refuses one that was trained with something else.

    Args:
        settings: of `resume.trained_with`, with what `contents` says of data and weights.
    """

    def __init__(self, settings: dict[str, Any]) -> None:
        self.settings = settings

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Note the settings."""
        checkpoint[KEY] = self.settings

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Compare.

        Raises:
            UserError: the settings differ.
        """
        agree("ckpt_path", checkpoint, self.settings)


def check_checkpoint(path: str | None, settings: dict[str, Any]) -> None:
    """Refuse a file that no run with these settings can go on from, before anything is loaded.

    Raises:
        UserError: it is damaged, or was trained with other settings.
    """
    if path is None or Path(path).is_dir():  # DeepSpeed writes folders, and reads them itself
        return
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for a damaged file
        raise UserError(f"ckpt_path={path} is not a readable checkpoint; resume from an older one") from error
    agree(f"ckpt_path={path}", checkpoint, settings)


def fits(path: Path, settings: dict[str, Any]) -> bool:
    """True where training can go on from a file: it is there, whole, and was trained with these settings."""
    try:
        check_checkpoint(str(path), settings)
    except UserError:
        return False
    return path.exists()


def agree(name: str, checkpoint: Any, settings: dict[str, Any]) -> None:
    """Compare what a checkpoint was trained with, as far as `settings` go.

    Raises:
        UserError: something differs, or it does not say.
    """
    saved = checkpoint.get(KEY) if isinstance(checkpoint, dict) else None
    if not isinstance(saved, dict):
        raise UserError(f"{name} is not a checkpoint of this version's; it does not say what it was trained with")
    unknown = {key for key in CONTENTS if not (key in saved and key in settings)}  # not loaded yet, or shared out
    then, now = ({key: own[key] for key in own.keys() - unknown} for own in (saved, settings))
    differing = differences(then, now)
    if differing:
        raise UserError(f"{name} was trained with other settings ({differing}); go on with those it had")


def contents(rows: Iterable[object], model: nn.Module | None) -> dict[str, str]:
    """Short hashes of what a file's name does not say: the training pairs, and the frozen weights.

    Args:
        rows: encoded pairs.
        model: None where its weights are shared out.
    """
    pairs = hashlib.sha256()
    for row in rows:
        pairs.update(str(row).encode())
    found = {CONTENTS[0]: pairs.hexdigest()[:16]}
    if model is not None:
        frozen = ((name, own) for name, own in model.named_parameters() if not own.requires_grad)
        found[CONTENTS[1]] = hash_of(frozen)
    return found
