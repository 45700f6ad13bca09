"""The smallest circuit that is faithful enough, although faithfulness does not grow steadily with size."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Literal

import torch

from circuitlit.arguments import checks_arguments
from circuitlit.evaluate.measure import TestBed
from circuitlit.graph import Circuit, EdgeScores
from circuitlit.graph.select import Select

GROWTH = 2.0
LOCAL = 8


@dataclass(frozen=True)
class Smallest:
    """Result of the search.

    Attributes:
        status: "OK", or "FAILED" where no size that was looked at reaches the target.
        n_edges: the smallest size found that reaches the target; the best one where none does.
        value: faithfulness there; None where it does not exist.
        target: what was asked for.
        tried: every size looked at and its faithfulness, smallest size first.
    """

    status: Literal["OK", "FAILED"]
    n_edges: int
    value: float | None
    target: float
    tried: tuple[tuple[int, float], ...]

    def to_dict(self) -> dict[str, object]:
        """Plain types for result.json."""
        return asdict(self)


@checks_arguments
def smallest_circuit(
    bed: TestBed,
    scores: EdgeScores,
    target: float,
    raw: bool = False,
    most: int | None = None,
    select: Select = "top_k",
    pairs: int | None = None,
) -> tuple[Smallest, Circuit]:
    """Search the sizes of one ranking for the smallest circuit with at least some faithfulness.

    Args:
        bed: pairs to choose by; report on others.
        scores: the ranking.
        target: faithfulness asked for, a share: 1 is the full model.
        raw: True takes m(circuit) / m(full), False the faithfulness normalised by the corrupted run.
        most: largest size to look at; None is all edges.
        select: how circuits are cut.
        pairs: how many of the bed's pairs; None takes all.
    """

    def faithfulness(size: int) -> float:
        own = bed.run(Circuit.cut(scores, size, select=select).kept, pairs).metric.double()
        full, corrupted = (outcome.metric[: len(own)].double().mean() for outcome in (bed.full, bed.corrupted))
        bottom = torch.zeros_like(corrupted) if raw else corrupted
        return float((own.mean() - bottom) / (full - bottom))

    found = smallest_size(faithfulness, most or scores.size, target)
    return found, Circuit.cut(scores, found.n_edges, select=select)


def smallest_size(f: Callable[[int], float], most: int, target: float, local: int = LOCAL) -> Smallest:
    """The smallest n in [1, most] with f(n) >= target that a search of some dozens of looks finds.

    f may rise and fall, so no search short of all sizes is certain. In turn: a bracket, sizes growing by doubling until
    one passes (so a smaller passing size lies between two powers of two that fail, if anywhere); bisection between the
    last that failed and the first that passed, down to neighbours; then a local check of the `local` sizes below
    and of as many spread down to half the size, and from the smallest of them that passes bisection again, until no
    check finds a smaller one. At the end f(n) passes and f(n - 1) does not.

    Args:
        f: faithfulness of a size; NaN never passes. Each size is asked for once.
        most: largest size to look at.
        target: what f is to reach.
        local: sizes in each of the two local checks.
    """
    tried: dict[int, float] = {}

    def passes(size: int) -> bool:
        if size not in tried:
            tried[size] = f(size)
        return tried[size] >= target

    grid = [round(GROWTH**power) for power in range(math.ceil(math.log2(most)))]
    first = next((size for size in [*grid, most] if passes(size)), None)
    if first is None:
        numbers = {size: value for size, value in tried.items() if not math.isnan(value)}
        best = max(numbers, key=lambda size: (numbers[size], -size), default=most)
        return Smallest("FAILED", best, numbers.get(best), target, tuple(sorted(tried.items())))
    found = first
    low = max((size for size in tried if size < first), default=0)
    while True:
        found = _bisect(passes, low, found)
        below = [size for size in _local(found, local) if passes(size)]
        if not below:
            return Smallest("OK", found, tried[found], target, tuple(sorted(tried.items())))
        found = min(below)
        low = max((size for size in tried if size < found and not passes(size)), default=0)


def _bisect(passes: Callable[[int], bool], low: int, high: int) -> int:
    """Shrink an interval whose upper end passes and whose lower one does not (0 is not looked at) to neighbours."""
    while high - low > 1:
        middle = (low + high) // 2
        if passes(middle):
            high = middle
        else:
            low = middle
    return high


def _local(size: int, count: int) -> list[int]:
    """The sizes right below, and as many spread evenly down to half the size."""
    near = range(max(1, size - count), size)
    spread = (size - round(size * step / (2 * count)) for step in range(1, count + 1))
    return sorted({*near, *(other for other in spread if 1 <= other < size)})
