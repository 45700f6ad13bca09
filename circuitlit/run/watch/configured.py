"""What a watch reads after the fact, from a configuration: which checkpoints, and what of each."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

from hydra.utils import instantiate
from omegaconf import DictConfig

from circuitlit.cli.build import build_method, build_subject, plain
from circuitlit.discover.workbench import Ablation
from circuitlit.errors import UserError
from circuitlit.model import Subject
from circuitlit.run.evolve.series import configured
from circuitlit.tasks import Pairs, in_chat
from circuitlit.timeline.checkpoints import Checkpoint, local_checkpoints
from circuitlit.timeline.watched import Limits
from circuitlit.timeline.watcher import WatchSettings

CONFIGURED = ""  # path of the model of the group `model`


def checkpoints_of(cfg: DictConfig) -> list[Checkpoint]:
    """The checkpoints of the folder, after the start if that is none of them.

    Raises:
        UserError: a second start.
    """
    schedule = None if cfg.watch.schedule is None else list(cfg.watch.schedule)
    found = local_checkpoints(Path(os.path.expanduser(cfg.checkpoints)), schedule, CONFIGURED, key="checkpoints")
    if found[0].step == 0:
        if cfg.base is not None:
            raise UserError(f"checkpoints={cfg.checkpoints} begin with step 0, which is the start; leave base out")
        return found
    if found[0].adapter is not None:
        if cfg.base is not None:
            raise UserError("base is for whole checkpoints; adapters start from `model`: set that, leave base out")
        return [Checkpoint(0, CONFIGURED), *found]
    return found if cfg.base is None else [Checkpoint(0, str(cfg.base)), *found]


def load(cfg: DictConfig, checkpoint: Checkpoint) -> Subject:
    """The model of a checkpoint."""
    return build_subject(
        cfg if checkpoint.path == CONFIGURED and not checkpoint.adapter else configured(cfg, checkpoint)
    )


def pairs_for(cfg: DictConfig, tokenizer: Any) -> Pairs:
    """The task's pairs, as messages where `data.chat` says so."""
    pairs = replace(instantiate(cfg.task.build)(tokenizer=tokenizer), name=cfg.task.name)
    return in_chat(pairs, tokenizer) if cfg.data.chat else pairs


def settings_from(cfg: DictConfig) -> WatchSettings:
    """What is read at each.

    Raises:
        UserError: settings that no watch looks at, or that are none.
    """
    if (cfg.sparsity.select, cfg.mask.sites, cfg.mask.roles) != ("top_k", "edges", False):
        raise UserError(
            "watch finds circuits of edges by top_k; leave sparsity.select, mask.sites and mask.roles as they are"
        )
    own = plain(cfg.watch)
    names = ("pairs", "resamples", "passages", "length")
    more = {key: value for key, value in cfg.ablation.items() if key != "kind"}
    return WatchSettings(
        **{name: own[name] for name in names},
        sparsity=cfg.sparsity.target,
        method=build_method(cfg),
        ablation=Ablation(cfg.ablation.kind, objective=instantiate(cfg.objective.loss), **more),
        batch_size=cfg.data.eval_batch_size,
        text=cfg.text,
        limits=Limits(**own["limits"]),
        without=tuple(own["without"]),
        seed=cfg.seed,
    )
