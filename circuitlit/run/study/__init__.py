"""Methods x tasks x sparsities: one table, two figures, and what mask learning gains over attribution."""

from __future__ import annotations

from typing import Any

import torch
from omegaconf import DictConfig

from circuitlit.errors import UserError
from circuitlit.files import write_json
from circuitlit.model import Subject
from circuitlit.report.study import print_study, write_figures
from circuitlit.run.build import build_subject, provenance
from circuitlit.run.checks import run_dir
from circuitlit.run.clock import CONSOLE, Clock
from circuitlit.run.study.cells import Cell, Entry, composed, entries
from circuitlit.run.study.methods import Stage, attribution_cell, control_cell, ends, learner_cell
from circuitlit.run.study.summary import Finished, summarise_study


def run(cfg: DictConfig) -> dict[str, Any]:
    """Run every cell that is not finished yet, then write `study.json`, the table and the figures.

    A cell that fails is recorded in its file and in `failed`; the others go on.

    Raises:
        UserError: the study's lists cannot be used, the model cannot be loaded, or every cell failed.
    """
    tasks = entries(cfg.study.tasks, "task") or [Entry(cfg.task.name, ())]
    attributions, learners = entries(cfg.study.attributions, "method"), entries(cfg.study.learners, "mask")
    _check(cfg, attributions, learners)
    torch.set_float32_matmul_precision("highest")
    clock = Clock()
    with clock.phase("load", f"Loading {cfg.model.name}"):
        subject = build_subject(cfg)
    finished: Finished = []
    for task in tasks:
        with clock.phase(task.name, f"Task {task.name}: {len(attributions)} attributions, {len(learners)} learners"):
            finished += _task(task, attributions, learners, subject)
    study = {"model": cfg.model.name, **summarise_study(finished, cfg.study.consensus), **clock.times()}
    study["provenance"] = provenance(cfg, subject)
    if not study["rows"]:
        raise UserError(f"study: no cell could be run; the first: {study['failed'][0]['error']}")
    write_json(run_dir() / "study.json", study)
    print_study(study, CONSOLE)
    for path in (run_dir() / "study.json", *write_figures(study, run_dir())):
        CONSOLE.print(f"{path}", highlight=False, soft_wrap=True)
    return study


def _check(cfg: DictConfig, attributions: list[Entry], learners: list[Entry]) -> None:
    if not attributions and not learners:
        raise UserError("study.attributions and study.learners are both empty; name at least one method")
    shares = list(cfg.study.sparsities)
    if not shares or not all(isinstance(s, int | float) and 0 < s < 1 for s in shares):
        raise UserError(f"study.sparsities={shares} are not shares between 0 and 1")
    if learners and not len(cfg.study.seeds):
        raise UserError("study.seeds is empty; name at least one seed for the learners")


def _task(task: Entry, attributions: list[Entry], learners: list[Entry], subject: Subject) -> Finished:
    """All cells of one task, in the order in which they are reported."""
    own = Cell(task.name, "task")
    try:
        cfg = composed(*task.settings)
        stage = Stage.build(cfg, subject)
    except Exception as error:  # one task that cannot be built does not stop the others
        return [(own, own.fail(error))]
    control = Cell(task.name, "control", "random circuits")
    finished = [(own, own.finish(cfg, lambda: ends(stage)))]
    finished.append((control, control.finish(cfg, lambda: control_cell(cfg, stage))))
    for entry in attributions:
        cell = Cell(task.name, "attribution", entry.name)
        finished.append((cell, _run(cell, (*task.settings, *entry.settings), stage)))
    for entry in learners:
        for sparsity in cfg.study.sparsities:
            for seed in cfg.study.seeds:
                cell = Cell(task.name, "learner", entry.name, sparsity, seed)
                size = (f"sparsity.target={sparsity}", f"seed={seed}")
                finished.append((cell, _run(cell, (*task.settings, *entry.settings, *size), stage)))
    return finished


def _run(cell: Cell, settings: tuple[str, ...], stage: Stage) -> dict[str, Any]:
    try:
        cfg = composed(*settings)
    except Exception as error:  # a preset that does not exist
        return cell.fail(error)
    work = attribution_cell if cell.kind == "attribution" else learner_cell
    CONSOLE.print(f"  {cell.name}", style="dim", highlight=False)
    return cell.finish(cfg, lambda: work(cfg, stage, cell.folder))
