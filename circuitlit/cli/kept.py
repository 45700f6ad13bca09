"""The settings that results which are kept in files, and made once, depend on."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping
from typing import Any

from omegaconf import DictConfig

from circuitlit.cli.build import plain
from circuitlit.cli.resume import trained_with


def settings_of(cfg: DictConfig, groups: Iterable[str]) -> dict[str, Any]:
    """Some groups of a configuration, the seed, and what is in the files that they name."""
    own = {group: plain(cfg[group]) for group in groups}
    return own | files_of(own) | {"seed": cfg.seed}


def files_of(groups: Mapping[str, Any]) -> dict[str, dict[str, str]]:
    """Hashes of the files that groups of settings name, such as pairs or start masks, if they name any.

    Not of the model's, which are large: `contents_of` the loaded one says what they hold, or `stamps_of` them.
    """
    found, pending = {}, [own for group, own in groups.items() if group != "model"]
    while pending:
        value = pending.pop()
        if isinstance(value, dict | list):
            pending += value.values() if isinstance(value, dict) else value
        elif isinstance(value, str) and os.path.isfile(value):
            with open(value, "rb") as file:
                found[value] = hashlib.file_digest(file, "sha256").hexdigest()
    return {"files": found} if found else {}


def training_of(cfg: DictConfig) -> dict[str, Any]:
    """What trained masks depend on beside: trainer, precision, and where training ends."""
    ends = {key: cfg.trainer[key] for key in ("max_steps", "max_epochs")}
    early = cfg.callbacks.stop_at_convergence
    return {"training": trained_with(cfg, ("trainer",), 1), "ends": ends, "stop_at_convergence": early}
