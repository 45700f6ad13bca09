"""Does the model do the tasks? The full model alone, on several tasks and splits, ahead of any search."""

from __future__ import annotations

from omegaconf import DictConfig

from circuitlit.cli.build import build_pairs, build_subject
from circuitlit.cli.finish import finish, own_settings, prepare
from circuitlit.cli.sides import task_settings
from circuitlit.evaluate.ability import Ability, measure_behaviour
from circuitlit.progress import phase
from circuitlit.report.ability import print_ability


def run(cfg: DictConfig) -> Ability:
    """Measure every task and write `behaviour.json` into the run directory."""
    tasks = task_settings(cfg.behaviour.tasks, "behaviour.tasks") or {cfg.task.name: cfg}
    prepare(cfg)
    with phase("load", f"Loading {cfg.model.name}"):
        subject = build_subject(cfg)
    data = {name: build_pairs(own, subject) for name, own in tasks.items()}
    least = {name: own.task.get("min_accuracy", 0) for name, own in tasks.items()}
    result = measure_behaviour(subject, data, min_accuracy=least, **own_settings(cfg.behaviour, "tasks"))
    return finish(cfg, result, subject, None, print_ability)
