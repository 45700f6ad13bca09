"""A study's settings, and its cells: what each one is called, and what its file holds."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from circuitlit.arguments import check_once, check_resamples
from circuitlit.errors import UserError
from circuitlit.evaluate.similarity import Spread
from circuitlit.evaluate.statistics import Estimate
from circuitlit.files import file_name
from circuitlit.objective import Outcome

ByPair = dict[str, list[float | None]]  # an outcome's values; NaN is None
BySize = list[tuple[int, float]]  # edges kept and KL, ascending


@dataclass(frozen=True)
class Match:
    """The attribution whose KL others are to reach.

    Attributes:
        method: its label.
        sparsity: of its circuit; None takes its first one.
    """

    method: str
    sparsity: float | None = None


@dataclass(frozen=True, kw_only=True)
class StudySettings:
    """What is measured in a study.

    Attributes:
        sparsities: shares of the edges removed, each in (0, 1).
        seeds: of mask runs; their circuits are compared with each other.
        resamples: bootstrap samples of the training pairs for each attribution's noise floor; 0 makes none.
        curve_pairs: test pairs of the size curves; 0 draws none.
        controls, control_pairs: random circuits at every sparsity, and the test pairs that they run on.
        probe_pairs: validation pairs that rankings are chosen on.
        min_accuracy: share of right answers below which no circuit is sought for a task.
        consensus: share of a learner's circuits that an edge of their consensus is in.
        seed: of attributions.
        match: the attribution for whose KL the fewest edges are counted; None counts none.
        published_pairs: test pairs for a task's published measures; 0 leaves them out; None: see `measure_published`.
    """

    sparsities: Sequence[float] = (0.9, 0.95, 0.98)
    seeds: Sequence[int] = (0, 1, 2, 3, 4)
    resamples: int = 10
    curve_pairs: int = 16
    controls: int = 40
    control_pairs: int = 8
    probe_pairs: int = 32
    min_accuracy: float = 0.0
    consensus: float = 0.5
    seed: int = 0
    match: Match | None = None
    published_pairs: int | None = None

    def __post_init__(self) -> None:
        """Refuse what no study can be made with.

        Raises:
            UserError: sparsities that are none, one or a seed twice, a single resample, or a match without curves.
        """
        check_resamples(self.resamples)
        if not self.sparsities or not all(isinstance(at, int | float) and 0 < at < 1 for at in self.sparsities):
            raise UserError(f"sparsities={list(self.sparsities)} are not shares between 0 and 1")
        for name in ("sparsities", "seeds"):
            check_once(name, getattr(self, name))
        if self.match and self.curve_pairs < 1:
            raise UserError("match compares on the curves' pairs; set curve_pairs to at least 1")

    def check_match(self, attributions: Collection[str]) -> None:
        """Refuse a match that is not among some attributions and the sparsities.

        Raises:
            UserError: it is not.
        """
        one = self.match
        if one and (one.method not in attributions or one.sparsity not in (None, *self.sparsities)):
            raise UserError(f"match: {one.method} at {one.sparsity} is not among the attributions and sparsities")


@dataclass(frozen=True)
class Cell:
    """One file of a study.

    Attributes:
        task: label of the task.
        kind: what it holds.
        method: label of the method; empty for the task's own file.
        sparsity: of a learner's cell; None where the cell holds all sparsities.
        seed: of a learner's cell.
    """

    task: str
    kind: Literal["task", "control", "attribution", "learner"]
    method: str = ""
    sparsity: float | None = None
    seed: int | None = None

    @property
    def name(self) -> str:
        """Name of the cell's file and folder."""
        parts = [self.task, self.kind, self.method]
        parts += [] if self.sparsity is None else [f"{self.sparsity:g}"]
        parts += [] if self.seed is None else [f"seed{self.seed}"]
        return "--".join(file_name(part) for part in parts if part)


def check_names(cells: Iterable[Cell]) -> None:
    """Refuse cells of one name: the second one would be reported with what the first one found.

    Raises:
        UserError: there are some.
    """
    first: dict[str, Cell] = {}
    for cell in cells:
        twin = first.setdefault(cell.name, cell)
        if twin != cell:
            one, other = (f"{own.task} {own.method} {own.sparsity or ''}".strip() for own in (twin, cell))
            raise UserError(f"study: '{one}' and '{other}' would share the file {cell.name}; call one otherwise")


@dataclass(frozen=True, kw_only=True)
class TaskEnds:
    """Full model and corrupted run on a task's held-out pairs.

    Attributes:
        behaviour: what the model does on the task.
        n_pairs, n_train: held-out pairs and training pairs.
        n_edges_total: edges of the graph.
        full, corrupted: pair by pair.
        published: its published measures of both, pair by pair, and the pairs' sentences (`groups`).
    """

    behaviour: dict[str, Any]
    n_pairs: int
    n_train: int
    n_edges_total: int
    full: ByPair
    corrupted: ByPair
    published: dict[str, ByPair] | None = None


@dataclass(frozen=True, kw_only=True)
class Cut:
    """One circuit of a cell.

    Attributes:
        sparsity: share of the edges removed.
        n_edges, n_edges_reachable: kept, and those of them that can matter.
        ranking, select: how edges were ranked and cut.
        val_kl: mean KL on validation pairs, nats; None where the task has none.
        by_pair: what it does on held-out pairs.
        noise: likeness of circuits from bootstrap samples of the training pairs.
        published: the task's published measures, pair by pair; None where they were not measured.
    """

    sparsity: float
    n_edges: int
    n_edges_reachable: int | None = None
    ranking: str | None = None
    select: str | None = None
    val_kl: float | None = None
    by_pair: ByPair
    noise: Spread | None = None
    published: ByPair | None = None


@dataclass(frozen=True, kw_only=True)
class Areas:
    """Areas over a method's size curve, see `Curve`."""

    ranking: str
    cpr: Estimate
    cmd: Estimate
    cpr_anchored: Estimate
    cmd_anchored: Estimate


@dataclass(frozen=True, kw_only=True)
class Circuits:
    """The circuits of one method on one task, or of one mask run.

    Attributes:
        rows: one a sparsity; of random circuits several.
        seconds: that scoring or training took.
        details: of the scores.
        curve: areas over MIB's sizes.
        kl_by_size, val_kl_by_size: mean KL at some numbers of edges, on the curve's test pairs and on validation pairs.
    """

    rows: list[Cut]
    seconds: float
    details: dict[str, Any] = field(default_factory=dict)
    curve: Areas | None = None
    kl_by_size: BySize = field(default_factory=list)
    val_kl_by_size: BySize = field(default_factory=list)


def by_pair(outcome: Outcome) -> ByPair:
    """An outcome as plain lists."""
    return lists(vars(outcome))


def lists(columns: Mapping[str, Tensor]) -> ByPair:
    """Numbers of each pair as plain lists."""
    return {name: values.tolist() for name, values in columns.items()}


def outcome_of(lists: ByPair) -> Outcome:
    """The outcome that `by_pair` made plain."""
    return Outcome(**{k: torch.tensor([math.nan if v is None else v for v in row]) for k, row in lists.items()})
