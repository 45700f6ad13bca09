"""Do nodes stay while edges change? Two models' circuits beside chance, and beside what resampling the pairs does."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import combinations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from circuitlit.compare.difference import Resampled
from circuitlit.evaluate import Estimate
from circuitlit.evaluate.overlap import (
    DRAWS,
    NULLS,
    Overlap,
    StandIns,
    circuit_nodes,
    jaccards,
)
from circuitlit.evaluate.overlap_figures import OverlapFigures, SharedFigures
from circuitlit.evaluate.similarity import beyond_chance
from circuitlit.evaluate.statistics import drawn_items, mean_of_others

FEW = 19  # stand-ins for each of many pairs of resamples
STRICTEST = NULLS[-1]  # of the nulls of nodes


@dataclass(frozen=True)
class Part:
    """Nodes or edges of one model's circuits.

    Attributes:
        sets: of each resample's circuit.
        beside: Jaccard index of every one of some sets with every stand-in.
    """

    sets: Bool[Tensor, "resample item"]
    beside: Callable[[Bool[Tensor, "one item"]], Float[Tensor, "one draw"]]

    def overlaps(self, other: Part) -> Float[Tensor, "resample resample"]:
        """J* of every two sets; what chance gives is that of each with the stand-ins for the other model's circuit."""
        expected = (other.beside(self.sets).mean(1)[:, None] + self.beside(other.sets).mean(1)) / 2
        return beyond_chance(jaccards(self.sets, other.sets), expected)

    @cached_property
    def within(self) -> Float[Tensor, "resample resample"]:
        """`overlaps` with itself."""
        return self.overlaps(self)


@dataclass(frozen=True)
class Circuits:
    """One model's circuits, and the random stand-ins for them, which are drawn once.

    Attributes:
        model: its circuits.
        stand_ins: for the circuit of all pairs.
    """

    model: Resampled
    stand_ins: StandIns

    @classmethod
    def of(cls, model: Resampled, draws: int = DRAWS, seed: int = 0) -> Circuits:
        """Of a model's circuits; those that are compared have different seeds."""
        return cls(model, StandIns(model.scores.graph, model.kept, draws, seed))

    @cached_property
    def nodes(self) -> Part:
        """Beside the strictest stand-ins."""
        sets = circuit_nodes(self.model.scores.graph, self.model.circuits)
        return Part(sets, lambda some: jaccards(some, self.stand_ins.random_nodes[STRICTEST]))

    @cached_property
    def edges(self) -> Part:
        """Beside those drawn uniformly."""
        return Part(self.model.circuits, self.stand_ins.random_edges.jaccards)

    @cached_property
    def gap(self) -> float:
        """`gap_to` itself."""
        return self.gap_to(self)

    def draw(self) -> None:
        """Draw and count all that every comparison asks for, which threads would otherwise do several times."""
        _ = self.gap, self.nodes.within, self.edges.within, self.stand_ins.random_nodes, self.stand_ins.shuffled

    def gap_to(self, other: Circuits) -> float:
        """J* of nodes beside circuits that share as many edges, of each resample and the other model's next."""
        graph, count = self.stand_ins.graph, len(self.model.resamples)
        first = [StandIns(graph, kept, FEW, seed) for seed, kept in enumerate(self.model.circuits)]
        second = [StandIns(graph, kept, FEW, seed) for seed, kept in enumerate(other.model.circuits.roll(1, 0), count)]
        return Overlap.mean([one.gap(two) for one, two in zip(first, second, strict=True)]).corrected


@dataclass(frozen=True, kw_only=True)
class PartTurnover(OverlapFigures):
    """What two models' circuits share of nodes, or of edges, and how much of that stays.

    Attributes:
        between: J* of a circuit of each model, of different resamples of the pairs, mean; of nodes under their
            strictest null, of edges beside edges drawn uniformly.
        within: the same of two circuits of one model, mean over both models: what there is without any change.
        retained: between / within: 1 is no more change than resampling brings, 0 no more in common than by chance. None
            where within is not above chance.
    """

    between: Estimate
    within: Estimate
    retained: Estimate


@dataclass(frozen=True, kw_only=True)
class GapTurnover(OverlapFigures):
    """Nodes beside circuits that share as many edges.

    Attributes:
        between, within: J* for circuits of different resamples, of both models and of one. Where the second is as
            large, nodes stay whenever the pairs change, and it is not tuning that keeps them.
    """

    between: float
    within: float


@dataclass(frozen=True, kw_only=True)
class Turnover(SharedFigures):
    """What the circuits of two models share beside chance, and how much of it stays; three claims."""

    nodes: PartTurnover
    edges: PartTurnover
    gap: GapTurnover


def turnover(base: Circuits, tuned: Circuits, seed: int = 0) -> Turnover:
    """What of nodes and edges two models' circuits share.

    Intervals resample the resamples of the training pairs: two circuits of one and the same resample are never
    compared, so that `between` and `within` differ by nothing but the model.

    Source: the claim is that of Wang et al., arXiv 2502.11812; the nulls are ours.
    """
    drawn = drawn_items(len(base.model.resamples), seed)
    shared = base.stand_ins.shared(tuned.stand_ins).figures()
    return Turnover(
        nodes=_part(shared.nodes, base.nodes, tuned.nodes, drawn),
        edges=_part(shared.edges, base.edges, tuned.edges, drawn),
        gap=GapTurnover(**vars(shared.gap), between=base.gap_to(tuned), within=(base.gap + tuned.gap) / 2),
    )


def turnovers(circuits: Sequence[Circuits], seed: int = 0) -> dict[tuple[int, int], Turnover]:
    """`turnover` of every two models by their numbers, on as many threads as torch has."""
    threads, pairs = torch.get_num_threads(), list(combinations(range(len(circuits)), 2))
    try:
        with ThreadPoolExecutor(threads, initializer=partial(torch.set_num_threads, 1)) as pool:
            list(pool.map(Circuits.draw, circuits))
            found = list(pool.map(lambda pair: turnover(circuits[pair[0]], circuits[pair[1]], seed), pairs))
    finally:
        torch.set_num_threads(threads)
    return dict(zip(pairs, found, strict=True))


def _part(shared: OverlapFigures, base: Part, tuned: Part, drawn: Int[Tensor, "draw resample"]) -> PartTurnover:
    between = mean_of_others(base.overlaps(tuned), drawn)
    within = (mean_of_others(base.within, drawn) + mean_of_others(tuned.within, drawn)) / 2
    found = _estimate(within)
    exists = found.low is not None and found.low > 0
    retained = _estimate(between / within) if exists else Estimate()
    return PartTurnover(**vars(shared), between=_estimate(between), within=found, retained=retained)


def _estimate(values: Float[Tensor, "draw"]) -> Estimate:
    return Estimate.of(values[0], values[1:])
