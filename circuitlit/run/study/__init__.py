"""Methods x tasks x sparsities: one table, two figures, and what mask learning gains over attribution."""

from __future__ import annotations

import gc
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from omegaconf import DictConfig

from circuitlit.cli.build import build_subject, provenance
from circuitlit.cli.checks import run_dir
from circuitlit.cli.configs import Entry, composed, entries
from circuitlit.errors import UserError
from circuitlit.files import write_json
from circuitlit.model import Subject
from circuitlit.progress import CONSOLE, Clock
from circuitlit.report.study import print_study, write_figures
from circuitlit.run.study.cells import Cell
from circuitlit.run.study.methods import Stage, attribution_cell, control_cell, ends, learner_cell
from circuitlit.run.study.plan import Job, part_of, plan
from circuitlit.run.study.summary import Finished, summarise_study


def run(cfg: DictConfig) -> dict[str, Any]:
    """Run every cell that is not finished yet, then write `study.json`, the table and the figures.

    A cell that fails is recorded in its file and in `failed`; the others go on. With `study.parts` above 1 only this
    part's cells are run and nothing is summed up.

    Raises:
        UserError: the study's lists cannot be used, the model cannot be loaded, or every cell failed.
    """
    tasks = entries(cfg.study.tasks, "task") or [Entry(cfg.task.name, ())]
    attributions, learners = entries(cfg.study.attributions, "method"), entries(cfg.study.learners, "mask")
    _check(cfg, attributions, learners)
    torch.set_float32_matmul_precision("highest")
    jobs = part_of(plan(tasks, attributions, learners), cfg.study.part, cfg.study.parts)
    if cfg.study.finished_only:
        jobs = _finished(tasks, jobs)
    clock = Clock()
    with clock.phase("load", f"Loading {cfg.model.name}"):
        subject = build_subject(cfg)
    finished: Finished = []
    for task in tasks:
        if task.name in jobs:
            with clock.phase(task.name, f"Task {task.name}: {len(jobs[task.name])} cells"):
                finished += _task(task, jobs[task.name], subject)
            gc.collect()
            torch.cuda.empty_cache()
    if cfg.study.parts > 1:
        return _part_done(cfg, finished, clock)
    study = {"model": cfg.model.name, **summarise_study(finished, cfg), **clock.times()}
    study["provenance"] = provenance(cfg, subject)
    if not study["rows"]:
        first = study["failed"][0]["error"] if study["failed"] else "none is finished"
        raise UserError(f"study: no cell could be run; the first: {first}")
    write_json(run_dir() / "study.json", study)
    print_study(study, CONSOLE)
    for path in (run_dir() / "study.json", *write_figures(study, run_dir())):
        CONSOLE.print(f"{path}", highlight=False, soft_wrap=True)
    return study


def _check(cfg: DictConfig, attributions: list[Entry], learners: list[Entry]) -> None:
    settings = cfg.study
    if not attributions and not learners:
        raise UserError("study.attributions and study.learners are both empty; name at least one method")
    shares = list(settings.sparsities)
    if not shares or not all(isinstance(s, int | float) and 0 < s < 1 for s in shares):
        raise UserError(f"study.sparsities={shares} are not shares between 0 and 1")
    if learners and not len(settings.seeds):
        raise UserError("study.seeds is empty; name at least one seed for the learners")
    if not isinstance(settings.parts, int) or settings.parts < 1:
        raise UserError(f"study.parts={settings.parts} is not a whole number of at least 1")
    if settings.part not in range(settings.parts):
        raise UserError(f"study.part={settings.part} is not one of the parts 0 to {settings.parts - 1}")
    rival = settings.match
    at = None if rival is None else rival.get("sparsity")
    if rival is not None and (rival.method not in {e.name for e in attributions} or at not in (None, *shares)):
        raise UserError(f"study.match: {rival.method} at {at} is not among the attributions and sparsities")
    if rival is not None and settings.curve_pairs < 1:
        raise UserError("study.match compares on the curves' pairs; set study.curve_pairs to at least 1")


def _finished(tasks: list[Entry], jobs: dict[str, list[Job]]) -> dict[str, list[Job]]:
    """The jobs whose cells, and their task's, are there and were made with this study's settings."""

    def there(cell: Cell, settings: tuple[str, ...]) -> bool:
        try:
            return bool(cell.known(composed(*settings)))
        except Exception:  # a preset that does not exist
            return False

    own = {task.name for task in tasks if there(Cell(task.name, "task"), task.settings)}
    found = {task: [job for job in of_task if there(job.cell, job.settings)] for task, of_task in jobs.items()}
    return {task: of_task for task, of_task in found.items() if of_task and task in own}


def _task(task: Entry, jobs: list[Job], subject: Subject) -> Finished:
    """Some cells of one task, in the order in which they are reported; nothing is built that no cell needs."""
    own = Cell(task.name, "task")
    try:
        cfg = composed(*task.settings)
    except Exception as error:  # one task that does not exist does not stop the others
        return [(own, own.fail(error))]
    stage = cache(lambda: Stage.build(cfg, subject))
    finished = [(own, own.finish(cfg, lambda: ends(cfg, stage())))]
    if finished[0][1]["status"] == "OK":
        finished += [(job.cell, _run(job, stage)) for job in jobs]
    return finished


def _run(job: Job, stage: Callable[[], Stage]) -> dict[str, Any]:
    cell = job.cell
    try:
        cfg = composed(*job.settings)
    except Exception as error:  # a preset that does not exist
        return cell.fail(error)
    CONSOLE.print(f"  {cell.name}", style="dim", highlight=False)
    if cell.kind == "control":
        return cell.finish(cfg, lambda: control_cell(cfg, stage()))
    work = attribution_cell if cell.kind == "attribution" else learner_cell
    return cell.finish(cfg, lambda: work(cfg, stage(), cell))


def _part_done(cfg: DictConfig, finished: Finished, clock: Clock) -> dict[str, Any]:
    failed = [cell.name for cell, content in finished if content["status"] != "OK"]
    number = f"part {cfg.study.part} of {cfg.study.parts}: {len(finished) - len(failed)} cells are there"
    more = f", {len(failed)} failed: {', '.join(failed)}" if failed else ""
    CONSOLE.print(f"{number}{more}; for the table run once more with study.parts=1", highlight=False, soft_wrap=True)
    return {"status": "PART", "cells": len(finished), "failed": failed, **clock.times()}
