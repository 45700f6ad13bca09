"""Do nodes stay while edges change? Overlap of two circuits in nodes and in edges, corrected for chance and noise."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from circuitlit.compare.difference import Resampled, kept_edges
from circuitlit.evaluate import Estimate
from circuitlit.evaluate.similarity import chance_jaccard, corrected_overlap
from circuitlit.graph import Graph, reachable_edges
from circuitlit.graph.select import nodes_of

DRAWS = 2000


@dataclass(frozen=True)
class Overlap:
    """Two models' circuits as sets of nodes, or of edges.

    Attributes:
        total: of the graph.
        base, tuned: sizes of the two sets.
        jaccard: share of the union that both hold.
        chance: what random sets of these sizes have.
        corrected: (jaccard - chance) / (1 - chance): 1 is the same set, 0 what chance gives.
        between: corrected overlap of a base and a tuned circuit of different resamples of the pairs, mean.
        within: the same of two circuits of one model, mean over both models: what there is without any change.
        kept: between / within: 1 is no more change than resampling brings, 0 no more in common than by chance.
    """

    total: int
    base: int
    tuned: int
    jaccard: float
    chance: float
    corrected: float
    between: Estimate
    within: Estimate
    kept: Estimate


@dataclass(frozen=True)
class Turnover:
    """Nodes and edges side by side.

    Attributes:
        nodes, edges: their overlaps; a node is in a circuit where one of its reachable edges leaves it.
        advantage: `kept` of the nodes minus that of the edges; above 0 nodes stay more than edges do.
        stated: the same of the plain Jaccard overlaps, as published claims compare them; no interval.
    """

    nodes: Overlap
    edges: Overlap
    advantage: Estimate
    stated: float

    @property
    def verdict(self) -> str:
        """Whether nodes stay while edges change."""
        if self.advantage.low is None or self.advantage.high is None:
            return "cannot be told"
        if self.advantage.low > 0:
            return "nodes stay more than edges do"
        return "edges stay more than nodes do" if self.advantage.high < 0 else "nodes and edges change alike"

    def to_dict(self) -> dict[str, Any]:
        """Plain types."""
        return {**asdict(self), "verdict": self.verdict}


def circuit_nodes(graph: Graph, kept: Bool[Tensor, "edge"]) -> Bool[Tensor, "node"]:
    """Heads and MLPs that some edge of a circuit leaves which lies on a path from the input to the logits."""
    return nodes_of(graph, reachable_edges(graph, kept[None]))


def turnover(base: Resampled, tuned: Resampled, seed: int = 0) -> Turnover:
    """Overlap in nodes and in edges of two models' circuits.

    Intervals resample the resamples of the training pairs: two circuits of one and the same resample are never
    compared, so that `between` and `within` differ by nothing but the model.

    Source: the claim is that of Wang et al., arXiv 2502.11812; correction for chance and noise are ours.
    """
    graph = base.scores.graph
    whole = [kept_edges(model.scores, model.count) for model in (base, tuned)]
    edges = [model.circuits for model in (base, tuned)]
    nodes = [torch.stack([circuit_nodes(graph, kept) for kept in side]) for side in edges]
    count = len(base.resamples)
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.cat([torch.arange(count)[None], torch.randint(count, (DRAWS, count), generator=generator)])
    parts = [_Means.of(ours, theirs, drawn) for ours, theirs in (nodes, edges)]
    ends = [circuit_nodes(graph, kept) for kept in whole]
    both = [_overlap(ends[0], ends[1], parts[0]), _overlap(whole[0], whole[1], parts[1])]
    gap = parts[0].kept - parts[1].kept
    return Turnover(both[0], both[1], Estimate.of(gap[0], gap[1:]), both[0].jaccard - both[1].jaccard)


@dataclass(frozen=True)
class _Means:
    """Mean corrected overlaps: of the resamples as they are first, then of drawn ones."""

    between: Float[Tensor, "draw"]
    within: Float[Tensor, "draw"]

    @property
    def kept(self) -> Float[Tensor, "draw"]:
        return self.between / self.within

    @classmethod
    def of(
        cls,
        ours: Bool[Tensor, "resample item"],
        theirs: Bool[Tensor, "resample item"],
        drawn: Int[Tensor, "draw resample"],
    ) -> _Means:
        across = _mean(corrected(ours, theirs), drawn)
        inside = [_mean(corrected(side, side), drawn) for side in (ours, theirs)]
        return cls(across, (inside[0] + inside[1]) / 2)


def corrected(ours: Bool[Tensor, "one item"], theirs: Bool[Tensor, "two item"]) -> Float[Tensor, "one two"]:
    """Overlap of every two sets, corrected for chance."""
    shared = (ours.float() @ theirs.float().T).long().tolist()
    sizes = [side.sum(1).tolist() for side in (ours, theirs)]
    values = [
        [corrected_overlap(shared[i][j], a, b, ours.shape[1]) for j, b in enumerate(sizes[1])]
        for i, a in enumerate(sizes[0])
    ]
    return torch.tensor(values, dtype=torch.float64)


def _mean(values: Float[Tensor, "one two"], drawn: Int[Tensor, "draw resample"]) -> Float[Tensor, "draw"]:
    """Mean over pairs of different resamples; NaN for a draw that holds only one."""
    chosen = values[drawn[:, :, None], drawn[:, None, :]]
    return torch.where(drawn[:, :, None] != drawn[:, None, :], chosen, torch.nan).nanmean((1, 2))


def _overlap(ours: Bool[Tensor, "item"], theirs: Bool[Tensor, "item"], means: _Means) -> Overlap:
    a, b, total = int(ours.sum()), int(theirs.sum()), len(ours)
    shared, union = int((ours & theirs).sum()), int((ours | theirs).sum())
    return Overlap(
        total=total,
        base=a,
        tuned=b,
        jaccard=shared / union if union else 1.0,
        chance=chance_jaccard(min(a, b), max(a, b), total),
        corrected=corrected_overlap(shared, a, b, total),
        between=Estimate.of(means.between[0], means.between[1:]),
        within=Estimate.of(means.within[0], means.within[1:]),
        kept=Estimate.of(means.kept[0], means.kept[1:]),
    )
