"""A run's folder: it belongs to one process at a time, holds one run, and keeps the settings of that run."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from datetime import datetime
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from circuitlit.cli import ranks
from circuitlit.cli.checks import run_dir
from circuitlit.cli.mistakes import explain, is_full, sweep_up
from circuitlit.cli.stopping import KEEPING
from circuitlit.errors import Stopped, UserError
from circuitlit.lock import NAME, claimed

FRESH = ("train", "attribute", "evaluate", "finetune")  # verbs whose files would mix with those of an earlier run
TRAINED = ("train", "finetune")  # those of them that go on from a checkpoint
PARTED = ("study", "evolve", "trust")  # verbs that several processes can share out; these claim cell by cell
LEFT = (
    "adapter checkpoints csv masks tuned wandb circuit.json circuit.safetensors evolution.json held_out.json "
    "explanation.json history.json result.json report.html"
).split()  # what an earlier run may have left


@contextmanager
def new_run_id() -> Iterator[None]:
    """Give the run an id, and with it a folder, of its own: the time and six random characters.

    Processes of one run, and a job that is queued again, share the id that is in the environment already. A run of
    `wandb agent` has the id that it has at W&B.
    """
    if "CIRCUITLIT_RUN_ID" in os.environ or ranks.started_by_launcher():
        yield
        return
    agents = os.environ.get("WANDB_RUN_ID") if "WANDB_SWEEP_ID" in os.environ else None
    os.environ["CIRCUITLIT_RUN_ID"] = agents or f"{datetime.now():%Y%m%d-%H%M%S}-{secrets.token_hex(3)}"
    try:
        yield
    finally:
        del os.environ["CIRCUITLIT_RUN_ID"]


def settle_run_id(cfg: DictConfig) -> None:
    """Write the run's id into its settings, for the W&B run that a resumed run goes on with; jobs of a sweep differ."""
    hydra = HydraConfig.get()
    sweep = hydra.mode is not None and hydra.mode.name == "MULTIRUN" and cfg.resume is None
    number = f"-{hydra.job.num}" if sweep else ""
    cfg.run_id = f"{cfg.run_id}{number}"


@contextmanager
def occupied(cfg: DictConfig) -> Iterator[None]:
    """Hold the run's folder while the block runs; after a mistake take away what it made, if no part of it is finished.

    Raises:
        UserError: another process works in the folder, or it holds a run.
    """
    folder = run_dir()
    if not ranks.is_writer():
        yield
        return
    shared = cfg.verb in PARTED and cfg[cfg.verb].parts != 1
    with nullcontext() if shared else claimed(folder / NAME, str(folder)):
        before, used = set(folder.rglob("*")), _used(folder)
        if cfg.verb in FRESH and not cfg.get("story") and used and not (cfg.overwrite or goes_on(cfg)):
            on = f"go on with resume={folder}, " if cfg.verb in TRAINED else ""
            raise UserError(
                f"{folder} holds a run already ({used[0]}); {on}replace it with overwrite=true, or choose another "
                "folder: hydra.run.dir=DIR"
            )
        if not used:
            _save_settings(cfg, folder)
        try:
            yield
        except (Exception, Stopped) as error:
            new = sorted(path for path in set(folder.rglob("*.json")) - before if _finished(cfg.verb, path))
            if isinstance(error, Stopped):
                error.result = next((path for path in new if path.parent == folder), None)
                lost = cfg.verb not in (*KEEPING, *TRAINED) and not new
            else:
                kept = is_full(error) or new  # room can be made, and a run go on
                lost = explain(error) is not None and not kept
            if lost and not shared and not goes_on(cfg):
                others = any(path.parent == folder and _foreign(path) for path in before)
                sweep_up(folder, before, LEFT if others else None)  # who keeps files here may have saved some meanwhile
            raise


def _foreign(path: Path) -> bool:
    """True for what neither Hydra nor the claim of a folder puts there."""
    return path.name not in (".hydra", NAME) and path.suffix != ".log"


def _finished(verb: str, path: Path) -> bool:
    """True for a verb's result, and for a part of it: both are whole, and worth what they took to make."""
    from circuitlit.store import is_part  # it imports torch, which most mistakes do without

    return path in (run_dir() / f"{verb}.json", run_dir() / "result.json") or is_part(path)


def begin(cfg: DictConfig) -> None:
    """Once all is loaded: clear away what an earlier run left in the folder, unless this one goes on with it."""
    folder = run_dir()
    if not ranks.is_writer() or (cfg.ckpt_path is not None and goes_on(cfg)):
        return
    try:
        clear(folder, *LEFT)
    except OSError as error:
        raise UserError(
            f"an earlier run in {folder} cannot be taken away ({error.strerror}: {error.filename}); choose another "
            "folder: hydra.run.dir=DIR"
        ) from error
    if not goes_on(cfg) and folder == Path(HydraConfig.get().runtime.output_dir):
        _save_settings(cfg, folder)


def clear(folder: Path, *names: str) -> None:
    """Delete some of a folder's files and folders."""
    for name in names:
        path = folder / name
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def goes_on(cfg: DictConfig) -> bool:
    """True where the run goes on with what its folder holds."""
    checkpoint = None if cfg.ckpt_path is None else Path(cfg.ckpt_path).resolve()
    return cfg.resume is not None or (checkpoint is not None and checkpoint.is_relative_to(run_dir().resolve()))


def _used(folder: Path) -> list[str]:
    return [name for name in LEFT if (folder / name).exists()]


def _save_settings(cfg: DictConfig, folder: Path) -> None:
    """Write what Hydra would write ahead of the run, into a folder that may then still be another process's."""
    hydra, own = HydraConfig.instance().cfg, folder / ".hydra"
    assert hydra is not None
    own.mkdir(exist_ok=True)
    OmegaConf.save(cfg, own / "config.yaml")
    OmegaConf.save(hydra, own / "hydra.yaml")
    OmegaConf.save(HydraConfig.get().overrides.task, own / "overrides.yaml")
