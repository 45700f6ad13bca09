"""Settings that cannot work, refused before anything heavy is imported or loaded."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from circuitlit.cli.arguments import setting
from circuitlit.cli.prompts_needed import check_prompts
from circuitlit.cli.schema import check_settings
from circuitlit.errors import UserError

GLOBAL = ("experiment", "debug", "compat")  # groups whose presets set the settings of others
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


def check(cfg: DictConfig, verb: str) -> None:
    """Refuse what cannot work.

    Raises:
        UserError: a setting is missing, unknown, not of its kind, or does not fit another one.
    """
    missing = sorted(OmegaConf.missing_keys(cfg))
    if missing:
        raise UserError(f"{missing[0]} has no value; give it on the command line: {missing[0]}=...")
    for group in GLOBAL:
        if group in cfg:
            name = HydraConfig.get().runtime.choices[group]
            raise UserError(f"{group}={name} sets nothing, for want of its first line: # @package _global_")
    check_settings(cfg, verb)
    if cfg.verb != verb:
        raise UserError(f"verb={cfg.verb} is not {verb}; the verb stands first: python -m circuitlit {cfg.verb} ...")
    if cfg.sparsity.target is None and not (verb == "attribute" and _has_own_size(cfg)):
        raise UserError("sparsity=own is for methods that choose their own size, such as attribute method=acdc")
    precision = str(cfg.trainer.precision)
    if precision.endswith("-true") and not precision.startswith("32"):
        raise UserError(f"trainer.precision={precision} would round the masks; use 32-true and model.dtype")
    for word in _words(OmegaConf.to_container(cfg)):
        setting(verb, word)
    _check_files(cfg, verb)
    check_prompts(cfg, verb)
    _check_writable(run_dir())


def _has_own_size(cfg: DictConfig) -> bool:
    from circuitlit.cli.build import build_method

    return build_method(cfg).traits.own_size


def _words(content: Any) -> Iterator[str]:
    """The settings that lists of entries hold: `{name: LABEL, with: [settings]}`."""
    if isinstance(content, dict):
        words = content.get("with")
        yield from map(str, words if isinstance(words, list) else [])
    for each in content.values() if isinstance(content, dict) else content if isinstance(content, list) else []:
        yield from _words(each)


def _check_files(cfg: DictConfig, verb: str) -> None:
    """Look for the files that several settings together say are there."""
    made = cfg.get("pretrain") is not None  # models and pairs are made first
    pairs = None if made else cfg.task.build.get("path")
    if pairs is not None and not Path(pairs).is_file():
        what = "is a folder" if Path(pairs).is_dir() else "does not exist"
        raise UserError(f"task.build.path={pairs} {what}; name a file with one pair a line")
    elsewhere = made or cfg.get("base") or verb in ("bench", "evolve", "export", "report", "timeline", "watch")
    if cfg.model.source == "local" and not elsewhere:
        if not cfg.model.path:
            raise UserError("model.path is empty; name a folder or a Hugging Face model: model=local model.path=DIR")
        path = Path(cfg.model.path)
        if not (path / "config.json").is_file() and not (path.suffix == ".gguf" and path.is_file()):
            if (path / "adapter_config.json").is_file():
                raise UserError(
                    f"model.path={path} is an adapter, not a model; name its base model there, and it with "
                    f"adapter=peft adapter.path={path}"
                )
            raise UserError(
                f"model.path={path} is neither a folder with a config.json nor a GGUF file; save a model there first"
            )
    if cfg.model.revision is not None and cfg.model.source != "hub":
        raise UserError(
            f"model.revision={cfg.model.revision} is of models on a hub, and model.source={cfg.model.source} has none; "
            "leave it out, or set model.source=hub"
        )
    adapter = cfg.adapter.path
    if adapter is not None and not Path(adapter).is_dir() and not re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", adapter):
        raise UserError(
            f"adapter '{adapter}' is neither a folder nor a hub name like owner/name; name a folder with a PEFT adapter"
        )
    if cfg.ckpt_path is not None:
        _check_checkpoint(Path(cfg.ckpt_path))


def _check_checkpoint(path: Path) -> None:
    """Refuse what is no checkpoint of training by its look alone."""
    if path.is_dir():
        if not (path / "checkpoint").is_dir():  # DeepSpeed's are folders with this one in it
            raise UserError(f"ckpt_path={path} is a folder; name a .ckpt file of its checkpoints/ folder")
    elif path.suffix == ".safetensors":
        raise UserError(
            f"ckpt_path={path} holds masks, not a checkpoint; name a .ckpt file, or start from it with mask.init_from"
        )
    elif path.read_bytes()[:2] != b"PK":  # torch writes zip files
        raise UserError(f"ckpt_path={path} is not a readable checkpoint; resume from an older one")


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
