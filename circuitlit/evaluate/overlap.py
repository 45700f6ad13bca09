"""What circuits share of nodes and edges, beside what circuits with nothing in common share.

A node is in a circuit where any edge leaves it, so that even unrelated circuits share most of their nodes. What an
overlap says is therefore how far it lies above that with random stand-ins: one circuit stays, the other is replaced by
a random set of edges of the same size; then the other way round. (Were both replaced, both would have nearly all nodes
and share them for that reason alone.) An overlap is beyond chance only where it is so under every null.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache, cached_property
from itertools import combinations
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from circuitlit.evaluate.controls import EdgeSets, jaccard_of, redrawn, shuffles
from circuitlit.evaluate.overlap_figures import ChanceFigures, OverlapFigures, SharedFigures
from circuitlit.evaluate.similarity import beyond_chance
from circuitlit.evaluate.testing import enough_draws, rank_p
from circuitlit.graph import Circuit, Graph

NULLS = ("uniform", "layers", "blocks")  # of nodes, from the one that keeps least to the one that keeps most
TESTS = 3  # of every two circuits: nodes, edges, nodes beyond what the shared edges bring
DRAWS = 199
ROUNDING = 1e-9  # of means of equal numbers


def draws_for(comparisons: int, others: int = 0) -> int:
    """Stand-ins with which every test can be significant after Holm's correction for all claims of a result.

    Args:
        comparisons: of two circuits (or of several such pairs by their mean).
        others: claims beside those.
    """
    return max(DRAWS, enough_draws(TESTS * comparisons + others))


@dataclass(frozen=True)
class Chance:
    """An overlap under one null.

    Attributes:
        value: Jaccard index of the circuits.
        drawn: that with stand-ins for the second circuit, and with stand-ins for the first.
    """

    value: float
    drawn: tuple[Float[Tensor, "draw"], Float[Tensor, "draw"]]

    @property
    def expected(self) -> float:
        """Mean with stand-ins."""
        return float(torch.cat(self.drawn).mean())

    @property
    def corrected(self) -> float:
        """J* = (J - expected) / (1 - expected): 1 is the same set, 0 what chance gives."""
        return beyond_chance(self.value, self.expected)

    @property
    def p(self) -> float:
        """Probability of an overlap at least as large; the larger one of both directions."""
        return max(rank_p(self.value - ROUNDING, draws.tolist()) for draws in self.drawn)

    def figures(self) -> ChanceFigures:
        """Without the draws."""
        both = torch.cat(self.drawn)
        low, high = both.quantile(torch.tensor([0.025, 0.975], dtype=both.dtype)).tolist()
        return ChanceFigures(self.expected, low, high, self.corrected, self.p)


@dataclass(frozen=True)
class Overlap:
    """Two circuits as sets of nodes, or of edges; or the mean over several such pairs.

    Attributes:
        total: nodes or edges of the graph.
        sizes: of the two sets.
        jaccard: share of the union that both hold: 1 the same set, 0 nothing in common.
        chance: the same by chance, by null.
    """

    total: int
    sizes: tuple[float, float]
    jaccard: float
    chance: dict[str, Chance]

    @classmethod
    def of(
        cls,
        ours: Bool[Tensor, "item"],
        theirs: Bool[Tensor, "item"],
        nulls: dict[str, tuple[Bool[Tensor, "draw item"], Bool[Tensor, "draw item"]]],
    ) -> Overlap:
        """With stand-ins for ours and for theirs under each null."""
        drawn = {
            name: (jaccards(ours[None], for_theirs)[0], jaccards(theirs[None], for_ours)[0])
            for name, (for_ours, for_theirs) in nulls.items()
        }
        return cls.beside(ours, theirs, drawn)

    @classmethod
    def beside(
        cls,
        ours: Bool[Tensor, "item"],
        theirs: Bool[Tensor, "item"],
        drawn: dict[str, tuple[Float[Tensor, "draw"], Float[Tensor, "draw"]]],
    ) -> Overlap:
        """With the overlaps that each null gives, see `Chance.drawn`."""
        value = float(jaccards(ours[None], theirs[None]))
        chance = {name: Chance(value, own) for name, own in drawn.items()}
        return cls(len(ours), (int(ours.sum()), int(theirs.sum())), value, chance)

    @classmethod
    def mean(cls, found: Sequence[Overlap]) -> Overlap:
        """The mean Jaccard index of several pairs; its draws are means over the pairs, too."""
        value = sum(one.jaccard for one in found) / len(found)
        chance = {}
        for null in found[0].chance:
            first, second = ([one.chance[null].drawn[way] for one in found] for way in (0, 1))
            chance[null] = Chance(value, (torch.stack(first).mean(0), torch.stack(second).mean(0)))
        ours, theirs = (sum(one.sizes[side] for one in found) / len(found) for side in (0, 1))
        return cls(found[0].total, (ours, theirs), value, chance)

    @property
    def strictest(self) -> Chance:
        """The null that leaves least of the overlap."""
        return min(self.chance.values(), key=lambda null: null.corrected)

    @property
    def corrected(self) -> float:
        """J* under the strictest null."""
        return self.strictest.corrected

    @property
    def p(self) -> float:
        """Probability of such an overlap under the null that explains it best."""
        return max(null.p for null in self.chance.values())

    def figures(self, claim: bool = False) -> OverlapFigures:
        """Without the draws; a claim has a `rank_p`, which is to be corrected with the other claims of a result."""
        return OverlapFigures(
            total=self.total,
            sizes=self.sizes,
            jaccard=self.jaccard,
            expected=self.strictest.expected,
            corrected=self.corrected,
            chance={name: null.figures() for name, null in self.chance.items()},
            draws=len(self.strictest.drawn[0]),
            rank_p=self.p if claim else None,
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain types."""
        return asdict(self.figures())


@dataclass(frozen=True)
class Shared:
    """What two circuits share; or the mean over several such pairs.

    Attributes:
        nodes: beside nodes of circuits that have nothing in common.
        edges: beside chance: "uniform", and "degrees", where every node keeps its number of edges: do the circuits
            share more edges than follows from their nodes?
        gap: the nodes again, beside circuits that share as many edges: do nodes stay while edges change? A circuit that
            keeps some edges keeps the nodes that they leave; only an overlap above that is nodes that stay.
    """

    nodes: Overlap
    edges: Overlap
    gap: Overlap

    @classmethod
    def mean(cls, found: Sequence[Shared]) -> Shared:
        """Of several pairs of circuits."""
        return cls(*(Overlap.mean([getattr(one, name) for one in found]) for name in ("nodes", "edges", "gap")))

    def figures(self) -> SharedFigures:
        """Without the draws: three claims, to be corrected with the other claims of a result."""
        claims = {name: getattr(self, name).figures(claim=True) for name in ("nodes", "edges", "gap")}
        return SharedFigures(**claims)

    def to_dict(self) -> dict[str, Any]:
        """Plain types."""
        return asdict(self.figures())


@dataclass(frozen=True)
class StandIns:
    """A circuit, and the random sets of edges that stand in for it.

    Attributes:
        graph: the edges' order.
        kept: the circuit's edges; token roles are joined.
        draws: random sets under each null.
        seed: of the draws; two circuits that are compared have different ones.
    """

    graph: Graph
    kept: Bool[Tensor, "edge"]
    draws: int = DRAWS
    seed: int = 0

    @classmethod
    def of(cls, circuit: Circuit, draws: int = DRAWS, seed: int = 0) -> StandIns:
        """For a circuit."""
        return cls(circuit.graph, circuit.kept.any(0), draws, seed)

    @cached_property
    def nodes(self) -> Bool[Tensor, "node"]:
        """The circuit's nodes."""
        return circuit_nodes(self.graph, self.kept[None])[0]

    @cached_property
    def random_nodes(self) -> dict[str, Bool[Tensor, "draw node"]]:
        """Nodes of stand-ins for a circuit compared with one that is unrelated, by null."""
        return {null: self.nodes_given(None, null) for null in NULLS}

    def nodes_given(self, other: Bool[Tensor, "edge"] | None, null: str) -> Bool[Tensor, "draw node"]:
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
        return redrawn(self.kept, labels, self.draws, self.seed).writers(self.graph)[:, self.graph.inputs :]

    @cached_property
    def random_edges(self) -> EdgeSets:
        """Stand-ins drawn uniformly."""
        return redrawn(self.kept, _labels(self.graph)["uniform"], self.draws, self.seed)

    @cached_property
    def shuffled(self) -> EdgeSets:
        """Stand-ins in which every node has as many edges as it has in the circuit."""
        return shuffles(self.graph, self.kept, self.draws, self.seed)

    def shared(self, other: StandIns) -> Shared:
        """What this circuit and another one of the same graph share."""
        return Shared(self.node_overlap(other), self.edge_overlap(other), self.gap(other))

    def gap(self, other: StandIns) -> Overlap:
        """`Shared.gap` alone."""
        given = {null: (self.nodes_given(other.kept, null), other.nodes_given(self.kept, null)) for null in NULLS}
        return Overlap.of(self.nodes, other.nodes, given)

    def node_overlap(self, other: StandIns) -> Overlap:
        """`Shared.nodes` alone."""
        apart = {null: (self.random_nodes[null], other.random_nodes[null]) for null in NULLS}
        return Overlap.of(self.nodes, other.nodes, apart)

    def edge_overlap(self, other: StandIns) -> Overlap:
        """`Shared.edges` alone."""
        degrees = other.shuffled.jaccards(self.kept[None])[0], self.shuffled.jaccards(other.kept[None])[0]
        return Overlap.beside(self.kept, other.kept, {"uniform": self._uniform(other), "degrees": degrees})

    def _uniform(self, other: StandIns) -> tuple[Float[Tensor, "draw"], Float[Tensor, "draw"]]:
        """Beside `random_edges`, which need not be drawn: the number that two circuits share is hypergeometric."""
        ours, theirs = int(self.kept.sum()), int(other.kept.sum())
        random = np.random.default_rng((self.seed, other.seed))
        counts = random.hypergeometric(ours, len(self.kept) - ours, theirs, (2, self.draws))
        drawn = jaccard_of(torch.from_numpy(counts), ours, theirs)
        return drawn[0], drawn[1]


def shared_by_pairs(circuits: Mapping[str, Circuit], seed: int = 0, others: int = 0) -> dict[tuple[str, str], Shared]:
    """What every two of some circuits of one graph share.

    Args:
        circuits: by name.
        seed: of the stand-ins.
        others: claims of the same result beside these.
    """
    draws = draws_for(len(circuits) * (len(circuits) - 1) // 2, others)
    sides = {name: StandIns.of(own, draws, seed + number) for number, (name, own) in enumerate(circuits.items())}
    return {(one, two): sides[one].shared(sides[two]) for one, two in combinations(sides, 2)}


def circuit_nodes(graph: Graph, kept: Bool[Tensor, "circuit edge"]) -> Bool[Tensor, "circuit node"]:
    """Heads and MLPs that any edge of a circuit leaves, whether or not it is on a path from the input to the logits.

    Random sets of edges have few such paths: their nodes would be fewer for a reason that says nothing of nodes.
    """
    circuit, edge = np.divmod(np.flatnonzero(kept.numpy()), graph.n_edges)
    writers = torch.zeros(len(kept), graph.n_writers, dtype=torch.bool)
    writers[torch.from_numpy(circuit), graph.writer_of[edge]] = True
    return writers[:, graph.inputs :]


def jaccards(ours: Bool[Tensor, "one item"], theirs: Bool[Tensor, "two item"]) -> Float[Tensor, "one two"]:
    """Jaccard index of every two sets."""
    return jaccard_of(ours.float() @ theirs.float().T, ours.sum(1)[:, None], theirs.sum(1))  # exact below 2 ** 24


@cache
def _labels(graph: Graph) -> dict[str, Int[Tensor, "edge"]]:
    """What each edge keeps when it is drawn anew, by null."""
    layer = (graph.reader_of // graph.readers_per_layer).clamp(max=graph.n_layers)
    place = graph.writer_of - graph.inputs
    mlp = place % graph.writers_per_layer == graph.n_heads
    source = torch.where(place < 0, 0, 1 + 2 * (place // graph.writers_per_layer) + mlp)
    blocks = layer * (2 * graph.n_layers + 1) + source
    return dict(zip(NULLS, (torch.zeros_like(layer), layer, blocks), strict=True))
