"""Methods x tasks x sparsities: one table, two figures, and what mask learning gains over attribution."""

from __future__ import annotations

import gc

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
from circuitlit.progress import phase, say
from circuitlit.report.study import print_study, write_figures
from circuitlit.run.study.configured import ConfiguredTask, settings_from
from circuitlit.run.study.plan import check, part_of, plan
from circuitlit.store import Failure, Store


def run(cfg: DictConfig) -> MethodStudy | None:
    """Run every cell that is not finished yet, then write `study.json`, the table and the figures.

    A cell that fails is recorded in its file and in `failed`; the others go on. With `study.parts` above 1 only this
    part's cells are run and nothing is summed up.

    Raises:
        UserError: the study's lists cannot be used, the model cannot be loaded, or every cell failed.
    """
    tasks = entries(cfg.study.tasks, "task") or [Entry(cfg.task.name, ())]
    attributions, learners = entries(cfg.study.attributions, "method"), entries(cfg.study.learners, "mask")
    check(cfg, attributions, learners)
    prepare(cfg)
    settings, planned = settings_from(cfg), plan(tasks, attributions, learners)
    settings.check_match([entry.name for entry in attributions])
    jobs, store = part_of(planned, cfg.study.part, cfg.study.parts), Store(run_dir() / "cells", explained)
    with phase("load", f"Loading {cfg.model.name}"):
        subject = build_subject(cfg)
    finished: Finished = []
    for entry in tasks:
        task = ConfiguredTask(entry, subject)
        own, chosen = task.own(), [task.job(one) for one in jobs.get(entry.name, [])]
        if cfg.study.finished_only:
            chosen = [job for job in chosen if job.finished(store)] if own.finished(store) else []
        if chosen:
            with phase(entry.name, f"Task {entry.name}: {len(chosen)} cells"):
                finished += make_cells(store, run_dir() / "circuits", lambda task=task: task.built, own, chosen)
            del task, own, chosen
            gc.collect()
            torch.cuda.empty_cache()
    if cfg.study.parts > 1:
        failed = [cell.name for cell, content in finished if isinstance(content, Failure)]
        more = f", failed: {', '.join(failed)}" if failed else ""
        say(f"part {cfg.study.part} of {cfg.study.parts}: {len(finished) - len(failed)} cells are there{more}")
        return say("for the table run once more with study.parts=1")
    result = summarise_study(finished, cfg.model.name, run_dir() / "circuits", settings)
    return finish(cfg, result, subject, write_figures, print_study)
