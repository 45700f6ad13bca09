"""Which edges of a circuit tuning added, removed, strengthened or left, against the noise of the scores themselves."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from circuitlit.errors import UserError
from circuitlit.evaluate.similarity import corrected_jaccard, corrected_jaccards
from circuitlit.graph import Circuit, EdgeScores, Graph, top_k
from circuitlit.graph.scores import normalised
from circuitlit.graph.select import edges_from

LABELS = ("absent", "added", "removed", "strengthened", "weakened", "modified", "reused", "uncertain")
MINIMUM = 10  # resamples


@dataclass(frozen=True)
class Resampled:
    """One model's scores on all training pairs and on bootstrap resamples of them.

    Attributes:
        scores: on all pairs.
        resamples: on resamples, the same ones for both models, at least ten.
        count: edges that its circuit keeps.
    """

    scores: EdgeScores
    resamples: list[EdgeScores]
    count: int

    def __post_init__(self) -> None:
        if len(self.resamples) < MINIMUM:
            raise UserError(f"{len(self.resamples)} resamples are too few for a noise floor; take at least {MINIMUM}")

    @cached_property
    def circuit(self) -> Circuit:
        """The circuit of all pairs."""
        return Circuit.cut(self.scores, self.count)

    @cached_property
    def kept(self) -> Bool[Tensor, "edge"]:
        """The edges of the circuit of all pairs."""
        return kept_edges(self.scores, self.count)

    @cached_property
    def shares(self) -> Float[Tensor, "resample edge"]:
        """Each edge's share of the weight of each resample's circuit; 0 outside of it."""
        weights = [scores.weight * top_k(scores.order, self.count) for scores in self.resamples]
        return torch.stack([normalised(weight) for weight in weights])

    @cached_property
    def circuits(self) -> Bool[Tensor, "resample edge"]:
        """Each resample's circuit."""
        return torch.stack([kept_edges(scores, self.count) for scores in self.resamples])

    @cached_property
    def overlaps(self) -> list[float]:
        """Corrected Jaccard of every two resamples' circuits."""
        return corrected_jaccards(self.circuits)

    @property
    def inclusion(self) -> Float[Tensor, "edge"]:
        """Share of resamples whose circuit holds the edge."""
        return self.circuits.float().mean(0)


def kept_edges(scores: EdgeScores, count: int) -> Bool[Tensor, "edge"]:
    """The circuit of `count` masks as a set of edges; an edge without any score is in no circuit."""
    return (top_k(scores.order, count) & (scores.signed != 0)).any(0)


@dataclass(frozen=True)
class CircuitDifference:
    """Base circuit against tuned circuit.

    Attributes:
        graph: the edges' order.
        labels: index into `LABELS` for each edge.
        ratio: `log(s1 / s0)` of the edge's shares of the circuits' weights, NaN where one of them is 0.
        low, high: 95 % interval of `ratio` over those paired resamples that have the edge in both circuits.
        change: of the edge's share, tuned minus base.
        inclusion: share of resamples whose circuit holds the edge, base and tuned.
        distance: 1 - corrected Jaccard of the two circuits; 0 is equal, 1 no more alike than random ones.
        floor: the 95th percentile of that distance within a model, between its resamples: both models', every pair.
        effect: `distance` over the median of those; None where they are all 0.
        overlap_floor: 5th percentile of the corrected Jaccard within a model.
    """

    graph: Graph
    labels: Int[Tensor, "edge"]
    ratio: Float[Tensor, "edge"]
    low: Float[Tensor, "edge"]
    high: Float[Tensor, "edge"]
    change: Float[Tensor, "edge"]
    inclusion: Float[Tensor, "model edge"]
    distance: float
    floor: float
    effect: float | None
    overlap_floor: float

    def edges(self, label: str) -> Bool[Tensor, "edge"]:
        """The edges of one label."""
        return self.labels == LABELS.index(label)

    @property
    def changed(self) -> bool:
        """True where the circuits differ by more than resampling the training pairs does within a model."""
        return self.distance > self.floor

    @property
    def counts(self) -> dict[str, int]:
        """Edges of each label."""
        return {label: int(self.edges(label).sum()) for label in LABELS}

    def names(self, label: str, most: int = 20) -> list[str]:
        """The edges of one label whose shares changed most."""
        edges = self.edges(label).nonzero()[:, 0]
        order = edges[self.change[edges].abs().argsort(descending=True, stable=True)][:most]
        return [self.graph.edge_name(edge) for edge in order.tolist()]


def circuit_difference(
    base: Resampled,
    tuned: Resampled,
    delta: float = math.log(1.5),
    sure: float = 0.9,
    fits_back: Mapping[str, bool | None] | None = None,
) -> CircuitDifference:
    """Label every edge.

    An edge is added (removed) where at most 0.1 of the base (tuned) resamples hold it and at least 0.9 of the others;
    retained where 0.9 of both do, absent where 0.1 of both do, and uncertain otherwise. A retained edge whose effect
    changes sign (gates have none), or whose writer's function changed, is modified; it is strengthened (weakened) where
    its share of the circuit's weight grew (shrank) by more than `delta` in logarithm and the interval excludes no
    change; else it is reused.

    Args:
        base: of the model before tuning.
        tuned: of the model after it.
        delta: least change of a share, in nats.
        sure: share of resamples from which on an edge counts as there.
        fits_back: of nodes that were swapped, whether the tuned one does in the base model; False makes its retained
            edges modified, None (not decided) uncertain.

    Raises:
        UserError: the graphs differ.
    """
    graph = base.scores.graph
    if tuned.scores.graph != graph:
        raise UserError("the two circuits are of different graphs; compare models of one architecture and size")
    before, after = base.inclusion, tuned.inclusion
    if len(base.resamples) != len(tuned.resamples):
        raise UserError("both models need the same resamples of the training pairs")
    ratio = log_ratio(base.circuit.shares, tuned.circuit.shares)
    quantiles = torch.tensor([0.025, 0.975], dtype=torch.float64)
    low, high = torch.nanquantile(log_ratio(base.shares, tuned.shares), quantiles, dim=0)
    flipped = base.scores.signed.sum(0).sign() * tuned.scores.signed.sum(0).sign() < 0
    swapped = fits_back or {}
    flipped |= edges_from(graph, [node for node, fits in swapped.items() if fits is False])
    unsure = edges_from(graph, [node for node, fits in swapped.items() if fits is None])
    labels = _labels(before, after, (ratio, low, high), flipped, unsure, delta, sure)
    overlaps = torch.tensor([*base.overlaps, *tuned.overlaps], dtype=torch.float64)
    distance = 1 - corrected_jaccard(base.kept, tuned.kept)
    median = float((1 - overlaps).median())
    return CircuitDifference(
        graph=graph,
        labels=labels,
        ratio=ratio,
        low=low,
        high=high,
        change=tuned.circuit.shares - base.circuit.shares,
        inclusion=torch.stack([before, after]),
        distance=distance,
        floor=float(torch.quantile(1 - overlaps, 0.95)),
        effect=distance / median if median else None,
        overlap_floor=float(torch.quantile(overlaps, 0.05)),
    )


def log_ratio(base: Float[Tensor, "*some edge"], tuned: Float[Tensor, "*some edge"]) -> Float[Tensor, "*some edge"]:
    """`log(tuned / base)`, NaN where one of them is 0."""
    return torch.where((base > 0) & (tuned > 0), (tuned / base).log(), torch.nan)


def _labels(
    before: Float[Tensor, "edge"],
    after: Float[Tensor, "edge"],
    change: tuple[Float[Tensor, "edge"], Float[Tensor, "edge"], Float[Tensor, "edge"]],
    flipped: Bool[Tensor, "edge"],
    unsure: Bool[Tensor, "edge"],
    delta: float,
    sure: float,
) -> Int[Tensor, "edge"]:
    """Numbers of the labels from both inclusions and from a share's change in logarithm with its interval."""
    ratio, low, high = change
    retained = (before >= sure) & (after >= sure)
    rules = {
        "absent": (before <= 1 - sure) & (after <= 1 - sure),
        "added": (before <= 1 - sure) & (after >= sure),
        "removed": (before >= sure) & (after <= 1 - sure),
        "reused": retained,
        "strengthened": retained & (ratio > delta) & (low > 0),
        "weakened": retained & (ratio < -delta) & (high < 0),
        "uncertain": retained & unsure,
        "modified": retained & flipped,
    }
    labels = torch.full((len(before),), LABELS.index("uncertain"))
    for label, where in rules.items():
        labels[where] = LABELS.index(label)
    return labels


def change_rates(circuits: list[Bool[Tensor, "edge"]]) -> list[dict[str, float]]:
    """Additions and deletions from each circuit of a series to the next.

    Returns:
        For each transition `added`, `removed` (edges), `of_first` (both over the size of the first circuit) and
        `of_union` (both over the union of the two: the Jaccard distance, between 0 and 1).

    Source: Wang et al., arXiv 2502.11812, divide nodes by all nodes of the graph and edges by those of the first
    circuit, and count no deletions; here nodes and edges have the same denominators and deletions count.
    """
    rates = []
    for one, other in pairwise(circuits):
        added, removed = int((other & ~one).sum()), int((one & ~other).sum())
        union, first = int((one | other).sum()), int(circuits[0].sum())
        rates.append(
            {
                "added": added,
                "removed": removed,
                "of_first": (added + removed) / first if first else math.nan,
                "of_union": (added + removed) / union if union else 0.0,
            }
        )
    return rates
