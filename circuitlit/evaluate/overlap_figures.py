"""What circuits share, as results hold it: the figures of `overlap`, without the random draws."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ChanceFigures:
    """An overlap under one null.

    Attributes:
        expected: mean overlap with stand-ins.
        low, high: 2.5 and 97.5 % quantiles of it.
        corrected: J* under this null.
        p: probability of an overlap at least as large.
    """

    expected: float
    low: float
    high: float
    corrected: float
    p: float


@dataclass(frozen=True, kw_only=True)
class OverlapFigures:
    """Two circuits as sets of nodes, or of edges.

    Attributes:
        total: nodes or edges of the graph.
        sizes: of the two sets.
        jaccard: share of the union that both hold.
        expected, corrected: under the strictest null.
        chance: by null.
        draws: random sets that each circuit was compared with; None in files of earlier versions.
        rank_p, p_holm: of the claim that it is beyond chance, and corrected for all claims; None where none is made.
    """

    total: int
    sizes: tuple[float, float]
    jaccard: float
    expected: float
    corrected: float
    chance: dict[str, ChanceFigures]
    draws: int | None = None
    rank_p: float | None = None
    p_holm: float | None = None


@dataclass(frozen=True, kw_only=True)
class SharedFigures:
    """What two circuits share: three claims, see `overlap.Shared`."""

    nodes: OverlapFigures
    edges: OverlapFigures
    gap: OverlapFigures
