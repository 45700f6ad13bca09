"""Circuits over training: checkpoints x tasks -> behaviour, circuits, head scores, likeness and stages."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig

from circuitlit.cli.build import PACKAGES, plain, version
from circuitlit.cli.checks import run_dir
from circuitlit.cli.configs import Entry, composed, entries
from circuitlit.errors import UserError
from circuitlit.evaluate.overlap import DRAWS
from circuitlit.evaluate.testing import enough_draws, with_holm
from circuitlit.files import write_json
from circuitlit.progress import CONSOLE, Clock
from circuitlit.report.evolution_page import write_evolution_page
from circuitlit.report.evolution_table import print_evolution
from circuitlit.run.evolve.cells import CAUSAL, HEADS, Cell, cell_settings
from circuitlit.run.evolve.measure import causal_cell, heads_cell, task_cell
from circuitlit.run.evolve.panels import log_panels
from circuitlit.run.evolve.series import Loader, Series, claims_of, configured, find_series, parted
from circuitlit.run.evolve.summary import Finished, summarise_series
from circuitlit.timeline.account import account, trends
from circuitlit.timeline.checkpoints import Checkpoint
from circuitlit.timeline.emergence import by_size


@dataclass(frozen=True)
class _Task:
    """A task with the settings that make it."""

    name: str
    cfg: DictConfig


def run(cfg: DictConfig) -> dict[str, Any]:
    """Run every cell that is not finished yet, then write `evolve.json`, the table and the page.

    Raises:
        UserError: settings that cannot be used, or no cell that could be run.
    """
    _check(cfg)
    torch.set_float32_matmul_precision("highest")
    clock = Clock()
    with clock.phase("series", "Looking for checkpoints" + (", training them if need be" if cfg.pretrain else "")):
        found = find_series(cfg)
    entered = entries(cfg.evolve.tasks, "task") or [Entry(str(cfg.task.name), ())]
    if {entry.name for entry in entered} & {HEADS, CAUSAL}:
        raise UserError(f"evolve.tasks: '{HEADS}' and '{CAUSAL}' are names of other cells; call the task otherwise")
    tasks = [_Task(entry.name, composed(*entry.settings) if entry.settings else cfg) for entry in entered]
    if not cfg.evolve.measure:
        CONSOLE.print(f"trained: {', '.join(one.name for one in found)}", highlight=False)
        return {"status": "OK", **clock.times()}
    found = parted(found, cfg.evolve.part, cfg.evolve.parts)
    finished: Finished = {}
    loader = Loader(cfg)
    try:
        for one in found:
            count = f"{len(one.checkpoints)} checkpoints x {len(tasks)} tasks"
            with clock.phase(one.name, f"{one.name}: {count}"):
                finished[one.name] = _series(cfg, one, tasks, loader)
    finally:
        loader.close()
    if cfg.evolve.parts > 1:
        CONSOLE.print(f"part {cfg.evolve.part} of {cfg.evolve.parts} is done", highlight=False)
        return {"status": "OK", **clock.times()}
    return _written(cfg, finished, [task.name for task in tasks], clock)


def _check(cfg: DictConfig) -> None:
    settings = cfg.evolve
    if settings.circuits not in ("attribution", "masks"):
        raise UserError(f"evolve.circuits={settings.circuits} is neither attribution nor masks; choose one")
    if not settings.faithfulness > 0:
        raise UserError(f"evolve.faithfulness={settings.faithfulness} is not above 0")
    for name in ("cold_every", "probe_pairs", "parts"):
        if not isinstance(settings[name], int) or settings[name] < 1:
            raise UserError(f"evolve.{name}={settings[name]} is not a whole number of at least 1")
    if settings.heads.algorithm not in (None, "B", "C", "D"):
        raise UserError(f"evolve.heads.algorithm={settings.heads.algorithm} is none of B, C, D; null leaves it out")
    if settings.part not in range(settings.parts):
        raise UserError(f"evolve.part={settings.part} is not one of the parts 0 to {settings.parts - 1}")
    if settings.parts > 1 and settings.circuits == "masks":
        raise UserError("evolve.parts needs circuits=attribution: masks begin with those of the checkpoint before")
    if cfg.ckpt_path is not None:
        raise UserError("ckpt_path is for single runs; evolve goes on by itself in the same hydra.run.dir")


def _series(cfg: DictConfig, one: Series, tasks: list[_Task], loader: Loader) -> dict[str, list[dict[str, Any]]]:
    """All cells of one series, by task, in the checkpoints' order."""
    rows: dict[str, list[dict[str, Any]]] = {task.name: [] for task in tasks}
    rows |= {HEADS: [], CAUSAL: []}
    before: dict[str, Cell] = {}
    for number, checkpoint in enumerate(one.checkpoints):
        last = number == len(one.checkpoints) - 1
        coming = None if last else one.checkpoints[number + 1]
        jobs = _jobs(cfg, one, tasks, number, before)
        known = {cell.task: cell.finished() for cell, _ in jobs}
        if None in known.values():
            known |= _run(loader, checkpoint, coming, [(cell, work) for cell, work in jobs if known[cell.task] is None])
        for cell, _ in jobs:
            content = known[cell.task]
            assert content is not None
            rows[cell.task].append(content)
            if content["status"] != "ERROR" and cell.task not in (HEADS, CAUSAL):
                before[cell.task] = cell
    return rows


def _run(
    loader: Loader, checkpoint: Checkpoint, coming: Checkpoint | None, jobs: list[Any]
) -> dict[str, dict[str, Any]]:
    """Load one checkpoint and do what is left to do; if it cannot be loaded, all of that has failed."""
    CONSOLE.print(f"  step {checkpoint.step:,}", style="dim", highlight=False)
    made: dict[str, dict[str, Any]] = {}
    try:
        with loader.loaded(checkpoint, coming) as subject:
            for cell, work in jobs:
                made[cell.task] = cell.make(lambda work=work, cell=cell: work(subject, cell))
    except Exception as error:  # a damaged file, say
        for cell, _ in jobs:
            if cell.task not in made:
                made[cell.task] = cell.make(lambda error=error: _raise(error))
    return made


def _raise(error: Exception) -> dict[str, Any]:
    raise error


def _jobs(
    cfg: DictConfig,
    one: Series,
    tasks: list[_Task],
    number: int,
    before: dict[str, Cell],
) -> list[Any]:
    """Cells of one checkpoint with their work, given the subject and the cell."""
    checkpoint = one.checkpoints[number]
    final, by_masks = checkpoint == one.final, cfg.evolve.circuits == "masks"
    jobs: list[Any] = []
    for task in tasks:
        own = configured(task.cfg, checkpoint)
        start = None
        if by_masks and task.name in before:
            start = before[task.name].folder / "circuit.safetensors"
        cold = by_masks and number % cfg.evolve.cold_every == 0
        earlier = before[task.name].settings if start is not None else None
        cell = Cell(one.name, task.name, checkpoint, cell_settings(task.cfg, checkpoint, earlier, cold, final))

        def work(subject, cell, own=own, start=start, cold=cold):
            return task_cell(own, subject, cell.folder, start, cold, final)

        jobs.append((cell, work))
    if cfg.evolve.heads.run:
        cell = Cell(one.name, HEADS, checkpoint, cell_settings(cfg, checkpoint))
        jobs.append((cell, lambda subject, _: heads_cell(cfg, subject)))
    if cfg.evolve.heads.run and cfg.evolve.heads.draws != 0 and final:
        cell = Cell(one.name, CAUSAL, checkpoint, cell_settings(cfg, checkpoint))
        jobs.append((cell, lambda subject, _: causal_cell(cfg, subject)))
    return jobs


def _written(cfg: DictConfig, finished: Finished, tasks: list[str], clock: Clock) -> dict[str, Any]:
    rows = [row for one in finished.values() for of_task in one.values() for row in of_task]
    errors = [row for row in rows if row["status"] == "ERROR"]
    if len(errors) == len(rows):
        raise UserError(f"evolve: no checkpoint could be measured; the first: {errors[0]['reason']}")
    threshold = cfg.evolve.heads.threshold
    draws = cfg.evolve.draws or max(DRAWS, enough_draws(claims_of(cfg)))
    series = [summarise_series(name, one, tasks, threshold, draws) for name, one in finished.items()]
    sizes = by_size(series, tasks)
    result: dict[str, Any] = with_holm(
        {
            "status": "OK",
            "model": cfg.model.name,
            "tasks": tasks,
            "circuits": cfg.evolve.circuits,
            "faithfulness": cfg.evolve.faithfulness,
            "threshold": threshold,
            "series": series,
            "sizes": sizes,
            "trends": {task: {name: asdict(one) for name, one in trends(series, task).items()} for task in tasks},
            "account": account(series, sizes, tasks),
            "errors": [{key: row[key] for key in ("series", "task", "step", "reason")} for row in errors],
            **clock.times(),
            "provenance": {
                "seed": cfg.seed,
                "method": plain(cfg.method),
                "versions": {p: version(p) for p in PACKAGES},
            },
        }
    )
    folder: Path = run_dir()
    write_json(folder / "evolve.json", result)
    page = write_evolution_page(result, folder / "evolve.html")
    log_panels(cfg, result, page)
    print_evolution(result, CONSOLE)
    for path in (folder / "evolve.json", page):
        CONSOLE.print(f"{path}", highlight=False, soft_wrap=True)
    return result
