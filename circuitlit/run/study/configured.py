"""A study's cells from configurations: each entry's own settings, composed on top of the study's."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from lightning import seed_everything
from omegaconf import DictConfig

from circuitlit.cli.build import build_method, build_workbench, encoded, plain, provenance, training_precision
from circuitlit.cli.configs import ONE_MODEL, Entry, check_shared, composed
from circuitlit.cli.kept import settings_of, training_of
from circuitlit.cli.learn import learn
from circuitlit.discover.workbench import Workbench
from circuitlit.errors import UserError
from circuitlit.evaluate.study.cells import Cell, Circuits, Match, StudySettings
from circuitlit.evaluate.study.compare_methods import Job, Work
from circuitlit.evaluate.study.work import Scored, StudyTask, attributed, ends, learned, random_circuits
from circuitlit.graph import MaskLayout
from circuitlit.graph.select import edge_budget
from circuitlit.model import Subject
from circuitlit.run.study.plan import Planned
from circuitlit.store import Store

_GROUPS = ("task", "model", "adapter", "mask", "sparsity", "objective", "ablation", "method", "data", "evaluate")
_SHARED = ("task", "model", "adapter", "ablation")


def settings_from(cfg: DictConfig) -> StudySettings:
    """What is measured, as a study or one of its entries sets it."""
    own = plain(cfg.study)
    return StudySettings(
        **{name: own[name] for name in ("sparsities", "seeds", "resamples", "curve_pairs", "consensus")},
        **{name: cfg.evaluate[name] for name in ("controls", "control_pairs", "probe_pairs", "published_pairs")},
        min_accuracy=cfg.task.get("min_accuracy", 0),
        seed=cfg.seed,
        match=Match(**own["match"]) if own["match"] else None,
    )


@dataclass(frozen=True)
class ConfiguredTask:
    """A task of a study; model and pairs are built for the first cell that is not there.

    Attributes:
        entry: its label, and what makes it.
        subject: the model of all tasks.
        contents: `contents_of` it.
    """

    entry: Entry
    subject: Subject
    contents: str

    @cached_property
    def cfg(self) -> DictConfig:
        """Its configuration.

        Raises:
            UserError: it sets another model than the study's.
        """
        own = composed(*self.entry.settings)
        check_shared(own, composed(), f"study.tasks: {self.entry.name}", ONE_MODEL)
        return own

    @cached_property
    def built(self) -> StudyTask:
        """What its cells share."""
        own = self.cfg.evaluate
        return StudyTask.build(build_workbench(self.cfg, self.subject), own.probe_pairs, own.published_pairs)

    def jobs(self, planned: Sequence[Planned], store: Store, which: str) -> tuple[Job, list[Job]]:
        """The task's own cell, and of the planned ones all, those that are "finished", or those that are "open"."""
        own, jobs = self.own(), [self.job(one) for one in planned]
        if which == "finished":
            jobs = [job for job in jobs if job.finished(store)] if own.finished(store) else []
        return own, [job for job in jobs if which != "open" or not job.settled(store)]

    def own(self) -> Job:
        """The task's own cell."""

        def prepare() -> tuple[object, Work]:
            return self._known(self.cfg), lambda task, _: ends(task, settings_from(self.cfg).min_accuracy)

        return Job(Cell(self.entry.name, "task"), prepare)

    def job(self, planned: Planned) -> Job:
        """One of the other cells."""

        def prepare() -> tuple[object, Work]:
            cfg, cell = composed(*planned.settings), planned.cell
            works = {"control": self._drawn, "attribution": self._scored, "learner": self._trained}
            sparsities = cfg.study.sparsities if cell.sparsity is None else [cell.sparsity]
            known = self._known(cfg, cell.sparsity) | (training_of(cfg) if cell.kind == "learner" else {})
            return known, lambda task, folder: works[cell.kind](cfg, task, folder, sparsities)

        return Job(planned.cell, prepare)

    def _known(self, cfg: DictConfig, sparsity: float | None = None) -> dict[str, Any]:
        """All that a cell depends on, but for what training alone does."""
        sparsities = list(cfg.study.sparsities) if sparsity is None else [sparsity]
        study = {key: cfg.study[key] for key in ("resamples", "curve_pairs")}
        return settings_of(cfg, _GROUPS) | {"contents": self.contents, "sparsities": sparsities, **study}

    def _drawn(self, cfg: DictConfig, task: StudyTask, _folder: Path, sparsities: Sequence[float]) -> Circuits:
        return random_circuits(task, self._sized(cfg, sparsities), settings_from(cfg))

    def _scored(self, cfg: DictConfig, task: StudyTask, folder: Path, sparsities: Sequence[float]) -> Circuits:
        seed_everything(cfg.seed, verbose=False)
        sized, method, facts = self._sized(cfg, sparsities), build_method(cfg), provenance(cfg, self.subject)
        return attributed(task, method, sized, folder, settings_from(cfg), _scores_key(cfg), facts)

    def _trained(self, cfg: DictConfig, task: StudyTask, folder: Path, sparsities: Sequence[float]) -> Circuits:
        seed_everything(cfg.seed, verbose=False)
        sized, facts = self._sized(cfg, sparsities), provenance(cfg, self.subject)
        bench = self._at(cfg, cfg.sparsity.target, self._ordered(cfg))

        def train() -> Scored:
            start, seconds = None, 0.0
            if cfg.mask.init_from == "method":
                start, seconds = task.attribution(build_method(cfg), bench, _scores_key(cfg))
            begun = time.perf_counter()
            learner, _ = learn(cfg, bench, start, folder)
            return learner.scores(), seconds + time.perf_counter() - begun

        return learned(task, train, sized, folder, settings_from(cfg), facts)

    def _sized(self, cfg: DictConfig, sparsities: Sequence[float]) -> dict[float, Workbench]:
        return {at: self._at(cfg, at, self.built.bench.data) for at in sparsities}

    def _ordered(self, cfg: DictConfig) -> Any:
        """The training pairs in the order of a run's seed, in the batches of its settings."""
        data = self.built.bench.data
        same = plain(cfg.data) == plain(self.cfg.data)
        return data.with_seed(cfg.seed) if same else encoded(cfg, data.splits, self.subject)

    def _at(self, cfg: DictConfig, sparsity: float, data: Any) -> Workbench:
        """The workbench for a cell's masks, size and training pairs.

        Raises:
            UserError: the cell changes what the whole task shares.
        """
        changed = next((group for group in _SHARED if plain(cfg[group]) != plain(self.cfg[group])), None)
        if changed:
            raise UserError(f"study: a method cannot change {changed}; change it for the task or for the study")
        bench = self.built.bench
        roles = bench.data.splits.role_names if cfg.mask.roles else ()
        layout = MaskLayout(self.subject.graph, roles, cfg.mask.sites)
        count, precision = edge_budget(sparsity, layout.n_edges), training_precision(cfg, self.subject)
        return replace(bench, layout=layout, data=data, count=count, precision=precision)


def _scores_key(cfg: DictConfig) -> str:
    return str((plain(cfg.method), cfg.mask.roles, cfg.data))
