"""What ablating, scaling and transferring nodes shows: the figures of `Interventions`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from circuitlit.compare.effects import Effect
from circuitlit.evaluate import Estimate


@dataclass(frozen=True)
class Cumulative:
    """The best nodes ablated together: how many, the last one added, the metric's drop, and that of random sets."""

    nodes: int
    added: str
    drop: Estimate
    kl: float
    random: Estimate
    overlap: float


@dataclass(frozen=True)
class SetAblation:
    """The chosen nodes ablated together, beside random sets like them.

    Attributes:
        nodes: the set.
        drop, random: the metric lost, by the set and by random ones.
        rank_p, p_holm: rank of the set's drop among theirs, and the same corrected for the page's claims.
        draws: random sets tried.
        overlap: mean share of the set that a random one holds, too.
        text_ablated_by: what stood in for the nodes on other text.
        collateral_kl, random_collateral_kl: KL(model || ablated) on other text, nats a token.
        specificity, random_specificity: own task's loss minus the other tasks', in shares of each task's effect; None
            without other tasks.
        own_loss: share of the own task's effect that is lost.
        other_tasks: the same by other task.
    """

    nodes: list[str]
    drop: Estimate
    random: Estimate
    rank_p: float
    draws: int
    overlap: float
    text_ablated_by: str
    collateral_kl: Estimate
    random_collateral_kl: Estimate
    specificity: Estimate | None = None
    random_specificity: Estimate | None = None
    own_loss: float | None = None
    other_tasks: dict[str, float] = field(default_factory=dict)
    p_holm: float | None = None


@dataclass(frozen=True)
class Ablations:
    """Nodes and edges ablated one by one, together, and as the chosen set.

    Attributes:
        nodes, edges: effects, largest drop first.
        random_node, random_edge: mean drop of random ones like them.
        cumulative: the best 1, 2, 4 ... nodes together.
        set: the chosen nodes.
        weights: of every node in the circuit.
        weight: what these weights are.
        level: false discovery rate of the effects' q.
    """

    nodes: list[Effect]
    random_node: Estimate
    edges: list[Effect]
    random_edge: Estimate
    cumulative: list[Cumulative]
    set: SetAblation
    weights: dict[str, float]
    weight: str
    level: float


@dataclass(frozen=True)
class Dose:
    """The chosen nodes' writes times a dose: metric, its change, KL on the pairs and on other text (nats)."""

    dose: float
    metric: Estimate
    change: Estimate
    kl: float
    collateral_kl: Estimate


@dataclass(frozen=True)
class Enhancement:
    """Dose and response of the chosen nodes and of random sets.

    Attributes:
        nodes: the set.
        doses: smallest dose first; 1 is the model as it is.
        slope, random_slope: change of the metric a unit of dose.
        monotonicity, random_monotonicity: Spearman's correlation of response with dose.
        best_dose: with the highest metric.
        random_changes: of each random set, by dose.
        rank_p, p_holm: rank of the slope's size among theirs.
    """

    nodes: list[str]
    doses: list[Dose]
    slope: float
    monotonicity: float
    best_dose: float
    random_changes: list[list[float]]
    random_slope: Estimate
    random_monotonicity: Estimate
    rank_p: float
    p_holm: float | None = None


@dataclass(frozen=True)
class Transferred:
    """The chosen nodes moved from the tuned model into the base: share of the gain, KL on other text (nats a token).

    `draws` are the random sets tried; None in files of earlier versions.
    """

    gain_share: Estimate
    random_gain_share: Estimate | None
    rank_p: float | None
    collateral_kl: Estimate
    random_collateral_kl: Estimate
    draws: int | None = None
    p_holm: float | None = None


@dataclass(frozen=True)
class Transfer:
    """What of a tuned model's gain the chosen nodes carry, by what they write and by their weights.

    Attributes:
        tuned: name and provenance.
        metric_gap: tuned minus base.
        gap_is_clear: whether its interval excludes 0.
        withheld: keys and values that stay the base's, a part of whose heads is moved.
        activations, weights: either way of moving.
    """

    tuned: dict[str, Any]
    metric_gap: Estimate
    gap_is_clear: bool
    withheld: list[str]
    activations: Transferred
    weights: Transferred
