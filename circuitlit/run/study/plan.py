"""The cells of a study in their order, and which of them one of several processes makes."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

from omegaconf import DictConfig

from circuitlit.cli.configs import Entry, composed
from circuitlit.errors import UserError
from circuitlit.evaluate.study.cells import Cell, check_names

CHEAP = 0.3  # cost of an attribution's cell beside a mask run's


@dataclass(frozen=True)
class Planned:
    """A cell, the settings that make it, and its cost beside the other cells'."""

    cell: Cell
    settings: tuple[str, ...]
    cost: float


def check(cfg: DictConfig, attributions: list[Entry], learners: list[Entry]) -> None:
    """Refuse lists that no study can be made of.

    Raises:
        UserError: no method, no seed, or a part that does not exist.
    """
    settings = cfg.study
    if not attributions and not learners:
        raise UserError("study.attributions and study.learners are both empty; name at least one method")
    if learners and not len(settings.seeds):
        raise UserError("study.seeds is empty; name at least one seed for the learners")
    if settings.part not in range(settings.parts):
        raise UserError(f"study.part={settings.part} is not one of the parts 0 to {settings.parts - 1}")


def plan(tasks: list[Entry], attributions: list[Entry], learners: list[Entry]) -> dict[str, list[Planned]]:
    """The cells of every task: random circuits, attributions, then a cell for each mask run.

    A learner that ranks every size in one run (`mask.schedule.sizes`) has one cell a seed. `study.seeds` and
    `study.sparsities` among an entry's own settings hold for that entry alone.

    Raises:
        UserError: two labels whose files would have one name.
    """
    runs = {entry: _runs(entry) for entry in learners}
    jobs: dict[str, list[Planned]] = {}
    for task in tasks:
        found = [Planned(Cell(task.name, "control", "random circuits"), task.settings, CHEAP)]
        for entry in attributions:
            settings = (*task.settings, *entry.settings)
            found.append(Planned(Cell(task.name, "attribution", entry.name), settings, entry.cost or CHEAP))
        for entry in learners:
            for sparsity, seed in runs[entry]:
                size = () if sparsity is None else (f"sparsity.target={sparsity}",)
                settings = (*task.settings, *entry.settings, *size, f"seed={seed}")
                found.append(
                    Planned(Cell(task.name, "learner", entry.name, sparsity, seed), settings, entry.cost or 1.0)
                )
        jobs[task.name] = found
    check_names(job.cell for of_task in jobs.values() for job in of_task)
    return jobs


def shares_of(jobs: dict[str, list[Planned]], part: int, parts: int) -> list[dict[str, list[Planned]]]:
    """What a process makes: its own share; of several it then looks for cells that the others have not begun."""
    return [jobs] if parts == 1 else [part_of(jobs, part, parts), jobs]


def part_of(jobs: dict[str, list[Planned]], part: int, parts: int) -> dict[str, list[Planned]]:
    """One of several shares of about the same cost; its cells follow each other, so that it sees few tasks."""
    total, passed = sum(job.cost for of_task in jobs.values() for job in of_task), 0.0
    chosen: dict[str, list[Planned]] = {}
    for task, of_task in jobs.items():
        for job in of_task:
            if int((passed + job.cost / 2) / total * parts) == part:
                chosen.setdefault(task, []).append(job)
            passed += job.cost
    return chosen


def _runs(entry: Entry) -> list[tuple[float | None, int]]:
    """Sparsity and seed of a learner's runs."""
    try:
        cfg = composed(*entry.settings)
    except Exception:  # a preset that does not exist: its one cell says so
        return [(None, 0)]
    sizes = [None] if cfg.mask.schedule.sizes is not None else list(cfg.study.sparsities)
    return list(product(sizes, cfg.study.seeds))
