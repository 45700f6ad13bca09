"""Results that are kept in files and made once: the settings that they depend on as a hash, and reading them back."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from circuitlit.cli.build import plain


def settings_of(cfg: DictConfig, groups: Iterable[str]) -> dict[str, Any]:
    """Some groups of a configuration, and the seed."""
    return {group: plain(cfg[group]) for group in groups} | {"seed": cfg.seed}


def read_kept(file: Path) -> dict[str, Any]:
    """A file's content; empty if it is missing or damaged."""
    try:
        content = json.loads(file.read_text())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
