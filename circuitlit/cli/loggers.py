"""Loggers with a life that ends with the run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig, OmegaConf

from circuitlit.errors import UserError
from circuitlit.progress import CONSOLE

STEP = "trainer/global_step"


def build_loggers(cfg: DictConfig) -> list[Any]:
    """The loggers that the `logger` group names, every mapping in it is one; they are told all settings first."""
    loggers = [instantiate(node) for node in cfg.logger.values() if isinstance(node, DictConfig)]
    settings: Any = OmegaConf.to_container(cfg, resolve=True) if loggers else None
    for logger in loggers:
        logger.log_hyperparams(settings)
    return loggers


def wandb_logger(
    project: str,
    name: str,
    folder: str,
    run_id: str,
    offline: bool,
    entity: str | None = None,
    group: str | None = None,
    tags: Sequence[str] = (),
    job_type: str | None = None,
    notes: str | None = None,
) -> WandbLogger:
    """A W&B run as Lightning's logger. What is None is as the environment (`WANDB_ENTITY`, `WANDB_TAGS` ...) says.

    Args:
        project, entity: W&B project, and whose it is.
        name: shown name of the run.
        folder: where W&B writes.
        run_id: W&B id; one that exists is gone on with. A run of `wandb agent` has the id that the agent gave it.
        offline: write files only; `wandb sync` uploads them later.
        group: of runs; None puts the jobs of a sweep into one that is called as its folder.
        tags, job_type, notes: of the run.

    Raises:
        UserError: W&B takes no runs of this user's, without a login say.
    """
    import wandb

    hydra = HydraConfig.get()
    if group is None and hydra.mode is not None and hydra.mode.name == "MULTIRUN":
        group = hydra.sweep.dir.rsplit("/", 1)[-1]
    if rank_zero_only.rank != 0:
        return WandbLogger(project=project, offline=True)
    Path(folder).mkdir(parents=True, exist_ok=True)
    try:
        run = wandb.init(
            project=project,
            entity=entity,
            name=name,
            id=run_id,
            group=group,
            tags=list(tags) or None,
            job_type=job_type,
            notes=notes,
            dir=folder,
            resume="allow",
            mode="offline" if offline else "online",
            # one second: a killed run keeps what it logged
            settings=wandb.Settings(silent=True, x_transaction_log_flush_interval=1),
        )
    except wandb.Error as error:
        said = str(error).rstrip(".")
        raise UserError(f"W&B cannot be reached ({said}); take logger=wandb_offline, which needs no login") from error
    run.define_metric(STEP, hidden=True)
    for prefix in ("train", "val", "masks"):
        run.define_metric(f"{prefix}/*", step_metric=STEP)
    return WandbLogger(experiment=run, save_dir=folder)


@contextmanager
def open_loggers(cfg: DictConfig) -> Iterator[list[Any]]:
    """The loggers of `cfg` for as long as the block runs; says where W&B shows the run if it is online.

    A run whose block ends in an error, or is stopped, has failed for W&B.
    """
    loggers, failed = build_loggers(cfg), True
    try:
        yield loggers
        failed = False
    finally:
        address = close_loggers(loggers, failed)
        if address:
            CONSOLE.print(f"  W&B: {address}", highlight=False, soft_wrap=True)


def close_loggers(loggers: list[Any], failed: bool = False) -> str | None:
    """Have all write what they hold; finish W&B, so that the next job of a sweep starts a run of its own.

    Returns:
        The run's address at W&B, if it is online.
    """
    for logger in loggers:
        logger.save()
    if not any(isinstance(logger, WandbLogger) for logger in loggers):
        return None
    import wandb

    url = wandb.run.url if wandb.run is not None else None
    wandb.finish(int(failed))
    return url
