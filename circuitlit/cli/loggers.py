"""Loggers with a life that ends with the run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig

from circuitlit.progress import CONSOLE

STEP = "trainer/global_step"


def build_loggers(cfg: DictConfig) -> list[Any]:
    """The loggers that the `logger` group names; every mapping in it is one."""
    return [instantiate(node) for node in cfg.logger.values() if isinstance(node, DictConfig)]


def wandb_logger(project: str, name: str, folder: str, run_id: str, offline: bool) -> WandbLogger:
    """A W&B run as Lightning's logger.

    Args:
        project: W&B project.
        name: shown name of the run.
        folder: where W&B writes.
        run_id: W&B id; the folder of a sweep is the group of its jobs.
        offline: write files only; `wandb sync` uploads them later.
    """
    import wandb

    hydra, group = HydraConfig.get(), None
    if hydra.mode is not None and hydra.mode.name == "MULTIRUN":
        group = hydra.sweep.dir.rsplit("/", 1)[-1]
    if rank_zero_only.rank != 0:
        return WandbLogger(project=project, offline=True)
    Path(folder).mkdir(parents=True, exist_ok=True)
    run = wandb.init(
        project=project,
        name=name,
        id=run_id,
        group=group,
        dir=folder,
        resume="allow",
        mode="offline" if offline else "online",
        # one second: a killed run keeps what it logged
        settings=wandb.Settings(silent=True, x_transaction_log_flush_interval=1),
    )
    run.define_metric(STEP, hidden=True)
    for prefix in ("train", "val", "masks"):
        run.define_metric(f"{prefix}/*", step_metric=STEP)
    return WandbLogger(experiment=run)


@contextmanager
def open_loggers(cfg: DictConfig) -> Iterator[list[Any]]:
    """The loggers of `cfg` for as long as the block runs; says where W&B shows the run if it is online."""
    loggers = build_loggers(cfg)
    try:
        yield loggers
    finally:
        address = close_loggers(loggers)
        if address:
            CONSOLE.print(f"  W&B: {address}", highlight=False)


def close_loggers(loggers: list[Any]) -> str | None:
    """Finish W&B, so that the next job of a sweep starts a run of its own; returns the run's address if online."""
    if not any(isinstance(logger, WandbLogger) for logger in loggers):
        return None
    import wandb

    url = wandb.run.url if wandb.run is not None else None
    wandb.finish()
    return url
