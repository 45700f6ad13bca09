"""A circuit watched over somebody's fine-tuning, after the fact: drift, turnover, behaviour and stages."""

from __future__ import annotations

from functools import partial

from omegaconf import DictConfig

from circuitlit.cli.build import PACKAGES, plain, version
from circuitlit.cli.checks import run_dir
from circuitlit.cli.finish import finish, prepare
from circuitlit.report.evolution_page import write_evolution_page
from circuitlit.report.watch import print_watch, write_watch_page
from circuitlit.run.watch.configured import checkpoints_of, load, pairs_for, settings_from
from circuitlit.timeline.follow import one_at_a_time
from circuitlit.timeline.watch_checkpoints import watch_series
from circuitlit.timeline.watched import WatchedCircuit


def run(cfg: DictConfig) -> WatchedCircuit:
    """Read the circuit at every checkpoint, then write `watch.json`, `evolve.json` and their pages.

    Raises:
        UserError: settings that no watch looks at, fewer than two checkpoints, or a start that cannot be read.
    """
    settings = settings_from(cfg)
    prepare(cfg)
    loaded = partial(one_at_a_time, partial(load, cfg))
    found, evolution = watch_series(
        checkpoints_of(cfg), partial(pairs_for, cfg), cfg.circuit, settings, loaded, run_dir()
    )
    evolution.save(run_dir())
    page = write_evolution_page(evolution, run_dir())
    facts = {"checkpoints": str(cfg.checkpoints), "seed": cfg.seed, "method": plain(cfg.method)}
    facts["versions"] = {name: version(name) for name in PACKAGES}
    return finish(cfg, found, facts, write_watch_page, print_watch, page)
