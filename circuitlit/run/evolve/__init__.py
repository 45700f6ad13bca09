"""Circuits over training: checkpoints x tasks -> behaviour, circuits, head scores, likeness and stages."""

from __future__ import annotations

from omegaconf import DictConfig

from circuitlit.cli.build import PACKAGES, plain, version
from circuitlit.cli.checks import run_dir
from circuitlit.cli.finish import finish, prepare
from circuitlit.cli.mistakes import explained
from circuitlit.evaluate.overlap import DRAWS
from circuitlit.evaluate.testing import enough_draws
from circuitlit.progress import phase, say
from circuitlit.report.evolution_page import write_evolution_page
from circuitlit.report.evolution_table import print_evolution
from circuitlit.run.evolve.configured import ConfiguredJobs, check, settings_from, tasks_of
from circuitlit.run.evolve.panels import log_panels
from circuitlit.run.evolve.series import Loader, claims_of, find_series, parted
from circuitlit.store import Store
from circuitlit.timeline.evolution import Evolution
from circuitlit.timeline.follow import measure_series
from circuitlit.timeline.summary import Cells, summarise_evolution


def run(cfg: DictConfig) -> Evolution | None:
    """Measure what is not measured yet, then write `evolve.json`, the table and the page.

    Raises:
        UserError: settings that cannot be used, or nothing that could be measured.
    """
    check(cfg)
    prepare(cfg)
    with phase("series", "Looking for checkpoints" + (", training them if need be" if cfg.pretrain else "")):
        found = find_series(cfg)
    tasks = tasks_of(cfg)
    if not cfg.evolve.measure:
        return say(f"trained: {', '.join(one.name for one in found)}")
    store, circuits = Store(run_dir() / "cells", explained), run_dir() / "circuits"
    cells: dict[str, Cells] = {}
    with Loader(cfg) as loader:
        for one in parted(found, cfg.evolve.part, cfg.evolve.parts):
            with phase(one.name, f"{one.name}: {len(one.checkpoints)} checkpoints x {len(tasks)} tasks"):
                jobs = ConfiguredJobs(cfg, one, tasks)
                cells[one.name] = measure_series(store, circuits, one, jobs.at, loader.loaded)
    if cfg.evolve.parts > 1:
        return say(f"part {cfg.evolve.part} of {cfg.evolve.parts} is done")
    draws, by = cfg.evolve.draws or max(DRAWS, enough_draws(claims_of(cfg))), cfg.evolve.circuits
    result = summarise_evolution(cells, list(tasks), cfg.model.name, circuits, settings_from(cfg), draws, by)
    versions = {package: version(package) for package in PACKAGES}
    facts = {"seed": cfg.seed, "method": plain(cfg.method), "versions": versions}
    result = finish(cfg, result, facts, write_evolution_page, print_evolution)
    log_panels(cfg, result, run_dir() / "evolve.html")
    return result
