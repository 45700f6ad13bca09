"""Circuits over the checkpoints of a training run: each checkpoint is measured once, then all are compared."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from circuitlit.arguments import checks_arguments
from circuitlit.discover.method import Method
from circuitlit.discover.workbench import Workbench
from circuitlit.errors import UserError
from circuitlit.evaluate.overlap import DRAWS, TESTS
from circuitlit.evaluate.testing import enough_draws
from circuitlit.model import Subject
from circuitlit.model.contents import stamps_of
from circuitlit.progress import phase, say
from circuitlit.store import Failure, Store
from circuitlit.surroundings import as_it_was
from circuitlit.timeline.cells import HeadsAtCheckpoint, InductionCheck, TaskAtCheckpoint
from circuitlit.timeline.checkpoints import Checkpoint
from circuitlit.timeline.evolution import Evolution
from circuitlit.timeline.measured import measure_task
from circuitlit.timeline.measured_heads import FollowSettings, check_induction, measure_heads
from circuitlit.timeline.summary import CAUSAL, HEADS, Cells, cell_name, summarise_evolution


@dataclass(frozen=True)
class Series:
    """Checkpoints of one training run, first step first.

    Attributes:
        name: of the run.
        checkpoints: those to look at, all or a part's.
        final: the last of all.
    """

    name: str
    checkpoints: list[Checkpoint]
    final: Checkpoint

    @classmethod
    def of(cls, name: str, checkpoints: list[Checkpoint]) -> Series:
        """A whole series."""
        return cls(name, checkpoints, checkpoints[-1])


@dataclass(frozen=True)
class Job:
    """Something to measure at a checkpoint.

    Attributes:
        task: name of the task, or HEADS or CAUSAL.
        settings: all that it depends on.
        work: measures it; circuits go into the folder.
    """

    task: str
    settings: object
    work: Callable[[Subject, Path], Any]

    @property
    def kind(self) -> Any:
        """What is measured."""
        return {HEADS: HeadsAtCheckpoint, CAUSAL: InductionCheck}.get(self.task, TaskAtCheckpoint)


Loaded = Callable[[Checkpoint, Checkpoint | None], AbstractContextManager[Subject]]  # this one; the next is coming
Before = dict[str, tuple[Path, object]]  # by task: the circuits' folder and settings of the last checkpoint measured
Jobs = Callable[[Checkpoint, int, Before], Sequence[Job]]  # of a checkpoint, its number, and what is there before it


def measure_series(store: Store, circuits: Path, one: Series, jobs: Jobs, loaded: Loaded) -> Cells:
    """All measurements of one series, by task, in the checkpoints' order; models are loaded for what is not there.

    What cannot be measured is written down, and the rest goes on.

    Args:
        store: of the measurements.
        circuits: folder of the circuits.
        one: the series.
        jobs: what to measure at a checkpoint.
        loaded: gives the model of a checkpoint for the time of a block.
    """
    cells: Cells = {}
    before: Before = {}
    for number, checkpoint in enumerate(one.checkpoints):
        coming = next(iter(one.checkpoints[number + 1 :]), None)
        asked = jobs(checkpoint, number, before)
        names = {job.task: cell_name(one.name, job.task, checkpoint.step) for job in asked}
        found = {job.task: store.known(names[job.task], job.settings, job.kind) for job in asked}
        left = [job for job in asked if found[job.task] is None]
        if left:
            say(f"step {checkpoint.step:,}")
            found |= _measured(store, circuits, left, names, lambda at=checkpoint, to=coming: loaded(at, to))
        for job in asked:
            cells.setdefault(job.task, []).append((checkpoint, found[job.task]))
            if not isinstance(found[job.task], Failure):
                before[job.task] = circuits / names[job.task], job.settings
    return cells


def _measured(
    store: Store,
    circuits: Path,
    jobs: Sequence[Job],
    names: Mapping[str, str],
    loaded: Callable[[], AbstractContextManager[Subject]],
) -> dict[str, Any]:
    """Load one checkpoint and do what is left to do; if it cannot be loaded, all of that has failed."""
    made: dict[str, Any] = {}
    try:
        with loaded() as subject:
            for job in jobs:
                name = names[job.task]
                made[job.task] = store.tried(name, job.settings, job.kind, partial(job.work, subject, circuits / name))
    except Exception as error:  # a damaged file, say
        made |= {job.task: store.failed(names[job.task], job.settings, error) for job in jobs if job.task not in made}
    return made


@checks_arguments
def follow_checkpoints(
    checkpoints: Sequence[Checkpoint],
    tasks: Mapping[str, Callable[[Subject], Workbench]],
    method: Method,
    settings: FollowSettings | None = None,
    *,
    name: str = "model",
    load: Callable[[Checkpoint], Subject] | None = None,
    folder: Path | str | None = None,
) -> Evolution:
    """Follow the circuits of tasks, and the scores of heads, over the checkpoints of one training run.

    Args:
        checkpoints: of `local_checkpoints(folder)` or `hub_checkpoints(name, "log")`.
        tasks: by name: makes a task's workbench for a checkpoint's model; all of one size.
        method: how edges are scored.
        settings: what is measured.
        name: of the run.
        load: loads a checkpoint; None takes `load_subject`.
        folder: keeps measurements and circuits, so that a call that was stopped goes on; take another one for other
            pairs or another method. None keeps nothing.

    Raises:
        UserError: nothing to follow, or nothing that could be measured.
    """
    if not checkpoints or not tasks:
        raise UserError("follow_checkpoints needs at least one checkpoint and one task")
    settings, one = settings or FollowSettings(), Series.of(name, list(checkpoints))
    most = enough_draws(TESTS * len(tasks) + 2)

    def jobs(checkpoint: Checkpoint, _number: int, _before: Before) -> list[Job]:
        known = [asdict(settings), asdict(checkpoint), stamps_of(checkpoint.path, checkpoint.adapter)]
        final = checkpoint == one.final
        measured = [
            Job(task, [*known, final], lambda at, to, build=build: measure_task(build(at), method, settings, to, final))
            for task, build in tasks.items()
        ]
        return measured + head_jobs(settings, known, final, settings.heads.draws or most)

    with ExitStack() as stack:
        stack.enter_context(as_it_was())  # each cell has a seed of its own
        where = Path(stack.enter_context(TemporaryDirectory()) if folder is None else folder)
        with phase(name, f"{name}: {len(checkpoints)} checkpoints x {len(tasks)} tasks"):
            loaded = partial(one_at_a_time, load or loaded_subject)
            cells = {name: measure_series(Store(where / "cells"), where / "circuits", one, jobs, loaded)}
        draws = settings.draws or max(DRAWS, most)
        return summarise_evolution(cells, list(tasks), name, where / "circuits", settings, draws)


def head_jobs(settings: FollowSettings, known: object, final: bool, draws: int) -> list[Job]:
    """The measurements of heads at a checkpoint; `known` are all settings that they depend on but for the draws."""
    if not settings.heads.run:
        return []
    jobs = [Job(HEADS, known, lambda subject, _: measure_heads(subject, settings))]
    if final and settings.heads.draws != 0:
        jobs.append(Job(CAUSAL, [known, draws], lambda subject, _: check_induction(subject, settings, draws)))
    return jobs


def loaded_subject(checkpoint: Checkpoint) -> Subject:
    """A checkpoint's model, with its adapter."""
    from circuitlit.model.load import load_subject

    return load_subject(checkpoint.path, revision=checkpoint.revision, adapter=checkpoint.adapter)


@contextmanager
def one_at_a_time(
    load: Callable[[Checkpoint], Subject], checkpoint: Checkpoint, _coming: Any = None
) -> Iterator[Subject]:
    """A checkpoint's model, whose memory is free again after the block."""
    subject = load(checkpoint)
    try:
        yield subject
    finally:
        del subject
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
