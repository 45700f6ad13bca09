"""Settings that cannot work, refused before anything heavy is imported or loaded."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from circuitlit.errors import UserError

_PART: ContextVar[Path | None] = ContextVar("folder of a part of the run", default=None)


def run_dir() -> Path:
    """Where this run writes, or inside `writing_to` the part of it that is being made."""
    return _PART.get() or Path(HydraConfig.get().runtime.output_dir)


@contextmanager
def writing_to(folder: Path) -> Iterator[None]:
    """Let a verb that is called as a part of a larger run write into a folder of its own."""
    folder.mkdir(parents=True, exist_ok=True)
    token = _PART.set(folder)
    try:
        yield
    finally:
        _PART.reset(token)


def check(cfg: DictConfig) -> None:
    """Refuse what cannot work.

    Raises:
        UserError: a setting is missing or out of its range.
    """
    missing = sorted(OmegaConf.missing_keys(cfg))
    if missing:
        raise UserError(f"{missing[0]} has no value; give it on the command line: {missing[0]}=...")
    if cfg.sparsity.target is not None:
        _check_sparsity(cfg.sparsity.target)
    elif cfg.verb != "attribute" or not cfg.method.get("own_size"):
        raise UserError("sparsity=own is for methods that choose their own size, such as attribute method=acdc")
    if cfg.sparsity.select not in ("top_k", "greedy"):
        raise UserError(f"sparsity.select={cfg.sparsity.select} is neither top_k nor greedy; choose one")
    steps = cfg.mask.schedule.steps
    if not isinstance(steps, int) or steps < 1:
        raise UserError(f"mask.schedule.steps={steps} is not a whole number of at least 1")
    if cfg.evaluate.controls < 1 or cfg.evaluate.control_pairs < 1:
        raise UserError("evaluate.controls and evaluate.control_pairs must be at least 1; a result needs its controls")
    least = cfg.task.get("min_accuracy", 0)
    if not isinstance(least, int | float) or not 0 <= least <= 1:
        raise UserError(f"task.min_accuracy={least} is not a share between 0 and 1")
    precision = str(cfg.trainer.precision)
    if precision.endswith("-true") and not precision.startswith("32"):
        raise UserError(f"trainer.precision={precision} would round the masks; use 32-true and model.dtype")
    if cfg.ckpt_path is not None and not Path(cfg.ckpt_path).exists():
        raise UserError(f"ckpt_path={cfg.ckpt_path} does not exist; name a .ckpt file of a run's checkpoints/ folder")
    _check_writable(run_dir())


def _check_sparsity(target: object) -> None:
    if isinstance(target, int | float) and 0 < target < 1:
        return
    percent = isinstance(target, int | float) and 1 < target < 100
    hint = f"; did you mean {target / 100:g}?" if percent else ""  # type: ignore[operator]
    raise UserError(f"sparsity.target={target} is not a share between 0 and 1{hint}")


def _check_writable(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".writable-{os.getpid()}"  # several processes may share a folder
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UserError(
            f"the output folder {folder} cannot be written ({error.strerror}); set hydra.run.dir"
        ) from error
