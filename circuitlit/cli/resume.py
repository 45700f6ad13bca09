"""Going on with a run that was stopped: with the settings it had, from its last checkpoint, and with nothing else."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hydra import compose
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.types import Quote, QuotedString
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from circuitlit.cli.ranks import is_writer
from circuitlit.errors import UserError
from circuitlit.progress import CONSOLE

MASKS = ("task", "model", "adapter", "mask", "sparsity", "objective", "ablation", "method", "data", "trainer")
TUNING = ("task", "model", "adapter", "tune", "data", "trainer")
SPLIT = ("data.batch_size", "trainer.accumulate_grad_batches")  # with the number of devices they make a step's pairs
PAIRS = f"pairs in a step ({' x '.join(SPLIT)} x devices)"
BESIDE = {
    *SPLIT,
    *"task.name task.min_accuracy model.name model.architecture data.eval_batch_size data.num_workers".split(),
    *"mask.panel mask.recompute mask.kernels mask.capture mask.cache_gib mask.host_gib".split(),
    *"tune.score tune.checkpoints tune.probe_every tune.probe_pairs".split(),
    *"trainer.accelerator trainer.max_steps trainer.max_epochs trainer.log_every_n_steps".split(),
    *"trainer.num_sanity_val_steps trainer.limit_val_batches trainer.use_distributed_sampler".split(),
    *"trainer.enable_model_summary trainer.enable_progress_bar trainer.enable_checkpointing".split(),
    "trainer.default_root_dir",
}  # settings of those groups that training does not depend on, but for rounding
SHOWN = 4
_NOT_THERE = object()


def expanded(verb: str, argv: list[str]) -> list[str]:
    """A command line whose `resume=DIR` is followed by what the run in DIR was started with, and ahead of the rest.

    Raises:
        UserError: DIR is no run of this verb, or one cannot go on like this.
    """
    given = next((word.partition("=")[2] for word in argv[1:] if word.startswith("resume=")), "")
    if given.strip("'\"") in ("", "null"):
        return argv
    folder = Path(os.path.expanduser(given[1:-1] if given[0] in "'\"" and given[-1] == given[0] else given))
    if {"-m", "--multirun"} & set(argv):
        raise UserError("resume=DIR goes on with one run; leave -m out, and call it once for each run of a sweep")
    saved, words = saved_settings(folder), _read(folder / ".hydra" / "overrides.yaml")
    own = saved.get("verb")
    if own != verb:
        raise UserError(f"{folder} is a run of {own}, not of {verb}; go on with python -m circuitlit {own} resume=DIR")
    place = f"hydra.run.dir={quoted(str(folder.resolve()))}"
    rest = [word for word in argv[1:] if not word.startswith("resume=")]
    elsewhere = [word for word in rest if word.startswith("hydra.run.dir=")]
    if any(Path(word.partition("=")[2].strip("'\"")).resolve() != folder.resolve() for word in elsewhere):
        raise UserError(f"resume={folder} writes into that folder; leave hydra.run.dir out, or take ckpt_path=FILE")
    rest = [word for word in rest if word not in elsewhere]
    return [argv[0], *map(str, words), f"resume={quoted(str(folder.resolve()))}", place, *rest]


def find_begun(cfg: DictConfig) -> None:
    """Set `resume` in a job of a sweep whose folder holds this very run: one that a scheduler queued again goes on."""
    hydra = HydraConfig.get()
    folder = Path(hydra.runtime.output_dir)
    words = folder / ".hydra" / "overrides.yaml"
    asked = cfg.overwrite or cfg.resume is not None
    if hydra.mode is not RunMode.MULTIRUN or asked or not words.is_file():
        return
    if list(map(str, _read(words))) == list(hydra.overrides.task):
        cfg.resume = str(folder)


def quoted(text: str) -> str:
    """A value of Hydra's command line that means exactly this text."""
    return QuotedString(text, Quote.single).with_quotes()


def as_it_was(cfg: DictConfig) -> DictConfig:
    """The settings that the run in `resume` had, with the changes of this command line, and its newest checkpoint.

    Raises:
        UserError: a change that training depends on.
    """
    folder = Path(cfg.resume)
    if cfg.overwrite:
        raise UserError("resume goes on with a run and overwrite begins it anew; keep one of the two")
    saved, config_name = saved_settings(folder), HydraConfig.get().job.config_name
    assert config_name is not None
    then = _flat(compose(config_name, list(map(str, _read(folder / ".hydra" / "overrides.yaml")))))
    now = _flat(cfg)
    changed = {key for key in then.keys() | now.keys() if then.get(key, _NOT_THERE) != now.get(key, _NOT_THERE)}
    kept = {key: value for key, value in _flat(saved).items() if key not in changed}
    made = OmegaConf.create(_nested(now | kept))
    if "ckpt_path" not in changed:
        made.ckpt_path = newest(folder / "checkpoints") or saved.ckpt_path
    groups = TUNING if cfg.verb == "finetune" else MASKS
    differing = differences(trained_with(saved, groups), trained_with(made, groups))
    if differing:
        raise UserError(
            f"the run in {folder} cannot go on with other settings ({differing}); leave them out, or start a run of "
            "its own"
        )
    OmegaConf.set_struct(made, True)
    return made


def trained_with(cfg: DictConfig, groups: tuple[str, ...], devices: int | None = None) -> dict[str, Any]:
    """What training depends on, by key.

    Args:
        cfg: all settings.
        groups: MASKS or TUNING.
        devices: processes that train together; None leaves out how many pairs a step has. It counts pairs, not how
            they are shared out: as many on another number of devices are no difference.
    """
    chosen = {key: cfg[key] for key in ("seed", "matmul_precision")} | {group: cfg[group] for group in groups}
    flat = _flat(OmegaConf.create({key: _resolved(value) for key, value in chosen.items()}))
    settings = {key: value for key, value in flat.items() if key not in BESIDE}
    if devices is not None:
        settings[PAIRS] = cfg.data.batch_size * cfg.trainer.accumulate_grad_batches * devices
    return settings


def differences(then: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """What differs, as words; empty where nothing does."""
    keys = sorted(key for key in then.keys() | now.keys() if then.get(key, _NOT_THERE) != now.get(key, _NOT_THERE))
    words = [f"{key}: {then.get(key, 'not set')} then, {now.get(key, 'not set')} now" for key in keys]
    return "; ".join(words[:SHOWN]) + (f"; and {len(words) - SHOWN} more" if len(words) > SHOWN else "")


def newest(folder: Path) -> str | None:
    """The checkpoint that was written last; None without any."""
    found = sorted(folder.glob("*.ckpt"), key=lambda path: (path.stat().st_mtime, path.name == "last.ckpt"))
    return str(found[-1]) if found else None


def finished(cfg: DictConfig) -> dict[str, Any]:
    """The result of a resumed run that has all its steps behind it, which is said; else nothing."""
    if cfg.resume is None or cfg.verb not in ("train", "finetune"):  # injected facts go on after their tuning
        return {}
    try:
        result = json.loads((Path(cfg.resume) / "result.json").read_text())
        if result["steps"] < cfg.trainer.max_steps:
            return {}
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    CONSOLE.print(f"{cfg.resume} is finished: {result['status']}", highlight=False, soft_wrap=True)
    if (Path(cfg.resume) / "circuit.json").exists() and not (Path(cfg.resume) / "report.html").exists() and is_writer():
        from circuitlit.report import write_page  # it imports plotly, which a run that ends here seldom needs

        CONSOLE.print(f"{write_page(cfg.resume)}", highlight=False, soft_wrap=True)
    return result


def saved_settings(folder: Path) -> DictConfig:
    """The settings that a run was started with.

    Raises:
        UserError: the folder is not one of a run.
    """
    return _read(folder / ".hydra" / "config.yaml")


def _read(path: Path) -> Any:
    try:
        return OmegaConf.load(path)
    except (OSError, OmegaConfBaseException, ValueError) as error:
        raise UserError(f"resume: {path} is not readable; name the folder of a run") from error


def _resolved(value: Any) -> Any:
    return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value


def _flat(cfg: DictConfig) -> dict[str, Any]:
    """Values by dotted key, interpolations as they are written; lists and empty groups are values."""
    found: dict[str, Any] = {}

    def walk(node: Any, key: str) -> None:
        if isinstance(node, dict) and node:
            for name, value in node.items():
                walk(value, f"{key}.{name}" if key else str(name))
        else:
            found[key] = node

    walk(OmegaConf.to_container(cfg, resolve=False), "")
    return found


def _nested(flat: Mapping[str, Any]) -> dict[str, Any]:
    """The opposite of `_flat`."""
    made: dict[str, Any] = {}
    for key, value in flat.items():
        *path, last = key.split(".")
        node = made
        for name in path:
            node = node.setdefault(name, {})
        node[last] = value
    return made
