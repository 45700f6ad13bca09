"""Several runs of `finetune`, each at its checkpoint of one score: circuits, weights, attention, side effects."""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig

from circuitlit.cli.build import build_method, build_workbench
from circuitlit.cli.finish import finish
from circuitlit.cli.sides import load_base, load_side, passages
from circuitlit.compare.matched_checkpoints import checkpoint_scores, run_names
from circuitlit.compare.tunings import TuningComparison, compare_tunings
from circuitlit.discover.workbench import Workbench
from circuitlit.report.tunings import print_tunings, write_tunings

SHARED = ("match", "level", "resamples", "seed", "draws")


def run_tunings(cfg: DictConfig) -> TuningComparison:
    """Compare ways to tune and write `tunings.json` and a page into the run directory.

    Raises:
        UserError: a run without checkpoints, or one that cannot be compared.
    """

    def load(name: str, folder: Path) -> Workbench:
        return build_workbench(cfg, load_side(cfg, str(folder), f"run {name}"))

    settings, runs = cfg.compare, run_names(list(cfg.runs))
    for path in runs.values():
        checkpoint_scores(path, settings.match)  # a run without any is refused before a model is loaded
    base = build_workbench(cfg, load_base(cfg))
    text = passages(cfg, base.subject, settings.text.passages, settings.text.length)
    own = {key: settings[key] for key in SHARED}
    result = compare_tunings(base, runs, load, build_method(cfg), text, **own)
    return finish(cfg, result, base.subject, write_tunings, print_tunings)
