"""`python -m circuitlit finetune`: one tuned model, or with `story` all ways to tune and what became of the circuit."""

from __future__ import annotations

from typing import Any

from omegaconf import DictConfig

from circuitlit.run import story, tune


def run(cfg: DictConfig) -> Any:
    """Tune once, or tell the story.

    Raises:
        UserError: a setting, file or model that cannot be used.
    """
    return tune.run(cfg) if cfg.get("story") is None else story.run(cfg)
