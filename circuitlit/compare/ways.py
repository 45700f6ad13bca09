"""Do ways to tune differ by more than seeds of one do? Overlaps within and between ways, beside all other groupings."""

from __future__ import annotations

import itertools
import random
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import factorial, prod
from statistics import mean

FEWEST = 40  # groupings: the least p is .025, that two such claims can be below .05 after correction
MOST = 20_000  # that are tried: all would be hours with five seeds of four ways


@dataclass(frozen=True, kw_only=True)
class WayOverlap:
    """How much more circuits share within a way to tune than between two.

    Attributes:
        within: mean overlap of two seeds, corrected for chance, by way.
        between: the same of two ways, by their names joined with " / ".
        difference: mean of `within` over its pairs less mean of `between` over its.
        groupings: ways to deal the runs to groups of these sizes that were tried, the true one among them: all, or
            `MOST` where there are more.
        rank_p: share of them whose difference is at least as large. None where they are fewer than `FEWEST`.
        p_holm: corrected for all claims of the result.
    """

    within: dict[str, float]
    between: dict[str, float]
    difference: float
    groupings: int
    rank_p: float | None
    p_holm: float | None = None


def way_overlap(ways: Sequence[str], overlaps: Mapping[tuple[int, int], float]) -> WayOverlap | None:
    """Compare overlaps within ways to overlaps between them; None unless at least two ways have two runs or more.

    The test is exact: were ways no different from seeds, each dealing of the runs to groups would be as likely. Where
    there are more than `MOST`, the true one stands beside random ones.

    Args:
        ways: of each run.
        overlaps: of every two runs, by their places, the smaller first.
    """
    sizes = {way: ways.count(way) for way in dict.fromkeys(ways)}
    if sum(size > 1 for size in sizes.values()) < 2:
        return None
    alike: dict[str, list[float]] = {}
    apart: dict[str, list[float]] = {}
    for (a, b), value in overlaps.items():
        if ways[a] == ways[b]:
            alike.setdefault(ways[a], []).append(value)
        else:
            apart.setdefault(" / ".join(sorted((ways[a], ways[b]))), []).append(value)
    true = _difference(ways, overlaps)
    dealings: Iterator[Sequence[object]] = _groupings(tuple(sizes.values()), len(ways))
    alike_sizes = Counter(sizes.values()).values()
    if factorial(len(ways)) // prod(map(factorial, [*sizes.values(), *alike_sizes])) > MOST:
        draw = random.Random(0)
        dealings = itertools.chain([ways], (draw.sample(ways, len(ways)) for _ in range(MOST - 1)))
    dealt = [_difference(labels, overlaps) for labels in dealings]
    return WayOverlap(
        within={way: mean(values) for way, values in alike.items()},
        between={both: mean(values) for both, values in apart.items()},
        difference=true,
        groupings=len(dealt),
        rank_p=mean(value >= true - 1e-12 for value in dealt) if len(dealt) >= FEWEST else None,
    )


def _difference(labels: Sequence[object], overlaps: Mapping[tuple[int, int], float]) -> float:
    alike = [value for (a, b), value in overlaps.items() if labels[a] == labels[b]]
    return mean(alike) - mean(value for (a, b), value in overlaps.items() if labels[a] != labels[b])


def _groupings(sizes: tuple[int, ...], runs: int) -> Iterator[tuple[int, ...]]:
    """Every dealing of the runs to groups of these sizes, as a group's number for each; each dealing once."""
    seen: set[frozenset[frozenset[int]]] = set()

    def deal(left: frozenset[int], groups: tuple[frozenset[int], ...]) -> Iterator[tuple[frozenset[int], ...]]:
        if len(groups) == len(sizes):
            yield groups
            return
        for chosen in itertools.combinations(sorted(left), sizes[len(groups)]):
            yield from deal(left - set(chosen), (*groups, frozenset(chosen)))

    for groups in deal(frozenset(range(runs)), ()):
        if (key := frozenset(groups)) not in seen:
            seen.add(key)
            yield tuple(next(number for number, group in enumerate(groups) if run in group) for run in range(runs))
