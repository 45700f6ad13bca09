"""Tunes a model with the Trainer, loggers and callbacks that a configuration describes."""

from __future__ import annotations

from typing import Any

from hydra.utils import instantiate
from lightning import Trainer
from omegaconf import DictConfig
from torch import nn

from circuitlit.cli import stopping
from circuitlit.cli.callbacks import FiniteLoss, Progress, StopOnSignal
from circuitlit.cli.checkpoints import Checkpoints, TrainedWith, check_checkpoint
from circuitlit.cli.checks import run_dir
from circuitlit.cli.loggers import open_loggers
from circuitlit.cli.progress import ProgressLines
from circuitlit.cli.resume import TUNING, trained_with
from circuitlit.discover.fit import Curves, History
from circuitlit.errors import UserError
from circuitlit.finetune import (
    CheckpointFolders,
    Examples,
    HeldOut,
    Optimisation,
    Tuner,
    TuningData,
    examples_of_file,
    examples_of_task,
    steps_to_save,
)
from circuitlit.finetune.finetune_model import WATCHED
from circuitlit.finetune.freeze import Frozen
from circuitlit.finetune.probe import Probe
from circuitlit.model import Subject
from circuitlit.model.limits import check_rows


def check_tuning(cfg: DictConfig) -> None:
    """Refuse what cannot work, before anything is loaded."""
    Optimisation(cfg.tune.steps, cfg.tune.lr, cfg.tune.warmup, cfg.tune.weight_decay)
    if cfg.adapter.path is not None:
        raise UserError("adapter=peft is a finished adapter; tune with adapter=none, lora, adalora or ia3")
    if cfg.adapter.build is None and cfg.model.dtype != "float32":
        raise UserError(
            f"model.dtype={cfg.model.dtype} would round the updates of all weights; use float32 and, on a GPU, "
            "trainer.precision=bf16-mixed, or adapter=lora"
        )
    check_checkpoint(cfg.ckpt_path, trained_with(cfg, TUNING, 1))


def build_examples(cfg: DictConfig, subject: Subject) -> dict[str, Examples]:
    """The examples of `tune.data`, or of the task, by split."""
    assert subject.tokenizer is not None
    if cfg.tune.data:
        examples = examples_of_file(cfg.tune.data, subject.tokenizer, cfg.seed)
    else:
        examples = examples_of_task(instantiate(cfg.task.build)(tokenizer=subject.tokenizer), subject.tokenizer)
    for name, split in examples.items():
        for side in (split.chosen, *([split.rejected] if split.rejected else [])):
            check_rows(subject.model.config, side.rows, name)
    return examples


def fit_tuner(
    cfg: DictConfig, subject: Subject, trained: dict[str, Any], tuner: Tuner, data: TuningData, watched: HeldOut | None
) -> Curves:
    """Train; `trained` says what with, for a resumed run to compare."""
    folder, settings = run_dir(), cfg.callbacks
    assert subject.tokenizer is not None
    history = History(settings.history_every, WATCHED[cfg.tune.name])
    callbacks: list[Any] = [history, FiniteLoss(setting="tune.lr")]
    if cfg.tune.freeze:
        callbacks.append(Frozen(subject, list(cfg.tune.freeze)))  # ahead of what saves the model
    measure = watched.figures if watched else _nothing
    callbacks.append(CheckpointFolders(folder / "checkpoints", _steps(cfg), subject.tokenizer, measure))
    if watched and cfg.tune.probe_every:
        callbacks.append(Probe(watched, cfg.tune.probe_every, history))
    callbacks.append(ProgressLines(aloud=not settings.progress_bar))
    if settings.progress_bar:
        callbacks.append(Progress(refresh_rate=1))
    if settings.checkpoint_every:
        callbacks.append(Checkpoints(folder / "checkpoints", settings.checkpoint_every, "resume", keep=1))
    callbacks += [TrainedWith(trained), StopOnSignal(folder / "checkpoints")]
    with open_loggers(cfg) as loggers:
        trainer: Trainer = instantiate(
            cfg.trainer, logger=loggers, callbacks=callbacks, **instantiate(cfg.strategy.options)
        )
        trainer.fit(tuner, data, ckpt_path=cfg.ckpt_path, weights_only=True)
    stopping.end_of_patience()
    return history.rows


def _steps(cfg: DictConfig) -> list[int]:
    wanted = cfg.tune.checkpoints
    return steps_to_save(cfg.tune.steps, wanted if isinstance(wanted, int) else list(wanted))


def _nothing(_model: nn.Module) -> dict[str, float]:
    return {}
