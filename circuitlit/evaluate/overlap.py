"""How far two circuits share nodes and edges, beside what circuits with nothing in common share.

A node is in a circuit where any edge leaves it, so that even unrelated circuits share most of their nodes. What an
overlap says is therefore how far it lies above that with random stand-ins: one circuit stays, the other is replaced by
a random set of edges of the same size; then the other way round. (Were both replaced, both would have nearly all nodes
and share them for that reason alone.) An overlap is beyond chance only where it is so under every null.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import cache, cached_property
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from scipy.stats import hypergeom
from torch import Tensor

from circuitlit.evaluate.controls import redrawn, shuffles
from circuitlit.evaluate.similarity import beyond_chance, chance_jaccard
from circuitlit.evaluate.testing import rank_p
from circuitlit.graph import Graph

NULLS = ("uniform", "layers", "blocks")  # of nodes, from the one that keeps least to the one that keeps most
DRAWS = 199


@dataclass(frozen=True)
class Chance:
    """An overlap under one null.

    Attributes:
        expected: mean Jaccard index of a circuit and the other's stand-ins.
        low, high: 2.5 and 97.5 % quantiles.
        corrected: J* = (J - expected) / (1 - expected) of the overlap found: 1 is the same set, 0 what chance gives.
        p: probability of an overlap at least as large; the larger one of both directions.
    """

    expected: float
    low: float
    high: float
    corrected: float
    p: float

    @classmethod
    def of(cls, value: float, *directions: Float[Tensor, "draw"]) -> Chance:
        """From draws in which one circuit stays, and draws in which the other does."""
        drawn = torch.cat(directions)
        low, high = drawn.quantile(torch.tensor([0.025, 0.975], dtype=drawn.dtype)).tolist()
        p = max(rank_p(value, draws.tolist()) for draws in directions)
        return cls(float(drawn.mean()), low, high, beyond_chance(value, float(drawn.mean())), p)


@dataclass(frozen=True)
class Overlap:
    """Two circuits as sets of nodes, or of edges.

    Attributes:
        total: nodes or edges of the graph.
        sizes: of the two sets.
        jaccard: share of the union that both hold: 1 the same set, 0 nothing in common.
        chance: the same by chance, by null.
    """

    total: int
    sizes: tuple[int, int]
    jaccard: float
    chance: dict[str, Chance]

    @property
    def p(self) -> float:
        """Probability of such an overlap under the null that explains it best."""
        return max(null.p for null in self.chance.values())

    @property
    def corrected(self) -> float:
        """J* under the null that leaves least of it."""
        return min(null.corrected for null in self.chance.values())

    def to_dict(self) -> dict[str, Any]:
        """Plain types; `rank_p` is p, to be corrected with the other claims of a result."""
        return {**asdict(self), "corrected": self.corrected, "rank_p": self.p}


@dataclass(frozen=True)
class StandIns:
    """A circuit, and the random sets of edges that stand in for it.

    Attributes:
        graph: the edges' order.
        kept: the circuit's edges.
        draws: random sets under each null.
        seed: of the draws.
    """

    graph: Graph
    kept: Bool[Tensor, "edge"]
    draws: int = DRAWS
    seed: int = 0

    @cached_property
    def nodes(self) -> Bool[Tensor, "writer"]:
        """The circuit's nodes."""
        return circuit_nodes(self.graph, self.kept[None])[0]

    @cached_property
    def random_nodes(self) -> dict[str, Bool[Tensor, "draw writer"]]:
        """Nodes of stand-ins for a circuit compared with one that is unrelated, by null."""
        return {null: self.nodes_given(None, null) for null in NULLS}

    def nodes_given(self, other: Bool[Tensor, "edge"] | None, null: str) -> Bool[Tensor, "draw writer"]:
        """Nodes of stand-ins that share as many edges with another circuit as this one does.

        They are the other circuit with as many edges exchanged at random as are exchanged in this one.

        Args:
            other: its edges; None asks for no shared edges.
            null: what else stays: "uniform", the number of edges; "layers", their number into each layer; "blocks",
                their number from the heads, and from the MLP, of each layer into each layer, so that nothing is left to
                chance but which heads of a layer they leave.
        """
        labels = _labels(self.graph)[null]
        labels = labels if other is None else 2 * labels + other.long()
        return circuit_nodes(self.graph, redrawn(self.kept, labels, self.draws, self.seed))

    @cached_property
    def shuffled(self) -> Bool[Tensor, "draw edge"]:
        """Edges of stand-ins in which every node has as many edges as it has in the circuit."""
        return shuffles(self.graph, self.kept, self.draws, self.seed)


def node_overlap(ours: StandIns, theirs: StandIns) -> Overlap:
    """Nodes that two circuits share, beside those that one shares with stand-ins for the other."""
    nulls = {null: (ours.random_nodes[null], theirs.random_nodes[null]) for null in NULLS}
    return _overlap(ours.nodes, theirs.nodes, nulls)


def node_overlap_given_edges(ours: StandIns, theirs: StandIns) -> Overlap:
    """Nodes that two circuits share, beside those left where as many edges are exchanged at random: do nodes stay?

    A circuit that keeps some edges keeps the nodes that they leave; only an overlap above that is nodes that stay.
    """
    nulls = {null: (ours.nodes_given(theirs.kept, null), theirs.nodes_given(ours.kept, null)) for null in NULLS}
    return _overlap(ours.nodes, theirs.nodes, nulls)


def edge_overlap(ours: StandIns, theirs: StandIns) -> Overlap:
    """Edges that two circuits share, beside chance: "uniform", which is exact, and "degrees".

    Under "degrees" one circuit is shuffled so that every node keeps its number of edges: do the circuits share more
    edges than follows from their nodes?
    """
    found = _overlap(ours.kept, theirs.kept, {"degrees": (ours.shuffled, theirs.shuffled)})
    uniform = _uniform(*found.sizes, int((ours.kept & theirs.kept).sum()), found.total)
    return Overlap(found.total, found.sizes, found.jaccard, {"uniform": uniform, **found.chance})


def circuit_nodes(graph: Graph, kept: Bool[Tensor, "circuit edge"]) -> Bool[Tensor, "circuit writer"]:
    """Nodes that any edge of a circuit leaves, whether or not it is on a path from the input to the logits.

    Random sets of edges have few such paths: their nodes would be fewer for a reason that says nothing of nodes.
    """
    circuit, edge = np.divmod(np.flatnonzero(kept.numpy()), graph.n_edges)
    nodes = torch.zeros(len(kept), graph.n_writers, dtype=torch.bool)
    nodes[torch.from_numpy(circuit), graph.writer_of[edge]] = True
    return nodes


def jaccards(ours: Bool[Tensor, "one item"], theirs: Bool[Tensor, "two item"]) -> Float[Tensor, "one two"]:
    """Jaccard index of every two sets."""
    shared = (ours.float() @ theirs.float().T).double()
    union = ours.sum(1)[:, None] + theirs.sum(1) - shared
    return torch.where(union > 0, shared / union, 1.0)


def _overlap(
    ours: Bool[Tensor, "item"],
    theirs: Bool[Tensor, "item"],
    nulls: dict[str, tuple[Bool[Tensor, "draw item"], Bool[Tensor, "draw item"]]],
) -> Overlap:
    """With stand-ins for either circuit under each null."""
    value = float(jaccards(ours[None], theirs[None]))
    chance = {
        name: Chance.of(value, jaccards(ours[None], for_theirs)[0], jaccards(theirs[None], for_ours)[0])
        for name, (for_ours, for_theirs) in nulls.items()
    }
    return Overlap(len(ours), (int(ours.sum()), int(theirs.sum())), value, chance)


def _uniform(ours: int, theirs: int, shared: int, total: int) -> Chance:
    """Edges drawn uniformly: the number that two circuits share is hypergeometric."""
    null = hypergeom(total, ours, theirs)
    value, low, high = (
        float(number / max(1, ours + theirs - number)) for number in (shared, *null.ppf([0.025, 0.975]))
    )
    expected = chance_jaccard(min(ours, theirs), max(ours, theirs), total)
    return Chance(expected, low, high, beyond_chance(value, expected), min(1.0, float(null.sf(shared - 1))))


@cache
def _labels(graph: Graph) -> dict[str, Int[Tensor, "edge"]]:
    """What each edge keeps when it is drawn anew, by null."""
    layer = (graph.reader_of // graph.readers_per_layer).clamp(max=graph.n_layers)
    place = graph.writer_of - graph.inputs
    mlp = place % graph.writers_per_layer == graph.n_heads
    source = torch.where(place < 0, 0, 1 + 2 * (place // graph.writers_per_layer) + mlp)
    blocks = layer * (2 * graph.n_layers + 1) + source
    return dict(zip(NULLS, (torch.zeros_like(layer), layer, blocks), strict=True))
