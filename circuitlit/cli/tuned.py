"""A tuned copy of a model, for analyses that tune as a part of what they ask."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence

from hydra.utils import instantiate
from lightning import Trainer
from omegaconf import DictConfig

from circuitlit.cli.callbacks import FiniteLoss
from circuitlit.finetune import Examples, Optimisation, SupervisedTuner, TuningData
from circuitlit.finetune.freeze import Frozen
from circuitlit.model import Subject


def tuned_copy(
    cfg: DictConfig, base: Subject, examples: Mapping[str, Examples], seed: int, frozen: Sequence[str]
) -> Subject:
    """A copy of the base, tuned supervised in all weights but the frozen nodes'."""
    made = Subject(copy.deepcopy(base.model), base.tokenizer, base.name)
    made.model.requires_grad_(True)
    tune = cfg.tune
    tuner = SupervisedTuner(made.model, Optimisation(tune.steps, tune.lr, tune.warmup, tune.weight_decay), seed)
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    callbacks = [Frozen(made, frozen), FiniteLoss(setting="tune.lr")]
    trainer: Trainer = instantiate(
        cfg.trainer, max_steps=tune.steps, callbacks=callbacks, **quiet, **instantiate(cfg.strategy.options)
    )
    trainer.fit(tuner, TuningData(dict(examples), cfg.data.batch_size, seed))
    made.model.requires_grad_(False)
    tuner.to(base.device)
    return made
