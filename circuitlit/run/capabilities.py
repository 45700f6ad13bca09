"""What tuning gained and lost over several tasks, and the smallest set of nodes that carries each gain."""

from __future__ import annotations

from omegaconf import DictConfig

from circuitlit.cli.build import build_pairs
from circuitlit.cli.finish import finish, own_settings, prepare
from circuitlit.cli.sides import load_both, task_settings
from circuitlit.compare.capabilities import Capabilities, compare_capabilities
from circuitlit.progress import phase
from circuitlit.report.capabilities import print_capabilities, write_capabilities


def run(cfg: DictConfig) -> Capabilities:
    """Judge every task and write `capabilities.json` and a page into the run directory."""
    prepare(cfg)
    tasks = task_settings(cfg.capabilities.tasks, "capabilities.tasks") or {cfg.task.name: cfg}
    with phase("load", "Loading both models"):
        base, tuned = load_both(cfg)
    pairs = {name: build_pairs(settings, base) for name, settings in tasks.items()}
    result = compare_capabilities(base, tuned, pairs, seed=cfg.seed, **own_settings(cfg.capabilities, "tasks"))
    return finish(cfg, result, base, write_capabilities, print_capabilities)
