"""How alike circuits are, how alike they would be by chance, and how much the same method varies with its pairs."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from itertools import combinations
from typing import TypeVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from circuitlit.arguments import checks_arguments
from circuitlit.evaluate.statistics import average_ranks
from circuitlit.graph import Circuit, EdgeScores

Kept = Bool[Tensor, "*edges"]
Values = Float[Tensor, "copies edge"]
Number = TypeVar("Number", float, Tensor)


def jaccard(ours: Kept, theirs: Kept) -> float:
    """Edges of both over edges of either; 1 is the same circuit, 0 nothing in common. Two empty circuits are equal."""
    union = int((ours | theirs).sum())
    return int((ours & theirs).sum()) / union if union else 1.0


def corrected_jaccard(ours: Kept, theirs: Kept) -> float:
    """J* = (J - E[J]) / (1 - E[J]): 1 is the same circuit, 0 what circuits of these sizes share by chance.

    The expectation is exact: the overlap of two random circuits of these sizes is hypergeometric.
    """
    return corrected_overlap(int((ours & theirs).sum()), int(ours.sum()), int(theirs.sum()), ours.numel())


def corrected_jaccards(sets: Bool[Tensor, "set edge"]) -> list[float]:
    """`corrected_jaccard` of every two sets, in the order of `itertools.combinations`."""
    shared = (sets.float() @ sets.float().T).tolist()  # exact below 2 ** 24
    sizes, total = sets.sum(1).tolist(), sets.shape[1]
    pairs = combinations(range(len(sets)), 2)
    return [corrected_overlap(int(shared[a][b]), sizes[a], sizes[b], total) for a, b in pairs]


def corrected_overlap(shared: int, ours: int, theirs: int, total: int) -> float:
    """J* from the sizes of two edge sets out of `total` and the number of edges that they share."""
    union = ours + theirs - shared
    expected = chance_jaccard(min(ours, theirs), max(ours, theirs), total)
    return beyond_chance(shared / union if union else 1.0, expected)


def beyond_chance(value: Number, expected: Number) -> Number:
    """An overlap, or several, corrected for chance: (J - E) / (1 - E); 1 where chance alone gives 1."""
    full = (expected >= 1) * 1.0
    return ((1 - full) * (value - expected) + full) / ((1 - full) * (1 - expected) + full)


@cache
def chance_jaccard(ours: int, theirs: int, total: int) -> float:
    """Expected Jaccard of two random sets of given sizes out of `total` edges."""
    if not ours and not theirs:
        return 1.0
    overlap = torch.arange(max(0, ours + theirs - total), min(ours, theirs) + 1, dtype=torch.float64)
    log_p = _log_choose(ours, overlap) + _log_choose(total - ours, theirs - overlap) - _log_choose(total, theirs)
    return float((log_p.exp() * overlap / (ours + theirs - overlap)).sum())


def overlap_coefficient(ours: Kept, theirs: Kept) -> float:
    """Edges of both over edges of the smaller; 1 says that one contains the other. An empty circuit is in any."""
    smaller = min(int(ours.sum()), int(theirs.sum()))
    return int((ours & theirs).sum()) / smaller if smaller else 1.0


def weighted_jaccard(ours: Values, theirs: Values) -> float:
    """Sum of minima over sum of maxima of weights, each normalised to a sum of 1; 1 is proportional, 0 disjoint.

    Args:
        ours, theirs: `Circuit.weight` of two circuits, never negative.
    """
    a, b = (weight.double() / weight.double().sum() for weight in (ours, theirs))
    return float(torch.minimum(a, b).sum() / torch.maximum(a, b).sum())


def spearman(ours: Values, theirs: Values, where: Kept | None = None) -> float:
    """Rank correlation of scores on some edges, such as the union of two circuits; NaN where all scores are equal."""
    chosen = torch.ones_like(ours, dtype=torch.bool) if where is None else where
    a, b = (average_ranks(values[chosen]) for values in (ours, theirs))
    a, b = a - a.mean(), b - b.mean()
    return float((a * b).sum() / ((a * a).sum() * (b * b).sum()).sqrt())


@checks_arguments
def similarity(ours: Circuit, theirs: Circuit) -> dict[str, float]:
    """All of the above for two circuits of one graph, on the edges asked for; scores off a circuit play no part.

    The rank correlation is of weights, on the edges that either keeps; those that only one keeps weigh 0 in the other.

    Raises:
        ValueError: they are of different graphs or token roles.
    """
    if ours.graph != theirs.graph or ours.scores.roles != theirs.scores.roles:
        raise ValueError("circuits of different graphs or token roles have no edges in common")
    weights = ours.weight, theirs.weight
    return {
        "jaccard": jaccard(ours.kept, theirs.kept),
        "corrected_jaccard": corrected_jaccard(ours.kept, theirs.kept),
        "overlap": overlap_coefficient(ours.kept, theirs.kept),
        "weighted_jaccard": weighted_jaccard(*weights),
        "spearman": spearman(*weights, ours.kept | theirs.kept),
    }


@dataclass(frozen=True)
class Spread:
    """How alike several circuits of one method are, pair by pair, as J*.

    Attributes:
        values: J* of every two circuits.
        mean, low, median, high: of them; low and high are the 5 % and 95 % quantiles. 1 - low is the noise floor: a
            distance between two models' circuits below it is no change.
        n_circuits: circuits compared.
    """

    values: tuple[float, ...]
    mean: float
    low: float
    median: float
    high: float
    n_circuits: int

    @classmethod
    def of(cls, circuits: Sequence[Kept]) -> Spread:
        """Compare every two of at least two circuits."""
        values = corrected_jaccards(torch.stack([kept.flatten() for kept in circuits]))
        found = torch.tensor(values, dtype=torch.float64)
        low, median, high = torch.quantile(found, torch.tensor([0.05, 0.5, 0.95], dtype=torch.float64)).tolist()
        return cls(tuple(values), float(found.mean()), low, median, high, len(circuits))

    def to_dict(self) -> dict[str, object]:
        """Plain types for result.json."""
        return asdict(self)


def noise_floor(
    score: Callable[[Sequence[int]], EdgeScores],
    cut: Callable[[EdgeScores], Circuit],
    n_pairs: int,
    resamples: int = 10,
    seed: int = 0,
) -> tuple[Spread, list[Circuit]]:
    """How much a method's circuit varies with the pairs that it happens to see.

    Args:
        score: the method, given the numbers of the training pairs to use, repeats included.
        cut: scores to circuit.
        n_pairs: training pairs.
        resamples: bootstrap samples of the pairs, at least 2.
        seed: of the samples.

    Source: the bootstrap distribution of circuits as in arXiv 2510.00845.
    """
    draw = random.Random(seed)
    circuits = [cut(score(draw.choices(range(n_pairs), k=n_pairs))) for _ in range(resamples)]
    return Spread.of([circuit.kept for circuit in circuits]), circuits


def inclusion(circuits: Sequence[Kept]) -> Values:
    """Share of the circuits that keep each edge."""
    return torch.stack([kept.float() for kept in circuits]).mean(0)


def consensus(circuits: Sequence[Circuit], share: float = 0.5) -> Circuit:
    """The edges that at least `share` of the circuits keep; its scores are the inclusion frequencies in [0, 1]."""
    first = circuits[0]
    frequency = inclusion([circuit.kept for circuit in circuits])
    details: dict[str, object] = {"circuits": len(circuits), "share": share}
    method = f"consensus of {first.scores.method}"
    unit = "share of circuits"
    scores = EdgeScores(first.graph, frequency, method, first.scores.roles, False, details, kind="share", unit=unit)
    return Circuit.of(scores, frequency >= share - 1e-6, first.provenance)


def _log_choose(n: int, k: int | Float[Tensor, "_"]) -> Float[Tensor, "*_"]:
    chosen = torch.as_tensor(k, dtype=torch.float64)
    total = torch.tensor(float(n), dtype=torch.float64)
    return torch.lgamma(total + 1) - torch.lgamma(chosen + 1) - torch.lgamma(total - chosen + 1)
