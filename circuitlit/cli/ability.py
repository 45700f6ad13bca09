"""A task that the model cannot do is reported, not searched."""

from __future__ import annotations

from omegaconf import DictConfig

from circuitlit.evaluate import Behaviour


def inability(cfg: DictConfig, behaviour: Behaviour) -> str | None:
    """Why the model is not to be searched for this task, or None."""
    return behaviour.verdict(cfg.task.get("min_accuracy", 0))
