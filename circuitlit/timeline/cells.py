"""What is kept of one checkpoint: a task, the scores of its heads, the ablation of its induction heads."""

from __future__ import annotations

from dataclasses import dataclass, field

from circuitlit.evaluate import Estimate, Summary
from circuitlit.evaluate.behaviour import Behaviour
from circuitlit.heads.algorithm import Share
from circuitlit.heads.backup import Backup
from circuitlit.timeline.series import Noise


@dataclass(frozen=True, kw_only=True)
class MeasuredCircuit(Summary):
    """A circuit on held-out pairs.

    Attributes:
        n_edges, n_edges_reachable, n_nodes: its size.
        heads: names of those it has.
    """

    n_edges: int
    n_edges_reachable: int
    n_nodes: int
    heads: list[str]


@dataclass(frozen=True, kw_only=True)
class SmallestCircuit(MeasuredCircuit):
    """The smallest circuit found that is faithful enough; see `Smallest`.

    Attributes:
        status: "OK", or "FAILED" where no size reaches the target.
        value, target: faithfulness on validation pairs, found and asked for.
        tried: sizes looked at and their faithfulness.
    """

    status: str
    value: float | None
    target: float
    tried: tuple[tuple[int, float], ...]


@dataclass(frozen=True, kw_only=True)
class AlgorithmParts:
    """The IOI algorithm at one checkpoint.

    Attributes:
        of: the heads that shares are of.
        shares: of the effects, by part (B, C, D).
        roles: heads by their part.
        backup: who takes over when the name movers are ablated; None where it was not asked.
    """

    of: str
    shares: dict[str, Share]
    roles: dict[str, list[str]]
    backup: Backup | None = None


@dataclass(frozen=True, kw_only=True)
class TaskAtCheckpoint:
    """One task at one checkpoint.

    Attributes:
        status: "OK"; "FAILED" where no circuit is faithful enough, or there is nothing to explain; "UNSEARCHED".
        reason: of a failure.
        n_edges_total, n_nodes_total: of the graph.
        method: that scored the edges.
        behaviour: of the model on held-out pairs.
        circuit: of equal size at every checkpoint.
        smallest, smallest_raw: smallest ones by normalised and by raw faithfulness.
        algorithm: the IOI algorithm's parts, where asked for.
        cold_overlap: J* with the circuit of masks that did not begin with those of the checkpoint before.
        noise: of bootstrap samples of the training pairs.
    """

    status: str
    reason: str | None
    n_edges_total: int
    n_nodes_total: int
    method: str
    behaviour: Behaviour
    circuit: MeasuredCircuit
    smallest: SmallestCircuit | None
    smallest_raw: SmallestCircuit | None
    algorithm: AlgorithmParts | None = None
    cold_overlap: float | None = None
    noise: Noise | None = None

    @property
    def faithful(self) -> SmallestCircuit | None:
        """The smallest circuit, where one is faithful enough."""
        return self.smallest if self.status == "OK" else None


@dataclass(frozen=True, kw_only=True)
class HeadsAtCheckpoint:
    """Scores of all heads of one checkpoint.

    Attributes:
        n_parameters: of the model.
        scores: by role, of every head.
        loss, accuracy: of the model on repeated random tokens.
    """

    n_parameters: int
    scores: dict[str, dict[str, float]]
    loss: float
    accuracy: float


@dataclass(frozen=True, kw_only=True)
class Ablated:
    """What ablating heads does to a behaviour, see `CausalCheck`.

    Attributes:
        heads: their names.
        intact, effect, random, difference, rank_p, draws: of the check.
        bystanders: change with random heads that have no pattern of attention; None where there are too few.
        p_holm: corrected for all claims of the result.
        gain: since the first checkpoint.
        share, random_share, bystander_share: of the gain that is gone; 1 removes it.
    """

    heads: list[str]
    intact: Estimate
    effect: Estimate
    random: Estimate
    difference: Estimate
    rank_p: float
    draws: int
    bystanders: Estimate | None
    p_holm: float | None = None
    gain: float | None = None
    share: float | None = None
    random_share: float | None = None
    bystander_share: float | None = None


@dataclass(frozen=True, kw_only=True)
class InductionCheck:
    """Ablating the induction heads of the last checkpoint.

    Attributes:
        status: "OK", or "NOT MEASURABLE" where there are none, or nothing else.
        reason: why it is not measurable.
        heads: ablated.
        n_above, n_heads: heads above the threshold, and all.
        loss, accuracy: on repeated random tokens.
    """

    status: str
    reason: str | None = None
    heads: list[str] = field(default_factory=list)
    n_above: int = 0
    n_heads: int = 0
    loss: Ablated | None = None
    accuracy: Ablated | None = None
