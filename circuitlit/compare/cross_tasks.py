"""Circuits of several tasks on each other's pairs, and why a tuned model got worse at some."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import Any, ClassVar

from jaxtyping import Bool
from torch import Tensor

from circuitlit.arguments import check_shares, checks_arguments
from circuitlit.compare.damage import Damage, Levels, find_damage
from circuitlit.compare.generality import ablation_specificity, composites, generality
from circuitlit.compare.prevention import Prevention
from circuitlit.compare.weights import check_same_graph, check_same_vocabulary
from circuitlit.discover.workbench import Workbench
from circuitlit.errors import UserError
from circuitlit.evaluate import Estimate, TestBed, random_circuit, summarise
from circuitlit.evaluate.overlap import TESTS, shared_by_pairs
from circuitlit.evaluate.overlap_figures import SharedFigures
from circuitlit.evaluate.testing import enough_draws, rank_p, until_clear, with_holm
from circuitlit.graph import Circuit, EdgeScores
from circuitlit.model import Subject
from circuitlit.progress import phase
from circuitlit.result import Result


@dataclass(frozen=True, kw_only=True)
class SharedPair(SharedFigures):
    """What the circuits of two tasks share."""

    of: list[str]


@dataclass(frozen=True, kw_only=True)
class BesideRandom(Estimate):
    """Mean faithfulness of random circuits as large as a task's own.

    Attributes:
        n_pairs: that all are measured on.
        draws: random circuits.
        circuit: the task's own.
        rank_p, p_holm: rank of its KL among theirs.
    """

    n_pairs: int
    draws: int
    circuit: Estimate
    rank_p: float
    p_holm: float | None = None


@dataclass(frozen=True)
class Composite:
    """Union or intersection of two tasks' circuits: its size and its faithfulness on both."""

    of: list[str]
    kind: str
    n_edges: int
    faithfulness: dict[str, Estimate]


@dataclass(frozen=True, kw_only=True, repr=False)
class Generality(Result):
    """What `measure_generality` found; matrices have circuits downwards and tasks across.

    Attributes:
        model, method, ablated_by, seed: what circuits were found in and by, and what stood in for cut edges.
        settings: sizes and levels.
        tasks: their names.
        n_edges: of each task's circuit.
        faithfulness: of every circuit on every task, with intervals.
        overlap: chance-corrected Jaccard index of their edges.
        shared: nodes and edges that every two circuits share, beside chance.
        lost: share of a task's effect that is lost without a circuit.
        generality: mean faithfulness on other tasks over that on the own one.
        specificity: how much more a task loses with its own circuit than with another's.
        random: random circuits of each task's size, beside its own on the same pairs.
        composites: unions and intersections of every two circuits, of the larger one's size, on both tasks.
        transfer: what a tuned model lost, where its change collides with the circuits, what reverting brings back.
        prevention: whether freezing the nodes of conflict before tuning spares the other tasks.
    """

    schema: ClassVar[str] = "generality"
    file: ClassVar[str] = "generality.json"

    model: str
    method: str
    ablated_by: str
    seed: int
    settings: dict[str, Any]
    tasks: list[str]
    n_edges: dict[str, int]
    faithfulness: list[list[Estimate]]
    overlap: list[list[float]]
    shared: list[SharedPair]
    lost: list[list[float | None]]
    generality: float | None
    specificity: float | None
    random: dict[str, BesideRandom]
    composites: list[Composite]
    transfer: Damage | None = None
    prevention: Prevention | None = None

    def rows(self) -> Iterator[dict[str, Any]]:
        """A row a circuit: its faithfulness on every task."""
        for name, row in zip(self.tasks, self.faithfulness, strict=True):
            on = {task: cell.value for task, cell in zip(self.tasks, row, strict=True)}
            yield {"circuit": name, "n_edges": self.n_edges[name], **on}


@dataclass(frozen=True)
class _Task:
    """One task: its circuit and its held-out pairs."""

    circuit: Circuit
    bed: TestBed

    @property
    def kept(self) -> Bool[Tensor, "copies edge"]:
        """Its edges."""
        return self.circuit.kept


@dataclass(frozen=True)
class _Page:
    """Settings of all parts, and the claims that the page makes."""

    n_tasks: int
    tuned: bool
    control_pairs: int
    draws: int | None
    seed: int

    @property
    def others(self) -> int:
        """Claims of every task beside overlaps: circuit against random ones; of a tuned model conflict, reverting."""
        return (3 if self.tuned else 1) * self.n_tasks

    @property
    def most(self) -> int:
        """Random draws that are enough for all claims of the page."""
        return self.draws or enough_draws(TESTS * self.n_tasks * (self.n_tasks - 1) // 2 + self.others)


@checks_arguments
def measure_generality(
    tasks: Mapping[str, tuple[Workbench, EdgeScores]],
    tuned: Subject | None = None,
    *,
    pairs: int = 32,
    control_pairs: int = 16,
    draws: int | None = None,
    chance: float = 0.02,
    min_effect: float = 0.05,
    alpha: float = 0.05,
    revert: int = 4,
    prevent: Callable[[Mapping[str, Circuit]], Prevention] | None = None,
    seed: int = 0,
) -> Generality:
    """Measure the circuits of all tasks on all tasks.

    Args:
        tasks: one model with each task's pairs, and the scores that its circuit is cut from.
        tuned: a tuned model, to ask why it got worse at some tasks.
        pairs: test pairs of each task.
        control_pairs: test pairs for random circuits.
        draws: at most so many random circuits, and random sets of nodes; None takes as many as significance needs.
        chance: accuracy of guessing.
        min_effect: smallest change that counts.
        alpha: level of the tests of what changed.
        revert: nodes whose weights are put back.
        prevent: what `compare_freezing` finds, given each task's circuit.
        seed: of all random draws.

    Raises:
        UserError: fewer than two tasks, a setting out of its range, scores by token role, pairs without wrong answers,
            or a tuned model of another graph or vocabulary.
    """
    if len(tasks) < 2:
        raise UserError("a comparison needs two tasks or more")
    check_shares(chance=chance, min_effect=min_effect, alpha=alpha)
    if min(pairs, control_pairs, revert) < 1:
        raise UserError("pairs, control_pairs and revert must be at least 1")
    bench, scores = next(iter(tasks.values()))
    if tuned is not None:
        check_same_graph(bench.subject, tuned)
        check_same_vocabulary(bench.subject, tuned)
    page = _Page(len(tasks), tuned is not None, control_pairs, draws, seed)
    made = {name: _task(name, bench, scores, pairs) for name, (bench, scores) in tasks.items()}
    circuits = {name: task.circuit for name, task in made.items()}
    with phase("matrices", f"{len(made)} circuits on {len(made)} tasks, and random ones"):
        found: dict[str, Any] = _matrices(page, made) | {"composites": _composites(made)}
    if tuned is not None:
        with phase("transfer", "Looking for what the tuned model lost, and reverting nodes"):
            pairs_of = {name: task.bed.batches for name, task in made.items()}
            counts = Levels(chance, min_effect, alpha, revert, page.most, seed)
            found["transfer"] = find_damage(bench.subject, tuned, circuits, pairs_of, counts)
    if prevent is not None:
        found["prevention"] = prevent(circuits)
    levels = {"chance": chance, "min_effect": min_effect, "alpha": alpha, "revert": revert}
    result = Generality(
        model=bench.subject.name,
        method=scores.method,
        ablated_by=bench.references.kind,
        seed=seed,
        settings={"pairs": pairs, "control_pairs": control_pairs, "draws": draws, **levels},
        tasks=list(made),
        n_edges={name: int(task.kept.sum()) for name, task in made.items()},
        **found,
    )
    return with_holm(result)


def _task(name: str, bench: Workbench, scores: EdgeScores, pairs: int) -> _Task:
    if scores.roles:
        raise UserError(f"{name} has masks for token roles, which other tasks lack; use mask.roles=false")
    bed = TestBed.of(bench, bench.data.test, bench.data.test.spread(pairs))
    if not bool(bed.full.metric.isfinite().all()):
        raise UserError(f"task {name} has pairs without wrong answers, so there is no metric to change")
    return _Task(bench.cut(scores), bed)


def _matrices(case: _Page, tasks: dict[str, _Task]) -> dict[str, Any]:
    """F, O and D, the figures made of them, and what random circuits reach."""
    members = list(tasks.values())

    def faithfulness(kept: Tensor, bed: TestBed) -> Any:
        return summarise([bed.run(kept)], bed.full, bed.corrupted).faithfulness

    f = [[faithfulness(one.kept, two.bed) for two in members] for one in members]
    d = [[faithfulness(~one.kept, two.bed) for two in members] for one in members]
    lost = [[None if cell.value is None else 1 - cell.value for cell in row] for row in d]
    values = [[cell.value for cell in row] for row in f]
    return {
        "faithfulness": f,
        **_shared(case, tasks),
        "lost": lost,
        "generality": generality(values),
        "specificity": ablation_specificity(lost),
        "random": {name: _random(case, task) for name, task in tasks.items()},
    }


def _shared(case: _Page, tasks: dict[str, _Task]) -> dict[str, Any]:
    """What every two circuits share beside chance, and as a matrix J* of their edges under the strictest null."""
    circuits = {name: task.circuit for name, task in tasks.items()}
    found = shared_by_pairs(circuits, case.seed, case.others)
    alike = {frozenset(pair): shared.edges.corrected for pair, shared in found.items()}
    return {
        "overlap": [[alike.get(frozenset((one, two)), 1.0) for two in tasks] for one in tasks],
        "shared": [SharedPair(of=list(pair), **vars(shared.figures())) for pair, shared in found.items()],
    }


def _random(case: _Page, task: _Task) -> BesideRandom:
    """Faithfulness of random circuits of the same size, and the task's own circuit by KL among them, on the same pairs.

    The pairs are of every sentence.
    """
    bed = task.bed
    pairs = min(max(case.control_pairs, len(bed.full.group.unique())), len(bed.full.kl))
    own, count = bed.run(task.kept, pairs), int(task.kept.sum())
    most = case.most
    drawn = (bed.run(random_circuit(bed.model.graph, count, seed), pairs) for seed in range(most))
    closeness = -float(own.kl.mean())
    found = until_clear([closeness], drawn, lambda one: [-float(one.kl.mean())])
    return BesideRandom(
        **vars(summarise(found, bed.full, bed.corrupted).faithfulness),
        n_pairs=pairs,
        draws=len(found),
        circuit=summarise([own], bed.full, bed.corrupted).faithfulness,
        rank_p=rank_p(closeness, [-float(one.kl.mean()) for one in found]),
    )


def _composites(tasks: dict[str, _Task]) -> list[Composite]:
    """Union and intersection of every two circuits, of the size of the larger one, on both tasks."""
    found = []
    for one, two in combinations(tasks, 2):
        count = max(int(tasks[name].kept.sum()) for name in (one, two))
        for kind, kept in composites(tasks[one].circuit, tasks[two].circuit, count).items():
            on = {}
            for name in (one, two):
                bed = tasks[name].bed
                on[name] = summarise([bed.run(kept)], bed.full, bed.corrupted).faithfulness
            found.append(Composite([one, two], kind, int(kept.sum()), on))
    return found
