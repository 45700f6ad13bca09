"""Trains a learner with the Trainer, loggers and progress that a configuration describes."""

from __future__ import annotations

from hydra.utils import instantiate
from lightning import LightningModule, Trainer
from omegaconf import DictConfig

from circuitlit.cli import ranks
from circuitlit.cli.callbacks import FiniteLoss, Progress
from circuitlit.cli.loggers import open_loggers
from circuitlit.cli.progress import ProgressLines
from circuitlit.discover.fit import Curves, History
from circuitlit.tasks import PairsModule


def fit(cfg: DictConfig, learner: LightningModule, data: PairsModule, names: tuple[str, ...] = ("loss",)) -> Curves:
    """Train; `names` are noted in the curves, of all that the learner logs under `train/`."""
    history, bar = History(cfg.callbacks.history_every, names), cfg.callbacks.progress_bar
    watchers = [ProgressLines(aloud=not bar), *([Progress(refresh_rate=1)] if bar else [])]
    with open_loggers(cfg) as loggers:
        trainer: Trainer = instantiate(
            cfg.trainer, logger=loggers, callbacks=[history, FiniteLoss(), *watchers], **ranks.trainer_options(cfg)
        )
        trainer.fit(learner, data)
    return history.rows
