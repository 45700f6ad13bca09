"""Several methods on several tasks at several sparsities: how cells are made, and the whole study from Python."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from functools import cache, partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from lightning import seed_everything

from circuitlit.arguments import checks_arguments
from circuitlit.discover import mask_gradients
from circuitlit.discover.gates import Gates
from circuitlit.discover.method import Method
from circuitlit.discover.schedule import Schedule
from circuitlit.discover.workbench import Workbench
from circuitlit.errors import UserError
from circuitlit.evaluate.baseline import Baseline
from circuitlit.evaluate.find import train_masks
from circuitlit.evaluate.study.cells import Cell, Circuits, StudySettings, TaskEnds, check_names
from circuitlit.evaluate.study.results import MethodStudy
from circuitlit.evaluate.study.summary import summarise_study
from circuitlit.evaluate.study.work import Scored, StudyTask, attributed, ends, learned, random_circuits
from circuitlit.evaluate.trust.identity import identity_of, identity_of_model, identity_of_pairs, identity_of_search
from circuitlit.graph import EdgeScores
from circuitlit.graph.select import edge_budget
from circuitlit.lock import InUse
from circuitlit.progress import phase, say
from circuitlit.store import Failure, Store
from circuitlit.surroundings import as_it_was

Learn = Callable[[Workbench, EdgeScores, int], EdgeScores]  # trains masks from some scores on, with a seed
START = ("start of masks",)  # key of those scores; labels of attributions are text, so none is equal to it
Work = Callable[[StudyTask, Path], Any]  # makes what a cell holds; its circuit goes into the folder


@dataclass(frozen=True)
class Job:
    """A cell and how it is made.

    Attributes:
        cell: its name.
        prepare: gives the settings that it depends on, and the work; may raise.
    """

    cell: Cell
    prepare: Callable[[], tuple[object, Work]]

    @classmethod
    def of(cls, cell: Cell, settings: StudySettings, work: Work, *depends: object) -> Job:
        """A cell that depends on the study's settings and on more, as plain types."""
        return cls(cell, lambda: ([asdict(settings), *depends], work))

    @property
    def kind(self) -> Any:
        """What the cell holds."""
        return TaskEnds if self.cell.kind == "task" else Circuits

    def finished(self, store: Store) -> bool:
        """True if the cell is there, made with these settings."""
        try:
            return store.known(self.cell.name, self.prepare()[0], self.kind) is not None
        except Exception:  # a preset that does not exist
            return False

    def settled(self, store: Store) -> bool:
        """True if the cell has been made or tried with these settings, or cannot be prepared."""
        try:
            return store.settled(self.cell.name, self.prepare()[0])
        except Exception:
            return True


def make_cells(
    store: Store, circuits: Path, build: Callable[[], StudyTask], own: Job, jobs: Sequence[Job], wait: bool = True
) -> Iterator[tuple[Cell, TaskEnds | Circuits | Failure]]:
    """The cells of one task, in the order in which they are reported; nothing is built that no cell needs.

    A cell that cannot be made is written down, and the others go on; without the task's own cell none is made.

    Args:
        store: of the cells.
        circuits: folder of their circuits.
        build: prepares the task; called only for a cell that is not there.
        own: the task's own cell.
        jobs: the other cells.
        wait: for cells that another process is making; False leaves them to it, but for the task's own.
    """
    for job in (own, *jobs):
        if job is not own:
            say(job.cell.name)
        try:
            settings, work = job.prepare()
        except Exception as error:  # a preset that does not exist, say
            found = store.failed(job.cell.name, None, error)
        else:
            made = partial(_make, work, build, circuits / job.cell.name)
            try:
                found = store.tried(job.cell.name, settings, job.kind, made, wait or job is own)
            except InUse:
                continue
        yield job.cell, found
        if job is own and isinstance(found, Failure):
            return


def _make(work: Work, build: Callable[[], StudyTask], folder: Path) -> Any:
    return work(build(), folder)


@checks_arguments
def learn_masks(
    bench: Workbench,
    start: EdgeScores,
    seed: int,
    schedule: Schedule | None = None,
    gates: Gates | None = None,
) -> EdgeScores:
    """Train masks as `find_circuit` does; arguments as there."""
    return train_masks(bench, [Baseline(start, 0.0)], schedule=schedule, gates=gates, seed=seed).scores


@checks_arguments
def compare_methods(
    benches: Mapping[str, Workbench],
    attributions: Mapping[str, Method],
    learners: Mapping[str, Learn],
    settings: StudySettings | None = None,
    *,
    start: Method | None = None,
    folder: Path | str | None = None,
) -> MethodStudy:
    """Compare attributions and learned masks over tasks and sparsities, on held-out pairs.

    Args:
        benches: a workbench for each task, all of one model; their sizes do not matter.
        attributions: methods by their labels.
        learners: what trains masks, by labels: `learn_masks`, its schedule and gates bound by `functools.partial`.
        settings: what is measured.
        start: whose scores masks start from; None takes mask gradients.
        folder: keeps cells and circuits, so that a call that was stopped goes on. What another model, other pairs or
            other methods and settings made is made anew; learners of your own are known by their names and by what
            `functools.partial` binds. None keeps nothing.

    Raises:
        UserError: no task, no method, labels whose files would have one name, a match that is not among them, or no
            cell that could be made.
    """
    if not benches or not (attributions or learners):
        raise UserError("compare_methods needs at least one task and one method")
    settings, finished = settings or StudySettings(), []
    settings.check_match(attributions)
    start = start or Method.of(mask_gradients, steps=5, draws=1)
    jobs = {
        name: _jobs(name, _depends_on(bench), attributions, learners, settings, start)
        for name, bench in benches.items()
    }
    check_names(job.cell for own in jobs.values() for job in own)
    with ExitStack() as stack:
        stack.enter_context(as_it_was())  # each cell has a seed of its own
        where = Path(stack.enter_context(TemporaryDirectory()) if folder is None else folder)
        for name, bench in benches.items():
            build = cache(partial(StudyTask.build, bench, settings.probe_pairs, settings.published_pairs))
            own, *others = jobs[name]
            with phase(name, f"Task {name}: {len(others)} cells"):
                finished += make_cells(Store(where / "cells"), where / "circuits", build, own, others)
        model = next(iter(benches.values())).subject.name
        return summarise_study(finished, model, where / "circuits", settings)


def _depends_on(bench: Workbench) -> dict[str, Any]:
    """All that every cell of a task depends on, beside the settings."""
    facts = identity_of_model(bench.subject, bench.model.shards is None) | identity_of_pairs(bench.data)
    facts |= identity_of_search(bench) | {"roles": bench.layout.roles, "sites": bench.layout.sites}
    own, kind = bench.ablation, bench.references.kind
    return facts | {"ablation": [kind, own.positional, own.steps, own.lr], "precision": bench.precision}


def _jobs(
    name: str,
    known: dict[str, Any],
    attributions: Mapping[str, Method],
    learners: Mapping[str, Learn],
    settings: StudySettings,
    start: Method,
) -> list[Job]:
    """The task's own cell first, then random circuits, attributions and mask runs."""
    return [
        Job.of(Cell(name, "task"), settings, lambda task, _: ends(task, settings.min_accuracy), known),
        Job.of(Cell(name, "control", "random circuits"), settings, partial(_drawn, settings), known),
        *(_scored(name, label, method, settings, known) for label, method in attributions.items()),
        *(
            _trained(name, label, learn, start, settings, at, seed, known)
            for label, learn in learners.items()
            for at in settings.sparsities
            for seed in settings.seeds
        ),
    ]


def _sized(task: StudyTask, sparsities: Sequence[float]) -> dict[float, Workbench]:
    bench = task.bench
    return {at: replace(bench, count=edge_budget(at, bench.layout.n_edges)) for at in sparsities}


def _drawn(settings: StudySettings, task: StudyTask, _folder: Path) -> Circuits:
    return random_circuits(task, _sized(task, settings.sparsities), settings)


def _scored(name: str, label: str, method: Method, settings: StudySettings, known: object) -> Job:
    def work(task: StudyTask, folder: Path) -> Circuits:
        seed_everything(settings.seed, verbose=False)
        return attributed(task, method, _sized(task, settings.sparsities), folder, settings, label)

    return Job.of(Cell(name, "attribution", label), settings, work, known, identity_of(method))


def _trained(
    name: str,
    label: str,
    learn: Learn,
    start: Method,
    settings: StudySettings,
    sparsity: float,
    seed: int,
    known: object,
) -> Job:
    def work(task: StudyTask, folder: Path) -> Circuits:
        sized = _sized(task, [sparsity])
        bench = replace(sized[sparsity], data=task.bench.data.with_seed(seed))

        def train() -> Scored:
            scores, seconds = task.attribution(start, bench, START)
            begun = time.perf_counter()
            return learn(bench, scores, seed), seconds + time.perf_counter() - begun

        seed_everything(seed, verbose=False)
        return learned(task, train, sized, folder, settings)

    bound = [getattr(getattr(learn, "func", learn), "__qualname__", ""), getattr(learn, "keywords", {})]
    return Job.of(Cell(name, "learner", label, sparsity, seed), settings, work, known, bound, identity_of(start))
