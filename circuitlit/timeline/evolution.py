"""What `follow_checkpoints` found, as `evolve.json` holds it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar

from circuitlit.evaluate.overlap_figures import SharedFigures
from circuitlit.result import Result
from circuitlit.timeline.cells import InductionCheck, TaskAtCheckpoint
from circuitlit.timeline.emergence import SizeRow, Time, Trend
from circuitlit.timeline.handovers import Handover, Role
from circuitlit.timeline.series import Likeness, Noise
from circuitlit.timeline.stages import Timeline


@dataclass(frozen=True, kw_only=True)
class TaskRow(TaskAtCheckpoint):
    """The same in its series.

    Attributes:
        step, tokens: of training behind the checkpoint; tokens are None where unknown.
        likeness: to the checkpoint before and to the last one.
    """

    step: int
    tokens: float | None
    likeness: Likeness


@dataclass(frozen=True, kw_only=True)
class HeadsRow:
    """The same in its series.

    Attributes:
        step, tokens: of training.
        scores, loss, accuracy: see `HeadsAtCheckpoint`.
        best: highest score of each role.
    """

    step: int
    tokens: float | None
    scores: dict[str, dict[str, float]]
    loss: float
    accuracy: float
    best: dict[str, float]


@dataclass(frozen=True, kw_only=True)
class Learned:
    """Means over the checkpoints from emergence on.

    Attributes:
        nodes, edges: of the smallest faithful circuit.
        stability: J* of the nodes of circuits of equal size with the checkpoint before: 1 the same nodes, 0 as
            unrelated circuits; None where those have the same nodes, too.
        shared: tests it, for nodes and edges.
    """

    nodes: float | None
    edges: float | None
    stability: float | None
    shared: SharedFigures | None = None


@dataclass(frozen=True, kw_only=True)
class TaskEvolution:
    """One task over the checkpoints of a series.

    Attributes:
        rows: one a checkpoint.
        noise: of the last one.
        stages: of the series.
        emerged: when the accuracy did.
        learned: means from there on.
        roles: heads of the smallest faithful circuit by what they look at or copy.
        algorithm_roles: heads of the IOI algorithm by their part.
    """

    rows: list[TaskRow]
    noise: Noise
    stages: Timeline
    emerged: Time | None
    learned: Learned
    roles: dict[str, Role]
    algorithm_roles: dict[str, Role]


@dataclass(frozen=True, kw_only=True)
class HeadsEvolution:
    """Head scores over the checkpoints of a series.

    Attributes:
        rows: one a checkpoint.
        emerged: when the best score of each role did.
        handovers: heads that lost a role, by role.
    """

    rows: list[HeadsRow] = field(default_factory=list)
    emerged: dict[str, Time | None] = field(default_factory=dict)
    handovers: dict[str, list[Handover]] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class SeriesEvolution:
    """One training run.

    Attributes:
        name: of the run.
        n_parameters: of its model; None where head scores were left out.
        tasks: by name.
        heads: scores of all heads.
        causal: the induction heads of the last checkpoint ablated.
    """

    name: str
    n_parameters: int | None
    tasks: dict[str, TaskEvolution]
    heads: HeadsEvolution
    causal: InductionCheck | None

    @property
    def knows_tokens(self) -> bool:
        """Whether every checkpoint says how many tokens are behind it."""
        rows = [row for one in (*self.tasks.values(), self.heads) for row in one.rows]
        return all(row.tokens is not None for row in rows)


@dataclass(frozen=True, kw_only=True)
class Claim:
    """One claim of the published account, see `account`.

    Attributes:
        claim: what is published.
        measured: what was found here.
        verdict: "agrees", "disagrees"; "undecided" where the data do not tell, "not measurable" where so few never
            could.
    """

    claim: str
    measured: str
    verdict: str


@dataclass(frozen=True, kw_only=True)
class CellError:
    """A task or the heads of a checkpoint that could not be measured, and why."""

    series: str
    task: str
    step: int
    reason: str


@dataclass(frozen=True, kw_only=True, repr=False)
class Evolution(Result):
    """What `follow_checkpoints` found.

    Attributes:
        status: "OK".
        model: its name.
        tasks: names.
        circuits: how they are found: "attribution" or "masks".
        faithfulness: asked of the smallest circuits.
        threshold: of head scores, above which a head has a role.
        series: training runs.
        sizes: a row a model size.
        trends: of each task with the size of the model.
        account: claims of the published account.
        errors: what could not be measured.
    """

    schema: ClassVar[str] = "evolution"
    file: ClassVar[str] = "evolve.json"

    status: str = "OK"
    model: str
    tasks: list[str]
    circuits: str
    faithfulness: float
    threshold: float
    series: list[SeriesEvolution]
    sizes: list[SizeRow]
    trends: dict[str, dict[str, Trend]]
    account: list[Claim]
    errors: list[CellError]

    @property
    def knows_tokens(self) -> bool:
        """Whether every checkpoint of every series says how many tokens are behind it."""
        return all(one.knows_tokens for one in self.series)

    def rows(self) -> Iterator[dict[str, Any]]:
        """A row for each series, task and checkpoint."""
        for one in self.series:
            for task, found in one.tasks.items():
                for row in found.rows:
                    smallest = row.faithful
                    yield {
                        "series": one.name,
                        "task": task,
                        "step": row.step,
                        "tokens": row.tokens,
                        "status": row.status,
                        "accuracy": row.behaviour.accuracy.value,
                        "kl": row.circuit.kl.value,
                        "smallest_edges": smallest and smallest.n_edges,
                        "smallest_nodes": smallest and smallest.n_nodes,
                        "overlap_last": row.likeness.last.corrected_jaccard,
                    }
