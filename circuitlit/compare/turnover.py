"""Do nodes stay while edges change? Two models' circuits beside chance, and beside what resampling the pairs does."""

from __future__ import annotations

from dataclasses import dataclass

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

Part = tuple[Bool[Tensor, "resample item"], Bool[Tensor, "draw item"]]  # nodes or edges: resamples', stand-ins'


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

    @property
    def nodes(self) -> Part:
        """Of each resample's circuit and of the stand-ins."""
        sets = circuit_nodes(self.model.scores.graph, self.model.circuits)
        return sets, self.stand_ins.random_nodes[STRICTEST]

    @property
    def edges(self) -> Part:
        """Of each resample's circuit, and drawn uniformly."""
        return self.model.circuits, self.stand_ins.random_edges


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
    within = (_gap(base, base) + _gap(tuned, tuned)) / 2
    return Turnover(
        nodes=_part(shared.nodes, base.nodes, tuned.nodes, drawn),
        edges=_part(shared.edges, base.edges, tuned.edges, drawn),
        gap=GapTurnover(**vars(shared.gap), between=_gap(base, tuned), within=within),
    )


def _gap(ours: Circuits, theirs: Circuits) -> float:
    """J* of nodes beside circuits that share as many edges, of each resample of one and the next of the other."""
    graph, count = ours.stand_ins.graph, len(ours.model.resamples)
    first = [StandIns(graph, kept, FEW, seed) for seed, kept in enumerate(ours.model.circuits)]
    second = [StandIns(graph, kept, FEW, seed) for seed, kept in enumerate(theirs.model.circuits.roll(1, 0), count)]
    return Overlap.mean([one.gap(two) for one, two in zip(first, second, strict=True)]).corrected


def _part(shared: OverlapFigures, base: Part, tuned: Part, drawn: Int[Tensor, "draw resample"]) -> PartTurnover:
    between = mean_of_others(_corrected(base, tuned), drawn)
    within = (mean_of_others(_corrected(base, base), drawn) + mean_of_others(_corrected(tuned, tuned), drawn)) / 2
    found = _estimate(within)
    exists = found.low is not None and found.low > 0
    retained = _estimate(between / within) if exists else Estimate()
    return PartTurnover(**vars(shared), between=_estimate(between), within=found, retained=retained)


def _estimate(values: Float[Tensor, "draw"]) -> Estimate:
    return Estimate.of(values[0], values[1:])


def _corrected(ours: Part, theirs: Part) -> Float[Tensor, "resample resample"]:
    """J* of every two sets; what chance gives is that of each with the stand-ins for the other model's circuit."""
    (own, for_own), (other, for_other) = ours, theirs
    expected = (jaccards(own, for_other).mean(1)[:, None] + jaccards(other, for_own).mean(1)) / 2
    return beyond_chance(jaccards(own, other), expected)
