"""A base model and a tuned one, or several ways to tune: circuits, weights, and answers on held-out pairs."""

from __future__ import annotations

from typing import Any

from omegaconf import DictConfig

from circuitlit.cli.build import build_method, build_workbench
from circuitlit.cli.configs import typed
from circuitlit.cli.finish import finish, own_settings, prepare
from circuitlit.cli.sides import load_both
from circuitlit.compare.comparison import Comparison, compare_models
from circuitlit.compare.reuse import Swaps
from circuitlit.compare.tunings import TuningComparison
from circuitlit.errors import UserError
from circuitlit.progress import phase
from circuitlit.report.comparison import print_comparison, write_comparison
from circuitlit.run.tunings import run_tunings

BOTH = ("resamples", "seed", "draws")  # settings of tuned=DIR and of runs=[A,B]
RUNS = ("match", "level", "text")  # of runs=[A,B] alone


def run(cfg: DictConfig) -> Comparison | TuningComparison:
    """Compare and write everything into the run directory.

    Raises:
        UserError: a setting, file or model that cannot be used, or two models of different graphs.
    """
    if cfg.runs is not None and cfg.tuned is not None:
        raise UserError("tuned and runs exclude each other; give one of them")
    for key in sorted(typed()):
        name = key.split(".")[1] if key.startswith("compare.") else None
        if name is not None and name not in BOTH and (name in RUNS) != (cfg.runs is not None):
            raise UserError(f"{key} is read with {'runs=[A,B]' if name in RUNS else 'tuned=DIR'} alone; leave it out")
    prepare(cfg)
    if cfg.runs is not None:
        return run_tunings(cfg)
    if cfg.text is not None:
        raise UserError("text is read for runs=[A,B] alone; leave it out")
    if cfg.tuned is None:
        raise UserError("tuned has no value; name a tuned model or run, or several runs: runs=[A,B]")
    with phase("load", "Loading both models"):
        base, tuned = (build_workbench(cfg, subject) for subject in load_both(cfg))
    result = compare_models(base, tuned, build_method(cfg), **settings_of(cfg))
    return finish(cfg, result, base.subject, write_comparison, print_comparison)


def settings_of(cfg: DictConfig) -> dict[str, Any]:
    """What `compare_models` takes of a configuration."""
    return own_settings(cfg.compare, *RUNS) | {"reuse": Swaps(**cfg.compare.reuse)}
