"""What a study found, as `study.json` holds it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from circuitlit.evaluate.agreement import Agreements
from circuitlit.evaluate.similarity import Spread
from circuitlit.evaluate.statistics import Estimate
from circuitlit.evaluate.summary import Summary
from circuitlit.result import Result


@dataclass(frozen=True, kw_only=True)
class StudiedTask:
    """A task and what it is measured against.

    Attributes:
        task: its label.
        n_pairs, n_train: held-out pairs and training pairs.
        n_edges_total: edges of the graph.
        full, corrupted: the full model and the corrupted run on the held-out pairs.
        published: the task's published measures of both; None without any.
    """

    task: str
    n_pairs: int
    n_train: int
    n_edges_total: int
    full: Summary
    corrupted: Summary
    published: dict[str, dict[str, Estimate]] | None = None


@dataclass(frozen=True, kw_only=True)
class Consensus:
    """Edges that several seeds' circuits share.

    Attributes:
        share: of the circuits that an edge is in.
        n_edges, n_edges_reachable: in that share of them, and those of them that can matter.
        n_edges_in_all: in all of them.
    """

    share: float
    n_edges: int
    n_edges_reachable: int
    n_edges_in_all: int


@dataclass(frozen=True, kw_only=True)
class MethodRow(Summary):
    """A method on a task at a sparsity; with several circuits, intervals resample circuits and pairs.

    Attributes:
        task, method: their labels.
        kind: "control", "attribution" or "learner".
        sparsity: share of the edges removed.
        n_edges, n_edges_reachable: kept, and mean of those that can matter.
        n_circuits, n_pairs: that it was measured with.
        ranking: of an attribution, chosen on validation pairs.
        seconds: of scoring or training, mean over circuits.
        cpr, cmd, cpr_anchored, cmd_anchored: areas over the size curve, see `Curve`.
        noise: likeness of an attribution's circuits from bootstrap samples of the training pairs.
        seeds_overlap: likeness of a learner's circuits over seeds.
        consensus: edges that these share.
        agreement: with what the model says, apart where it is right and where it is wrong; None of controls.
        published: the task's published measures; None without any.
    """

    task: str
    method: str
    kind: str
    sparsity: float
    n_edges: int
    n_edges_reachable: float | None
    n_circuits: int
    n_pairs: int
    ranking: str | None
    seconds: float
    cpr: Estimate | None = None
    cmd: Estimate | None = None
    cpr_anchored: Estimate | None = None
    cmd_anchored: Estimate | None = None
    noise: Spread | None = None
    seeds_overlap: Spread | None = None
    consensus: Consensus | None = None
    agreement: Agreements | None = None
    published: dict[str, Estimate] | None = None

    @property
    def label(self) -> str:
        """Name of the method, with the number of its circuits."""
        return f"{self.method}, mean of {self.n_circuits}" if self.n_circuits > 1 else self.method


@dataclass(frozen=True, kw_only=True)
class LearnedMinusAttribution(Estimate):
    """Mean KL of a learner's circuits minus that of the best attribution, pair by pair; below 0 the learner is closer.

    Attributes:
        task, sparsity, learner: whose circuits.
        attribution: chosen on validation pairs.
        n_seeds: circuits of the learner.
    """

    task: str
    sparsity: float
    learner: str
    attribution: str
    n_seeds: int


@dataclass(frozen=True, kw_only=True)
class Wins:
    """Tasks on which a learner is clearly closer to the model than the best attribution, farther, or neither.

    Clearly: by 95 % intervals that hold for all comparisons of the study together (Bonferroni).
    """

    learner: str
    sparsity: float
    won: list[str]
    lost: list[str]
    open: list[str]


@dataclass(frozen=True, kw_only=True)
class FewestEdges:
    """Edges that a method needs for the KL of one attribution.

    Attributes:
        task, method: whose.
        kl: to be reached, nats.
        attribution, attribution_edges: the attribution that has it, and with how many edges.
        n_edges: that the method needs, mean over seeds; None where one never reaches it.
        times_fewer: attribution_edges over n_edges.
        trained_at: sparsity that the learner was trained at.
    """

    task: str
    method: str
    kl: float
    attribution: str
    attribution_edges: int
    n_edges: float | None
    times_fewer: float | None
    trained_at: float | None


@dataclass(frozen=True, kw_only=True)
class MethodRanking:
    """The methods of a task at a sparsity by one figure, the best first; those that lack it are left out.

    Attributes:
        task, sparsity: of the circuits.
        figure: "KL"; "J* over resampled pairs" of attributions, and "over seeds" of learners, the more the better; or
            "kappa of errors": right and wrong on the same pairs as the model, the more the better.
        methods, values: in their order.
    """

    task: str
    sparsity: float
    figure: str
    methods: list[str]
    values: list[float]


@dataclass(frozen=True, kw_only=True)
class FailedCell:
    """A cell that could not be made, and why."""

    cell: str
    error: str


@dataclass(frozen=True, kw_only=True, repr=False)
class MethodStudy(Result):
    """What `compare_methods` found.

    Attributes:
        status: "OK", or "FAILED" where a cell could not be made.
        model: its name.
        tasks: with full model and corrupted run.
        methods: every method on every task at every sparsity.
        learned_minus_attribution_kl: each learner beside the best attribution.
        wins: over tasks.
        rankings: of the methods, by KL, by stability and by the model's errors.
        fewest_edges: that each method needs for one attribution's KL.
        failed: cells.
    """

    schema: ClassVar[str] = "study"
    version: ClassVar[int] = 2
    file: ClassVar[str] = "study.json"

    status: Literal["OK", "FAILED"]
    model: str
    tasks: list[StudiedTask]
    methods: list[MethodRow]
    learned_minus_attribution_kl: list[LearnedMinusAttribution]
    wins: list[Wins]
    rankings: list[MethodRanking]
    fewest_edges: list[FewestEdges]
    failed: list[FailedCell]

    def rows(self) -> Iterator[dict[str, Any]]:
        """A row for each method, task and sparsity."""
        for row in self.methods:
            names = ("task", "method", "kind", "sparsity", "n_edges", "n_circuits")
            estimates = {name: getattr(row, name) for name in ("kl", "faithfulness", "accuracy", "cpr", "cmd")}
            values = {name: None if one is None else one.value for name, one in estimates.items()}
            yield {name: getattr(row, name) for name in names} | values | {"seconds": row.seconds}
