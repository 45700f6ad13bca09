"""Methods x tasks x sparsities: one table, two figures, and what mask learning gains over attribution."""

from __future__ import annotations

import gc
from itertools import product

import torch
from omegaconf import DictConfig

from circuitlit.cli.build import build_subject
from circuitlit.cli.checks import run_dir
from circuitlit.cli.configs import Entry, entries
from circuitlit.cli.finish import finish, prepare
from circuitlit.cli.mistakes import explained
from circuitlit.evaluate.study.compare_methods import make_cells
from circuitlit.evaluate.study.results import MethodStudy
from circuitlit.evaluate.study.summary import Finished, summarise_study
from circuitlit.model.contents import contents_of
from circuitlit.progress import phase, say
from circuitlit.report.study import print_study, write_figures
from circuitlit.run.study.configured import ConfiguredTask, settings_from
from circuitlit.run.study.plan import check, plan, shares_of
from circuitlit.store import Failure, Store


def run(cfg: DictConfig) -> MethodStudy | None:
    """Run every cell that is not finished yet, then write `study.json`, the table and the figures.

    A cell that fails is recorded in its file and in `failed`; the others go on. One of several parts runs its own
    cells, then those of others that nobody has begun, and sums nothing up.

    Raises:
        UserError: the study's lists cannot be used, the model cannot be loaded, or every cell failed.
    """
    tasks = entries(cfg.study.tasks, "task") or [Entry(cfg.task.name, ())]
    attributions, learners = entries(cfg.study.attributions, "method"), entries(cfg.study.learners, "mask")
    check(cfg, attributions, learners)
    prepare(cfg)
    settings, planned = settings_from(cfg), plan(tasks, attributions, learners)
    settings.check_match([entry.name for entry in attributions])
    shares, store = shares_of(planned, cfg.study.part, cfg.study.parts), Store(run_dir() / "cells", explained)
    with phase("load", f"Loading {cfg.model.name}"):
        subject = build_subject(cfg)
        contents = contents_of(subject.model)
    finished: Finished = []
    for (others, jobs), entry in product(enumerate(shares), tasks):
        task = ConfiguredTask(entry, subject, contents)
        which = "finished" if cfg.study.finished_only else "open" if others else "all"
        own, chosen = task.jobs(jobs.get(entry.name, []), store, which)
        if chosen:
            with phase(entry.name, f"Task {entry.name}: {len(chosen)} cells"):
                build, wait = (lambda task=task: task.built), len(shares) == 1
                finished += make_cells(store, run_dir() / "circuits", build, own, chosen, wait)
            del task, own, chosen, build
            gc.collect()
            torch.cuda.empty_cache()
    if cfg.study.parts > 1:
        failed = {cell.name: isinstance(content, Failure) for cell, content in finished}
        text = f"part {cfg.study.part} of {cfg.study.parts}: {list(failed.values()).count(False)} cells are there"
        return say(f"{text}; failed: {', '.join(name for name in failed if failed[name]) or 'none'}")
    result = summarise_study(finished, cfg.model.name, run_dir() / "circuits", settings)
    return finish(cfg, result, subject, write_figures, print_study)
