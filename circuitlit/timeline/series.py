"""Circuits of one task over a series of checkpoints: how alike they are, how fast they change, and the stages."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations, pairwise

import numpy as np
from jaxtyping import Float

from circuitlit.evaluate.overlap import DRAWS, Shared, StandIns
from circuitlit.evaluate.overlap_figures import OverlapFigures
from circuitlit.evaluate.similarity import Spread, similarity, weighted_jaccard
from circuitlit.graph import Circuit
from circuitlit.timeline.chance import noise_or_walk
from circuitlit.timeline.stages import Signals, Timeline, find_stages

SMOOTHING = 0.5
SOME = 39  # stand-ins that say what chance gives; a test takes more


@dataclass(frozen=True)
class Point:
    """One checkpoint's circuits.

    Attributes:
        step: of training.
        level: the task's metric, mean over held-out pairs.
        circuit: of the same number of edges at every checkpoint.
        smallest: the smallest one that is faithful enough, None where there is none.
    """

    step: int
    level: float
    circuit: Circuit
    smallest: Circuit | None = None


@dataclass(frozen=True, kw_only=True)
class Alike:
    """Two circuits of one graph.

    Attributes:
        jaccard, corrected_jaccard, overlap, weighted_jaccard, spearman: of edges, see `similarity`; None where one does
            not exist.
        nodes: their overlap: what says something is how far it lies above chance.
        edges_changed: that one has and the other lacks.
        score_distance: sum of differences of the edges' shares, from 0 (proportional) to 2 (nothing in common).
    """

    jaccard: float
    corrected_jaccard: float
    overlap: float
    weighted_jaccard: float | None
    spearman: float | None
    nodes: OverlapFigures
    edges_changed: float
    score_distance: float | None

    @classmethod
    def of(cls, ours: Circuit, theirs: Circuit) -> Alike:
        """Compare two circuits."""
        shares = [weight / weight.sum() for weight in (ours.weight, theirs.weight)]
        return cls(
            **similarity(ours, theirs),
            nodes=StandIns.of(ours, SOME, 0).node_overlap(StandIns.of(theirs, SOME, 1)).figures(),
            edges_changed=float((ours.kept ^ theirs.kept).sum()),
            score_distance=float((shares[0] - shares[1]).abs().sum()),
        )


@dataclass(frozen=True, kw_only=True)
class Likeness:
    """One checkpoint's circuits beside those of others.

    Attributes:
        step: of training.
        last, previous: circuits of equal size, with the last checkpoint and with the one before.
        smallest_last, smallest_previous: the smallest faithful ones, where both exist.
        node_ewma, edge_ewma: exponentially weighted means of J* with the checkpoint before, which begin with the first
            such value.
    """

    step: int
    last: Alike
    previous: Alike | None
    smallest_last: Alike | None
    smallest_previous: Alike | None
    node_ewma: float | None = None
    edge_ewma: float | None = None


def follow(points: Sequence[Point]) -> list[Likeness]:
    """Every checkpoint's likeness to the one before and to the last, and their running means."""
    rows = [
        Likeness(
            step=point.step,
            last=Alike.of(point.circuit, points[-1].circuit),
            previous=Alike.of(point.circuit, before.circuit) if before else None,
            smallest_last=_both(point, points[-1]),
            smallest_previous=_both(point, before),
        )
        for before, point in pairwise([None, *points])
        if point is not None
    ]
    before_each = [row.previous for row in rows if row.previous is not None]
    nodes = [None, *smoothed([one.nodes.corrected for one in before_each])]
    edges = [None, *smoothed([one.corrected_jaccard for one in before_each])]
    return [replace(row, node_ewma=n, edge_ewma=e) for row, n, e in zip(rows, nodes, edges, strict=True)]


def shared_by_neighbours(points: Sequence[Point], draws: int = DRAWS) -> Shared | None:
    """What circuits of equal size share with those of the checkpoint before, mean; None for fewer than two points."""
    circuits = (StandIns.of(point.circuit, draws, seed) for seed, point in enumerate(points))
    found = [one.shared(other) for one, other in pairwise(circuits)]
    return Shared.mean(found) if found else None


def smoothed(values: Sequence[float], weight: float = SMOOTHING) -> list[float]:
    """Exponentially weighted mean that begins with the first value itself."""
    means: list[float] = []
    for value in values:
        means.append(value if not means else (1 - weight) * means[-1] + weight * value)
    return means


def _both(point: Point, other: Point | None) -> Alike | None:
    if other is None or point.smallest is None or other.smallest is None:
        return None
    return Alike.of(point.smallest, other.smallest)


@dataclass(frozen=True)
class Noise:
    """How far circuits of one model differ when only the pairs do.

    Attributes:
        distance: 95th percentile of 1 - weighted Jaccard.
        overlap: 95th percentile of 1 - chance-corrected Jaccard at equal size.
        n_circuits: bootstrap circuits compared pair by pair.
    """

    distance: float = 0.0
    overlap: float = 0.05
    n_circuits: int = 0

    @classmethod
    def of(cls, spread: Spread, circuits: Sequence[Circuit]) -> Noise:
        """From what `noise_floor` returns."""
        moved = [1 - weighted_jaccard(a.weight, b.weight) for a, b in combinations(circuits, 2)]
        return cls(float(np.quantile(moved, 0.95)), 1 - spread.low, spread.n_circuits)


def stages_of(points: Sequence[Point], rows: Sequence[Likeness], noise: Noise, resamples: int = 200) -> Timeline:
    """The four stages, read off the metric, the circuits' velocity and their overlap with the last one.

    A boundary counts only where it is beyond AR(1) noise, and beyond a metric that walks.

    Velocity is the weighted Jaccard distance to the checkpoint before, beyond what noise makes, by logarithmic time.
    """
    if len(points) < 2:
        return Timeline("too few snapshots", n_snapshots=len(points))
    steps = [point.step for point in points]
    before_each = [row.previous for row in rows if row.previous is not None]
    alike = [math.nan if one.weighted_jaccard is None else one.weighted_jaccard for one in before_each]
    velocity = velocities(steps, alike, noise.distance)
    distance = 1 - np.nan_to_num(np.array([alike[0], *alike]), nan=1.0)
    overlap = np.array([row.last.corrected_jaccard for row in rows])
    level = np.array([point.level for point in points])
    sizes = [point.smallest.n_edges if point.smallest else None for point in points]
    others = {"log_size": np.log([size for size in sizes if size])} if all(sizes) else {}
    signals = Signals(steps, level, velocity, overlap, others, distance, overlap_floor=noise.overlap)
    return find_stages(signals, (), resamples, noise_or_walk)


def velocities(steps: Sequence[int], alike: Sequence[float], noise: float) -> Float[np.ndarray, "point"]:
    """Distance to the point before, less noise, by the logarithm of time (of step + 1); the first is the second's.

    Likeness that does not exist (all scores zero) counts as none.
    """
    times = np.log(np.array(steps) + 1.0)
    distance = [0.0 if math.isnan(value) else max(0.0, 1 - value - noise) for value in alike]
    values = np.array(distance) / np.diff(times)
    return np.concatenate([values[:1], values])
